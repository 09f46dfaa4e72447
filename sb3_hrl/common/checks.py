"""Checks of arguments: what is refused, is refused by a sentence that names the parameter and the cure."""

import difflib
from collections.abc import Iterable
from typing import Any


def require(valid: bool, name: str, rule: str, value: Any) -> None:
    """
    Refuse an argument that breaks its rule.

    :param valid: whether the value keeps the rule
    :param name: name of the parameter
    :param rule: what it must be, with its unit, such as "at least 1 (steps)"
    :param value: what it is
    :raises ValueError: if it is not valid
    """
    if not valid:
        raise ValueError(f"`{name}` must be {rule}, not {value!r}.")


def check_keys(what: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """
    Refuse keys that nobody reads, most of which are misspelled.

    :param what: the parameter that has these keys, such as "high_kwargs"
    :param keys: its keys
    :param known: those that it may have
    :raises ValueError: naming the unknown keys, the known one nearest to each, and all that are known
    """
    known = sorted(known)
    unknown = sorted(set(keys).difference(known))
    if not unknown:
        return
    nearest = {key: difflib.get_close_matches(key, known, n=1) for key in unknown}
    names = ", ".join(f"`{key}`" + "".join(f" (did you mean `{match}`?)" for match in nearest[key]) for key in unknown)
    raise ValueError(f"`{what}` has unknown keys: {names}. It may have {', '.join(f'`{key}`' for key in known)}.")
