"""Bad input is refused by a sentence that names the parameter and the cure."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer

from sb3_hrl.common.buffers import GOAL_KEYS, SharedMemoryReplayBuffer

SUBGOAL_SOURCES = ("policy", "goal", "random")


def check_spaces(observation_space: spaces.Space) -> None:
    """
    :param observation_space: observation space of the environment
    :raises ValueError: unless it is that of a goal-conditioned environment
    """
    if not isinstance(observation_space, spaces.Dict) or set(observation_space.spaces) != set(GOAL_KEYS):
        raise ValueError(
            f"HierarchicalDDPG needs a goal-conditioned environment: a Dict observation space with exactly the keys "
            f"{GOAL_KEYS}, as those of gymnasium_robotics.core.GoalEnv, not {observation_space}."
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
            "VecNormalize normalises achieved and desired goals by different statistics, so that a subgoal would not be "
            "comparable with either. HierarchicalDDPG has a normaliser of its own (`normalize_inputs=True`): "
            "pass `norm_obs=False` to VecNormalize, or remove `normalize: true` from the zoo's hyperparameters."
        )


def check_options(model: Any) -> None:
    """
    :param model: a HierarchicalDDPG whose arguments are stored
    :raises ValueError: if one of them is out of its range
    """
    rules = {
        "subgoal_steps": (model.subgoal_steps >= 1, "at least 1 (environment steps per segment)"),
        "subgoal_threshold": (model.subgoal_threshold is None or model.subgoal_threshold > 0, "positive, or None to find it"),
        "hindsight_action_prob": (0.0 <= model.hindsight_action_prob <= 1.0, "in [0, 1]"),
        "subgoal_test_prob": (0.0 <= model.subgoal_test_prob <= 1.0, "in [0, 1]"),
        "high_update_interval": (model.high_update_interval is None or model.high_update_interval >= 1, "at least 1, or None"),
        "min_segment_steps": (1 <= model.min_segment_steps <= model.subgoal_steps, "between 1 and `subgoal_steps`"),
        "subgoal_hold_steps": (model.subgoal_hold_steps >= 1, "at least 1 (environment steps in a row)"),
        "noise_hold_steps": (model.noise_hold_steps >= 1, "at least 1 (environment steps)"),
        "trivial_segment_prob": (0.0 <= model.trivial_segment_prob <= 1.0, "in [0, 1]"),
        "direct_goal": (model.direct_goal >= 0.0, "at least 0 (times `subgoal_steps`)"),
        "threshold_scale": (model.threshold_scale >= 1.0, "at least 1: the threshold shrinks"),
        "threshold_shrink_fraction": (0.0 <= model.threshold_shrink_fraction <= 1.0, "in [0, 1]"),
        "planner": (model.planner in (None, "landmarks"), "'landmarks', or None for the high level's actor"),
        "low_level": (model.low_level is None or callable(model.low_level), "a function of (observation, achieved, subgoal)"),
        "n_steps": (model.n_steps == 1, "1: n-step returns do not go with hindsight goals"),
        "prefetch_depth": (model.prefetch_depth >= 0, "at least 0 (batches prepared ahead)"),
        "optimize_memory_usage": (not model.optimize_memory_usage, "False: the buffer's rows are packed already"),
    }
    for name, (valid, rule) in rules.items():
        if not valid:
            raise ValueError(f"`{name}` must be {rule}, not {getattr(model, name)!r}.")
    if isinstance(model.subgoal_source, str) and model.subgoal_source not in SUBGOAL_SOURCES:
        raise ValueError(f"`subgoal_source` must be one of {SUBGOAL_SOURCES} or a point, not {model.subgoal_source!r}.")
    if model.planner is None and model.planner_kwargs:
        raise ValueError("`planner_kwargs` are of no use without a planner: pass `planner='landmarks'`.")
    buffer_class = model.replay_buffer_class
    if buffer_class is not None and not issubclass(buffer_class, SharedMemoryReplayBuffer):
        what = "does hindsight for one level only" if issubclass(buffer_class, HerReplayBuffer) else "knows no segments"
        raise ValueError(
            f"`replay_buffer_class` must be SharedMemoryReplayBuffer or a subclass, not {buffer_class.__name__}, which "
            f"{what}: leave it out, hindsight is built in."
        )
    if model.subgoal_radius is not None and np.min(model.subgoal_radius) <= 0:
        raise ValueError(f"`subgoal_radius` must be positive, or None to find it, not {model.subgoal_radius}.")
    if model.subgoal_bounds is not None:
        bounds = model.subgoal_bounds
        if len(bounds) != 2 or not np.all(np.asarray(bounds[0]) < np.asarray(bounds[1])):
            raise ValueError(f"`subgoal_bounds` must be (low, high) with low < high in every dimension, not {bounds}.")


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
