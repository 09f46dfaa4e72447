"""Two mirrored levels, each an SB3 ``TD3Policy``, behind one policy whose ``predict`` carries the subgoal as state."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_hrl.common.buffers import GOAL_KEYS
from sb3_hrl.common.moments import RunningMoments
from sb3_hrl.common.subgoals import ArrayT, SubgoalBox, encode_subgoal, is_missed, is_reached
from sb3_hrl.common.type_aliases import SubgoalState
from sb3_hrl.hddpg.acting import INPUT_CLIP, N_MISSED, ActingPolicy, LowLevel, SegmentRules, explore
from sb3_hrl.hddpg.copies import live_acting_policy
from sb3_hrl.hddpg.landmarks import LandmarkConfig
from sb3_hrl.hddpg.levels import LevelPolicy
from sb3_hrl.hddpg.validation import per_dimension

N_CANDIDATES = 64


class HierarchicalPolicy(BasePolicy):
    """
    Policy of :class:`~sb3_hrl.HierarchicalDDPG`: ``high`` picks subgoals, ``low`` reaches them.

    Both levels are SB3's ``TD3Policy`` (actor, critics, their targets and optimizers) on a flat input:

    - low: ``[n(observation), n(achieved), n(subgoal), (subgoal - achieved) / radius]``
    - high: ``[n(observation), n(achieved), n(goal), (goal - achieved) / std]``

    where ``n`` normalises by running moments. Moments, subgoal bounds, radius and threshold are buffers: ``state_dict`` has
    all that ``predict`` needs.

    :param observation_space: Dict space with ``observation``, ``achieved_goal``, ``desired_goal``
    :param action_space: Box space
    :param lr_schedule: learning rate schedule (of both levels, unless ``level_kwargs`` says otherwise)
    :param net_arch: hidden layers of both levels' networks, by default [256, 256]
    :param activation_fn: activation of the hidden layers
    :param optimizer_class: optimizer of all networks
    :param optimizer_kwargs: its arguments, without the learning rate; Adam is fused by default
    :param n_critics: critics per level
    :param level_kwargs: per level (keys ``high`` and ``low``) arguments of ``TD3Policy`` that differ
    :param rules: when a segment ends, see :class:`~sb3_hrl.hddpg.acting.SegmentRules`
    :param relative_subgoals: whether the high level's actions are offsets from the achieved goal
    :param avoid_reached_subgoals: whether a subgoal that is already reached is replaced by the best of 64 fixed candidates
        (by the high level's critic) while the goal itself is not reached
    :param avoid_missed_subgoals: whether a subgoal missed of late in the episode is replaced likewise
    :param normalize_inputs: whether inputs are normalised by their running moments
    :param noise_std: Gaussian noise of (high, low) when ``predict`` is not deterministic
    :param subgoal_source: where subgoals come from, see :class:`~sb3_hrl.HierarchicalDDPG`
    :param select_by_value: whether subgoals are always the best candidates by the high level's critic
    :param direct_goal_steps: the goal itself is the subgoal if the low level takes no more environment steps to it; 0: never
    :param low_level: acts in place of the low level's actor
    :param low_gamma: the low level's discount factor, for what its values say in steps
    :param landmarks: settings of the planner over landmarks; ``None``: the high level's actor chooses subgoals
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 1,
        level_kwargs: dict[str, dict[str, Any]] | None = None,
        rules: tuple[int, int, int] = (10, 1, 1),
        relative_subgoals: bool = True,
        avoid_reached_subgoals: bool = True,
        avoid_missed_subgoals: bool = False,
        normalize_inputs: bool = True,
        noise_std: tuple[float, float] = (0.1, 0.1),
        subgoal_source: str | list[float] = "policy",
        select_by_value: bool = False,
        direct_goal_steps: float = 0.0,
        low_level: LowLevel | None = None,
        low_gamma: float = 0.99,
        landmarks: LandmarkConfig | None = None,
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
        self.net_arch = net_arch if net_arch is not None else [256, 256]
        self.activation_fn = activation_fn
        self.n_critics = n_critics
        self.level_kwargs = level_kwargs or {}
        self.rules = SegmentRules(*rules)
        self.relative_subgoals = relative_subgoals
        self.avoid_reached_subgoals = avoid_reached_subgoals
        self.avoid_missed_subgoals = avoid_missed_subgoals
        self.normalize_inputs = normalize_inputs
        self.noise_std = noise_std
        self.select_by_value = select_by_value
        self.direct_goal_steps = direct_goal_steps
        self.low_level = low_level
        self.low_gamma = low_gamma
        self.landmarks = landmarks

        self.observation_dim = spaces.flatdim(observation_space["observation"])
        self.goal_dim = spaces.flatdim(observation_space["desired_goal"])
        self.subgoal_source: str | np.ndarray
        if isinstance(subgoal_source, str):
            self.subgoal_source = subgoal_source
        else:
            self.subgoal_source = per_dimension("subgoal_source", subgoal_source, self.goal_dim)
        self.binary_goals = isinstance(observation_space["desired_goal"], spaces.MultiBinary)
        self.observation_moments = RunningMoments(self.observation_dim)
        self.goal_moments = RunningMoments(self.goal_dim)
        self.subgoal_low: th.Tensor
        self.subgoal_high: th.Tensor
        self.subgoal_radius: th.Tensor
        self.subgoal_threshold: th.Tensor
        self.candidates: th.Tensor
        self.input_shift: th.Tensor
        self.input_scale: th.Tensor
        self.register_buffer("subgoal_low", th.zeros(self.goal_dim))
        self.register_buffer("subgoal_high", th.ones(self.goal_dim))
        self.register_buffer("subgoal_radius", th.ones(self.goal_dim))
        self.register_buffer("subgoal_threshold", th.zeros(()))
        # What normalises the inputs of (high, low): derived from the moments and the radius
        self.register_buffer("input_shift", th.zeros(2, self.observation_dim + 3 * self.goal_dim))
        self.register_buffer("input_scale", th.ones(2, self.observation_dim + 3 * self.goal_dim))
        if landmarks is not None:
            n_landmarks, n_members = landmarks.n_landmarks, landmarks.n_members
            self.register_buffer("landmark_count", th.zeros(()))
            self.register_buffer("landmark_observations", th.zeros(n_landmarks, n_members, self.observation_dim))
            self.register_buffer("landmark_achieved", th.zeros(n_landmarks, n_members, self.goal_dim))
            self.register_buffer("landmark_goals", th.zeros(n_landmarks, self.goal_dim))
            self.register_buffer("landmark_steps", th.zeros(n_landmarks, n_landmarks))
        # Fixed, so that a deterministic policy is one; drawn apart from the global generator
        fixed = th.Generator().manual_seed(0)
        self.register_buffer("candidates", 2.0 * th.rand(N_CANDIDATES, self.goal_dim, generator=fixed) - 1.0)
        self._acting: ActingPolicy | None = None
        self._acting_place = 0
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        input_dim = self.observation_dim + 3 * self.goal_dim
        input_space = spaces.Box(-np.inf, np.inf, (input_dim,), np.float32)
        subgoal_space = spaces.Box(-1.0, 1.0, (self.goal_dim,), np.float32)
        self.high = self._make_level("high", input_space, subgoal_space, lr_schedule)
        self.low = self._make_level("low", input_space, self.action_space, lr_schedule)

    def _make_level(
        self, name: str, input_space: spaces.Box, action_space: spaces.Space, lr_schedule: Schedule
    ) -> LevelPolicy:
        assert isinstance(action_space, spaces.Box)
        kwargs: dict[str, Any] = dict(
            lr_schedule=lr_schedule,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            n_critics=self.n_critics,
        )
        return LevelPolicy(input_space, action_space, **(kwargs | self.level_kwargs.get(name, {})))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        del data["normalize_images"]
        # Schedules are not needed to load a policy alone
        level_kwargs = {
            name: {key: value for key, value in kwargs.items() if key != "lr_schedule"}
            for name, kwargs in self.level_kwargs.items()
        }
        return data | dict(
            lr_schedule=self._dummy_schedule,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            n_critics=self.n_critics,
            level_kwargs=level_kwargs,
            rules=tuple(self.rules),
            relative_subgoals=self.relative_subgoals,
            avoid_reached_subgoals=self.avoid_reached_subgoals,
            avoid_missed_subgoals=self.avoid_missed_subgoals,
            normalize_inputs=self.normalize_inputs,
            noise_std=self.noise_std,
            subgoal_source=self.subgoal_source,
            select_by_value=self.select_by_value,
            direct_goal_steps=self.direct_goal_steps,
            low_level=self.low_level,
            low_gamma=self.low_gamma,
            landmarks=self.landmarks,
        )

    @property
    def device(self) -> th.device:
        """Device of the policy; unlike SB3's property it does not walk through all modules, it is asked at every step."""
        return self.subgoal_threshold.device

    @property
    def subgoal_steps(self) -> int:
        """Environment steps per segment at most."""
        return self.rules.max_steps

    # ------------------------------------------------------------------ subgoals

    @property
    def box(self) -> SubgoalBox:
        """Where subgoals may lie."""
        return SubgoalBox(self.subgoal_low, self.subgoal_high, self.subgoal_radius)

    def set_box(self, low: np.ndarray, high: np.ndarray, radius: np.ndarray) -> None:
        """
        Set where subgoals may lie, within the bounds of the goal space.

        :param low: lower bounds of subgoals, shape (goal_dim,)
        :param high: upper bounds of subgoals, shape (goal_dim,)
        :param radius: reach of relative subgoals, shape (goal_dim,)
        """
        goal_space = self.observation_space["desired_goal"]  # type: ignore[index]
        if isinstance(goal_space, spaces.Box):
            low, high = np.maximum(low, goal_space.low.ravel()), np.minimum(high, goal_space.high.ravel())
        elif self.binary_goals:
            low, high = np.zeros(self.goal_dim), np.ones(self.goal_dim)
        for buffer, value in zip(self.box, (low, high, radius), strict=True):
            buffer.copy_(th.as_tensor(value))
        self._update_input_scaling()

    def set_landmarks(self, observations: np.ndarray, achieved: np.ndarray, steps: np.ndarray) -> None:
        """
        :param observations: of the landmarks' members, shape (n, n_members, obs_dim), n at most the planner's ``n_landmarks``
        :param achieved: goals achieved in these, shape (n, n_members, goal_dim); the first one is the landmark itself
        :param steps: environment steps from each to each other one, infinite where there is no edge, shape (n, n)
        """
        n = len(achieved)
        self.get_buffer("landmark_count").fill_(n)
        self.get_buffer("landmark_observations")[:n] = th.as_tensor(observations)
        self.get_buffer("landmark_achieved")[:n] = th.as_tensor(achieved)
        self.get_buffer("landmark_goals")[:n] = th.as_tensor(achieved[:, 0])
        self.get_buffer("landmark_steps")[:n, :n] = th.as_tensor(steps)

    def encode(self, subgoal: th.Tensor, achieved_goal: th.Tensor) -> th.Tensor:
        """High-level action that commands a subgoal, see :func:`~sb3_hrl.common.subgoals.encode_subgoal`."""
        return encode_subgoal(subgoal, achieved_goal, self.box, self.relative_subgoals)

    def is_reached(self, achieved_goal: ArrayT, subgoal: ArrayT) -> ArrayT:
        """Whether subgoals are reached, see :func:`~sb3_hrl.common.subgoals.is_reached`."""
        return is_reached(achieved_goal, subgoal, self.subgoal_threshold.item())

    # ------------------------------------------------------------------- levels

    def high_inputs(self, observation: th.Tensor, achieved_goal: th.Tensor, goal: th.Tensor) -> th.Tensor:
        """
        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param goal: shape (n, goal_dim)
        :return: inputs of the high level's networks, shape (n, obs_dim + 3 * goal_dim)
        """
        return self._inputs(0, observation, achieved_goal, goal)

    def low_inputs(self, observation: th.Tensor, achieved_goal: th.Tensor, subgoal: th.Tensor) -> th.Tensor:
        """
        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param subgoal: shape (n, goal_dim)
        :return: inputs of the low level's networks, shape (n, obs_dim + 3 * goal_dim)
        """
        return self._inputs(1, observation, achieved_goal, subgoal)

    def _inputs(self, level: int, observation: th.Tensor, achieved_goal: th.Tensor, target: th.Tensor) -> th.Tensor:
        inputs = th.cat([observation, achieved_goal, target, target - achieved_goal], dim=1)
        return inputs.sub_(self.input_shift[level]).mul_(self.input_scale[level]).clamp_(-INPUT_CLIP, INPUT_CLIP)

    def update_moments(self, observations: np.ndarray, goals: np.ndarray) -> None:
        """
        Take new steps into the moments that normalise inputs.

        :param observations: shape (n, obs_dim)
        :param goals: achieved and desired ones, shape (m, goal_dim)
        """
        self.observation_moments.update(observations)
        self.goal_moments.update(goals)
        self._update_input_scaling()

    def _update_input_scaling(self) -> None:
        observation, goal = self.observation_moments, self.goal_moments
        zeros = th.zeros_like(goal.mean)
        self.input_shift.copy_(th.cat([observation.mean, goal.mean, goal.mean, zeros]))
        for level, reach in enumerate((goal.std, self.subgoal_radius.double())):
            self.input_scale[level] = 1.0 / th.cat([observation.std, goal.std, goal.std, reach])

    # ------------------------------------------------------------------ predict

    def acting(self) -> ActingPolicy:
        """:return: the policy as functions on arrays, with the weights as they are"""
        # Views of the weights are made once, and again after a move to another device or a copy
        place = self.low.networks[0].weights().data_ptr()
        if self._acting is None or self._acting_place != place or self.device.type != "cpu":
            self._acting, self._acting_place = live_acting_policy(self), place
        return self._acting

    def flatten_obs(self, observation: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        :param observation: batch of observations
        :return: observation, achieved and desired goal, float32, shapes (n, dim)
        """
        observation_, achieved, goal = (
            np.asarray(observation[key], dtype=np.float32).reshape(len(observation[key]), -1) for key in GOAL_KEYS
        )
        return observation_, achieved, goal

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Plan now and act on it, without a state."""
        assert isinstance(observation, dict)
        arrays = self.flatten_obs({key: value.cpu().numpy() for key, value in observation.items()})
        actions, _ = self._predict_arrays(*arrays, self._restore_state(None, len(arrays[0])), None, deterministic)
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
        Actions for a batch of observations (or for a single one). The subgoals in force travel in ``state``: nothing is kept
        on the policy, so that environments of any number can be driven side by side.

        :param observation: observations, arrays of shape (n, ...) or without the first dimension
        :param state: what the last call returned, ``(subgoals, steps left)``; ``None`` plans now
        :param episode_start: where an episode begins, shape (n,): these plan anew
        :param deterministic: whether both levels act without exploration noise
        :return: actions, and the state for the next call (with a first dimension even for a single observation)
        """
        if not isinstance(observation, dict):
            raise ValueError(
                "HierarchicalDDPG acts on observations that are dicts with `observation`, `achieved_goal` and `desired_goal`, "
                f"not on {type(observation).__name__}. For SB3 environments pass what `env.reset()` and `env.step()` returned."
            )
        self.set_training_mode(False)
        vectorized = self.is_vectorized_observation(observation)
        batch = observation if vectorized else {key: np.asarray(value)[None] for key, value in observation.items()}
        arrays = self.flatten_obs(batch)
        state = self._restore_state(state, len(arrays[0]))
        actions, new_state = self._predict_arrays(*arrays, state, episode_start, deterministic)
        unscaled = self.unscale_action(actions)
        unscaled = np.clip(unscaled, self.action_space.low, self.action_space.high)  # type: ignore[attr-defined]
        return (unscaled if vectorized else unscaled.squeeze(axis=0)), new_state

    def _predict_arrays(
        self,
        obs: np.ndarray,
        achieved: np.ndarray,
        goal: np.ndarray,
        state: SubgoalState,
        episode_start: np.ndarray | None,
        deterministic: bool,
    ) -> tuple[np.ndarray, SubgoalState]:
        """:return: actions scaled to [-1, 1], and the state for the next call"""
        acting, rules = self.acting(), self.rules
        # A deterministic prediction draws no random numbers, the others follow SB3's seeding
        rng = None if deterministic else np.random.default_rng(np.random.randint(2**31))
        distances = np.sqrt(np.square(state.subgoals - achieved).sum(axis=1))
        state.held[:] = np.where(distances <= acting.threshold, state.held + 1, 0)
        reached, steps = state.held >= rules.hold_steps, rules.max_steps - state.steps_left
        is_over = state.steps_left <= 0
        replan = is_over | (reached & (steps >= rules.min_steps))
        missed = is_missed(reached, distances, np.sqrt(np.square(state.subgoals - state.starts).sum(axis=1)))
        newest = np.where(missed[:, None, None], np.stack((state.starts, state.subgoals), axis=1), np.inf)[:, None]
        state.missed[replan] = np.concatenate((state.missed[:, 1:], newest), axis=1)[replan]
        if episode_start is not None:
            starts = np.asarray(episode_start, dtype=bool)
            replan |= starts
            state.missed[starts] = np.inf
        if replan.any():
            noise = self.noise_std[0]
            plan = acting.plan(obs[replan], achieved[replan], goal[replan], state.missed[replan], noise, 0.0, rng)
            state.subgoals[replan], state.starts[replan] = plan.subgoals, achieved[replan]
            state.steps_left[replan], state.held[replan] = rules.max_steps, 0
        actions = acting.act(obs, achieved, state.subgoals)
        if rng is not None:
            actions, _ = explore(actions, self.noise_std[1], 0.0, rng)
        return actions, state._replace(steps_left=state.steps_left - 1)

    def _restore_state(self, state: SubgoalState | None, n: int) -> SubgoalState:
        """:return: a copy, as the caller's arrays stay as they are; a state in which all is over where there is none"""
        if state is None:
            return SubgoalState(
                subgoals=np.full((n, self.goal_dim), np.inf, dtype=np.float32),
                steps_left=np.zeros(n, dtype=np.int64),
                held=np.zeros(n, dtype=np.int64),
                starts=np.zeros((n, self.goal_dim), dtype=np.float32),
                missed=np.full((n, N_MISSED, 2, self.goal_dim), np.inf, dtype=np.float32),
            )
        if len(state) != len(SubgoalState._fields) or np.shape(state[0]) != (n, self.goal_dim):
            raise ValueError(
                f"`state` is not one of {n} environments with goals of length {self.goal_dim}: pass the state that `predict` "
                "returned for these environments, or None to plan now."
            )
        return SubgoalState(*(np.array(array) for array in state))

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: whether to switch both levels to training mode (batch normalisation, dropout) or to evaluation mode
        """
        self.high.set_training_mode(mode)
        self.low.set_training_mode(mode)
        self.training = mode


MultiInputPolicy = HierarchicalPolicy
