"""The policy: two levels with the same structure. ``predict`` keeps the current subgoal in its state."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_hrl.common.arrays import Arrays
from sb3_hrl.common.buffers import GOAL_KEYS, SharedMemoryReplayBuffer
from sb3_hrl.common.checks import require
from sb3_hrl.common.goals import LEAST_WEIGHT
from sb3_hrl.common.running_mean_std import RunningMeanStd
from sb3_hrl.common.spaces import ActionBorder, flat_limits, flatten, goal_space, is_whole
from sb3_hrl.common.subgoals import SubgoalBounds, is_reached, subgoal_to_action
from sb3_hrl.common.type_aliases import SubgoalState
from sb3_hrl.hddpg.choosers import Situation, choose_subgoals, draw_high_noise
from sb3_hrl.hddpg.config import NET_ARCH_RULE, HierarchyConfig, LevelConfig, SubgoalConfig, is_net_arch
from sb3_hrl.hddpg.horizon import LEAST_HORIZON
from sb3_hrl.hddpg.inference import HIGH, INPUT_CLIP, LOW, NumpyPolicy, live_policy
from sb3_hrl.hddpg.level import DDPGLevel
from sb3_hrl.hddpg.segments import Segments
from sb3_hrl.hddpg.validation import check_predict_input, per_dimension

# Buffers that acting depends on in addition to the networks
_ACTING_BUFFERS = (
    "input_shift",
    "input_scale",
    "subgoal_low",
    "subgoal_high",
    "subgoal_radius",
    "subgoal_threshold",
    "goal_weights",
    "horizon",
)


class HierarchicalPolicy(BasePolicy):
    """
    Policy of :class:`~sb3_hrl.HierarchicalDDPG`: ``high`` chooses subgoals, ``low`` reaches them.

    Both levels (see :class:`~sb3_hrl.hddpg.level.Level`) use a flat input:

    - low: ``[n(observation), n(achieved), n(subgoal), (subgoal - achieved) / std]``
    - high: ``[n(observation), n(achieved), n(goal), (goal - achieved) / std]``

    where ``n`` normalises with running mean and standard deviation. These statistics, the bounds, radius and tolerance of
    subgoals, and the planner's arrays are buffers, so ``state_dict`` contains everything that ``predict`` needs. Only the
    networks move to a GPU.

    :param observation_space: Dict space with ``observation``, ``achieved_goal``, ``desired_goal``
    :param action_space: Box space
    :param lr_schedule: not used, each level has its own learning rate in its settings
    :param net_arch: hidden layers of both levels' networks, by default [256, 256]
    :param activation_fn: activation of the hidden layers
    :param optimizer_class: optimizer of all networks
    :param optimizer_kwargs: arguments of the optimizer, without the learning rate; by default Adam is fused
    :param normalize_inputs: whether inputs are normalised
    :param level_class: the learner of both levels, see :class:`~sb3_hrl.hddpg.level.Level`
    :param config: the agent's options
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        normalize_inputs: bool = True,
        level_class: type[DDPGLevel] = DDPGLevel,
        config: HierarchyConfig | None = None,
    ):
        if optimizer_kwargs is None and optimizer_class is th.optim.Adam:
            optimizer_kwargs = {"fused": True}
        super().__init__(
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
        )
        require(net_arch is None or is_net_arch(net_arch), "net_arch", NET_ARCH_RULE, net_arch)
        self.net_arch = net_arch if net_arch is not None else [256, 256]
        self.activation_fn = activation_fn
        self.normalize_inputs = normalize_inputs
        self.level_class = level_class
        self._config = config if config is not None else HierarchyConfig()
        self._numpy_policy: NumpyPolicy | None = None
        self._looked_at: tuple[Any, ...] = ()
        self._modules_looked_at: list[nn.Module] = []

        self.goal_space = goal_space(observation_space)
        self.observation_dim = spaces.flatdim(observation_space["observation"])
        self.goal_dim = spaces.flatdim(self.goal_space)
        # If goals are integers, subgoals are integers as well
        self.rounds_goals = is_whole(self.goal_space)
        self.action_border = ActionBorder(action_space)
        self._check_dimensions(self.config.subgoals)
        self._build()

    def _check_dimensions(self, subgoals: SubgoalConfig) -> None:
        """Raise an error if subgoals do not have the length of a goal."""
        bounds = [("bounds", bound) for bound in subgoals.bounds or ()]
        for name, value in [("source", subgoals.source), ("radius", subgoals.radius), *bounds]:
            if value is not None and not isinstance(value, str):
                per_dimension(name, value, self.goal_dim)

    def _build(self) -> None:
        self.observation_moments = RunningMeanStd(self.observation_dim)
        self.goal_moments = RunningMeanStd(self.goal_dim)
        self.subgoal_low: th.Tensor
        self.subgoal_high: th.Tensor
        self.subgoal_radius: th.Tensor
        self.subgoal_threshold: th.Tensor
        self.goal_weights: th.Tensor
        self.stays: th.Tensor  # 1 if the low level learns to stay at its subgoals, else 0; only needed for training
        self.horizon: th.Tensor
        self.input_shift: th.Tensor
        self.input_scale: th.Tensor
        self.register_buffer("subgoal_low", th.zeros(self.goal_dim))
        self.register_buffer("subgoal_high", th.ones(self.goal_dim))
        self.register_buffer("subgoal_radius", th.ones(self.goal_dim))
        self.register_buffer("subgoal_threshold", th.zeros(()))
        self.register_buffer("goal_weights", th.ones(self.goal_dim))
        self.register_buffer("stays", th.zeros(()))
        self.register_buffer("horizon", th.tensor(float(self.config.subgoals.steps or LEAST_HORIZON)))
        # Normalisation of the inputs of the two levels, computed from the moments and the radius
        input_dim = self.observation_dim + 3 * self.goal_dim
        self.register_buffer("input_shift", th.zeros(2, input_dim))
        self.register_buffer("input_scale", th.ones(2, input_dim))
        planner = self.config.planner
        self.planner_arrays = Arrays({} if planner is None else planner.layout(self.observation_dim, self.goal_dim))

        input_space = spaces.Box(-np.inf, np.inf, (input_dim,), np.float32)
        subgoal_space = spaces.Box(-1.0, 1.0, (self.goal_dim,), np.float32)
        self.high = self._make_level(input_space, subgoal_space, self.config.high)
        assert isinstance(self.action_space, spaces.Box)
        self.low = self._make_level(input_space, self.action_space, self.config.low)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Agents that were saved before these buffers existed
        state_dict.setdefault(f"{prefix}goal_weights", th.ones_like(self.goal_weights))
        state_dict.setdefault(f"{prefix}stays", th.zeros_like(self.stays))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _make_level(self, input_space: spaces.Box, action_space: spaces.Box, config: LevelConfig) -> DDPGLevel:
        return self.level_class(
            input_space,
            action_space,
            config.lr_schedule,
            config,
            net_arch=self.net_arch if config.net_arch is None else config.net_arch,
            activation_fn=self.activation_fn,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        del data["normalize_images"]
        return data | dict(
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            normalize_inputs=self.normalize_inputs,
            level_class=self.level_class,
            config=self.config.without_schedules(),
        )

    @property
    def config(self) -> HierarchyConfig:
        """The agent's options. New options apply to both levels immediately, but do not change the shapes of networks."""
        return self._config

    @config.setter
    def config(self, config: HierarchyConfig) -> None:
        self._check_dimensions(config.subgoals)
        self._config = config
        self.high.config, self.low.config = config.high, config.low
        self._numpy_policy = None

    @property
    def device(self) -> th.device:
        """Device of the networks. Everything else is on the CPU."""
        return next((parameter.device for parameter in self.low.parameters()), th.device("cpu"))

    def _apply(self, fn: Callable[[th.Tensor], th.Tensor], recurse: bool = True) -> "HierarchicalPolicy":
        # A move to a GPU: the rest is small, and NumPy reads it in every step
        for name, module in self.named_children():
            if name in ("high", "low"):
                module._apply(fn, recurse)
        return self

    # ------------------------------------------------------------------ subgoals

    @property
    def bounds(self) -> SubgoalBounds:
        """Limits of subgoals."""
        return SubgoalBounds(self.subgoal_low, self.subgoal_high, self.subgoal_radius)

    def set_bounds(self, bounds: SubgoalBounds) -> None:
        """
        Set the limits of subgoals. Bits are never limited; if goals are integers, the bounds are rounded to integers.

        :param bounds: arrays of shape (goal_dim,)
        """
        low, high, radius = bounds
        if isinstance(self.goal_space, spaces.MultiBinary):
            low, high = flat_limits(self.goal_space)
        elif self.rounds_goals:
            low, high = np.floor(low), np.ceil(high)
        for buffer, value in zip(self.bounds, (low, high, radius), strict=True):
            buffer.copy_(th.as_tensor(value))
        self._update_input_scaling()

    def subgoal_to_action(self, subgoal: th.Tensor, achieved_goal: th.Tensor) -> th.Tensor:
        """Convert subgoals to high-level actions, see :func:`~sb3_hrl.common.subgoals.subgoal_to_action`."""
        return subgoal_to_action(subgoal, achieved_goal, self.bounds)

    def is_reached(self, achieved_goal: th.Tensor, subgoal: th.Tensor) -> th.Tensor:
        """Whether subgoals are reached, see :func:`~sb3_hrl.common.subgoals.is_reached`."""
        return is_reached(achieved_goal, subgoal, self.subgoal_threshold.item(), self.goal_weights)

    def set_tolerance(self, threshold: float, weights: np.ndarray) -> None:
        """
        :param threshold: maximum distance at which a subgoal counts as reached, in the units of the goal
        :param weights: weight of each entry of the goal in the distance, shape (goal_dim,)
        """
        self.subgoal_threshold.fill_(threshold)
        self.goal_weights.copy_(th.as_tensor(weights))
        self._update_input_scaling()

    def update_planner(self, buffer: SharedMemoryReplayBuffer) -> None:
        """
        Update the planner from visited states.

        :param buffer: replay buffer with the visited states
        """
        policy = self.numpy_policy()
        assert policy.planner is not None, "there is no planner"
        self.planner_arrays.write(policy.planner.update(buffer, policy, self._target_std().numpy()))

    # ------------------------------------------------------------------- levels

    def high_inputs(self, observation: th.Tensor, achieved_goal: th.Tensor, goal: th.Tensor) -> th.Tensor:
        """
        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param goal: shape (n, goal_dim)
        :return: inputs of the high level's networks, shape (n, obs_dim + 3 * goal_dim)
        """
        return self._inputs(HIGH, observation, achieved_goal, goal)

    def low_inputs(self, observation: th.Tensor, achieved_goal: th.Tensor, subgoal: th.Tensor) -> th.Tensor:
        """
        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param subgoal: shape (n, goal_dim)
        :return: inputs of the low level's networks, shape (n, obs_dim + 3 * goal_dim)
        """
        return self._inputs(LOW, observation, achieved_goal, subgoal)

    def _inputs(self, level: int, observation: th.Tensor, achieved_goal: th.Tensor, target: th.Tensor) -> th.Tensor:
        inputs = th.cat([observation, achieved_goal, target, target - achieved_goal], dim=1)
        return inputs.sub_(self.input_shift[level]).mul_(self.input_scale[level]).clamp_(-INPUT_CLIP, INPUT_CLIP)

    def update_moments(self, observations: np.ndarray, goals: np.ndarray) -> None:
        """
        Update the moments for normalising inputs with new steps.

        :param observations: shape (n, obs_dim)
        :param goals: achieved and desired goals, shape (m, goal_dim)
        """
        self.observation_moments.update(observations)
        self.goal_moments.update(goals)
        self._update_input_scaling()

    def _update_input_scaling(self) -> None:
        observation, goal = self.observation_moments, self.goal_moments
        zeros = th.zeros_like(goal.mean)
        target_scale = 1.0 / self._target_std()
        self.input_shift.copy_(th.cat([observation.mean, goal.mean, goal.mean, zeros]))
        for level in (HIGH, LOW):
            self.input_scale[level] = th.cat([1.0 / observation.std, 1.0 / goal.std, target_scale, target_scale])

    def _target_std(self) -> th.Tensor:
        """
        :return: standard deviations of goals, infinite for entries that do not count for success, shape (goal_dim,). In these
            entries landmarks are not apart, and networks do not see a target: in hindsight they have values, such as the
            velocity of a moving car, that the environment's goals may never have
        """
        return self.goal_moments.std.masked_fill(self.goal_weights <= LEAST_WEIGHT, th.inf)

    # ------------------------------------------------------------------- acting

    def acting_networks(self) -> dict[str, nn.Module]:
        """:return: the networks that are needed for acting, see :class:`~sb3_hrl.hddpg.inference.NumpyPolicy`"""
        low_actor, low_critics = self.low.acting_networks
        high_actor, high_critics = self.high.acting_networks
        networks = {"low_actor": low_actor, "high_actor": high_actor, "high_critic": high_critics[0]}
        if self.config.asks_values:
            networks |= {f"low_critic_{i}": critic for i, critic in enumerate(low_critics)}
        return networks

    def acting_tensors(self) -> dict[str, th.Tensor]:
        """:return: all other tensors that are needed for acting and that change"""
        tensors = {name: self.get_buffer(name) for name in _ACTING_BUFFERS}
        return tensors | {f"planner.{name}": buffer for name, buffer in self.planner_arrays.named_buffers()}

    def numpy_policy(self) -> NumpyPolicy:
        """:return: the policy as functions on arrays, which use its current weights"""
        # Views are created again if tensors were replaced: by a copy or an assignment
        looked_at = tuple(self._buffers[name].data_ptr() for name in _ACTING_BUFFERS)  # type: ignore[union-attr]
        if self._numpy_policy is None or looked_at != self._looked_at:
            self._numpy_policy, self._looked_at = live_policy(self), looked_at
        return self._numpy_policy

    def check_modules(self) -> None:
        """Create new views if a module was replaced. This check is slow, so it only runs once per ``learn`` and in
        ``predict``."""
        modules = [module for network in self.acting_networks().values() for module in network.modules()]
        if modules != self._modules_looked_at:
            self._numpy_policy, self._modules_looked_at = None, modules

    def __getstate__(self) -> dict[str, Any]:
        """Views of the weights are not pickled, but created again."""
        return {**self.__dict__, "_numpy_policy": None, "_modules_looked_at": []}

    def flatten_obs(self, observation: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        :param observation: batch of observations
        :return: observation, achieved and desired goal, float32, shapes (n, dim)
        """
        observation_, achieved, goal = (flatten(observation[key], len(observation[key])) for key in GOAL_KEYS)
        return observation_, achieved, goal

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Choose subgoals and act on them, without a state."""
        if th.jit.is_tracing() or th.compiler.is_compiling():
            # NumPy would be recorded as a constant
            raise RuntimeError(
                "HierarchicalPolicy acts in NumPy and cannot be traced, compiled or exported itself: export "
                "`sb3_hrl.hddpg.export.DecisionModule(policy)` or, for an agent with a planner, `LowLevelModule(policy)`, see "
                "docs/export.md."
            )
        assert isinstance(observation, dict)
        arrays = self.flatten_obs({key: value.cpu().numpy() for key, value in observation.items()})
        actions, _ = self._predict_arrays(*arrays, None, None, deterministic)
        return th.as_tensor(actions, device=self.device)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: batch of observations
        :param deterministic: whether both levels act without noise
        :return: actions scaled to [-1, 1]
        """
        return self._predict(observation, deterministic)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: SubgoalState | None = None,  # type: ignore[override]
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, SubgoalState]:
        """
        Choose actions for a batch of observations (or a single one). The current subgoals are passed on in ``state``: the
        policy itself stores nothing, so it can act in any number of environments.

        :param observation: observations, arrays of shape (n, ...) or without the first dimension
        :param state: state returned by the last call; ``None`` to choose new subgoals
        :param episode_start: whether an episode starts, shape (n,): these environments get new subgoals
        :param deterministic: whether both levels act without exploration noise
        :return: actions, and the state for the next call (with a first dimension even for a single observation)
        """
        check_predict_input(observation, self.observation_space)
        assert isinstance(observation, Mapping)
        self.set_training_mode(False)
        self.check_modules()
        is_single = np.shape(observation["desired_goal"]) == self.goal_space.shape
        batch = {key: np.asarray(observation[key])[None] for key in GOAL_KEYS} if is_single else observation
        actions, new_state = self._predict_arrays(*self.flatten_obs(batch), state, episode_start, deterministic)
        unscaled = self.action_border.unflatten(actions)
        return (unscaled.squeeze(axis=0) if is_single else unscaled), new_state

    def _predict_arrays(
        self,
        obs: np.ndarray,
        achieved: np.ndarray,
        goal: np.ndarray,
        state: SubgoalState | None,
        episode_start: np.ndarray | None,
        deterministic: bool,
    ) -> tuple[np.ndarray, SubgoalState]:
        """:return: actions scaled to [-1, 1], and the state for the next call"""
        policy, n = self.numpy_policy(), len(obs)
        # A deterministic prediction uses no random numbers; other predictions depend on SB3's seed
        rng = None if deterministic else np.random.default_rng(np.random.randint(2**31))
        if state is None:
            segments = Segments(n, self.goal_dim)
        else:
            # Process the result of the last action. If an episode starts, the segment is over in any case
            segments = self._restore_segments(state, n)
            starts = [False] * n if episode_start is None else np.reshape(episode_start, n).astype(bool).tolist()
            policy.advance(segments, achieved, starts)
        envs = segments.needs_subgoal
        if envs:
            noise = None
            if rng is not None:
                std = np.full((len(envs), 1), self.config.high.noise_std, dtype=np.float32)
                noise = draw_high_noise(self.config, std, self.goal_dim, rng, random_prob=0.0)
            situation = Situation(obs[envs], achieved[envs], goal[envs], segments.missed[envs], noise)
            decision = choose_subgoals(policy, situation)
            segments.start(decision.subgoals, achieved[envs], decision.max_steps)
        actions = policy.act(obs, achieved, segments.subgoals)
        if rng is not None:
            actions = actions + np.float32(self.config.low.noise_std) * rng.standard_normal(actions.shape, dtype=np.float32)
            actions = actions.clip(-1.0, 1.0)
        return actions, segments.state

    def _restore_segments(self, state: SubgoalState, n: int) -> Segments:
        if len(state) != len(SubgoalState._fields) or np.shape(state[0]) != (n, self.goal_dim):
            raise ValueError(
                f"`state` does not belong to {n} environments with goals of length {self.goal_dim}: pass the state that "
                "`predict` returned for these environments, or None to choose new subgoals."
            )
        return Segments.from_state(SubgoalState(*state))

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: whether to switch both levels to training mode (batch normalisation, dropout) or to evaluation mode
        """
        self.high.set_training_mode(mode)
        self.low.set_training_mode(mode)
        self.training = mode


MultiInputPolicy = HierarchicalPolicy
