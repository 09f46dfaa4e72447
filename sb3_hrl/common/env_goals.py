"""An environment's own definition of its goals, evaluated in the learner's process, and again when it changes."""

import contextlib
import copy
import warnings
import weakref

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_hrl.common.goals import GoalTask, is_best, is_sparse_reward, paired
from sb3_hrl.common.probes import around, probe_distances
from sb3_hrl.common.rewards import ComputeReward, empty_infos, goal_rewards, is_paid_otherwise
from sb3_hrl.common.spaces import existing_goals, flat_limits, flatten, goal_space, in_goal_space, is_whole
from sb3_hrl.common.success import Pairs, judge
from sb3_hrl.common.twin import Attributes, Twin

# Goals for a first check of the reward are sampled within this distance
_WIDE = 1e3
# Minimum number of steps whose reward differs from that of their goals before a warning is given
_N_PAID_OTHERWISE = 3


class EnvGoalTask(GoalTask):
    """
    Success as defined by an environment, which may change.

    **Which environment answers.** An environment of this process: the first environment of a ``DummyVecEnv`` or
    ``SerialCollector``, otherwise a twin of it (:class:`~sb3_hrl.common.twin.Twin`). ``VecEnv.env_method`` is only used for
    the checks at the times listed below: for every batch it would cost a round trip, and interfere with a pending step. All
    environments of a ``VecEnv`` must agree on what success is.

    **When it is evaluated again.** ``compute_reward``: for each batch of the high level. The tolerance, whether the reward is
    sparse, and whether an episode ends at success: at the start of each ``learn``, and every 1,000 environment steps.

    **If the environment changes** (by a curriculum that uses ``set_attr`` or ``env_method``, or by itself). The new tolerance
    becomes the distance at which subgoals are reached, for the learner, the workers and hindsight, and is logged as
    ``rollout/goal_threshold``. A ``threshold`` given by the user does not change; if the environment defines success itself,
    this threshold only applies to subgoals. A rule that was learnt from ``info["is_success"]`` in a copy of the environment
    does not change either. A twin gets the plain attributes (numbers, strings, small arrays, lists and dicts of these) of the
    first environment. Collecting workers send them with their reports; otherwise they are copied if the twin's rewards differ
    from the environment's, or do not define success. A twin cannot follow changes inside other objects that the environment
    holds: a warning is given, but not while workers collect. In environments of SB3's ``SubprocVecEnv``, an attribute must
    exist from the start, and must not be None, for its changes to be copied.

    :param twin: the environment that is called; the caller must close it
    :param goals: some desired goals of the environment, shape (n, goal_dim)
    :param threshold: maximum distance at which a goal counts as reached, if given
    :param goal_space: space of the goals
    :param achieved: some achieved goals, shape (m, goal_dim)
    :param is_rescaled: whether a wrapper changes the rewards of steps, so that they differ from the environment's own
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
            # The environment may have changed before this object was created
            self.ask_again()

    def _ask(self) -> None:
        """Evaluate the twin."""
        twin, space, goals = self._twin, self.goal_space, self._goals[:4]
        compute_reward = _goal_reward(twin.env, space)
        probes = Pairs(goals, *self._probes(goals, probe_distances(self._is_whole)))
        compute_success, threshold = judge(twin, compute_reward, self._given, space, probes)
        self._set(compute_reward, threshold, _ends_at_success(twin.env, goals[0], space), compute_success)

    def ask_again(self, attributes: Attributes | None = None) -> None:
        """
        Find out whether the environment's definition of success has changed. No random numbers are drawn, and no step is
        taken.

        :param attributes: plain attributes of the first environment, from a collecting worker; ``None`` to request them
        """
        twin = self._twin
        if attributes is not None:
            twin.follow(attributes)
        elif twin.can_ask and not (self.compute_success is self.compute_reward and self._agrees()):
            # A dense reward does not change with the tolerance of success
            twin.copy_attributes()
            if not self._agrees():
                warnings.warn(
                    "`compute_reward` of the environments in other processes gives other rewards than that of the learner's "
                    "twin, which knows neither their state nor what is inside their objects. Training uses the twin's "
                    "rewards. Make the numbers that the reward depends on attributes of the environment itself, or use "
                    "DummyVecEnv.",
                    RuntimeWarning,
                    stacklevel=2,
                )
        self._ask()

    def check_paid(self, shards: list[dict[str, np.ndarray]]) -> None:
        """
        Warn once if the environment rewards anything other than its goals, because the agent does not learn from that.

        :param shards: steps of each environment, with the fields ``next_achieved_goal``, ``desired_goal`` and ``reward``
        """
        if self._has_warned:
            return
        fields = ("next_achieved_goal", "desired_goal", "reward")
        achieved, desired, paid = (np.concatenate([steps[field] for steps in shards]) for field in fields)
        is_other = is_paid_otherwise(paid.ravel(), self.rewards(achieved, desired), self._values)
        if is_other.sum() >= _N_PAID_OTHERWISE:
            self._has_warned = True
            warnings.warn(
                f"`step` returned another reward than `compute_reward` in {is_other.sum()} of {len(is_other)} steps: rewards "
                "for anything other than goals (penalties, bonuses, sums over steps) are not learnt from. The agent learns "
                "to reach goals, and an end without success is the worst outcome. To make it avoid something, end the "
                "episode there, with `info['is_success'] = False`.",
                UserWarning,
                stacklevel=2,
            )

    def _agrees(self) -> bool:
        """:return: whether the environment and its twin agree about rewards and about the end of episodes"""
        goals, distances = self._goals[:4], probe_distances(self._is_whole)
        reached = np.asarray(is_best(self._labels_around(goals, distances), self.best_reward).all(axis=1))
        outer = int(np.argmin(reached))
        # In steps of 1 % around the tolerance
        distances = np.append(distances, np.linspace(distances[max(outer - 1, 0)], distances[outer], 26))
        pairs = self._probes(goals, distances)
        ours = self.rewards(*pairs)
        # The twin has already answered: an exception here means a closed environment or a dead worker, not a faulty method
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


def _goal_space(env: VecEnv) -> spaces.Space | None:
    """:return: the space of goals, or ``None`` if there are no goals"""
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
    :raises ValueError: if a wrapper around the environment that has ``compute_reward`` changes the shape of goals
    """
    owner = local
    while isinstance(owner, gym.Wrapper) and not (hasattr(type(owner), "compute_reward") or "compute_reward" in vars(owner)):
        owner = owner.env
    if space is None or not isinstance(owner.observation_space, spaces.Dict):
        return
    own = owner.observation_space.spaces.get("desired_goal", space)
    if own.shape != space.shape:
        raise ValueError(
            f"A wrapper, such as VecFrameStack or FrameStackObservation, gives goals the shape {space.shape}, but "
            f"`compute_reward` takes goals of shape {own.shape}: do not change the goals. For a history of observations wrap "
            "the single environment, so that only `observation` grows: `rl_zoo3.wrappers.HistoryWrapperObsDict` "
            "(`env_wrapper` in the zoo, `wrapper_class` of make_vec_env)."
        )


def _ends_at_success(local: gym.Env, goal: np.ndarray, space: spaces.Space | None) -> bool:
    """
    :param local: an environment of this process
    :param goal: a goal of this environment, shape (goal_dim,)
    :param space: goal space
    :return: whether its ``compute_terminated``, if it exists, ends an episode at the goal
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
            f"{goal.shape} and an empty info: compute it from the two goals only, or leave the method out."
        ) from error


def goal_task_from_env(
    env: VecEnv, goals: np.ndarray, threshold: float | None = None, achieved: np.ndarray | None = None
) -> EnvGoalTask:
    """
    :param env: the training environment, whose environments have ``compute_reward(achieved, desired, info)``
    :param goals: some desired goals of the environment, shape (n, goal_dim)
    :param threshold: maximum distance at which a goal counts as reached; ``None`` to find it by probing the environment's
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
        # The twin is closed when the task is garbage collected
        weakref.finalize(task, stack.pop_all().close)
        return task


def check_reward(env: VecEnv, threshold: float | None = None) -> None:
    """
    Raise the errors of :func:`goal_task_from_env` early. The environment is neither reset nor stepped (only a copy is, if
    nothing but ``info["is_success"]`` defines success), and no random number generator is changed: goals are sampled from a
    copy of the goal space. The environment might never produce these goals, so anything that depends on them (the tolerance,
    rewards that are NaN) is left to :func:`goal_task_from_env`.

    :param env: the training environment, with goals
    :param threshold: maximum distance at which a goal counts as reached, if given
    :raises ValueError: if the reward function is missing, fails on arrays, or does not show what counts as reaching a goal
    """
    space = copy.deepcopy(_goal_space(env))
    assert isinstance(space, spaces.Box | spaces.MultiBinary)
    space.seed(0)
    # Near the origin if the space is wide: in floating point, probes around a goal of 1e30 are equal to the goal
    middle = np.clip(0.0, *flat_limits(space))
    goals = np.concatenate([flatten(space.sample(), 1) for _ in range(4)])
    goals = np.clip(goals, middle - _WIDE, middle + _WIDE).astype(np.float32)
    pairs = paired(existing_goals(around(goals, probe_distances(is_whole(space)), []), space, goals), goals)
    with contextlib.closing(Twin(env)) as twin:
        compute_reward = _goal_reward(twin.env, space)
        _ends_at_success(twin.env, goals[0], space)
        compute_success, threshold = judge(twin, compute_reward, threshold, space, Pairs(goals, *pairs))
        compute_reward = compute_success or compute_reward
        best_reward = goal_rewards(compute_reward, space, goals, goals).max()
        rewards = goal_rewards(compute_reward, space, *pairs)
    if not np.isnan(best_reward):
        is_sparse_reward(rewards, float(best_reward), threshold)
