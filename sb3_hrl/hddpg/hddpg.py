import copy
import io
import pathlib
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_pkl, load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule, TensorDict, TrainFreq
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer, goal_strategy
from sb3_hrl.common.goals import GoalTask, check_reward, goal_task_from_env
from sb3_hrl.common.subgoals import shrinking_scale
from sb3_hrl.hddpg.acting import LowLevel, SegmentRules
from sb3_hrl.hddpg.calibration import calibrated_box, first_box
from sb3_hrl.hddpg.exploration import ExplorationConfig, Explorer
from sb3_hrl.hddpg.landmarks import LandmarkConfig
from sb3_hrl.hddpg.levels import LevelConfig, UpdateInfo, ddpg_update
from sb3_hrl.hddpg.mapping import update_landmarks
from sb3_hrl.hddpg.policies import HierarchicalPolicy, MultiInputPolicy
from sb3_hrl.hddpg.rollouts import AsyncRollouts, collector_of
from sb3_hrl.hddpg.samplers import Samplers
from sb3_hrl.hddpg.validation import check_options, check_spaces, check_vec_normalize, per_dimension

SelfHierarchicalDDPG = TypeVar("SelfHierarchicalDDPG", bound="HierarchicalDDPG")

# Input statistics are refreshed once this many new steps are there, the subgoal box once per so many steps
NORMALIZER_INTERVAL = 100
CALIBRATION_INTERVAL = 1_000


class HierarchicalDDPG(OffPolicyAlgorithm):
    """
    Two-level goal-conditioned Deep Deterministic Policy Gradient.

    The high level picks subgoals in the space of achieved goals, the low level reaches them: a *segment* lasts until its
    subgoal is reached, ``subgoal_steps`` environment steps are over, or the episode ends. Both levels are DDPG with hindsight
    and a reward of -1 until the (sub)goal is reached, learnt from one replay buffer of environment steps. Hindsight actions
    and subgoal tests are those of HAC (https://arxiv.org/abs/1712.00948), relative subgoals those of HIRO
    (https://arxiv.org/abs/1805.08296), hindsight goals those of HER (https://arxiv.org/abs/1707.01495).

    The environment's reward is used for what it says about success only, see :class:`~sb3_hrl.common.goals.GoalTask`.
    Arguments that are those of SB3's DDPG set both levels; ``high_kwargs`` and ``low_kwargs`` override them on one level.

    :param policy: ``"MultiInputPolicy"``
    :param env: goal-conditioned environment (if registered in Gym, can be str)
    :param learning_rate: learning rate for Adam, of all networks; a float, a schedule, or ``"lin_1e-3"``
    :param buffer_size: environment steps in the replay buffer
    :param learning_starts: how many steps to collect with random actions and random subgoals before learning starts
    :param batch_size: minibatch size for each gradient update
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1)
    :param gamma: the discount factor, per environment step on the low level and per segment on the high level
    :param train_freq: update the model every ``train_freq`` steps, or ``(5, "step")``, ``(2, "episode")``
    :param gradient_steps: low-level gradient steps after each rollout; ``-1``: as many as steps done in the environment
    :param action_noise: noise on the low level's actions, in place of ``noise_std``
    :param replay_buffer_class: :class:`~sb3_hrl.SharedMemoryReplayBuffer` or a subclass
    :param replay_buffer_kwargs: keyword arguments to pass to the replay buffer on creation
    :param optimize_memory_usage: not supported, must be False
    :param n_steps: not supported, must be 1
    :param subgoal_steps: environment steps per segment at most
    :param relative_subgoals: whether subgoals are issued within ``subgoal_radius`` of the achieved goal; else anywhere within
        ``subgoal_bounds``
    :param subgoal_radius: reach of relative subgoals in the units of the goal, a float or one per dimension;
        ``None``: what the low level covers in ``subgoal_steps`` steps, found from the data
    :param subgoal_bounds: lower and upper bounds of subgoals; ``None``: the box of the goals seen so far
    :param subgoal_threshold: Euclidean distance at which a subgoal counts as reached; ``None``: the tolerance of the
        environment's own sparse reward
    :param avoid_reached_subgoals: replace a subgoal that is reached before its first step by the best of 64 fixed candidates
        (by the high level's critic), unless the goal itself is reached
    :param avoid_missed_subgoals: do not issue a subgoal again that was missed of late in the same episode (of which more than
        half of the way was left), where the low level would run against the same wall for ever
    :param min_segment_steps: environment steps before which a segment does not end because its subgoal is reached
    :param subgoal_hold_steps: a subgoal is reached when it has been at hand for so many environment steps in a row
    :param hindsight_action_prob: share of the high-level batch whose action is the subgoal that was achieved (HAC)
    :param subgoal_test_prob: share of segments that run without low-level noise; a subgoal missed in such a test gets the
        value of never reaching the goal, -1 / (1 - gamma) (HAC)
    :param off_policy_correction: relabel commanded subgoals by those under which the low level of today would have acted most
        as it did (HIRO); slow, as it looks at every step of each segment
    :param smdp: a segment of k of the ``subgoal_steps`` c costs the high level k / c instead of 1, and what follows is
        discounted by gamma^(k / c)
    :param trivial_segment_prob: probability of learning from a segment that went less than half the threshold without reaching
        the goal; below 1 others take its place in the batch
    :param n_sampled_goal: number of virtual transitions per real one, by sampling new goals, on both levels
    :param goal_selection_strategy: ``future``, ``final`` or ``episode``, for the high level's goals in hindsight; the low
        level's come from the next ``subgoal_steps`` steps
    :param max_grad_value: gradients are clipped to [-max_grad_value, max_grad_value] per network; ``None`` for no clipping
    :param random_action_prob: probability of a uniformly random action (low) or subgoal (high) in training
    :param noise_std: Gaussian noise on the actions of both levels in training, in units of actions scaled to [-1, 1]
    :param target_policy_noise: standard deviation of the smoothing noise on the target's actions (TD3)
    :param target_noise_clip: limit of that noise
    :param normalize_inputs: normalise observations and goals by their running moments, inside the policy
    :param high_update_interval: low-level gradient steps per high-level gradient step; ``None``: ``subgoal_steps``, so that
        both levels learn once per step of their own
    :param high_kwargs: settings of the high level that differ, see :class:`~sb3_hrl.hddpg.levels.LevelConfig`
    :param low_kwargs: settings of the low level that differ
    :param subgoal_source: where subgoals come from: ``policy``, the high level; ``goal``, the goal itself (flat DDPG+HER);
        ``random``, uniformly drawn in training and the goal in evaluation; or one point in the space of goals. But for
        ``policy`` the high level does not learn
    :param select_by_value: subgoals are the best of 64 fixed candidates by the high level's critic, not the actor's proposals
    :param direct_goal: the goal itself is the subgoal when the low level's value says that it is no more than ``direct_goal``
        times ``subgoal_steps`` environment steps away; 0: never
    :param low_level: a function that acts in place of the low level, which does not learn then: from observations, achieved
        goals and subgoals, each of shape (n, dim), to actions scaled to [-1, 1], shape (n, action_dim)
    :param threshold_scale: the threshold of subgoals is so many times larger at the beginning
    :param threshold_shrink_fraction: share of the training in which it shrinks linearly to its own size
    :param noise_hold_steps: environment steps for which the low level's exploration noise stays the same
    :param planner: ``landmarks``: subgoals are the first waypoints of shortest paths over visited states, where one is known,
        see :mod:`sb3_hrl.hddpg.landmarks`; ``None``: the high level's actor chooses them
    :param planner_kwargs: settings of the planner, see :class:`~sb3_hrl.hddpg.landmarks.LandmarkConfig`
    :param async_collection: whether the environments, a :class:`~sb3_hrl.ParallelCollector`, step by themselves while the
        agent learns; the ratio of updates to steps stays what ``train_freq`` and ``gradient_steps`` ask for
    :param prefetch_depth: batches that a process prepares ahead, with their targets, if ``async_collection``; 0 for none
    :param stats_window_size: window size for the rollout logging, in episodes
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see
        :class:`~sb3_hrl.hddpg.policies.HierarchicalPolicy`; with ``n_critics=2`` targets are the critics' minimum, as in TD3
    :param verbose: verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: seed for the pseudo random generators
    :param device: device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: whether or not to build the networks at the creation of the instance
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MultiInputPolicy": MultiInputPolicy}
    policy: HierarchicalPolicy
    replay_buffer: SharedMemoryReplayBuffer

    def __init__(
        self,
        policy: str | type[HierarchicalPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 1e-3,
        buffer_size: int = 1_000_000,  # 1e6
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[SharedMemoryReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        subgoal_steps: int = 10,
        relative_subgoals: bool = True,
        subgoal_radius: float | list[float] | None = None,
        subgoal_bounds: tuple[list[float], list[float]] | None = None,
        subgoal_threshold: float | None = None,
        avoid_reached_subgoals: bool = True,
        avoid_missed_subgoals: bool = False,
        min_segment_steps: int = 1,
        subgoal_hold_steps: int = 1,
        hindsight_action_prob: float = 0.5,
        subgoal_test_prob: float = 0.0,
        off_policy_correction: bool = False,
        smdp: bool = False,
        trivial_segment_prob: float = 1.0,
        n_sampled_goal: int = 4,
        goal_selection_strategy: GoalSelectionStrategy | str = "future",
        max_grad_value: float | None = 1.0,
        random_action_prob: float = 0.2,
        noise_std: float = 0.1,
        target_policy_noise: float = 0.0,
        target_noise_clip: float = 0.5,
        normalize_inputs: bool = True,
        high_update_interval: int | None = None,
        high_kwargs: dict[str, Any] | None = None,
        low_kwargs: dict[str, Any] | None = None,
        subgoal_source: str | list[float] = "policy",
        select_by_value: bool = False,
        direct_goal: float = 0.0,
        low_level: LowLevel | None = None,
        threshold_scale: float = 1.0,
        threshold_shrink_fraction: float = 0.5,
        noise_hold_steps: int = 1,
        planner: str | None = None,
        planner_kwargs: dict[str, Any] | None = None,
        async_collection: bool = False,
        prefetch_depth: int = 2,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,
            learning_rate,  # type: ignore[arg-type]  # strings are read by LevelConfig
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
            support_multi_env=True,
        )
        self.subgoal_steps = subgoal_steps
        self.relative_subgoals = relative_subgoals
        self.subgoal_radius = subgoal_radius
        self.subgoal_bounds = subgoal_bounds
        self.subgoal_threshold = subgoal_threshold
        self.avoid_reached_subgoals = avoid_reached_subgoals
        self.avoid_missed_subgoals = avoid_missed_subgoals
        self.min_segment_steps = min_segment_steps
        self.subgoal_hold_steps = subgoal_hold_steps
        self.hindsight_action_prob = hindsight_action_prob
        self.subgoal_test_prob = subgoal_test_prob
        self.off_policy_correction = off_policy_correction
        self.smdp = smdp
        self.trivial_segment_prob = trivial_segment_prob
        self.n_sampled_goal = n_sampled_goal
        self.goal_selection_strategy = goal_selection_strategy
        self.max_grad_value = max_grad_value
        self.random_action_prob = random_action_prob
        self.noise_std = noise_std
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.normalize_inputs = normalize_inputs
        self.high_update_interval = high_update_interval
        self.high_kwargs = high_kwargs
        self.low_kwargs = low_kwargs
        self.subgoal_source = subgoal_source
        self.select_by_value = select_by_value
        self.direct_goal = direct_goal
        self.low_level = low_level
        self.threshold_scale = threshold_scale
        self.threshold_shrink_fraction = threshold_shrink_fraction
        self.noise_hold_steps = noise_hold_steps
        self.planner = planner
        self.planner_kwargs = planner_kwargs
        self.async_collection = async_collection
        self.prefetch_depth = prefetch_depth

        self._goal_task: GoalTask | None = None
        self._has_box = False
        self._n_normalized = 0  # steps of the buffer that the normalisers have seen
        self._n_calibrated = 0  # steps of the buffer at the last calibration of the box
        self._n_mapped = 0  # steps of the buffer at the last choice of landmarks
        self._rollouts: AsyncRollouts | None = None  # while workers collect
        self._samplers: Samplers | None = None  # while the agent learns
        self._n_untaken = 0  # steps that workers have written, and that were not taken in before learn() ended
        if _init_setup_model:
            self._setup_model()
            if self.env is not None:
                check_reward(self.env, self.subgoal_threshold)

    def _setup_model(self) -> None:
        check_options(self)
        check_spaces(self.observation_space)
        check_vec_normalize(self._vec_normalize_env)
        shared = LevelConfig(
            learning_rate=self.learning_rate,
            batch_size=None,
            tau=self.tau,
            gamma=self.gamma,
            n_sampled_goal=self.n_sampled_goal,
            max_grad_value=self.max_grad_value,
            noise_std=self.noise_std,
            random_action_prob=self.random_action_prob,
            n_critics=self.policy_kwargs.get("n_critics", 1),
            target_policy_noise=self.target_policy_noise,
            target_noise_clip=self.target_noise_clip,
        )
        self._high = shared.override("high", self.high_kwargs)
        self._low = shared.override("low", self.low_kwargs)
        self._landmark_config = LandmarkConfig.from_kwargs(self.planner_kwargs) if self.planner is not None else None
        self._learns_high = isinstance(self.subgoal_source, str) and self.subgoal_source == "policy"
        asks_values = (
            self._landmark_config.distance == "value" if self._landmark_config is not None else self.direct_goal > 0.0
        )
        if self._low.reward != "sparse" and asks_values:
            raise ValueError(
                "`planner` and `direct_goal` read environment steps from the low level's values, which they are with sparse "
                "rewards only: pass `reward='sparse'` in `low_kwargs`, or `distance='euclidean'` in `planner_kwargs`."
            )
        self._high_interval = self.high_update_interval or self.subgoal_steps
        self.replay_buffer_class = self.replay_buffer_class or SharedMemoryReplayBuffer
        buffer_kwargs, policy_kwargs = self.replay_buffer_kwargs, self.policy_kwargs
        # What the policy and the buffer need of our own arguments is not saved twice, as theirs
        self.replay_buffer_kwargs = {"goal_selection_strategy": goal_strategy(self.goal_selection_strategy)} | buffer_kwargs
        self.policy_kwargs = self._complete_policy_kwargs()
        super()._setup_model()
        self.replay_buffer_kwargs, self.policy_kwargs = buffer_kwargs, policy_kwargs
        self._explorer = self._make_explorer()

    def _make_explorer(self) -> Explorer:
        return Explorer(
            self.n_envs,
            self.policy.goal_dim,
            self.replay_buffer.action_dim,
            self.exploration_config(),
            self.replay_buffer.rng,
        )

    def exploration_config(self) -> ExplorationConfig:
        """:return: how training environments are explored"""
        return ExplorationConfig(
            noise_std=(self._high.noise_std, self._low.noise_std),
            random_action_prob=(self._high.random_action_prob, self._low.random_action_prob),
            subgoal_test_prob=self.subgoal_test_prob,
            noise_hold_steps=self.noise_hold_steps,
        )

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = self._low.lr_schedule

    def _complete_policy_kwargs(self) -> dict[str, Any]:
        """The user's ``policy_kwargs`` with what the policy needs of our own arguments."""
        level_kwargs = {}
        for name, config in (("high", self._high), ("low", self._low)):
            level_kwargs[name] = dict(lr_schedule=config.lr_schedule, n_critics=config.n_critics)
            if config.net_arch is not None:
                level_kwargs[name]["net_arch"] = config.net_arch
        return self.policy_kwargs | dict(
            subgoal_source=self.subgoal_source,
            select_by_value=self.select_by_value,
            direct_goal_steps=self.direct_goal * self.subgoal_steps,
            low_level=self.low_level,
            low_gamma=self._low.gamma,
            landmarks=self._landmark_config,
            level_kwargs=level_kwargs,
            rules=SegmentRules(self.subgoal_steps, self.min_segment_steps, self.subgoal_hold_steps),
            relative_subgoals=self.relative_subgoals,
            avoid_reached_subgoals=self.avoid_reached_subgoals,
            avoid_missed_subgoals=self.avoid_missed_subgoals,
            normalize_inputs=self.normalize_inputs,
            noise_std=(self._high.noise_std, self._low.noise_std),
        )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        :param env: the environment for learning a policy, with the number of environments of the current one
        :param force_reset: force a call to ``reset()`` before training
        """
        super().set_env(env, force_reset)
        check_vec_normalize(self._vec_normalize_env)
        self._goal_task = None

    # ------------------------------------------------------------------ rollout

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> Any:
        is_reset = reset_num_timesteps or self._last_obs is None
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if is_reset:
            # The environments start anew: what was running in them is over
            self.replay_buffer.end_episodes()
            self._n_untaken = 0
            self._explorer = self._make_explorer()
        if self._goal_task is None:
            self._setup_goals()
        return result

    def _setup_goals(self) -> None:
        """Ask the environment what reaching a goal means, and give subgoals a first box around the first observations."""
        assert isinstance(self.env, VecEnv)
        assert isinstance(self._last_obs, dict)
        goals = np.asarray(self._last_obs["desired_goal"], dtype=np.float32).reshape(self.n_envs, -1)
        achieved = np.asarray(self._last_obs["achieved_goal"], dtype=np.float32).reshape(self.n_envs, -1)
        self._goal_task = goal_task_from_env(self.env, goals, self.subgoal_threshold, achieved)
        threshold = self._goal_task.threshold
        self.policy.subgoal_threshold.fill_(self.threshold_scale * threshold)
        if not self._has_box:
            self._has_box = True
            self._set_box(first_box(np.concatenate([goals, achieved]), threshold))

    def _set_box(self, box: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Set bounds and radius of subgoals; what the user gave stays as given."""
        low, high, radius = box
        dim = self.policy.goal_dim
        if self.subgoal_bounds is not None:
            low, high = (per_dimension("subgoal_bounds", bound, dim) for bound in self.subgoal_bounds)
        if self.subgoal_radius is not None:
            radius = per_dimension("subgoal_radius", self.subgoal_radius, dim)
        self.policy.set_box(low, high, radius)

    def _sample_action(
        self,
        learning_starts: int,
        action_noise: ActionNoise | None = None,
        n_envs: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Actions of the exploration policy; environments whose segment is over get a new subgoal first.

        :param action_noise: noise on the low level's actions, in place of its ``noise_std``
        :param learning_starts: number of steps before learning, with random actions and subgoals
        :param n_envs: number of environments
        :return: actions for the environment, and the same scaled to [-1, 1] for the buffer
        """
        assert isinstance(self._last_obs, dict)
        scaled = self._explorer.act(
            self.policy.acting(),
            *self.policy.flatten_obs(self._last_obs),
            is_warm_up=self.num_timesteps < learning_starts,
            action_noise=None if action_noise is None else np.reshape(action_noise(), (n_envs, -1)),
        )
        if not np.isfinite(scaled).all():
            raise ValueError("The low level's action is not finite (NaN or infinite): lower the learning rate.")
        return self.policy.unscale_action(scaled), scaled

    def _store_transition(
        self,
        replay_buffer: SharedMemoryReplayBuffer,  # type: ignore[override]
        buffer_action: np.ndarray,
        new_obs: dict[str, np.ndarray],  # type: ignore[override]
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store a step with the subgoal in force, and end the segments that end with it.

        :param replay_buffer: where to
        :param buffer_action: actions scaled to [-1, 1], shape (n_envs, action_dim)
        :param new_obs: next observations, the first of the next episode where one ended
        :param reward: the environment's rewards, shape (n_envs,)
        :param dones: whether the episodes ended, shape (n_envs,)
        :param infos: the environment's infos, with ``terminal_observation`` where an episode ended
        """
        next_obs = new_obs
        if dones.any():
            next_obs = {key: value.copy() for key, value in new_obs.items()}
            for env in np.flatnonzero(dones):
                for key, value in infos[env]["terminal_observation"].items():
                    next_obs[key][env] = value
        # In the precision that the buffer has
        achieved = np.asarray(next_obs["achieved_goal"], dtype=np.float32).reshape(self.n_envs, -1)
        segment_done = self._explorer.step(achieved, dones.tolist())
        replay_buffer.add(
            self._last_obs,  # type: ignore[arg-type]
            next_obs,
            buffer_action,
            reward,
            dones,
            infos,
            subgoal=self._explorer.tracker.subgoals,
            segment_done=segment_done,
            tested=self._explorer.tracker.tested,
        )
        self._last_obs = new_obs

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """
        Collect experience, or take in what workers have collected (``async_collection``).

        :param env: the training environment
        :param callback: called at each step of all environments
        :param train_freq: how much experience to collect
        :param replay_buffer: where it goes
        :param action_noise: noise on the low level's actions, in place of its ``noise_std``
        :param learning_starts: number of steps before learning, with random actions and subgoals
        :param log_interval: log data every ``log_interval`` episodes
        :return: how much was collected
        """
        if not self.async_collection:
            return super().collect_rollouts(
                env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval
            )
        if self._rollouts is None:
            self._rollouts = AsyncRollouts(self)
        return self._rollouts.collect(callback, train_freq, log_interval)

    def dump_logs(self) -> None:
        """Write log data."""
        if self._rollouts is not None:
            self._rollouts.log()
        self._explorer.tracker.log(self.logger)
        super().dump_logs()

    # ----------------------------------------------------------------- training

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """
        Update both levels: the low one ``gradient_steps`` times, the high one once per ``high_update_interval`` of these.

        :param gradient_steps: number of low-level gradient steps
        :param batch_size: entries per gradient step, unless ``high_kwargs`` or ``low_kwargs`` say otherwise
        """
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        assert self._goal_task is not None, "train() needs what learn() asks the environment about goals"
        if self._samplers is None or self._samplers.batch_size != batch_size:
            self._close_samplers()
            self._samplers = Samplers(self, batch_size, depth=self._prefetch_depth())
        samplers = self._samplers
        self._update_learning_rates()
        self._update_statistics()

        low_infos: list[UpdateInfo] = []
        high_infos: list[UpdateInfo] = []
        for _ in range(gradient_steps):
            self._n_updates += 1
            if self.low_level is None:
                low_infos.append(ddpg_update(self.policy.low, samplers.low(), self._low, self._n_updates))

            n_high, is_high_turn = divmod(self._n_updates, self._high_interval)
            if is_high_turn == 0 and self._learns_high and self.replay_buffer.n_segments() > 0:
                high_infos.append(ddpg_update(self.policy.high, samplers.high(), self._high, n_high))

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self._log_level("low", low_infos)
        self._log_level("high", high_infos)

    def _prefetch_depth(self) -> int:
        """Batches are prepared ahead where there is no order to keep."""
        return self.prefetch_depth if self._rollouts is not None and not self._rollouts.is_serial else 0

    def _close_samplers(self) -> None:
        if self._samplers is not None:
            samplers, self._samplers = self._samplers, None
            samplers.close()

    def _update_learning_rates(self) -> None:
        progress = self._current_progress_remaining
        for name, level, config in (
            ("train/learning_rate", self.policy.low, self._low),
            ("train/high_learning_rate", self.policy.high, self._high),
        ):
            value = config.lr_schedule(progress)
            self.logger.record(name, value)
            update_learning_rate(level.actor.optimizer, value)
            update_learning_rate(level.critic.optimizer, value)

    def _update_statistics(self) -> None:
        """Take new steps into the normalisers, and fit the box of subgoals to what was visited."""
        assert self._goal_task is not None
        progress = 1.0 - self._current_progress_remaining
        scale = shrinking_scale(self.threshold_scale, self.threshold_shrink_fraction, progress)
        self.policy.subgoal_threshold.fill_(scale * self._goal_task.threshold)
        n_added = self.replay_buffer.n_added
        # A buffer that was not saved with the model starts from 0
        self._n_normalized, self._n_calibrated = min(self._n_normalized, n_added), min(self._n_calibrated, n_added)
        self._n_mapped = min(self._n_mapped, n_added)
        n_new = n_added - self._n_normalized
        if self.normalize_inputs and (n_new >= NORMALIZER_INTERVAL or (n_new > 0 and self._n_normalized == 0)):
            for steps in self.replay_buffer.recent(n_new, ("observation", "next_achieved_goal", "desired_goal")):
                goals = np.concatenate([steps["next_achieved_goal"], steps["desired_goal"]])
                self.policy.update_moments(steps["observation"], goals)
            self._n_normalized = n_added
        if n_added - self._n_calibrated >= CALIBRATION_INTERVAL or self._n_calibrated == 0:
            self._set_box(calibrated_box(self.policy, self.replay_buffer, self._goal_task.threshold))
            self._n_calibrated = n_added
        landmarks = self._landmark_config
        if landmarks is not None and n_added - self._n_mapped >= landmarks.update_interval:
            update_landmarks(self.policy, self.replay_buffer, landmarks)
            self._n_mapped = n_added

    def _log_level(self, name: str, infos: list[UpdateInfo]) -> None:
        if len(infos) == 0:
            return
        stacked = {key: th.stack(values) for key, values in zip(UpdateInfo._fields, zip(*infos, strict=True), strict=True)}
        means = {key: values.mean().item() for key, values in stacked.items()}
        # Only where the actor had its turn (`policy_delay`): a loss that is not a number is to be seen, this is not
        means["action_saturation"] = stacked["action_saturation"].nanmean().item()
        for key, value in means.items():
            if key != "action_saturation" or np.isfinite(value):
                self.logger.record(f"train/{name}_{key}", value)
        if name == "low":
            # SB3's names are those of the level that acts in the environment
            self.logger.record("train/actor_loss", means["actor_loss"])
            self.logger.record("train/critic_loss", means["critic_loss"])

    def learn(
        self: SelfHierarchicalDDPG,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "HDDPG",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfHierarchicalDDPG:
        if self.async_collection:
            assert self.env is not None, "You must set the environment before calling learn()"
            collector_of(self.env)
        try:
            return super().learn(
                total_timesteps=total_timesteps,
                callback=callback,
                log_interval=log_interval,
                tb_log_name=tb_log_name,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )
        finally:
            self._close_samplers()
            if self._rollouts is not None:
                rollouts, self._rollouts = self._rollouts, None
                rollouts.stop()

    # ------------------------------------------------------------------- saving

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer from a pickle file. Its running episodes are closed: the environments start anew.

        :param path: path to the pickled replay buffer
        :param truncate_last_traj: not used, as in SB3 with any buffer but its HerReplayBuffer
        :raises ValueError: if it is a buffer of another class, or of other environments; the model keeps its own then
        """
        saved = load_from_pkl(path, self.verbose)
        # What is refused must not take the place of the model's own buffer
        self.replay_buffer.check_replacement(saved)
        saved.device = self.device
        saved.end_episodes()
        self.replay_buffer = saved

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters from a zip-file or a dictionary, as SB3 does, but all of them or none.

        :param load_path_or_dict: path of the saved model, or what ``get_parameters`` returned
        :param exact_match: whether all parameters have to be there
        :param device: device on which the code should run
        :raises RuntimeError: if they do not fit; the model is as it was then
        """
        params = load_path_or_dict
        if not isinstance(params, dict):
            params = load_from_zip_file(params, device=device, load_data=False)[1]
        own = copy.deepcopy(self.get_parameters())
        try:
            super().set_parameters(params, exact_match, device)
            # torch does not check what optimizers get
            for network in (net for level in (self.policy.high, self.policy.low) for net in (level.actor, level.critic)):
                for parameter, state in network.optimizer.state.items():
                    if any(th.is_tensor(value) and value.shape not in ((), parameter.shape) for value in state.values()):
                        raise ValueError("The state of an optimizer has another shape than the parameters.")
        except Exception as error:
            # torch copies what fits before it refuses the rest
            super().set_parameters(own)  # type: ignore[arg-type]
            # No ValueError: SB3's `load` would take it for a DQN of an old version
            raise RuntimeError(
                "The parameters do not fit this model, which keeps its own: build it with the spaces, `policy_kwargs`, "
                "`planner` and `net_arch` of the model that they come from, as `HierarchicalDDPG.load` does unless other ones "
                f"are passed. {error}"
            ) from error

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "_goal_task",
            "_explorer",
            "_rollouts",
            "_samplers",
            "_high",
            "_low",
            "_landmark_config",
            "lr_schedule",
        ]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        optimizers = [f"policy.{level}.{network}.optimizer" for level in ("high", "low") for network in ("actor", "critic")]
        return ["policy", *optimizers], []
