"""An environment of the learner's process that is like those of the training environment, and that stays like them."""

import copy
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

# Plain attributes by name, of an environment and its wrappers by their classes
Attributes = dict[str, dict[str, Any]]

# Arrays with more entries are no settings
_MAX_ENTRIES = 100


class Twin:
    """
    An environment whose goal methods can be called without a round trip: the first one of the ``VecEnv`` itself where
    environments live in this process, else another one like it, which is never reset or stepped (a :meth:`copy` may be).

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
        """Whether it is another one than the environment, which would answer now: none that collects is kept waiting."""
        return not self.is_itself and not getattr(self.vec_env, "is_collecting", False)

    def ask(self, method: str, *args: Any) -> Any:
        """
        :param method: name of a method
        :param args: its arguments
        :return: what the first environment of the ``VecEnv`` itself returns
        """
        return self.vec_env.env_method(method, *args, indices=0)[0]

    def follow(self, attributes: Attributes) -> None:
        """
        Take over what a worker has sent of its environment.

        :param attributes: see :func:`plain_attributes`; of an environment that was made by the same function
        """
        if not self.is_itself:
            for layer in _layers(self.env):
                vars(layer).update(attributes.get(_class_name(layer), {}))

    def copy_attributes(self) -> None:
        """Ask for the plain attributes that it has itself, one by one, as environments of SB3's processes tell no more."""
        for layer in _layers(self.env):
            # What is None here may be a window or a lock there, which does not come through a pipe
            names = [name for name, value in _plain(layer).items() if value is not None]
            for name in names:
                if self.vec_env.has_attr(name):
                    setattr(layer, name, self.vec_env.get_attr(name, 0)[0])

    def copy(self) -> gym.Env:
        """
        :return: one more like it, which may be stepped; the caller's to close
        :raises Exception: whatever keeps it from being made
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
            # Nor does it open a window
            vars(layer).update({name: value for name, value in values.items() if name != "render_mode"})
        return env

    def close(self) -> None:
        """Close it, unless it is the training environment's own."""
        if not self.is_itself:
            self.env.close()


def plain_attributes(env: gym.Env) -> Attributes:
    """
    :param env: an environment
    :return: of each of its layers the attributes that are numbers, strings, small arrays, or lists, tuples and dicts of these
    """
    return {
        _class_name(layer): {name: value for name, value in vars(layer).items() if _is_plain(value)} for layer in _layers(env)
    }


def _class_name(layer: gym.Env) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _layers(env: gym.Env) -> Iterator[gym.Env]:
    """:return: the wrappers of an environment from the outermost on, and the environment"""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _plain(layer: gym.Env) -> dict[str, Any]:
    """:return: its plain attributes by name, with those of its classes, which may have become its own elsewhere"""
    classes = [cls for cls in type(layer).__mro__ if not cls.__module__.startswith("gymnasium.")]
    attributes = {name: value for cls in reversed(classes) for name, value in vars(cls).items()} | vars(layer)
    return {name: value for name, value in attributes.items() if not name.startswith("__") and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    # No subclasses: what comes through a pipe must be known at its other end
    if type(value) is dict:
        return len(value) <= _MAX_ENTRIES and all(map(_is_plain, (*value.keys(), *value.values())))
    if type(value) in (list, tuple):
        return len(value) <= _MAX_ENTRIES and all(map(_is_plain, value))
    if type(value) is np.ndarray:
        return value.size <= _MAX_ENTRIES and value.dtype != object
    return value is None or type(value) in (bool, int, float, str) or isinstance(value, np.number | np.bool_)


def _make_twin(env: VecEnv) -> gym.Env:
    """
    :param env: the training environment, without wrappers of all environments
    :return: another environment, for this process
    """
    try:
        # Collectors know how their environments are made; SubprocVecEnv has forgotten
        return env.make_env(0) if hasattr(env, "make_env") else _make_from_spec(env.get_attr("spec", 0)[0])
    except Exception as error:
        raise ValueError(
            "The goal's reward function is needed in the learner's process, and no twin of the workers' environments can be "
            f"made there ({type(error).__name__}: {error}). The function that makes an environment of a ParallelCollector "
            "must work in this process, too. With SubprocVecEnv, register your environment with `gymnasium.register` and "
            "create it by `gymnasium.make`, or use ParallelCollector. DummyVecEnv needs no twin."
        ) from error


def _make_from_spec(spec: EnvSpec | None) -> gym.Env:
    """
    :param spec: how ``gymnasium.make`` makes the environments
    :return: another one, as far as its goal methods go
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
    :param wrappers: the wrappers of an environment, from the innermost on
    :return: those that a twin needs for its goal methods: the topmost with such methods of its own, and what lies beneath it;
        without those that cannot be made again from a spec (Monitor among them), as only observations pass through these
    """
    gives_goals = [_has_goals(wrapper) for wrapper in wrappers]
    n_needed = len(wrappers) - gives_goals[::-1].index(True) if any(gives_goals) else 0
    for wrapper, gives in zip(wrappers, gives_goals, strict=True):
        if gives and wrapper.kwargs is None:
            raise ValueError(
                f"the wrapper {wrapper.name} that has the reward function does not say how it is made, let it inherit from "
                "`gymnasium.utils.RecordConstructorArgs`"
            )
    return tuple(wrapper for wrapper in wrappers[:n_needed] if wrapper.kwargs is not None)


def _has_goals(wrapper: WrapperSpec) -> bool:
    """:return: whether the wrapper has goal methods of its own"""
    try:
        return hasattr(load_env_creator(wrapper.entry_point), "compute_reward")
    except (ImportError, AttributeError):
        # Its class lives in a function or in a worker's main module
        return False
