"""
The options of :class:`~sb3_hrl.HierarchicalDDPG`, grouped like its arguments. Each group is checked here once, and then passed
as a whole to the policy, the batches and the workers.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from sb3_hrl.common.buffers import goal_strategy
from sb3_hrl.common.checks import check_keys, is_integer, is_number, require
from sb3_hrl.hddpg.planners import PLANNERS, PlannerConfig

SUBGOAL_SOURCES = ("policy", "goal", "random")
REWARDS = ("sparse", "dense")
# Options that only one level has
HIGH_ONLY = ("imitation",)
LOW_ONLY = ("random_target_prob", "trivial_target_prob", "oracle")
NET_ARCH_RULE = "a list of layer sizes, or dict(pi=[...], qf=[...]) for actor and critic, or None"

# A low level that does not learn: maps observations, achieved goals and subgoals, each of shape (n, dim), to actions
# in [-1, 1]
LowLevel = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

GroupT = TypeVar("GroupT")


def group_from_kwargs(group: type[GroupT], name: str, kwargs: Mapping[str, Any] | None, **others: Any) -> GroupT:
    """
    :param group: a dataclass of options
    :param name: the argument that holds the options, for error messages
    :param kwargs: the options set by the user
    :param others: options that are separate arguments
    :return: the group, checked
    """
    require(kwargs is None or isinstance(kwargs, Mapping), name, "a mapping such as dict(key=value), or None", kwargs)
    known = [field.name for field in fields(group) if field.name not in others]  # type: ignore[arg-type]
    check_keys(name, kwargs or (), known)
    return group(**(kwargs or {}), **others)


@dataclass(frozen=True)
class SubgoalConfig:
    """
    What subgoals are, and where they come from (``subgoal_kwargs``).

    :param steps: maximum number of environment steps per segment (the argument ``subgoal_steps``); ``None``: 1.5 times the
        number of steps predicted by the low level's value, plus 5, see :mod:`sb3_hrl.hddpg.horizon`
    :param radius: maximum offset of a subgoal from the achieved goal, in the units of the goal, a float or one per dimension;
        ``None``: the distance that the low level covers within its horizon, estimated from the data
    :param bounds: lower and upper bounds of subgoals, each a float or one per dimension; ``None``: the range of the goals seen
        so far
    :param threshold: maximum Euclidean distance at which a subgoal counts as reached; ``None``: the tolerance of the
        environment's own success, for each entry of the goal, see :class:`~sb3_hrl.common.goals.GoalTask`
    :param source: where subgoals come from: ``policy``: the high level; ``goal``: the goal itself (flat DDPG+HER); ``random``:
        a uniform distribution in training, the goal itself in evaluation; or a fixed point in the goal space. The high level
        learns only with ``policy``
    :param avoid_reached: replace a subgoal that is already reached when it is issued by the best of 64 fixed candidates
        (according to the high level's critic), unless the goal itself is reached
    :param avoid_missed: do not issue a subgoal again if the low level missed it recently in the same episode, with more than
        half of the way left. This keeps the agent from running against the same wall again and again
    """

    steps: int | None = None
    radius: float | list[float] | None = None
    bounds: tuple[Any, Any] | None = None
    threshold: float | None = None
    source: str | list[float] = "policy"
    avoid_reached: bool = True
    avoid_missed: bool = True

    def __post_init__(self) -> None:
        rule = "a whole number of at least 1 (environment steps), or None to find it"
        require(self.steps is None or is_integer(self.steps, 1), "subgoal_steps", rule, self.steps)
        is_positive = self.radius is None or (_all_numbers(self.radius) and bool(np.min(self.radius) > 0))
        require(is_positive, "radius", "positive, one number or one per dimension, or None to find it", self.radius)
        if self.bounds is not None:
            is_pair = isinstance(self.bounds, tuple | list) and len(self.bounds) == 2 and all(map(_all_numbers, self.bounds))
            sizes = {np.size(bound) for bound in self.bounds} - {1} if is_pair else set()
            is_box = is_pair and len(sizes) <= 1 and bool(np.all(np.asarray(self.bounds[0]) < np.asarray(self.bounds[1])))
            require(is_box, "bounds", "(low, high) with low < high in every dimension, or None to find them", self.bounds)
        is_positive = self.threshold is None or (is_number(self.threshold) and self.threshold > 0)
        require(is_positive, "threshold", "positive (in the units of the goal), or None to find it", self.threshold)
        is_known = self.source in SUBGOAL_SOURCES if isinstance(self.source, str) else _all_numbers(self.source)
        require(is_known, "source", f"one of {SUBGOAL_SOURCES}, or a point in the space of goals", self.source)
        for name in (field.name for field in fields(self) if field.type is bool):
            require(isinstance(getattr(self, name), bool | np.bool_), name, "True or False", getattr(self, name))

    @property
    def are_learnt(self) -> bool:
        """Whether the high level chooses the subgoals, and learns."""
        return isinstance(self.source, str) and self.source == "policy"


@dataclass(frozen=True)
class ExplorationConfig:
    """
    How the agent explores during training (``exploration_kwargs``).

    :param noise_std: standard deviation of the Gaussian noise on the actions of both levels, with actions scaled to [-1, 1]
    :param random_action_prob: probability of a uniformly random action of the low level, as in HER; for random subgoals, as in
        HAC, set it in ``high_kwargs``
    :param noise_hold_steps: number of environment steps for which the low level's noise stays the same
    :param subgoal_test_prob: share of segments that test their subgoal: the low level acts without noise. If it misses the
        subgoal, the high level's target for this subgoal is the value of never reaching the goal, -1 / (1 - gamma) (HAC,
        section 4.3, https://arxiv.org/abs/1712.00948)
    """

    noise_std: float = 0.1
    random_action_prob: float = 0.2
    noise_hold_steps: int = 1
    subgoal_test_prob: float = 0.0

    def __post_init__(self) -> None:
        steps, rule = self.noise_hold_steps, "a whole number of at least 1 (environment steps)"
        require(is_integer(steps, 1), "noise_hold_steps", rule, steps)
        require(is_number(self.subgoal_test_prob, 0.0, 1.0), "subgoal_test_prob", "in [0, 1]", self.subgoal_test_prob)


@dataclass(frozen=True)
class HindsightConfig:
    """
    How experience is relabelled (``hindsight_kwargs``).

    :param n_sampled_goal: number of virtual transitions to create per real transition, by sampling new goals, on both levels
    :param goal_selection_strategy: ``future``, ``final`` or ``episode``, for the high level's goals in hindsight; the low
        level's goals in hindsight come from the rest of the episode
    :param action_prob: share of the high level's batch whose action is the subgoal that was actually achieved (HAC, section
        4.1)
    :param trivial_segment_prob: probability of keeping a sampled segment that moved less than half the threshold and did not
        reach the goal; below 1, other segments replace those that are dropped
    """

    n_sampled_goal: int = 4
    goal_selection_strategy: GoalSelectionStrategy | str = "future"
    action_prob: float = 0.5
    trivial_segment_prob: float = 1.0

    def __post_init__(self) -> None:
        goal_strategy(self.goal_selection_strategy)
        for name in ("action_prob", "trivial_segment_prob"):
            require(is_number(getattr(self, name), 0.0, 1.0), name, "in [0, 1]", getattr(self, name))


@dataclass(frozen=True)
class LevelConfig:
    """
    Settings of one level. The arguments of ``HierarchicalDDPG`` apply to both levels; ``high_kwargs`` and ``low_kwargs``
    override them for one level.

    DDPG is TD3 without its tricks, but with two critics here: ``policy_delay=2, target_policy_noise=0.2`` turn a level into
    TD3, ``n_critics=1`` turns it into plain DDPG.

    :param learning_rate: learning rate of actor and critic; a float, a schedule, or ``"lin_<float>"``
    :param batch_size: minibatch size for each gradient update
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1)
    :param gamma: the discount factor, per environment step on the low level and per segment on the high level
    :param n_sampled_goal: number of virtual transitions (with goals in hindsight) per real transition
    :param max_grad_value: gradients are clipped to [-max_grad_value, max_grad_value]; ``None`` for no clipping
    :param noise_std: standard deviation of the Gaussian exploration noise, with actions scaled to [-1, 1]
    :param random_action_prob: probability of a uniformly random action during exploration
    :param n_critics: number of critics; the target is the minimum of their values
    :param target_policy_noise: standard deviation of the noise on the target's actions (TD3, section 5.3,
        https://arxiv.org/abs/1802.09477)
    :param target_noise_clip: limit for the absolute value of that noise
    :param net_arch: sizes of the hidden layers; ``None``: those of ``policy_kwargs``
    :param policy_delay: number of critic updates per update of the actor and the target networks (TD3, section 5.2)
    :param action_l2: weight of the mean squared action in the actor's loss (HER uses 1 on Fetch, appendix A)
    :param reward: ``sparse``: -1 until the target is reached; ``dense``: the negative distance to the target, at least -1
        (HIRO's low level). The unit of the distance is the reach of subgoals on the low level, and the size of their bounds on
        the high level
    :param hindsight_window: maximum number of environment steps between a step and its target in hindsight; ``None``: the rest
        of the episode
    :param random_target_prob: (low level) share of the batch with uniformly random subgoals, taken from the share without
        hindsight: hindsight never shows targets that are out of reach, such as those behind a wall
    :param trivial_target_prob: (low level) probability of keeping a sampled step whose target in hindsight was reached before
        the step; below 1, other steps replace those that are dropped. ``None``: so low that these are at most three
        quarters of the steps in hindsight. They are nearly all if the goal is the position of an object that rarely moves
    :param oracle: (low level) a function that acts instead of the low level, which then does not learn; maps observations,
        achieved goals and subgoals, each of shape (n, dim), to actions scaled to [-1, 1], shape (n, action_dim)
    :param imitation: (high level) weight of the squared distance between the actor's subgoals and the planner's waypoints in
        the actor's loss, at least 0; the other term is the value, divided by its mean (TD3+BC,
        https://arxiv.org/abs/2106.06860). 0 disables imitation. No effect without a planner
    """

    learning_rate: float | str | Schedule = 1e-3
    batch_size: int = 256
    tau: float = 0.02
    gamma: float = 0.98
    n_sampled_goal: int = 4
    max_grad_value: float | None = 1.0
    noise_std: float = 0.1
    random_action_prob: float = 0.2
    n_critics: int = 2
    target_policy_noise: float = 0.0
    target_noise_clip: float = 0.5
    net_arch: list[int] | dict[str, list[int]] | None = None
    policy_delay: int = 1
    action_l2: float = 0.0
    reward: str = "sparse"
    hindsight_window: int | None = None
    random_target_prob: float = 0.0
    trivial_target_prob: float | None = None
    oracle: LowLevel | None = None
    imitation: float = 10.0

    def override(self, name: str, kwargs: Mapping[str, Any] | None) -> "LevelConfig":
        """
        :param name: ``high`` or ``low``
        :param kwargs: settings to override on this level
        :return: the settings with these overrides, checked
        """
        group, rule = f"{name}_kwargs", "a mapping such as dict(gamma=0.98) (in the zoo's files {gamma: 0.98}), or None"
        require(kwargs is None or isinstance(kwargs, Mapping), group, rule, kwargs)
        of_the_other = HIGH_ONLY if name == "low" else LOW_ONLY
        check_keys(group, kwargs or (), [field.name for field in fields(self) if field.name not in of_the_other])
        config = replace(self, **(kwargs or {}))
        config._check(name)
        return config

    def _check(self, name: str) -> None:
        real_share = 1.0 / (self.n_sampled_goal + 1) if is_integer(self.n_sampled_goal, 0) else 1.0
        rules = {
            "learning_rate": (
                is_number(self.learning_rate, 0.0) or callable(self.learning_rate) or isinstance(self.learning_rate, str),
                "at least 0, a schedule, or a string such as 'lin_1e-3'",
            ),
            "batch_size": (is_integer(self.batch_size, 1), "a whole number of at least 1"),
            "tau": (is_number(self.tau, 0.0, 1.0) and self.tau > 0.0, "in (0, 1]"),
            "gamma": (
                is_number(self.gamma, 0.0, 1.0) and self.gamma < 1.0,
                "in [0, 1), since targets are clipped to [-1 / (1 - gamma), 0]",
            ),
            "n_sampled_goal": (is_integer(self.n_sampled_goal, 0), "a whole number of at least 0"),
            "max_grad_value": (
                self.max_grad_value is None or (is_number(self.max_grad_value, 0.0) and self.max_grad_value > 0.0),
                "positive, or None for no clipping",
            ),
            "noise_std": (is_number(self.noise_std, 0.0), "at least 0"),
            "random_action_prob": (is_number(self.random_action_prob, 0.0, 1.0), "in [0, 1]"),
            "n_critics": (is_integer(self.n_critics, 1), "a whole number of at least 1"),
            "target_policy_noise": (is_number(self.target_policy_noise, 0.0), "at least 0"),
            "target_noise_clip": (is_number(self.target_noise_clip, 0.0), "at least 0"),
            "net_arch": (self.net_arch is None or is_net_arch(self.net_arch), NET_ARCH_RULE),
            "policy_delay": (is_integer(self.policy_delay, 1), "a whole number of at least 1"),
            "action_l2": (is_number(self.action_l2, 0.0), "at least 0"),
            "imitation": (is_number(self.imitation, 0.0), "at least 0"),
            "reward": (self.reward in REWARDS, f"one of {REWARDS}"),
            "hindsight_window": (
                self.hindsight_window is None or is_integer(self.hindsight_window, 1),
                "a whole number of at least 1, or None",
            ),
            "random_target_prob": (
                is_number(self.random_target_prob, 0.0, real_share),
                "at least 0, and at most the share 1 / (n_sampled_goal + 1) that is not in hindsight",
            ),
            "trivial_target_prob": (
                self.trivial_target_prob is None or is_number(self.trivial_target_prob, 0.0, 1.0),
                "in [0, 1], or None to find it",
            ),
            "oracle": (
                self.oracle is None or callable(self.oracle),
                "a function of (observation, achieved, subgoal), or None",
            ),
        }
        for key, (valid, rule) in rules.items():
            require(valid, key, f"{rule} (on the {name} level)", getattr(self, key))

    @property
    def lr_schedule(self) -> Schedule:
        """The learning rate as a function of the remaining progress; rl_zoo3's ``"lin_1e-3"`` decreases linearly to 0."""
        if not isinstance(self.learning_rate, str):
            return FloatSchedule(self.learning_rate)
        kind, _, value = self.learning_rate.partition("_")
        try:
            if kind == "lin":
                return FloatSchedule(LinearSchedule(float(value), 0.0, 1.0))
            return FloatSchedule(float(self.learning_rate))
        except ValueError as error:
            raise ValueError(
                f"`learning_rate` must be a float, a schedule or a string such as 'lin_1e-3', not {self.learning_rate!r}."
            ) from error

    @property
    def min_value(self) -> float:
        """The value of never reaching the goal: the discounted sum of a reward of -1 per step, without end."""
        return -1.0 / (1.0 - self.gamma)


@dataclass(frozen=True)
class HierarchyConfig:
    """
    All options of an agent, after validation.

    :param high: settings of the high level
    :param low: settings of the low level
    :param subgoals: what subgoals are, and where they come from
    :param exploration: how the agent explores during training
    :param hindsight: how experience is relabelled
    :param planner: settings of the planner; ``None``: the high level's actor chooses the subgoals, or nobody has to choose
        (with an ``oracle``, or with a ``source`` other than ``policy``)
    """

    high: LevelConfig = LevelConfig()
    low: LevelConfig = LevelConfig()
    subgoals: SubgoalConfig = SubgoalConfig()
    exploration: ExplorationConfig = ExplorationConfig()
    hindsight: HindsightConfig = HindsightConfig()
    planner: PlannerConfig | None = None

    def __post_init__(self) -> None:
        asks_values = self.planner is not None and self.planner.asks_values
        if self.low.reward != "sparse" and asks_values:
            raise ValueError(
                "`planner` reads numbers of environment steps from the low level's values, which is possible with sparse "
                "rewards only: pass `reward='sparse'` in `low_kwargs`, or `distance='euclidean'` in `planner_kwargs`."
            )

    @property
    def asks_values(self) -> bool:
        """Whether subgoals depend on the low level's value function: it must learn, with a reward of -1 per step."""
        return self.subgoals.are_learnt and self.low.oracle is None and self.low.reward == "sparse"

    @classmethod
    def from_arguments(
        cls,
        learning_rate: float | str | Schedule,
        batch_size: int,
        tau: float,
        gamma: float,
        max_grad_value: float | None,
        subgoal_steps: int | None,
        subgoal_kwargs: dict[str, Any] | None,
        planner: str | None,
        planner_kwargs: dict[str, Any] | None,
        exploration_kwargs: dict[str, Any] | None,
        hindsight_kwargs: dict[str, Any] | None,
        high_kwargs: dict[str, Any] | None,
        low_kwargs: dict[str, Any] | None,
        policy_kwargs: dict[str, Any],
    ) -> "HierarchyConfig":
        """:return: the options that these arguments of :class:`~sb3_hrl.HierarchicalDDPG` set"""
        exploration = group_from_kwargs(ExplorationConfig, "exploration_kwargs", exploration_kwargs)
        hindsight = group_from_kwargs(HindsightConfig, "hindsight_kwargs", hindsight_kwargs)
        shared = LevelConfig(
            learning_rate=learning_rate,
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            n_sampled_goal=hindsight.n_sampled_goal,
            max_grad_value=max_grad_value,
            noise_std=exploration.noise_std,
            random_action_prob=exploration.random_action_prob,
            n_critics=policy_kwargs.get("n_critics", LevelConfig.n_critics),
        )
        is_known = planner is None or (isinstance(planner, str) and planner in PLANNERS)
        require(is_known, "planner", f"one of {list(PLANNERS)}, or None", planner)
        if planner is None and planner_kwargs:
            raise ValueError(f"`planner_kwargs` have no effect without a planner: pass one of {list(PLANNERS)} as `planner`.")
        subgoals = group_from_kwargs(SubgoalConfig, "subgoal_kwargs", subgoal_kwargs, steps=subgoal_steps)
        low = shared.override("low", low_kwargs)
        if not subgoals.are_learnt or low.oracle is not None:
            planner = None
        return cls(
            high=replace(shared, random_action_prob=0.0).override("high", high_kwargs),
            low=low,
            subgoals=subgoals,
            exploration=exploration,
            hindsight=hindsight,
            planner=None if planner is None else group_from_kwargs(PLANNERS[planner], "planner_kwargs", planner_kwargs),
        )

    def without_schedules(self) -> "HierarchyConfig":
        """:return: the options for acting: without learning rates, which may be functions that cannot be pickled"""
        return replace(self, high=replace(self.high, learning_rate=0.0), low=replace(self.low, learning_rate=0.0))


# Names of the options in each group, for the hint if one of them is passed as a separate argument
GROUPS: dict[str, tuple[str, ...]] = {"high_kwargs": HIGH_ONLY} | {
    name: tuple(field.name for field in fields(group))
    for name, group in (
        ("subgoal_kwargs", SubgoalConfig),
        ("exploration_kwargs", ExplorationConfig),
        ("hindsight_kwargs", HindsightConfig),
        ("low_kwargs", LevelConfig),
    )
}

# Arguments of the algorithm that are options
ARGUMENTS = tuple(inspect.signature(HierarchyConfig.from_arguments).parameters)


def read_arguments(model: Any) -> dict[str, Any]:
    """
    :param model: a :class:`~sb3_hrl.HierarchicalDDPG`
    :return: the arguments for :meth:`HierarchyConfig.from_arguments`
    """
    return {name: getattr(model, name) for name in ARGUMENTS}


def is_net_arch(value: Any) -> bool:
    """
    :param value: value of an argument
    :return: whether SB3 accepts it as ``net_arch`` of an actor and a critic
    """
    if isinstance(value, dict):
        return set(value) == {"pi", "qf"} and all(map(is_net_arch, value.values()))
    return isinstance(value, list | tuple) and all(is_integer(size, 1) for size in value)


def _all_numbers(value: Any) -> bool:
    """Whether the value is a finite number, or a non-empty list or array of finite numbers."""
    try:
        array = np.asarray(value)
        return array.size > 0 and array.dtype.kind in "iuf" and bool(np.isfinite(array).all())
    except ValueError:  # rows of different lengths
        return False
