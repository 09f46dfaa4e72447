import warnings
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TensorDict
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer, new_generator
from sb3_hrl.common.checks import check_argument_names
from sb3_hrl.common.env_goals import EnvGoalTask, check_reward, goal_task_from_env
from sb3_hrl.common.spaces import flatten
from sb3_hrl.hddpg.batch_source import BatchSource, make_batch_source
from sb3_hrl.hddpg.config import GROUPS, HierarchyConfig, read_arguments
from sb3_hrl.hddpg.exploration import Explorer, WorkerAgent
from sb3_hrl.hddpg.hints import Hints
from sb3_hrl.hddpg.inference import PolicySnapshot
from sb3_hrl.hddpg.level import UpdateInfo, log_updates
from sb3_hrl.hddpg.policies import HierarchicalPolicy, MultiInputPolicy
from sb3_hrl.hddpg.saving import FRESH_OPTIMIZERS, set_all_or_none, with_fresh_training_state
from sb3_hrl.hddpg.segments import SegmentStatistics
from sb3_hrl.hddpg.statistics import Statistics
from sb3_hrl.hddpg.validation import check_action_space, check_arguments, check_observation_space, check_vec_normalize
from sb3_hrl.parallel.async_algorithm import AsyncOffPolicyAlgorithm
from sb3_hrl.parallel.async_rollouts import Acting

SelfHierarchicalDDPG = TypeVar("SelfHierarchicalDDPG", bound="HierarchicalDDPG")


class HierarchicalDDPG(AsyncOffPolicyAlgorithm):
    """
    Two-level goal-conditioned Deep Deterministic Policy Gradient.

    The low level reaches subgoals in the space of achieved goals. The subgoal is the goal itself if the low level's value
    predicts that the goal is within its horizon. Otherwise it is the first waypoint of a planner or, without a planner, the
    output of the high level's actor. A *segment* ends when its subgoal is reached, its steps are used up, or the episode ends.
    Both levels are DDPG with two critics, hindsight, and a reward of -1 until the (sub)goal is reached. They share a replay
    buffer. Hindsight actions and subgoal tests come from HAC (https://arxiv.org/abs/1712.00948), relative subgoals from HIRO
    (https://arxiv.org/abs/1805.08296), and hindsight goals from HER (https://arxiv.org/abs/1707.01495).

    The environment's reward only defines what counts as success, see :class:`~sb3_hrl.common.goals.GoalTask`. Arguments shared
    with SB3's DDPG apply to both levels; ``high_kwargs`` and ``low_kwargs`` override them for one level.

    :param policy: ``"MultiInputPolicy"``
    :param env: goal-conditioned environment (if registered in Gym, can be str)
    :param learning_rate: learning rate of the Adam optimizers of all networks; a float, a schedule, or ``"lin_1e-3"``
    :param buffer_size: size of the replay buffer, in environment steps
    :param learning_starts: steps with random actions (and, if ``planner=None``, random subgoals) before learning starts
    :param batch_size: minibatch size for each gradient update
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1)
    :param gamma: the discount factor, per environment step on the low level and per segment on the high level
    :param train_freq: update the model every ``train_freq`` steps, or ``(5, "step")``, ``(2, "episode")``
    :param gradient_steps: number of low-level gradient steps per rollout; ``-1``: as many as environment steps in the rollout
    :param action_noise: noise on the low level's actions; it replaces ``noise_std``
    :param replay_buffer_class: :class:`~sb3_hrl.SharedMemoryReplayBuffer` or a subclass
    :param replay_buffer_kwargs: keyword arguments to pass to the replay buffer on creation
    :param optimize_memory_usage: not supported, must be False
    :param n_steps: not supported, must be 1
    :param subgoal_steps: maximum number of environment steps per segment, and the horizon; ``None``: 1.5 times the predicted
        steps plus 5, with a horizon calibrated from experience, see :mod:`sb3_hrl.hddpg.horizon`
    :param subgoal_kwargs: what subgoals are and where they come from, see :class:`~sb3_hrl.hddpg.config.SubgoalConfig`
    :param planner: ``"landmarks"``: subgoals beyond the horizon are waypoints over visited states, or the goal if no path is
        known, see :mod:`sb3_hrl.hddpg.planners.landmarks`; ``None``: the high level's actor chooses them
    :param planner_kwargs: settings of the planner, see :class:`~sb3_hrl.hddpg.planners.LandmarkConfig`
    :param exploration_kwargs: noise, random actions, subgoal tests, see :class:`~sb3_hrl.hddpg.config.ExplorationConfig`
    :param hindsight_kwargs: how experience is relabelled, see :class:`~sb3_hrl.hddpg.config.HindsightConfig`
    :param high_kwargs: settings that differ on the high level, see :class:`~sb3_hrl.hddpg.config.LevelConfig`
    :param low_kwargs: settings that differ on the low level
    :param high_update_interval: number of low-level gradient steps per high-level gradient step
    :param max_grad_value: gradients are clipped to [-max_grad_value, max_grad_value] per network; ``None`` for no clipping
    :param async_collection: whether the environments (a :class:`~sb3_hrl.ParallelCollector`) step in the background while the
        agent learns; ``train_freq`` and ``gradient_steps`` still set the ratio of updates to steps
    :param prefetch_depth: number of batches that a process prepares in advance if ``async_collection``; 0 disables it
    :param stats_window_size: window size for the rollout logging, in episodes
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see
        :class:`~sb3_hrl.hddpg.policies.HierarchicalPolicy`; ``n_critics`` is 2: targets use the minimum of both, as in TD3
    :param verbose: verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: seed for the pseudo random generators
    :param device: device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: whether or not to build the networks at the creation of the instance
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MultiInputPolicy": MultiInputPolicy}
    policy: HierarchicalPolicy
    replay_buffer: SharedMemoryReplayBuffer

    @check_argument_names(GROUPS)
    def __init__(
        self,
        policy: str | type[HierarchicalPolicy],
        env: GymEnv | str,
        learning_rate: float | str | Schedule = 1e-3,
        buffer_size: int = 1_000_000,  # 1e6
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.02,
        gamma: float = 0.98,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[SharedMemoryReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        subgoal_steps: int | None = None,
        subgoal_kwargs: dict[str, Any] | None = None,
        planner: str | None = "landmarks",
        planner_kwargs: dict[str, Any] | None = None,
        exploration_kwargs: dict[str, Any] | None = None,
        hindsight_kwargs: dict[str, Any] | None = None,
        high_kwargs: dict[str, Any] | None = None,
        low_kwargs: dict[str, Any] | None = None,
        high_update_interval: int = 10,
        max_grad_value: float | None = 1.0,
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
            support_multi_env=True,
        )
        self.subgoal_steps = subgoal_steps
        self.subgoal_kwargs = subgoal_kwargs
        self.planner = planner
        self.planner_kwargs = planner_kwargs
        self.exploration_kwargs = exploration_kwargs
        self.hindsight_kwargs = hindsight_kwargs
        self.high_kwargs = high_kwargs
        self.low_kwargs = low_kwargs
        self.high_update_interval = high_update_interval
        self.max_grad_value = max_grad_value
        self.async_collection = async_collection
        self.prefetch_depth = prefetch_depth

        self._goal_task: EnvGoalTask | None = None
        self._statistics, self._hints = Statistics(), Hints()
        self._has_fresh_optimizers = False  # of networks that have learned already
        self._batches: BatchSource | None = None  # while the agent learns
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        check_arguments(self)
        check_observation_space(self.observation_space)
        check_action_space(self.action_space)
        check_vec_normalize(self._vec_normalize_env)
        policy_kwargs, self._arguments = self.policy_kwargs.copy(), read_arguments(self)
        policy_kwargs.pop("n_critics", None)
        config = HierarchyConfig.from_arguments(**self._arguments)
        self.lr_schedule = config.low.lr_schedule
        self.set_random_seed(self.seed)
        self.replay_buffer_class = self.replay_buffer_class or SharedMemoryReplayBuffer
        self.replay_buffer = self.replay_buffer_class(  # type: ignore[assignment]
            self.buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            **({"goal_selection_strategy": config.hindsight.goal_selection_strategy} | self.replay_buffer_kwargs),
        )
        # A separate generator: the size of the batches does not change exploration
        self._exploration_rng = new_generator()
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, config=config, **policy_kwargs
        ).to(self.device)
        # Convert train freq parameter to TrainFreq object
        self._convert_train_freq()
        self._explorer = self._make_explorer()
        if self.env is not None:
            check_reward(self.env, config.subgoals.threshold)

    def _refresh_config(self) -> None:
        """Options may change after construction, as in SB3 (``model.gamma = 0.9``), except those that shape networks."""
        arguments = read_arguments(self)
        if any(value is not self._arguments[name] for name, value in arguments.items()):
            self._arguments, self.policy.config = arguments, HierarchyConfig.from_arguments(**arguments)
            self._close_batches()

    def _make_explorer(self) -> Explorer:
        return Explorer(self.n_envs, self.policy.goal_dim, self.replay_buffer.action_dim, self._exploration_rng)

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        :param seed: seed of all generators: Python, NumPy, torch, the environments, exploration and the replay buffer
        """
        super().set_random_seed(seed)
        if seed is not None and self.replay_buffer is not None:
            self._exploration_rng = self._explorer.rng = new_generator()

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        :param env: the environment for learning a policy, with as many environments as the current one
        :param force_reset: force a call to ``reset()`` before training
        """
        # Check before replacing: if the new environment is refused, the model keeps its own
        env = self._wrap_env(env, self.verbose)
        check_for_correct_spaces(env, self.observation_space, self.action_space)
        check_vec_normalize(unwrap_vec_normalize(env))
        check_reward(env, self.policy.config.subgoals.threshold)
        super().set_env(env, force_reset)
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
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        self._refresh_config()
        self.policy.check_modules()
        # Ask the environment what reaching a goal means
        assert isinstance(self.env, VecEnv)
        _, achieved, goals = self.policy.flatten_obs(self._last_obs)  # type: ignore[arg-type]
        if self._goal_task is None:
            self._goal_task = goal_task_from_env(self.env, goals, self.policy.config.subgoals.threshold, achieved)
        else:
            self._goal_task.ask_again()
        self._statistics.begin(self.policy, np.concatenate([goals, achieved]), self._goal_task)
        return result

    def _begin_episodes(self) -> None:
        super()._begin_episodes()
        self._explorer = self._make_explorer()

    def _sample_action(
        self,
        learning_starts: int,
        action_noise: ActionNoise | None = None,
        n_envs: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As in SB3; environments whose segment is over get a new subgoal first."""
        assert isinstance(self._last_obs, dict)
        scaled = self._explorer.act(
            self.policy.numpy_policy(),
            *self.policy.flatten_obs(self._last_obs),
            is_warm_up=self.num_timesteps < learning_starts,
            action_noise=None if action_noise is None else flatten(action_noise(), n_envs),
        )
        if not np.isfinite(scaled).all():
            raise ValueError("The low level's action is not finite (NaN or infinite): lower the learning rate.")
        return self.policy.action_border.unflatten(scaled), scaled

    def _store_transition(
        self,
        replay_buffer: SharedMemoryReplayBuffer,  # type: ignore[override]
        buffer_action: np.ndarray,
        new_obs: dict[str, np.ndarray],  # type: ignore[override]
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """As in SB3; also stores the current subgoals and ends the segments that are over after this step."""
        next_obs = new_obs
        if dones.any():
            # VecEnv resets automatically: new_obs is already the first of the next episode
            next_obs = {key: value.copy() for key, value in new_obs.items()}
            for env in np.flatnonzero(dones):
                for key, value in infos[env]["terminal_observation"].items():
                    next_obs[key][env] = value
        # In the precision of the buffer
        achieved = flatten(next_obs["achieved_goal"], self.n_envs)
        segment_ends = self._explorer.step(self.policy.numpy_policy(), achieved, dones.tolist())
        replay_buffer.add(
            self._last_obs,  # type: ignore[arg-type]
            next_obs,
            buffer_action,
            reward,
            dones,
            infos,
            subgoal=self._explorer.segments.subgoals,
            segment_ends=segment_ends,
            tested=self._explorer.tested,
            planned=self._explorer.planned,
            predicted_steps=self._explorer.predicted_steps,
        )
        self._last_obs = new_obs

    def _acting(self) -> Acting:
        snapshot = PolicySnapshot(self.policy)
        noise = getattr(self.action_noise, "base_noise", self.action_noise)
        agent = WorkerAgent(snapshot, self.policy.goal_dim, self.replay_buffer.action_dim, noise)
        return Acting(agent, lambda vector: snapshot.write(self.policy, vector), SegmentStatistics())

    def dump_logs(self) -> None:
        """Write log data."""
        if self._rollouts is None:
            self._explorer.statistics.log(self.logger)
        if self.policy.config.asks_values:
            self.logger.record("rollout/horizon", self.policy.numpy_policy().horizon)
        self.logger.record("rollout/goal_threshold", self.policy.subgoal_threshold.item())
        super().dump_logs()

    # ----------------------------------------------------------------- training

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """
        Update the low level ``gradient_steps`` times, and the high level once per ``high_update_interval`` of these updates.

        :param gradient_steps: number of low-level gradient steps
        :param batch_size: not used; set the attribute ``batch_size`` of the model instead
        """
        for hint in self._hints.check(self) if self.verbose >= 1 else ():
            print(hint)
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        self._refresh_config()
        assert self._goal_task is not None, "learn() must run before train(): it asks the environment about its goals"
        policy, config, interval = self.policy, self.policy.config, self.high_update_interval
        for name, level in (("train/learning_rate", policy.low), ("train/high_learning_rate", policy.high)):
            learning_rate = level.config.lr_schedule(self._current_progress_remaining)
            self.logger.record(name, learning_rate)
            level.set_learning_rate(learning_rate)
        attributes = None if self._rollouts is None else self._rollouts.attributes
        self._statistics.update(policy, self.replay_buffer, self._goal_task, attributes)
        if self._batches is None:
            # Prepare batches in advance if their order does not matter and the low level learns
            is_parallel = self._rollouts is not None and not self._rollouts.is_serial and config.low.oracle is None
            depth = self.prefetch_depth if is_parallel else 0
            self._batches = make_batch_source(policy, self.replay_buffer, self._goal_task, depth)

        low_infos: list[UpdateInfo] = []
        high_infos: list[UpdateInfo] = []
        for _ in range(gradient_steps):
            self._n_updates += 1
            if config.low.oracle is None:
                low_infos.append(policy.low.update(self._batches.low(), self._n_updates))

            n_high, is_high_turn = divmod(self._n_updates, interval)
            if is_high_turn == 0 and config.subgoals.are_learnt and self.replay_buffer.n_segments() > 0:
                high_infos.append(policy.high.update(self._batches.high(), n_high))

        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/low_stays", policy.stays.item())
        log_updates(self.logger, "low", low_infos)
        log_updates(self.logger, "high", high_infos)

    def _close_batches(self) -> None:
        batches, self._batches = self._batches, None
        if batches is not None:
            batches.close()

    def learn(
        self: SelfHierarchicalDDPG,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "HDDPG",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfHierarchicalDDPG:
        if self._has_fresh_optimizers:
            self._has_fresh_optimizers = False
            warnings.warn(FRESH_OPTIMIZERS, stacklevel=2)
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def _stop_collecting(self) -> None:
        self._close_batches()
        if self._rollouts is not None:
            self._explorer = self._make_explorer()
            assert isinstance(self._rollouts.statistics, SegmentStatistics)
            self._explorer.statistics = self._rollouts.statistics
        super()._stop_collecting()

    # ------------------------------------------------------------------- saving

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters from a zip-file or a dictionary, as in SB3, but either all of them or none. If a file has no optimizer
        states and target networks (see :func:`~sb3_hrl.hddpg.saving.drop_training_state`), the optimizers are reset, and the
        target networks are copies of the networks.

        :param load_path_or_dict: path of the saved model, or a dictionary returned by ``get_parameters``
        :param exact_match: whether all parameters must be present
        :param device: device on which the code should run
        :raises RuntimeError: if the parameters do not fit; the model is then unchanged
        """
        params = load_path_or_dict
        if not isinstance(params, dict):
            params = load_from_zip_file(params, device=device, load_data=False)[1]
        is_without_optimizers = exact_match and not any(name.endswith("optimizer") for name in params)
        if is_without_optimizers:
            params = with_fresh_training_state(self, params)
        set_all_or_none(lambda values: super(HierarchicalDDPG, self).set_parameters(values, exact_match, device), self, params)
        self._has_fresh_optimizers = is_without_optimizers

    def _excluded_save_params(self) -> list[str]:
        own = ["_goal_task", "_explorer", "_exploration_rng", "_batches", "_arguments", "lr_schedule"]
        return [*super()._excluded_save_params(), *own]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        levels = (("high", self.policy.high), ("low", self.policy.low))
        return ["policy", *(f"policy.{name}.{optimizer}" for name, level in levels for optimizer in level.OPTIMIZERS)], []
