"""What an environment says about goals, asked in the learner's process: success, tolerance, termination."""

import contextlib
import copy
import warnings
import weakref

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_hrl.common.probes import around, between, inscribed, probe_distances, unit_blocks
from sb3_hrl.common.rewards import ComputeReward, check_rewards, empty_infos, goal_rewards, is_paid_otherwise
from sb3_hrl.common.spaces import existing_goals, flat_limits, flatten, goal_space, in_goal_space, is_whole
from sb3_hrl.common.success import Pairs, has_two_values, judge
from sb3_hrl.common.twin import Attributes, Twin

__all__ = ["ComputeReward", "EnvGoalTask", "GoalTask", "check_reward", "goal_task_from_env"]

# Goals to try a reward with are drawn from no farther away
_WIDE = 1e3
# In so many steps another reward than that of goals is no accident
_N_PAID_OTHERWISE = 3


class GoalTask:
    """
    Success of achieved goals, vectorised, from the environment's own ``compute_reward``, or from what else it has to say.

    A *sparse* reward takes two values and success is the higher one. With any other reward, success is what the environment
    says beside it (:mod:`sb3_hrl.common.success`); if it says nothing, an Euclidean distance of at most ``threshold``.

    **Subgoals** are reached at an Euclidean distance of at most ``threshold``. Where it is found by probing, what is so near
    is a success, whatever the direction: the ball lies inside of what the environment takes for success, which may reach
    farther along some axes (a weighted norm), or without end (an entry of the goal that does not count).

    **Who is asked.** An environment of this process: the first one of a ``DummyVecEnv`` or ``SerialCollector`` itself, else a
    twin of it (:class:`~sb3_hrl.common.twin.Twin`), and ``VecEnv.env_method`` only when it is asked again: for each batch that
    would cost a round trip, and desynchronise a pending step. All environments of a ``VecEnv`` have to agree on what success
    is.

    **When it is asked again.** ``compute_reward`` at each batch of the high level. The tolerance, whether the reward is sparse
    and whether an episode ends at success: at the start of each ``learn``, and once per 1,000 environment steps.

    **What happens if the environment changes** (a curriculum by ``set_attr`` or ``env_method``, or by itself). The new
    tolerance becomes the distance at which subgoals are reached, for the learner, the workers and hindsight, and is logged as
    ``rollout/goal_threshold``. A ``threshold`` that was given stays; where the environment says what success is, it is that of
    subgoals alone. What was learnt from ``info["is_success"]`` of a copy stays, too. A twin gets the plain attributes
    (numbers, strings, small arrays, lists and dicts of these) of the first environment: with the reports of workers that
    collect, else when its rewards are not those of the environment, or do not say what success is. What lies deeper, in
    objects of the environment's, a twin cannot follow: a warning says so, but not while workers collect. An attribute that is
    set in environments of SB3's ``SubprocVecEnv`` has to be there from the start, and not as ``None``.

    :param compute_reward: the environment's method, called with goals in the shape and type of ``goal_space`` and an array of
        empty infos
    :param goals: some desired goals of the environment, to probe with, shape (n, goal_dim)
    :param threshold: distance at which a goal counts as reached; ``None`` to find it by probing
    :param ends_at_success: whether an episode ends when its goal is reached
    :param goal_space: space of the goals; ``None``: the environment takes them as they are, flat
    :param achieved: some achieved goals of the environment, shape (m, goal_dim), which tell as well where its goals lie
    :param compute_success: a sparse reward that says success, where ``compute_reward`` is dense
    """

    def __init__(
        self,
        compute_reward: ComputeReward,
        goals: np.ndarray,
        threshold: float | None = None,
        ends_at_success: bool = False,
        goal_space: spaces.Space | None = None,
        achieved: np.ndarray | None = None,
        compute_success: ComputeReward | None = None,
    ):
        self._take_goals(goals, goal_space, achieved)
        self._set(compute_reward, threshold, ends_at_success, compute_success)

    def _take_goals(self, goals: np.ndarray, space: spaces.Space | None, achieved: np.ndarray | None) -> None:
        """Keep goals to probe with."""
        self.goal_space = space
        self._is_whole = is_whole(space)
        self._goals = goals
        seen = goals if achieved is None else np.concatenate([goals, achieved])
        self._seen, self._blocks = seen, [] if self._is_whole else unit_blocks(seen)

    def _set(
        self,
        compute_reward: ComputeReward,
        threshold: float | None,
        ends_at_success: bool,
        compute_success: ComputeReward | None = None,
    ) -> None:
        """Take over what the environment says, and probe."""
        self.compute_reward, self.ends_at_success = compute_reward, ends_at_success
        self.compute_success = compute_reward if compute_success is None else compute_success
        self.best_reward = float(check_rewards(self._labels(self._goals, self._goals)).max())
        # A few goals are enough to probe with
        goals, distances = self._goals[:4], probe_distances(self._is_whole)
        rewards = self._labels_around(goals, distances)
        self.is_sparse = _is_sparse(rewards, self.best_reward, threshold)
        is_paid = self.is_sparse and self.compute_success is compute_reward
        self._values = np.append(rewards, self.best_reward) if is_paid else np.zeros(0)
        self.threshold = float(self._tolerance(goals, distances, rewards) if threshold is None else threshold)

    def rewards(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """
        :param achieved: shape (n, goal_dim)
        :param desired: shape (n, goal_dim)
        :return: the environment's rewards, shape (n,)
        """
        return goal_rewards(self.compute_reward, self.goal_space, achieved, desired)

    def _labels(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """:return: rewards whose higher value is success where they have two, shape (n,)"""
        return goal_rewards(self.compute_success, self.goal_space, achieved, desired)

    def success(self, achieved: np.ndarray, desired: np.ndarray) -> np.ndarray:
        """
        :param achieved: shape (n, goal_dim)
        :param desired: shape (n, goal_dim)
        :return: booleans, shape (n,)
        """
        if self.is_sparse:
            return _is_best(check_rewards(self._labels(achieved, desired)), self.best_reward)
        return np.linalg.norm(achieved - desired, axis=-1) <= self.threshold

    def _labels_around(self, goals: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """
        :param goals: shape (n, goal_dim)
        :param distances: increasing
        :return: rewards of what lies at each distance from each goal, shape (len(distances), n_probes)
        """
        return self._labels(*self._probes(goals, distances)).reshape(len(distances), -1)

    def _probes(self, goals: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:return: what lies at each distance from each goal, and the goal, shapes (n_distances * n_probes, goal_dim)"""
        return _pairs(existing_goals(around(goals, distances, self._blocks), self.goal_space, self._seen), goals)

    def _tolerance(self, goals: np.ndarray, distances: np.ndarray, rewards: np.ndarray) -> float:
        """
        :param goals: shape (n, goal_dim)
        :param distances: increasing
        :param rewards: of what lies at these distances, two values in all, shape (len(distances), n_probes)
        :return: largest distance that is still a success in every direction
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
        still = _is_best(self._labels_around(goals, fine), self.best_reward).all(axis=1)
        tolerance = float(fine[np.flatnonzero(still)[-1]])
        return tolerance if self._is_whole else self._inscribed(goals, distances, rewards, tolerance)

    def _inscribed(self, goals: np.ndarray, distances: np.ndarray, rewards: np.ndarray, tolerance: float) -> float:
        """
        :param goals: shape (n, goal_dim)
        :param distances: increasing
        :param rewards: of what lies at these distances along the axes, shape (len(distances), n_probes)
        :param tolerance: largest distance that is a success along every axis
        :return: largest distance that is a success between the axes, too
        """
        dim = goals.shape[1]
        by_axis = _is_best(rewards, self.best_reward).reshape(len(distances), 2, dim, len(goals))
        reached = np.asarray(np.all(by_axis, axis=(1, 3)))
        # Unto which distance each entry of the goal alone may be off
        per_entry = np.where(reached.all(axis=0), np.inf, distances[np.maximum(reached.argmin(axis=0) - 1, 0)])
        for block in self._blocks:
            per_entry[block] = np.inf
        candidates, points = inscribed(goals, per_entry, tolerance)
        labels = self._labels(*_pairs(points, goals)).reshape(len(candidates), -1)
        still = np.asarray(np.all(_is_best(labels, self.best_reward), axis=1))
        # The last one is the tolerance itself, as far as floating-point numbers go
        return tolerance if still[-1] else float(candidates[max(int(still.argmin()) - 1, 0)])


class EnvGoalTask(GoalTask):
    """
    Success as an environment sees it, which may change.

    :param twin: the environment that is asked; the caller's to close
    :param goals: some desired goals of the environment, shape (n, goal_dim)
    :param threshold: distance at which a goal counts as reached, if given
    :param goal_space: space of the goals
    :param achieved: some achieved goals, shape (m, goal_dim)
    :param is_rescaled: whether the rewards of steps are not those of the environment
    """

    def __init__(
        self,
        twin: Twin,
        goals: np.ndarray,
        threshold: float | None = None,
        goal_space: spaces.Space | None = None,
        achieved: np.ndarray | None = None,
        is_rescaled: bool = False,
    ):
        self._twin, self._given, self._has_warned = twin, threshold, is_rescaled
        self._take_goals(goals, goal_space, achieved)
        self._ask()
        if twin.can_ask:
            # It may have been changed before anybody asked
            self.ask_again()

    def _ask(self) -> None:
        """Ask the twin."""
        twin, space, goals = self._twin, self.goal_space, self._goals[:4]
        compute_reward = _goal_reward(twin.env, space)
        probes = Pairs(goals, *self._probes(goals, probe_distances(self._is_whole)))
        compute_success, threshold = judge(twin, compute_reward, self._given, space, probes)
        self._set(compute_reward, threshold, _ends_at_success(twin.env, goals[0], space), compute_success)

    def ask_again(self, attributes: Attributes | None = None) -> None:
        """
        Find out whether the environment has changed what success is. No random numbers are drawn, and nothing is stepped.

        :param attributes: plain attributes of the first environment, from a worker that collects; ``None`` to ask for them
        """
        twin = self._twin
        if attributes is not None:
            twin.follow(attributes)
        elif twin.can_ask and not (self.compute_success is self.compute_reward and self._agrees()):
            # A dense reward stays the same where its tolerance changes
            twin.copy_attributes()
            if not self._agrees():
                warnings.warn(
                    "`compute_reward` of the environments in other processes says something else than that of the learner's "
                    "twin, which knows neither their state nor what lies in objects of theirs: labels are the twin's. "
                    "Let numbers that it depends on be attributes of the environment itself, or use DummyVecEnv.",
                    RuntimeWarning,
                    stacklevel=2,
                )
        self._ask()

    def check_paid(self, shards: list[dict[str, np.ndarray]]) -> None:
        """
        Warn once where the environment pays for something else than its goals, which is not learnt from.

        :param shards: steps with the fields ``next_achieved_goal``, ``desired_goal`` and ``reward``, of each environment
        """
        if self._has_warned:
            return
        fields = ("next_achieved_goal", "desired_goal", "reward")
        achieved, desired, paid = (np.concatenate([steps[field] for steps in shards]) for field in fields)
        is_other = is_paid_otherwise(paid.ravel(), self.rewards(achieved, desired), self._values)
        if is_other.sum() >= _N_PAID_OTHERWISE:
            self._has_warned = True
            warnings.warn(
                f"`step` returned another reward than `compute_reward` in {is_other.sum()} of {len(is_other)} steps: what the "
                "environment pays beside its goals (penalties, bonuses, sums over steps) is not learnt from. The agent learns "
                "to reach goals; an end without success is the worst for it. Let what is to be avoided end the episode, with "
                "`info['is_success'] = False`.",
                UserWarning,
                stacklevel=2,
            )

    def _agrees(self) -> bool:
        """:return: whether the environment itself rewards as its twin does, and ends its episodes so"""
        goals, distances = self._goals[:4], probe_distances(self._is_whole)
        reached = np.asarray(_is_best(self._labels_around(goals, distances), self.best_reward).all(axis=1))
        outer = int(np.argmin(reached))
        # In steps of 1 % where the tolerance lies
        distances = np.append(distances, np.linspace(distances[max(outer - 1, 0)], distances[outer], 26))
        pairs = self._probes(goals, distances)
        ours = self.rewards(*pairs)
        # The twin has answered: what is raised now is not about the method, but a closed environment, or a dead worker
        arguments = [in_goal_space(goals, self.goal_space) for goals in pairs]
        theirs = np.asarray(self._twin.ask("compute_reward", *arguments, empty_infos(len(ours))), dtype=np.float64)
        if theirs.size != ours.size or not np.allclose(ours, theirs.reshape(-1), equal_nan=True):
            return False
        if not self._twin.env.has_wrapper_attr("compute_terminated"):
            return True
        goal = in_goal_space(goals[:1], self.goal_space)[0]
        return bool(self._twin.ask("compute_terminated", goal, goal, {})) == _ends_at_success(
            self._twin.env, goals[0], self.goal_space
        )


def _pairs(points: np.ndarray, goals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """:return: points of shape (..., n, goal_dim) and the goal of each, both of shape (n_points, goal_dim)"""
    achieved, desired = np.broadcast_arrays(points, goals)
    return achieved.reshape(-1, goals.shape[1]), desired.reshape(-1, goals.shape[1])


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
    is_sparse = has_two_values(rewards, best_reward)
    if is_sparse and _is_best(rewards, best_reward).all():
        raise ValueError(
            "`compute_reward` says that every goal is always reached: the environment gives no goal to learn from. "
            "Check its `compute_reward(achieved_goal, desired_goal, info)`."
        )
    if not is_sparse and threshold is None:
        raise ValueError(
            "The environment's reward is dense, so the distance at which a goal counts as reached cannot be found by "
            "probing `compute_reward`, and nothing else says what success is: no `_is_success(achieved_goal, desired_goal)`, "
            "nor `info['is_success']` of random steps in a copy of it. Pass that distance as `threshold` in `subgoal_kwargs`, "
            "in the units of the achieved goal, such as `subgoal_kwargs=dict(threshold=0.05)`, or add the method."
        )
    return is_sparse


def _goal_space(env: VecEnv) -> spaces.Space | None:
    """:return: the space of goals, if there are any"""
    return goal_space(env.observation_space) if isinstance(env.observation_space, spaces.Dict) else None


def _goal_reward(local: gym.Env, space: spaces.Space | None) -> ComputeReward:
    """
    :param local: an environment of this process
    :param space: goal space of the training environment
    :return: its reward function
    """
    try:
        compute_reward: ComputeReward = local.get_wrapper_attr("compute_reward")
    except AttributeError as error:
        raise ValueError(
            "A goal-conditioned environment needs a method `compute_reward(achieved_goal, desired_goal, info)`, "
            "see gymnasium_robotics.core.GoalEnv."
        ) from error
    _check_same_goals(local, space)
    return compute_reward


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
) -> EnvGoalTask:
    """
    :param env: the training environment, whose environments have ``compute_reward(achieved, desired, info)``
    :param goals: some desired goals of the environment, shape (n, goal_dim)
    :param threshold: distance at which a goal counts as reached; ``None`` to find it by probing what the environment says of
        success
    :param achieved: some achieved goals, shape (m, goal_dim)
    :return: the environment's goals, as the learner sees them
    """
    with contextlib.ExitStack() as stack:
        twin = Twin(env)
        stack.callback(twin.close)
        normalizer = unwrap_vec_normalize(env)
        is_rescaled = normalizer is not None and normalizer.norm_reward
        task = EnvGoalTask(twin, goals, threshold, _goal_space(env), achieved, is_rescaled)
        # A twin is closed when it is not needed any more
        weakref.finalize(task, stack.pop_all().close)
        return task


def check_reward(env: VecEnv, threshold: float | None = None) -> None:
    """
    Refuse early what :func:`goal_task_from_env` would refuse. The environment is neither reset nor stepped (a copy of it is,
    where only ``info["is_success"]`` says what success is), and no generator of random numbers is touched: goals are drawn
    from a copy of the goal space. They may be none that the environment would give, so what only these tell (the tolerance,
    whether rewards are NaN) is left to :func:`goal_task_from_env`.

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
    pairs = _pairs(existing_goals(around(goals, probe_distances(is_whole(space)), []), space, goals), goals)
    with contextlib.closing(Twin(env)) as twin:
        compute_reward = _goal_reward(twin.env, space)
        _ends_at_success(twin.env, goals[0], space)
        compute_success, threshold = judge(twin, compute_reward, threshold, space, Pairs(goals, *pairs))
        compute_reward = compute_success or compute_reward
        best_reward = goal_rewards(compute_reward, space, goals, goals).max()
        rewards = goal_rewards(compute_reward, space, *pairs)
    if not np.isnan(best_reward):
        _is_sparse(rewards, float(best_reward), threshold)
