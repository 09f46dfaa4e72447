"""Replay storage for both levels: packed rows of environment steps, an index of episodes, a ring of segments."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.goal_selection_strategy import KEY_TO_GOAL_STRATEGY, GoalSelectionStrategy

from sb3_hrl.common.goals import ComputeReward
from sb3_hrl.common.relabeling import hindsight_count, sample_goal_steps
from sb3_hrl.common.type_aliases import HighSamples, LowSamples

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


class SharedMemoryReplayBuffer(ReplayBuffer):
    """
    Replay buffer of goal-conditioned environment steps, from which both levels sample.

    Every step is stored once, as one packed float32 row, so that a batch is one gather. Each environment has its own
    shard: a ring of ``buffer_size // n_envs`` steps whose oldest episodes go as a whole. Steps are numbered from the
    first one ever stored (step ``t`` lies at ``t % capacity``); a step knows where its episode begins and ends, and a ring
    of (start, end) pairs lists the segments of the high level. Nothing is scanned: the cost of a batch does not grow with
    the buffer. Steps of running episodes are sampled as well.

    This is the one-process form: its arrays are private memory, allocated at the first ``add``. Pickles hold the filled part.

    It also serves SB3's own algorithms (``DDPG(..., replay_buffer_class=SharedMemoryReplayBuffer)``), with hindsight if
    ``compute_reward`` is given. The desired goal of a step is also that of its next observation.

    :param buffer_size: steps to store, over all environments
    :param observation_space: Dict space with the keys ``observation``, ``achieved_goal`` and ``desired_goal``
    :param action_space: action space
    :param device: device of the sampled tensors
    :param n_envs: number of parallel environments, one shard each
    :param optimize_memory_usage: not supported, must be False
    :param handle_timeout_termination: a time limit is no termination (bootstrapping goes on)
    :param n_sampled_goal: virtual transitions per real one in :meth:`sample`, if ``compute_reward`` is given
    :param goal_selection_strategy: ``future``, ``final`` or ``episode``, as in SB3's ``HerReplayBuffer``
    :param compute_reward: vectorised ``compute_reward(achieved, desired, infos)`` of the environment, called in this process
    """

    # What a row consists of, and the part of the observation space that gives its length
    _FIELDS: ClassVar[dict[str, str]] = {
        "observation": "observation",
        "achieved_goal": "achieved_goal",
        "desired_goal": "desired_goal",
        "next_observation": "observation",
        "next_achieved_goal": "achieved_goal",
        "subgoal": "achieved_goal",
    }

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_sampled_goal: int = 4,
        goal_selection_strategy: GoalSelectionStrategy | str = "future",
        compute_reward: ComputeReward | None = None,
    ):
        if not isinstance(observation_space, spaces.Dict) or set(observation_space.spaces) != set(GOAL_KEYS):
            raise ValueError(
                f"SharedMemoryReplayBuffer needs a Dict observation space with exactly the keys {GOAL_KEYS}, "
                f"not {observation_space}."
            )
        if optimize_memory_usage:
            raise ValueError("SharedMemoryReplayBuffer does not support `optimize_memory_usage=True`: leave it at False.")
        # Not ReplayBuffer's constructor: it would allocate its own arrays
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = buffer_size // n_envs
        if self.buffer_size < 1:
            raise ValueError(f"`buffer_size` must be at least the number of environments ({n_envs}), not {buffer_size}.")
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.n_sampled_goal = n_sampled_goal
        self.goal_selection_strategy = goal_strategy(goal_selection_strategy)
        self.compute_reward = compute_reward
        # SB3 seeds NumPy's global generator: this one is reproducible with it, and faster
        self.rng = np.random.default_rng(np.random.randint(2**31))

        sizes = {field: spaces.flatdim(observation_space[key]) for field, key in self._FIELDS.items()}
        sizes |= {"action": self.action_dim, "reward": 1, "terminated": 1, "tested": 1}
        ends = np.cumsum(list(sizes.values())).tolist()
        self._columns = {field: slice(end - size, end) for (field, size), end in zip(sizes.items(), ends, strict=True)}
        self._staging = np.zeros((n_envs, ends[-1]), dtype=np.float32)

        # Counters are written in place, never replaced: they are what readers of the shards look at
        self._head = np.zeros(n_envs, dtype=np.int64)  # one past the newest step
        self._tail = np.zeros(n_envs, dtype=np.int64)  # the oldest step
        self._segment_head = np.zeros(n_envs, dtype=np.int64)
        self._segment_tail = np.zeros(n_envs, dtype=np.int64)
        self._episode_start = np.zeros(n_envs, dtype=np.int64)
        self._segment_start = np.zeros(n_envs, dtype=np.int64)
        self._allocated = False

    # ------------------------------------------------------------------ storage

    def _allocate(self) -> None:
        """Get the memory, at the first ``add``: ``enjoy`` and friends load models whose buffer they never use."""
        shape = (self.n_envs, self.buffer_size)
        self._rows = np.empty((*shape, self._staging.shape[1]), dtype=np.float32)
        self._episodes = np.empty((*shape, 2), dtype=np.int64)  # first step, one past the last (0: still running)
        self._segments = np.empty((*shape, 2), dtype=np.int64)
        self._allocated = True

    def add(  # type: ignore[override]
        self,
        obs: Mapping[str, np.ndarray],
        next_obs: Mapping[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
        subgoal: np.ndarray | None = None,
        segment_done: np.ndarray | None = None,
        tested: np.ndarray | None = None,
    ) -> None:
        """
        Store one step of every environment.

        :param obs: observations before the step, arrays of shape (n_envs, ...)
        :param next_obs: observations after it (the terminal one where an episode ended)
        :param action: actions scaled to [-1, 1], shape (n_envs, action_dim)
        :param reward: the environment's rewards, shape (n_envs,)
        :param done: whether the episode ended, shape (n_envs,)
        :param infos: the environment's infos; ``TimeLimit.truncated`` marks time limits
        :param subgoal: subgoals in force, shape (n_envs, goal_dim); ``None`` without a hierarchy
        :param segment_done: whether the step was the last one of its segment, shape (n_envs,)
        :param tested: whether the segment is a subgoal test, shape (n_envs,)
        """
        if not self._allocated:
            self._allocate()
        timeouts = [info.get("TimeLimit.truncated", False) for info in infos] if self.handle_timeout_termination else False
        self._stage("observation", obs["observation"])
        self._stage("achieved_goal", obs["achieved_goal"])
        self._stage("desired_goal", obs["desired_goal"])
        self._stage("next_observation", next_obs["observation"])
        self._stage("next_achieved_goal", next_obs["achieved_goal"])
        self._stage("action", action)
        self._stage("reward", reward)
        self._stage("terminated", done & ~np.asarray(timeouts, dtype=bool))
        if subgoal is not None:
            self._stage("subgoal", subgoal)
            self._stage("tested", tested if tested is not None else np.zeros(self.n_envs))
        self._check_finite()

        for shard in np.flatnonzero(self._head - self._tail == self.buffer_size).tolist():
            self._trim(shard)
        shards, position = np.arange(self.n_envs), self._head % self.buffer_size
        self._rows[shards, position] = self._staging
        self._episodes[shards, position, 0] = self._episode_start
        self._episodes[shards, position, 1] = 0
        # A step is complete before it is counted
        self._head += 1
        ends = done if segment_done is None or subgoal is None else done | segment_done
        for shard in np.flatnonzero(ends).tolist():
            if subgoal is not None:
                self._end_segment(shard)
            if done[shard]:
                self._end_episode(shard)

    def _stage(self, field: str, value: np.ndarray) -> None:
        self._staging[:, self._columns[field]] = np.reshape(value, (self.n_envs, -1))

    def _check_finite(self) -> None:
        if np.isfinite(self._staging).all():
            return
        bad = [field for field, columns in self._columns.items() if not np.isfinite(self._staging[:, columns]).all()]
        raise ValueError(
            f"The environment or the policy gave a value that is not finite (NaN or infinite) in {', '.join(bad)}: "
            "check the environment with stable_baselines3.common.env_checker.check_env, or lower the learning rate."
        )

    def _trim(self, shard: int) -> None:
        """Drop the oldest episode as a whole; of an episode that fills the shard alone, its oldest step."""
        end = self._episodes[shard, self._tail[shard] % self.buffer_size, 1]
        self._tail[shard] = end if end > 0 else self._tail[shard] + 1
        segments = self._segments[shard]
        while (
            self._segment_tail[shard] < self._segment_head[shard]
            and segments[self._segment_tail[shard] % self.buffer_size, 0] < self._tail[shard]
        ):
            self._segment_tail[shard] += 1

    def _end_segment(self, shard: int) -> None:
        start, end = self._segment_start[shard], self._head[shard]
        if self._tail[shard] <= start < end:
            self._segments[shard, self._segment_head[shard] % self.buffer_size] = start, end
            self._segment_head[shard] += 1
        self._segment_start[shard] = end

    def _end_episode(self, shard: int) -> None:
        start, end = max(self._episode_start[shard], self._tail[shard]), self._head[shard]
        self._episodes[shard, np.arange(start, end) % self.buffer_size, 1] = end
        self._episode_start[shard] = self._segment_start[shard] = end

    def end_episodes(self) -> None:
        """Close the running episodes where they are (the environments were reset from outside); open segments are dropped."""
        for shard in np.flatnonzero(self._head > self._episode_start).tolist():
            self._end_episode(shard)

    truncate_last_trajectory = end_episodes  # HerReplayBuffer's name

    def reset(self) -> None:
        """Forget all steps."""
        counters = (self._head, self._tail, self._segment_head, self._segment_tail, self._episode_start, self._segment_start)
        for counter in counters:
            counter[:] = 0

    def size(self) -> int:
        """:return: number of steps stored, over all environments"""
        return int((self._head - self._tail).sum())

    def n_segments(self) -> int:
        """:return: number of segments stored, over all environments"""
        return int((self._segment_head - self._segment_tail).sum())

    @property
    def n_added(self) -> int:
        """Number of steps ever added, over all environments."""
        return int(self._head.sum())

    # ----------------------------------------------------------------- sampling

    def _draw(self, head: np.ndarray, tail: np.ndarray, batch_size: int, what: str) -> tuple[np.ndarray | int, np.ndarray]:
        """Uniform numbers in ``[tail, head)`` over all shards, and the shards that they belong to."""
        counts = head - tail
        total = int(counts.sum())
        if total == 0:
            raise RuntimeError(f"The replay buffer holds no {what} yet: raise `learning_starts`.")
        numbers = self.rng.integers(total, size=batch_size)
        if self.n_envs == 1:
            return 0, numbers + tail[0]
        ends = np.cumsum(counts)
        shards = np.searchsorted(ends, numbers, side="right")
        return shards, numbers - (ends - counts)[shards] + tail[shards]

    def _gather(self, shards: np.ndarray | int, steps: np.ndarray) -> np.ndarray:
        """:return: packed rows, shape (*steps.shape, row_dim)"""
        rows = self._rows.reshape(-1, self._rows.shape[-1])
        return np.take(rows, self._locate(shards, steps), axis=0, mode="clip")

    def _locate(self, shards: np.ndarray | int, steps: np.ndarray) -> np.ndarray:
        return shards * self.buffer_size + steps % self.buffer_size

    def _episode_span(self, shards: np.ndarray | int, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and one past the last step of the episodes, as far as they are stored."""
        spans = np.take(self._episodes.reshape(-1, 2), self._locate(shards, steps), axis=0, mode="clip")
        first, last = spans[:, 0], spans[:, 1]
        return np.maximum(first, self._tail[shards]), np.where(last > 0, last, self._head[shards])

    def _goals_after(self, shards: np.ndarray | int, steps: np.ndarray) -> np.ndarray:
        """Goals achieved by steps of any shape: only these columns are read."""
        columns = self._columns["next_achieved_goal"]
        return self._rows.reshape(-1, self._rows.shape[-1])[self._locate(shards, steps), columns]

    def sample_low(self, batch_size: int, n_sampled_goal: int, window: int) -> LowSamples:
        """
        Environment steps for the low level. The first entries get subgoals in hindsight: what was achieved within the next
        ``window`` steps; the others keep the subgoal that was in force.

        :param batch_size: number of steps
        :param n_sampled_goal: entries in hindsight per entry with the commanded subgoal
        :param window: how many steps ahead a subgoal in hindsight may lie
        :return: a batch of steps
        """
        shards, steps = self._draw(self._head, self._tail, batch_size, "steps")
        rows = self._gather(shards, steps)
        columns = self._columns
        n_hindsight = hindsight_count(batch_size, n_sampled_goal)
        if n_hindsight > 0:
            shards_, steps_ = _first(shards, n_hindsight), steps[:n_hindsight]
            first, last = self._episode_span(shards_, steps_)
            last = np.minimum(last, steps_ + window)
            goal_steps = sample_goal_steps(steps_, first, last, GoalSelectionStrategy.FUTURE, self.rng)
            rows[:n_hindsight, columns["subgoal"]] = self._goals_after(shards_, goal_steps)
        fields = ("observation", "achieved_goal", "subgoal", "action", "next_observation", "next_achieved_goal")
        return LowSamples(*(self._to_device(rows[:, columns[field]]) for field in fields))

    def sample_high(self, batch_size: int, n_sampled_goal: int, max_steps: int) -> HighSamples:
        """
        Segments for the high level. The first entries get goals in hindsight, by ``goal_selection_strategy``, from the
        achieved goals of the episode; the others keep the desired goal.

        :param batch_size: number of segments
        :param n_sampled_goal: entries in hindsight per entry with the desired goal
        :param max_steps: length of ``visited_goals``: 1 for the segment's end only, ``subgoal_steps`` for every step
        :return: a batch of segments
        """
        shards, numbers = self._draw(self._segment_head, self._segment_tail, batch_size, "segments")
        spans = np.take(self._segments.reshape(-1, 2), self._locate(shards, numbers), axis=0, mode="clip")
        start, end = spans[:, 0], spans[:, 1]
        first_rows, last_rows = self._gather(shards, start), self._gather(shards, end - 1)
        columns = self._columns
        n_hindsight = hindsight_count(batch_size, n_sampled_goal)
        if n_hindsight > 0:
            shards_, start_ = _first(shards, n_hindsight), start[:n_hindsight]
            first, last = self._episode_span(shards_, start_)
            goal_steps = sample_goal_steps(start_, first, last, self.goal_selection_strategy, self.rng)
            first_rows[:n_hindsight, columns["desired_goal"]] = self._goals_after(shards_, goal_steps)
        if max_steps == 1:
            visited = last_rows[:, None, columns["next_achieved_goal"]]
        else:
            steps = np.minimum(start[:, None] + np.arange(max_steps), end[:, None] - 1)
            visited = self._goals_after(shards if isinstance(shards, int) else shards[:, None], steps)
        first_fields = ("observation", "achieved_goal", "desired_goal", "subgoal")
        last_fields = ("next_observation", "next_achieved_goal")
        arrays = [first_rows[:, columns[field]] for field in first_fields]
        arrays += [last_rows[:, columns[field]] for field in last_fields]
        tested = first_rows[:, columns["tested"]].ravel() > 0
        return HighSamples(visited, *(self._to_device(array) for array in (*arrays, tested)))

    def _to_device(self, array: np.ndarray) -> th.Tensor:
        return th.from_numpy(array).to(self.device)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> DictReplayBufferSamples:  # type: ignore[override]
        """
        Transitions for SB3's own algorithms, in hindsight if ``compute_reward`` was given.

        :param batch_size: number of transitions
        :param env: normalises observations and rewards, if given
        :return: a batch of transitions
        """
        shards, steps = self._draw(self._head, self._tail, batch_size, "steps")
        rows = self._gather(shards, steps)
        columns = self._columns
        n_hindsight = hindsight_count(batch_size, self.n_sampled_goal) if self.compute_reward is not None else 0
        if n_hindsight > 0:
            assert self.compute_reward is not None
            shards_, steps_ = _first(shards, n_hindsight), steps[:n_hindsight]
            first, last = self._episode_span(shards_, steps_)
            goal_steps = sample_goal_steps(steps_, first, last, self.goal_selection_strategy, self.rng)
            goals = self._goals_after(shards_, goal_steps)
            achieved = rows[:n_hindsight, columns["next_achieved_goal"]]
            rows[:n_hindsight, columns["desired_goal"]] = goals
            rewards = self.compute_reward(achieved, goals, [{}] * n_hindsight)
            rows[:n_hindsight, columns["reward"]] = np.reshape(rewards, (-1, 1))

        def tensors(prefix: str) -> dict[str, th.Tensor]:
            obs = {
                "observation": rows[:, columns[f"{prefix}observation"]],
                "achieved_goal": rows[:, columns[f"{prefix}achieved_goal"]],
                "desired_goal": rows[:, columns["desired_goal"]],
            }
            obs = self._normalize_obs(self._unflatten(obs), env)  # type: ignore[assignment]
            return {key: self.to_torch(value) for key, value in obs.items()}

        return DictReplayBufferSamples(
            observations=tensors(""),
            actions=self.to_torch(rows[:, columns["action"]]),
            next_observations=tensors("next_"),
            dones=self.to_torch(rows[:, columns["terminated"]]),
            rewards=self.to_torch(self._normalize_reward(rows[:, columns["reward"]], env)),
        )

    def _unflatten(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = self.obs_shape
        assert isinstance(shapes, dict)
        return {key: value.reshape(-1, *shapes[key]) for key, value in obs.items()}

    def recent(self, n_steps: int, fields: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
        """
        The newest steps of each shard in the order of their happening, with ``episode``, the first step of each one's episode.

        :param n_steps: how many steps at most, over all shards
        :param fields: columns wanted, such as ``observation`` or ``next_achieved_goal``
        :return: for each shard, arrays of shape (n, dim) by field
        """
        shards = []
        for shard in range(self.n_envs):
            start = max(self._tail[shard], self._head[shard] - -(-n_steps // self.n_envs))
            positions = np.arange(start, self._head[shard]) % self.buffer_size
            rows = self._rows[shard, positions] if self._allocated else self._staging[:0]
            columns = {field: rows[:, self._columns[field]] for field in fields}
            columns["episode"] = self._episodes[shard, positions, 0] if self._allocated else positions
            shards.append(columns)
        return shards

    # ------------------------------------------------------------------ pickling

    def __getstate__(self) -> dict[str, Any]:
        """Only what is filled, in the order of its happening; the reward function belongs to an environment."""
        state = self.__dict__.copy()
        state["compute_reward"] = None
        for name in ("_rows", "_episodes", "_segments"):
            state.pop(name, None)
        if self._allocated:
            for name, array, head, tail in self._rings():
                positions = [np.arange(*span) % self.buffer_size for span in zip(tail, head, strict=True)]
                state[name] = [array[shard, position] for shard, position in enumerate(positions)]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        names = ("_rows", "_episodes", "_segments")
        filled: dict[str, list[np.ndarray]] = {name: state.pop(name) for name in names if name in state}
        self.__dict__.update(state)
        if self._allocated:
            self._allocate()
            for name, array, head, tail in self._rings():
                for shard, values in enumerate(filled[name]):
                    array[shard, np.arange(tail[shard], head[shard]) % self.buffer_size] = values

    def _rings(self) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """:return: name, array, head and tail of each ring"""
        return [
            ("_rows", self._rows, self._head, self._tail),
            ("_episodes", self._episodes, self._head, self._tail),
            ("_segments", self._segments, self._segment_head, self._segment_tail),
        ]


def goal_strategy(strategy: GoalSelectionStrategy | str) -> GoalSelectionStrategy:
    """
    :param strategy: one of SB3's strategies, or its name
    :return: the strategy
    """
    if isinstance(strategy, GoalSelectionStrategy):
        return strategy
    if strategy.lower() not in KEY_TO_GOAL_STRATEGY:
        raise ValueError(f"`goal_selection_strategy` must be one of {sorted(KEY_TO_GOAL_STRATEGY)}, not {strategy!r}.")
    return KEY_TO_GOAL_STRATEGY[strategy.lower()]


def _first(shards: np.ndarray | int, n: int) -> np.ndarray | int:
    """Shards of the first ``n`` entries; a single shard is just its number."""
    return shards if isinstance(shards, int) else shards[:n]
