"""An environment in the learner's process that mirrors those of the training environment."""

import copy
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

# Plain attributes by name, for an environment and each of its wrappers, by class
Attributes = dict[str, dict[str, Any]]

# Arrays with more entries are not treated as settings
_MAX_ENTRIES = 100


class Twin:
    """
    An environment whose goal methods can be called without a round trip to a worker. If the environments are in this process,
    it is the first environment of the ``VecEnv`` itself. Otherwise it is another environment of the same kind, which is never
    reset or stepped (a :meth:`copy` may be).

    :param env: the training environment
    """

    def __init__(self, env: VecEnv):
        while isinstance(env, VecEnvWrapper):
            env = env.venv
        self.vec_env = env
        self.is_itself = isinstance(env, DummyVecEnv)
        self.env: gym.Env = env.envs[0] if isinstance(env, DummyVecEnv) else _make_twin(env)

    @property
    def can_ask(self) -> bool:
        """Whether the environments are in other processes and can answer now, which they cannot while they collect."""
        return not self.is_itself and not getattr(self.vec_env, "is_collecting", False)

    def ask(self, method: str, *args: Any) -> Any:
        """
        :param method: name of a method
        :param args: its arguments
        :return: result of the first environment of the ``VecEnv`` itself
        """
        return self.vec_env.env_method(method, *args, indices=0)[0]

    def follow(self, attributes: Attributes) -> None:
        """
        Copy attributes that a worker has sent from its environment.

        :param attributes: see :func:`plain_attributes`; from an environment that was created by the same function
        """
        if not self.is_itself:
            for layer in _layers(self.env):
                vars(layer).update(attributes.get(_class_name(layer), {}))

    def copy_attributes(self) -> None:
        """Copy each plain attribute from the first environment; SB3's processes only send attributes requested by name."""
        for layer in _layers(self.env):
            # An attribute that is None here may be a window or a lock there, which cannot be sent through a pipe
            names = [name for name, value in _plain(layer).items() if value is not None]
            for name in names:
                if self.vec_env.has_attr(name):
                    setattr(layer, name, self.vec_env.get_attr(name, 0)[0])

    def copy(self) -> gym.Env:
        """
        :return: another copy, which may be stepped; the caller must close it
        :raises Exception: if it cannot be created
        """
        if not self.is_itself:
            env = _make_twin(self.vec_env)
        elif self.env.spec is not None:
            env = _make_from_spec(self.env.spec)
        else:
            return copy.deepcopy(self.env)
        attributes = copy.deepcopy(plain_attributes(self.env))
        for layer in _layers(env):
            values = attributes.get(_class_name(layer), {})
            # The copy does not open a window either
            vars(layer).update({name: value for name, value in values.items() if name != "render_mode"})
        return env

    def close(self) -> None:
        """Close the twin, unless it belongs to the training environment."""
        if not self.is_itself:
            self.env.close()


def plain_attributes(env: gym.Env) -> Attributes:
    """
    :param env: an environment
    :return: the attributes of each layer that are numbers, strings, small arrays, or lists, tuples and dicts of these
    """
    return {
        _class_name(layer): {name: value for name, value in vars(layer).items() if _is_plain(value)} for layer in _layers(env)
    }


def _class_name(layer: gym.Env) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _layers(env: gym.Env) -> Iterator[gym.Env]:
    """:return: the wrappers of an environment, starting with the outermost, and the environment itself"""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _plain(layer: gym.Env) -> dict[str, Any]:
    """:return: plain attributes by name, including those of its classes, which may be set on the instance elsewhere"""
    classes = [cls for cls in type(layer).__mro__ if not cls.__module__.startswith("gymnasium.")]
    attributes = {name: value for cls in reversed(classes) for name, value in vars(cls).items()} | vars(layer)
    return {name: value for name, value in attributes.items() if not name.startswith("__") and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    # No subclasses: the receiver of a pipe may not know them
    if type(value) is dict:
        return len(value) <= _MAX_ENTRIES and all(map(_is_plain, (*value.keys(), *value.values())))
    if type(value) in (list, tuple):
        return len(value) <= _MAX_ENTRIES and all(map(_is_plain, value))
    if type(value) is np.ndarray:
        return value.size <= _MAX_ENTRIES and value.dtype != object
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, np.number | np.bool_)


def _make_twin(env: VecEnv) -> gym.Env:
    """
    :param env: the training environment, without its VecEnv wrappers
    :return: another environment, in this process
    """
    try:
        # Collectors can create their environments again; SubprocVecEnv cannot
        return env.make_env(0) if hasattr(env, "make_env") else _make_from_spec(env.get_attr("spec", 0)[0])
    except Exception as error:
        raise ValueError(
            "The goal's reward function is needed in the learner's process, but no twin of the workers' environments can be "
            f"created there ({type(error).__name__}: {error}). The function that creates an environment of a "
            "ParallelCollector must also work in this process. With SubprocVecEnv, register your environment with "
            "`gymnasium.register` and create it with `gymnasium.make`, or use ParallelCollector. DummyVecEnv needs no twin."
        ) from error


def _make_from_spec(spec: EnvSpec | None) -> gym.Env:
    """
    :param spec: spec of the environments for ``gymnasium.make``
    :return: another environment with the same goal methods
    """
    if spec is None:
        raise ValueError("the environments have no `spec`")
    spec = copy.deepcopy(spec)
    spec.additional_wrappers = _goal_wrappers(spec.additional_wrappers)
    spec.disable_env_checker = True
    # No second window
    spec.kwargs = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    return gym.make(spec)


def _goal_wrappers(wrappers: tuple[WrapperSpec, ...]) -> tuple[WrapperSpec, ...]:
    """
    :param wrappers: the wrappers of an environment, starting with the innermost
    :return: the wrappers that a twin needs for its goal methods: the outermost wrapper that defines such methods, and those
        below it. Wrappers that cannot be created from a spec (such as Monitor) are left out, because they only change
        observations
    """
    gives_goals = [_has_goals(wrapper) for wrapper in wrappers]
    n_needed = len(wrappers) - gives_goals[::-1].index(True) if any(gives_goals) else 0
    for wrapper, gives in zip(wrappers, gives_goals, strict=True):
        if gives and wrapper.kwargs is None:
            raise ValueError(
                f"the wrapper {wrapper.name} that has the reward function does not record its arguments, let it inherit from "
                "`gymnasium.utils.RecordConstructorArgs`"
            )
    return tuple(wrapper for wrapper in wrappers[:n_needed] if wrapper.kwargs is not None)


def _has_goals(wrapper: WrapperSpec) -> bool:
    """:return: whether the wrapper defines goal methods itself"""
    try:
        return hasattr(load_env_creator(wrapper.entry_point), "compute_reward")
    except (ImportError, AttributeError):
        # Its class is defined in a function or in a worker's main module
        return False
