"""A replay buffer for SB3's algorithms: transitions with goals in hindsight and n-step returns."""

import copy
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.goal_selection_strategy import KEY_TO_GOAL_STRATEGY, GoalSelectionStrategy

from sb3_hrl.common.checks import require
from sb3_hrl.common.hindsight import hindsight_count, sample_goal_steps
from sb3_hrl.common.n_step import n_step_ends, n_step_returns
from sb3_hrl.common.rewards import ComputeReward, check_rewards, goal_rewards
from sb3_hrl.common.shards import Read, View
from sb3_hrl.common.spaces import goal_space
from sb3_hrl.common.step_storage import GOAL_KEYS, StepStorage

SelfTransitionBuffer = TypeVar("SelfTransitionBuffer", bound="TransitionBuffer")


class _Path(NamedTuple):
    """The steps of n-step returns."""

    lengths: np.ndarray  # number of steps, shape (n,)
    rewards: np.ndarray  # stored rewards, shape (n, n_steps)
    achieved: np.ndarray  # goals after the steps of virtual returns, shape (n_hindsight, n_steps, goal_dim)


class TransitionBuffer(StepStorage):
    """
    The part of :class:`~sb3_hrl.SharedMemoryReplayBuffer` that SB3's own algorithms use. The arguments are explained there.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_sampled_goal: int | None = None,
        goal_selection_strategy: GoalSelectionStrategy | str = "future",
        compute_reward: ComputeReward | None = None,
        trim_interval: int = 100,
        n_steps: int = 1,
        gamma: float = 0.99,
        folder: str | None = None,
    ):
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device=device,
            n_envs=n_envs,
            optimize_memory_usage=optimize_memory_usage,
            handle_timeout_termination=handle_timeout_termination,
            trim_interval=trim_interval,
            folder=folder,
        )
        if not self.has_goals and (compute_reward is not None or n_sampled_goal):
            raise ValueError(
                "Hindsight (`n_sampled_goal`, `compute_reward`) needs a goal-conditioned environment, with a Dict observation "
                f"space with the keys {GOAL_KEYS}, not {observation_space}."
            )
        if n_sampled_goal is None:
            n_sampled_goal = 0 if compute_reward is None else 4
        if n_sampled_goal < 0:
            raise ValueError(f"`n_sampled_goal` must be at least 0 (virtual transitions per real one), not {n_sampled_goal}.")
        if n_sampled_goal > 0 and compute_reward is None:
            raise ValueError(
                f"`n_sampled_goal={n_sampled_goal}` needs the reward of other goals: also pass the environment's method as "
                "`compute_reward`, as in `replay_buffer_kwargs=dict(compute_reward=env.unwrapped.compute_reward)`. "
                "HierarchicalDDPG does not need it for hindsight: pass `n_sampled_goal` to the algorithm instead."
            )
        require(n_steps >= 1, "n_steps", "at least 1 (steps of a return)", n_steps)
        require(0.0 <= gamma <= 1.0, "gamma", "between 0 and 1, the same as the algorithm's", gamma)
        self.n_steps, self.gamma = n_steps, gamma
        self.n_sampled_goal = n_sampled_goal
        self.goal_selection_strategy = goal_strategy(goal_selection_strategy)
        self.compute_reward = compute_reward
        self.rng = new_generator()

    # ----------------------------------------------------------------- sampling

    def _relabel(
        self,
        rows: np.ndarray,
        field: str,
        shards: np.ndarray | int,
        steps: np.ndarray,
        strategy: GoalSelectionStrategy,
        view: View,
        window: int | None = None,
    ) -> np.ndarray:
        """
        Replace a field of rows by goals in hindsight, in place.

        :param rows: packed rows to relabel, shape (n, row_dim); copies, not the storage
        :param field: ``desired_goal`` or ``subgoal``
        :param shards: shards of the rows, shape (n,), or the number of the only shard
        :param steps: numbers of the rows' steps, shape (n,)
        :param strategy: which steps of the episode the goals come from
        :param view: range of the stored steps when the rows were read
        :param window: maximum number of steps to the goal, including the row's own; ``None``: the rest of the episode
        :return: the steps that achieved the goals, shape (n,)
        """
        # Steps are numbered from the first one that the shard ever stored, not by their index in the ring. So an episode is
        # the range [first, last) even if it wraps around. A running episode currently ends at its newest step
        first, last = self.shards.episode_span(rows, shards, view)
        if window is not None:
            # The goal is achieved after 1 to `window` steps, so the last step that can achieve it is steps + window - 1
            last = np.minimum(last, steps + window)
        goal_steps = sample_goal_steps(steps, first, last, strategy, self.rng)
        # A goal is achieved after its step, so a step may be relabelled with its own outcome, as in HerReplayBuffer
        rows[:, self._columns[field]] = self._goals_after(shards, goal_steps)
        return goal_steps

    def _goals_after(self, shards: np.ndarray | int, steps: np.ndarray) -> np.ndarray:
        """Goals achieved by steps, an array of any shape; only these columns are read."""
        return self.shards.gather_columns(shards, steps, self._columns["next_achieved_goal"])

    def _check_hindsight(self) -> None:
        if self.compute_reward is None:
            raise ValueError(
                f"`n_sampled_goal` is {self.n_sampled_goal}, but the buffer has no `compute_reward`, which belongs to an "
                "environment and is not saved with the buffer. After `load_replay_buffer` set it again: "
                "`model.replay_buffer.compute_reward = env.unwrapped.compute_reward` (as in `replay_buffer_kwargs`). To train "
                "without hindsight set `model.replay_buffer.n_sampled_goal = 0`."
            )

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | None = None
    ) -> DictReplayBufferSamples | ReplayBufferSamples:
        """
        Sample transitions for SB3's own algorithms, with ``n_sampled_goal`` virtual ones (with a goal in hindsight) per real
        one.

        :param batch_size: number of transitions
        :param env: ``VecNormalize`` that normalises observations and rewards, if given
        :return: a batch of transitions
        :raises ValueError: if virtual transitions are requested without ``compute_reward``
        """
        columns = self._columns
        n_hindsight = hindsight_count(batch_size, self.n_sampled_goal)
        if n_hindsight > 0:
            self._check_hindsight()

        def read(view: View) -> tuple[tuple[np.ndarray, _Path | None], Read]:
            # Uniform over all stored steps, including running episodes, which have a span, unlike in HerReplayBuffer
            shards, steps = self.shards.draw(view.head, view.tail, batch_size, self.rng)
            rows, oldest, goal_steps = self.shards.gather(shards, steps), steps, steps[:0]
            if n_hindsight > 0:
                # The first entries become virtual; which ones does not matter, because sampling is uniform
                shards_, steps_ = first_of(shards, n_hindsight), steps[:n_hindsight]
                strategy = self.goal_selection_strategy
                goal_steps = self._relabel(rows[:n_hindsight], "desired_goal", shards_, steps_, strategy, view)
                # An entry depends on its own step and on the step that achieved its goal, which may be earlier (`episode`). If
                # a writer has dropped the older of the two in the meantime, the batch is read again
                oldest = np.append(np.minimum(steps_, goal_steps), steps[n_hindsight:])
            path = self._follow(rows, shards, steps, goal_steps, view) if self.n_steps > 1 else None
            return (rows, path), Read(shards, oldest)

        rows, path = self.shards.read(read)
        if n_hindsight > 0:
            self._reward_virtual(rows[:n_hindsight], path)
        discounts = None
        rewards = self._normalize_reward(rows[:, columns["reward"]] if path is None else path.rewards, env)
        if path is not None:
            rewards, discounts = n_step_returns(rewards, path.lengths, self.gamma)

        def tensors(prefix: str) -> Any:
            if not self.has_goals:
                values = self._values(rows, f"{prefix}observation").reshape(-1, *self.observation_space.shape)  # type: ignore
                return self.to_torch(self._normalize_obs(values, env))  # type: ignore[arg-type]
            obs = {
                "observation": rows[:, columns[f"{prefix}observation"]],
                "achieved_goal": rows[:, columns[f"{prefix}achieved_goal"]],
                # The goal of the next observation is the same
                "desired_goal": rows[:, columns["desired_goal"]],
            }
            obs = self._normalize_obs(self._unflatten(obs), env)  # type: ignore[assignment]
            return {key: self.to_torch(value) for key, value in obs.items()}

        return (DictReplayBufferSamples if self.has_goals else ReplayBufferSamples)(
            observations=tensors(""),
            actions=self.to_torch(rows[:, columns["action"]]),
            next_observations=tensors("next_"),
            # Without time limits, see `handle_timeout_termination`
            dones=self.to_torch(rows[:, columns["terminated"]]),
            rewards=self.to_torch(rewards),
            discounts=None if discounts is None else self.to_torch(discounts),
        )

    def _follow(
        self, rows: np.ndarray, shards: np.ndarray | int, steps: np.ndarray, goal_steps: np.ndarray, view: View
    ) -> _Path:
        """
        Follow the episodes of rows for up to ``n_steps`` steps. What comes after the first step is replaced by what comes
        after the last one, in place.

        :param rows: packed rows, shape (n, row_dim); copies, not the storage
        :param shards: shards of the rows, shape (n,), or the number of the only shard
        :param steps: numbers of the rows' steps, shape (n,)
        :param goal_steps: steps that achieved the goals of the first rows, which are virtual, shape (n_hindsight,)
        :param view: range of the stored steps when the rows were read
        :return: the steps
        """
        columns = self._columns
        _, last = self.shards.episode_span(rows, shards, view)
        ends = n_step_ends(steps, last, self.n_steps, goal_steps)
        for field in ("next_observation", "next_achieved_goal", "terminated"):
            if field in columns:
                rows[:, columns[field]] = self.shards.gather_columns(shards, ends - 1, columns[field])
        # Beyond its end a return repeats its last step, which does not count
        numbers = np.minimum(steps[:, None] + np.arange(self.n_steps), ends[:, None] - 1)
        rewards = self.shards.gather_columns(shard_column(shards), numbers, columns["reward"])[..., 0]
        n = len(goal_steps)
        achieved = self._goals_after(shard_column(first_of(shards, n)), numbers[:n]) if n > 0 else np.empty(0)
        return _Path(ends - steps, rewards, achieved)

    def _reward_virtual(self, rows: np.ndarray, path: _Path | None) -> None:
        """
        Compute the rewards of virtual transitions, in place: r_t = reward(s_{t+1}, g), for the goal achieved after the step,
        and the new goal. They are computed in this process: ``env_method`` would cost a round trip, and interfere with a
        pending step of asynchronous workers.

        :param rows: packed rows of the virtual transitions, shape (n, row_dim)
        :param path: steps of n-step returns
        """
        assert self.compute_reward is not None
        space, goals = goal_space(self.observation_space), rows[:, self._columns["desired_goal"]]
        if path is None:
            achieved = rows[:, self._columns["next_achieved_goal"]]
            rewards = check_rewards(goal_rewards(self.compute_reward, space, achieved, goals))
            rows[:, self._columns["reward"]] = rewards[:, None]
            return
        lengths = path.lengths[: len(rows)]
        counted = np.arange(self.n_steps) < lengths[:, None]
        goals = np.repeat(goals, lengths, axis=0)
        rewards = check_rewards(goal_rewards(self.compute_reward, space, path.achieved[counted], goals))
        path.rewards[: len(rows)][counted] = rewards

    def _unflatten(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = self.obs_shape
        assert isinstance(shapes, dict)
        return {key: value.reshape(-1, *shapes[key]) for key, value in obs.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Without the reward function: it is usually a method of an environment, which would be pickled with it."""
        return {**self.__dict__, "compute_reward": None}

    def __deepcopy__(self: SelfTransitionBuffer, memo: dict[int, Any]) -> SelfTransitionBuffer:
        """A copy in the same process keeps the reward function of the environment."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__getstate__(), memo), compute_reward=self.compute_reward)
        return copied


def new_generator() -> np.random.Generator:
    """:return: a generator seeded by NumPy's global one, which SB3 seeds; it is faster than the global one"""
    return np.random.default_rng(np.random.randint(2**31))


def goal_strategy(strategy: GoalSelectionStrategy | str) -> GoalSelectionStrategy:
    """
    :param strategy: one of SB3's strategies, or its name
    :return: the strategy
    """
    if isinstance(strategy, GoalSelectionStrategy):
        return strategy
    name = strategy.lower() if isinstance(strategy, str) else ""
    require(name in KEY_TO_GOAL_STRATEGY, "goal_selection_strategy", f"one of {sorted(KEY_TO_GOAL_STRATEGY)}", strategy)
    return KEY_TO_GOAL_STRATEGY[name]


def shard_column(shards: np.ndarray | int) -> np.ndarray | int:
    """Shards as a column, to combine with several steps each; a single shard stays a number."""
    return shards if isinstance(shards, int) else shards[:, None]


def first_of(shards: np.ndarray | int, n: int) -> np.ndarray | int:
    """Shards of the first ``n`` entries; a single shard stays a number."""
    return shards if isinstance(shards, int) else shards[:n]
