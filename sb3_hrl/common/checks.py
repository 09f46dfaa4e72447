"""Checks of arguments. The error messages name the parameter and the cure."""

import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
T = TypeVar("T")


def require(valid: bool, name: str, rule: str, value: Any) -> None:
    """
    Raise an error if an argument breaks its rule.

    :param valid: whether the value follows the rule
    :param name: name of the parameter
    :param rule: what the value must be, with its unit, such as "at least 1 (steps)"
    :param value: the value
    :raises ValueError: if it is not valid
    """
    if not valid:
        raise ValueError(f"`{name}` must be {rule}, not {value!r}.")


def check_keys(what: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """
    Raise an error for unknown keys, most of which are misspelled.

    :param what: the parameter with these keys, such as "high_kwargs"
    :param keys: its keys
    :param known: the valid keys
    :raises ValueError: with the unknown keys, the closest valid key to each, and all valid keys
    """
    known = sorted(known)
    unknown = sorted(set(keys).difference(known))
    if not unknown:
        return
    nearest = {key: difflib.get_close_matches(key, known, n=1) for key in unknown}
    names = ", ".join(f"`{key}`" + "".join(f" (did you mean `{match}`?)" for match in nearest[key]) for key in unknown)
    raise ValueError(f"`{what}` has unknown keys: {names}. It may have {', '.join(f'`{key}`' for key in known)}.")


def is_integer(value: Any, least: int) -> bool:
    """
    :param value: an argument
    :param least: minimum
    :return: whether it is an integer (not a bool, a float or a string) and at least the minimum
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def is_number(value: Any, low: float = -sys.float_info.max, high: float = sys.float_info.max) -> bool:
    """
    :param value: an argument
    :param low: lower bound, included
    :param high: upper bound, included; ``math.inf`` to allow infinity
    :return: whether it is a number (not a bool, a string or NaN) within the bounds
    """
    is_real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return is_real and low <= float(value) <= high


def check_argument_names(groups: Mapping[str, Iterable[str]]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """
    Decorate a function so that a misspelled argument raises an error that names the closest valid argument.

    :param groups: names of options by the argument that holds them as a mapping
    :return: the decorator
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        known = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for name in sorted(set(kwargs).difference(known)):
                group = next((group for group, options in groups.items() if name in options), None)
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f" (did you mean `{nearest[0]}`?)" if nearest else ""
                hint = f": it is an option of `{group}`, pass `{group}=dict({name}=...)`" if group is not None else hint
                raise TypeError(f"Unknown argument `{name}`{hint}. Known arguments: {', '.join(known[1:])}.")
            return function(*args, **kwargs)

        return checked

    return decorate
