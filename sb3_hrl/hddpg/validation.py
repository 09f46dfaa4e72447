"""Checks of the input. The error messages name the parameter and the cure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_hrl.common.buffers import GOAL_KEYS, SharedMemoryReplayBuffer
from sb3_hrl.common.checks import is_integer, require


def check_action_space(action_space: spaces.Space) -> None:
    """
    :param action_space: action space of the environment
    :raises ValueError: if actions are not continuous
    """
    if not isinstance(action_space, spaces.Box):
        raise ValueError(
            f"HierarchicalDDPG needs continuous actions, a Box space, not {action_space}: wrap the environment, or use an "
            "algorithm for discrete actions, such as SB3's DQN with HerReplayBuffer."
        )


def check_observation_space(observation_space: spaces.Space) -> None:
    """
    :param observation_space: observation space of the environment
    :raises ValueError: if it does not belong to a goal-conditioned environment
    """
    if not isinstance(observation_space, spaces.Dict) or set(observation_space.spaces) != set(GOAL_KEYS):
        raise ValueError(
            f"HierarchicalDDPG needs a goal-conditioned environment: a Dict observation space with exactly the keys "
            f"{GOAL_KEYS}, as in gymnasium_robotics.core.GoalEnv, not {observation_space}."
        )
    achieved, desired = observation_space["achieved_goal"], observation_space["desired_goal"]
    if type(achieved) is not type(desired) or achieved.shape != desired.shape:
        raise ValueError(
            f"`achieved_goal` ({achieved}) and `desired_goal` ({desired}) must be spaces of the same kind and shape: "
            "a subgoal is a point in both."
        )
    if not isinstance(desired, spaces.Box | spaces.MultiBinary):
        raise ValueError(f"Goals must be Box or MultiBinary spaces, not {desired}: wrap the environment to give vectors.")
    observation = observation_space["observation"]
    if not isinstance(observation, spaces.Box | spaces.MultiBinary) or len(observation.shape) > 2:
        raise ValueError(
            f"`observation` must be a Box or MultiBinary space of vectors, not {observation}: flatten it with a wrapper "
            "(images are not supported)."
        )


def check_vec_normalize(env: VecNormalize | None) -> None:
    """
    :param env: the VecNormalize wrapper around the training environment, if any
    :raises ValueError: if it normalises observations
    """
    if env is not None and env.norm_obs:
        raise ValueError(
            "VecNormalize normalises achieved and desired goals with different statistics, so a subgoal could not be "
            "compared with either. HierarchicalDDPG has its own normalisation (`normalize_inputs=True`): "
            "pass `norm_obs=False` to VecNormalize, or remove `normalize: true` from the zoo's hyperparameters."
        )


def check_arguments(model: Any) -> None:
    """
    Check the arguments that are not options, see :mod:`sb3_hrl.hddpg.config` for the options.

    :param model: a HierarchicalDDPG with its arguments as attributes
    :raises ValueError: if an argument is out of range
    """
    interval, depth = model.high_update_interval, model.prefetch_depth
    rule = "a whole number of at least 1 (low-level gradient steps)"
    require(is_integer(interval, 1), "high_update_interval", rule, interval)
    require(is_integer(depth, 0), "prefetch_depth", "a whole number of at least 0 (batches prepared ahead)", depth)
    for n_steps in (model.n_steps, model.replay_buffer_kwargs.get("n_steps", 1)):
        require(n_steps == 1, "n_steps", "1: both levels learn from single transitions", n_steps)
    packed = "False: the rows of the buffer are already packed"
    require(not model.optimize_memory_usage, "optimize_memory_usage", packed, model.optimize_memory_usage)
    buffer_class = model.replay_buffer_class
    if buffer_class is not None and not issubclass(buffer_class, SharedMemoryReplayBuffer):
        what = "supports hindsight for one level only" if issubclass(buffer_class, HerReplayBuffer) else "stores no segments"
        raise ValueError(
            f"`replay_buffer_class` must be SharedMemoryReplayBuffer or a subclass, not {buffer_class.__name__}, which "
            f"{what}: leave it out, hindsight is built in."
        )


def check_predict_input(observation: Any, space: spaces.Space) -> None:
    """
    :param observation: argument of ``predict``
    :param space: the agent's observation space
    :raises ValueError: if it is not a dict of finite arrays with the three keys, all for the same number of environments
    """
    if not isinstance(observation, Mapping) or not set(GOAL_KEYS) <= set(observation):
        keys = (
            f"a dict with the keys {sorted(observation)}" if isinstance(observation, Mapping) else type(observation).__name__
        )
        raise ValueError(
            f"HierarchicalDDPG needs observations that are dicts with `observation`, `achieved_goal` and `desired_goal`, "
            f"not {keys}. For SB3 environments, pass the observations of `env.reset()` and `env.step()`."
        )
    assert isinstance(space, spaces.Dict)
    batch_shapes = set()
    for key in GOAL_KEYS:
        array, shape = np.asarray(observation[key]), space[key].shape
        assert shape is not None
        n_batch = array.ndim - len(shape)
        if array.shape[n_batch:] != shape or n_batch not in (0, 1):
            raise ValueError(f"`{key}` has the shape {array.shape}, but must have {shape}, or (n, ...) for n environments.")
        batch_shapes.add(array.shape[:n_batch])
        if not np.isfinite(array).all():
            raise ValueError(f"`{key}` has values that are not finite (NaN or infinite): check the environment.")
    if len(batch_shapes) > 1:
        raise ValueError(f"The parts of the observation have different numbers of environments: {sorted(batch_shapes)}.")


def per_dimension(name: str, value: Any, dim: int) -> np.ndarray:
    """
    :param name: name of the parameter, for the error message
    :param value: a number, or one per dimension
    :param dim: length of a goal
    :return: one number per dimension, shape (dim,)
    """
    array = np.asarray(value, dtype=np.float32)
    if array.shape not in ((), (1,), (dim,)):
        raise ValueError(f"`{name}` must be a number or {dim} of them, one per dimension of the goal, not {value}.")
    return np.broadcast_to(array, (dim,)).copy()
