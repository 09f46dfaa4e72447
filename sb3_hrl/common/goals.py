"""What an environment says about goals, asked in the learner's process: success, tolerance, termination."""

import contextlib
import copy
import weakref

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from sb3_hrl.common.probes import around, between, probe_distances, unit_blocks
from sb3_hrl.common.rewards import ComputeReward, check_rewards, goal_rewards
from sb3_hrl.common.spaces import existing_goals, flat_limits, flatten, goal_space, in_goal_space, is_whole

__all__ = ["ComputeReward", "GoalTask", "check_reward", "goal_task_from_env"]

# Goals to try a reward with are drawn from no farther away
_WIDE = 1e3


class GoalTask:
    """
    Success of achieved goals, vectorised, from the environment's own ``compute_reward``.
    Never by ``VecEnv.env_method``: that costs a round trip and desynchronises a pending step.

    A *sparse* reward takes two values and success is the higher one. With any other reward, success is an Euclidean
    distance of at most ``threshold``.

    :param compute_reward: the environment's method, called with goals in the shape and type of ``goal_space`` and an array of
        empty infos
    :param goals: some desired goals of the environment, to probe with, shape (n, goal_dim)
    :param threshold: distance at which a goal counts as reached; ``None`` to find it by probing
    :param ends_at_success: whether an episode ends when its goal is reached
    :param goal_space: space of the goals; ``None``: the environment takes them as they are, flat
    :param achieved: some achieved goals of the environment, shape (m, goal_dim), which tell as well where its goals lie
    """

    def __init__(
        self,
        compute_reward: ComputeReward,
        goals: np.ndarray,
        threshold: float | None = None,
        ends_at_success: bool = False,
        goal_space: spaces.Space | None = None,
        achieved: np.ndarray | None = None,
    ):
        self.compute_reward = compute_reward
        self.ends_at_success = ends_at_success
        self.goal_space = goal_space
        self.best_reward = float(check_rewards(self.rewards(goals, goals)).max())
        self._is_whole = is_whole(goal_space)
        seen = goals if achieved is None else np.concatenate([goals, achieved])
        self._seen, self._blocks = seen, [] if self._is_whole else unit_blocks(seen)
        # A few goals are enough to probe with
        goals, distances = goals[:4], probe_distances(self._is_whole)
        rewards = self._rewards_around(goals, distances)
        self.is_sparse = _is_sparse(rewards, self.best_reward, threshold)
        self.threshold = float(self._tolerance(goals, distances, rewards) if threshold is None else threshold)

    def rewards(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """
        :param achieved: shape (n, goal_dim)
        :param desired: shape (n, goal_dim)
        :return: the environment's rewards, shape (n,)
        """
        return goal_rewards(self.compute_reward, self.goal_space, achieved, desired)

    def success(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """
        :param achieved: shape (n, goal_dim)
        :param desired: shape (n, goal_dim)
        :return: booleans, shape (n,)
        """
        if self.is_sparse:
            return _is_best(check_rewards(self.rewards(achieved, desired)), self.best_reward)
        return np.linalg.norm(achieved - desired, axis=-1) <= self.threshold

    def _rewards_around(self, goals: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """
        :param goals: shape (n, goal_dim)
        :param distances: increasing
        :return: rewards of what lies at each distance from each goal, shape (len(distances), n_probes)
        """
        points = existing_goals(around(goals, distances, self._blocks), self.goal_space, self._seen)
        achieved, desired = np.broadcast_arrays(points, goals)
        shape = (-1, goals.shape[1])
        return self.rewards(achieved.reshape(shape), desired.reshape(shape)).reshape(len(distances), -1)

    def _tolerance(self, goals: np.ndarray, distances: np.ndarray, rewards: np.ndarray) -> float:
        """
        :param goals: shape (n, goal_dim)
        :param distances: increasing
        :param rewards: of what lies at these distances, two values in all, shape (len(distances), n_probes)
        :return: largest distance that is still a success in every direction of the axes
        """
        reached = np.asarray(_is_best(rewards, self.best_reward).all(axis=1))
        if not reached[0]:
            if self._is_whole or np.array_equal(goals, np.rint(goals)):
                # Goals are compared bit by bit: two of them differ by at least 1
                return 0.5
            raise ValueError(
                "No distance explains when a goal counts as reached: by `compute_reward` it is not even at a distance of "
                f"{distances[0]:.0e}. Pass the distance at which a subgoal counts as reached as `threshold` in "
                "`subgoal_kwargs` (in the units of the achieved goal), or give `compute_reward` a tolerance: real numbers "
                "never meet to the last digit."
            )
        # Between the last distance up to which all probes succeed and the next one
        inner = int(np.argmin(reached))
        fine = between(distances[inner - 1], distances[inner], self._is_whole)
        still = _is_best(self._rewards_around(goals, fine), self.best_reward).all(axis=1)
        return float(fine[np.flatnonzero(still)[-1]])


def _is_best(rewards: np.ndarray, best_reward: float) -> np.ndarray:
    return np.greater_equal(rewards, best_reward - 1e-6)


def _is_sparse(rewards: np.ndarray, best_reward: float, threshold: float | None) -> bool:
    """
    :param rewards: of probes at many distances; NaN where the reward of a probe is not defined
    :param best_reward: that of a goal for itself
    :param threshold: distance at which a goal counts as reached, if given
    :return: whether the reward has two values
    :raises ValueError: if it says nothing about what reaching a goal means
    """
    values = np.append(rewards, best_reward)
    is_sparse = len(np.unique(values[~np.isnan(values)])) <= 2
    if is_sparse and _is_best(rewards, best_reward).all():
        raise ValueError(
            "`compute_reward` says that every goal is always reached: the environment gives no goal to learn from. "
            "Check its `compute_reward(achieved_goal, desired_goal, info)`."
        )
    if not is_sparse and threshold is None:
        raise ValueError(
            "The environment's reward is dense, so the distance at which a goal counts as reached cannot be found by "
            "probing `compute_reward`: pass it as `threshold` in `subgoal_kwargs` (in the units of the achieved goal)."
        )
    return is_sparse


def _local_env(env: VecEnv, stack: contextlib.ExitStack) -> gym.Env:
    """
    An environment of this process that is like those of the ``VecEnv``: the first one itself, or a twin.

    :param env: the training environment
    :param stack: closes the twin
    :return: an environment whose goal methods can be called without a round trip
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if isinstance(env, DummyVecEnv):
        return env.envs[0]
    try:
        # Collectors know how their environments are made; SubprocVecEnv has forgotten
        twin = env.make_env(0) if hasattr(env, "make_env") else _make_from_spec(env.get_attr("spec", 0)[0])
    except Exception as error:
        raise ValueError(
            "The goal's reward function is needed in the learner's process, and no twin of the workers' environments can be "
            f"made there ({type(error).__name__}: {error}). The function that makes an environment of a ParallelCollector "
            "must work in this process, too. With SubprocVecEnv, register your environment with `gymnasium.register` and "
            "create it by `gymnasium.make`, or use ParallelCollector. DummyVecEnv needs no twin."
        ) from error
    stack.callback(twin.close)
    return twin


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


def _goal_space(env: VecEnv) -> spaces.Space | None:
    """:return: the space of goals, if there are any"""
    return goal_space(env.observation_space) if isinstance(env.observation_space, spaces.Dict) else None


def _goal_reward(local: gym.Env, threshold: float | None, space: spaces.Space | None) -> tuple[ComputeReward, float | None]:
    """
    :param local: an environment of this process
    :param threshold: distance at which a goal counts as reached, if given
    :param space: goal space of the training environment
    :return: its reward function, and the threshold, if need be the environment's own
    """
    try:
        compute_reward = local.get_wrapper_attr("compute_reward")
    except AttributeError as error:
        raise ValueError(
            "A goal-conditioned environment needs a method `compute_reward(achieved_goal, desired_goal, info)`, "
            "see gymnasium_robotics.core.GoalEnv."
        ) from error
    _check_same_goals(local, space)
    if threshold is None and getattr(local.unwrapped, "reward_type", None) == "dense":
        threshold = getattr(local.unwrapped, "distance_threshold", None)
    return compute_reward, threshold


def _check_same_goals(local: gym.Env, space: spaces.Space | None) -> None:
    """
    :param local: an environment of this process that has ``compute_reward``
    :param space: goal space of the training environment
    :raises ValueError: if a wrapper on top of what has ``compute_reward`` has changed the shape of goals
    """
    owner = local
    while isinstance(owner, gym.Wrapper) and not (hasattr(type(owner), "compute_reward") or "compute_reward" in vars(owner)):
        owner = owner.env
    if space is None or not isinstance(owner.observation_space, spaces.Dict):
        return
    own = owner.observation_space.spaces.get("desired_goal", space)
    if own.shape != space.shape:
        raise ValueError(
            f"A wrapper, such as VecFrameStack or FrameStackObservation, makes goals of shape {space.shape} out of those of "
            f"shape {own.shape} that `compute_reward` takes: leave goals as they are. For a history of observations wrap the "
            "single environment, so that only `observation` grows: `rl_zoo3.wrappers.HistoryWrapperObsDict` (`env_wrapper` in "
            "the zoo, `wrapper_class` of make_vec_env)."
        )


def _ends_at_success(local: gym.Env, goal: np.ndarray, space: spaces.Space | None) -> bool:
    """
    :param local: an environment of this process
    :param goal: a goal of it, shape (goal_dim,)
    :param space: goal space
    :return: whether its ``compute_terminated``, if it has one, ends an episode at the goal
    """
    try:
        compute_terminated = local.get_wrapper_attr("compute_terminated")
    except AttributeError:
        return False
    goal = in_goal_space(goal[None], space)[0]
    try:
        return bool(compute_terminated(goal, goal, {}))
    except Exception as error:
        raise ValueError(
            f"`compute_terminated` raised {type(error).__name__} ({error}) when called with two equal goals of shape "
            f"{goal.shape} and an empty info: let it depend on the two goals alone, or leave the method out."
        ) from error


def goal_task_from_env(
    env: VecEnv, goals: np.ndarray, threshold: float | None = None, achieved: np.ndarray | None = None
) -> GoalTask:
    """
    :param env: the training environment, whose environments have ``compute_reward(achieved, desired, info)``
    :param goals: some desired goals of the environment, shape (n, goal_dim)
    :param threshold: distance at which a goal counts as reached; ``None``: the environment's ``distance_threshold``
        where its reward is dense, else found by probing
    :param achieved: some achieved goals, shape (m, goal_dim)
    :return: the environment's goals, as the learner sees them
    """
    space = _goal_space(env)
    with contextlib.ExitStack() as stack:
        local = _local_env(env, stack)
        compute_reward, threshold = _goal_reward(local, threshold, space)
        task = GoalTask(compute_reward, goals, threshold, _ends_at_success(local, goals[0], space), space, achieved)
        # A twin is closed when it is not needed any more
        weakref.finalize(task, stack.pop_all().close)
        return task


def check_reward(env: VecEnv, threshold: float | None = None) -> None:
    """
    Refuse early what :func:`goal_task_from_env` would refuse. The environment is neither reset nor stepped, and no generator
    of random numbers is touched: goals are drawn from a copy of the goal space. They may be none that the environment would
    give, so what only these tell (the tolerance, whether rewards are NaN) is left to :func:`goal_task_from_env`.

    :param env: the training environment, with goals
    :param threshold: distance at which a goal counts as reached, if given
    :raises ValueError: if the reward function is missing, fails on arrays, or does not say what reaching a goal means
    """
    space = copy.deepcopy(_goal_space(env))
    assert isinstance(space, spaces.Box | spaces.MultiBinary)
    space.seed(0)
    # Near the origin where the space is wide: probes of a goal of 1e30 would be that goal again
    middle = np.clip(0.0, *flat_limits(space))
    goals = np.concatenate([flatten(space.sample(), 1) for _ in range(4)])
    goals = np.clip(goals, middle - _WIDE, middle + _WIDE).astype(np.float32)
    points = existing_goals(around(goals, probe_distances(is_whole(space)), []), space, goals)
    achieved, desired = np.broadcast_arrays(points, goals)
    shape = (-1, goals.shape[1])
    with contextlib.ExitStack() as stack:
        local = _local_env(env, stack)
        compute_reward, threshold = _goal_reward(local, threshold, space)
        _ends_at_success(local, goals[0], space)
        best_reward = goal_rewards(compute_reward, space, goals, goals).max()
        rewards = goal_rewards(compute_reward, space, achieved.reshape(shape), desired.reshape(shape))
    if not np.isnan(best_reward):
        _is_sparse(rewards, float(best_reward), threshold)
