"""Replay storage for both levels, in shared memory: packed rows of environment steps, and a ring of segments."""

import copy
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
from sb3_hrl.common.hindsight import hindsight_count, sample_goal_steps
from sb3_hrl.common.shards import SPAN_COLUMNS, Read, Shards, View, spans
from sb3_hrl.common.subgoals import SegmentEnd
from sb3_hrl.common.type_aliases import HighSamples, LowSamples

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


class SharedMemoryReplayBuffer(ReplayBuffer):
    """
    Replay buffer of goal-conditioned environment steps in shared memory, from which both levels sample.

    Every step is stored once, as one packed float32 row, so that a batch is one gather. Each environment has its own
    shard: a ring of ``buffer_size // n_envs`` steps whose oldest episodes go as a whole. A step knows where its episode begins
    and ends, and a ring of (start, end) pairs lists the segments of the high level. Nothing is scanned: the cost of a batch
    does not grow with the buffer. Steps of running episodes are sampled as well.

    A shard has one writer at a time, this process by ``add`` or a worker of a collector, and readers that take no lock:
    see :class:`~sb3_hrl.common.shards.ShardWriter`. The memory is taken at the first ``add``. Pickles hold the filled part.

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
    :param trim_interval: when a shard is full, drop old episodes once per so many steps (but no more than a tenth of it)
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
        trim_interval: int = 100,
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
        if trim_interval < 1:
            raise ValueError(f"`trim_interval` must be at least 1, not {trim_interval}.")
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.n_sampled_goal = n_sampled_goal
        self.goal_selection_strategy = goal_strategy(goal_selection_strategy)
        self.compute_reward = compute_reward
        # SB3 seeds NumPy's global generator: this one is reproducible with it, and faster
        self.rng = np.random.default_rng(np.random.randint(2**31))

        sizes = {field: spaces.flatdim(observation_space[key]) for field, key in self._FIELDS.items()}
        sizes |= {"action": self.action_dim, "reward": 1, "terminated": 1, "failed": 1, "tested": 1, "segment_end": 1}
        ends = np.cumsum(list(sizes.values())).tolist()
        self._columns = {field: slice(end - size, end) for (field, size), end in zip(sizes.items(), ends, strict=True)}
        # The span of the episode comes last, on an even column as its integers take two
        self._staging = np.zeros((n_envs, ends[-1] + ends[-1] % 2 + SPAN_COLUMNS), dtype=np.float32)
        self.shards = Shards(n_envs, self.buffer_size, self._staging.shape[1], trim_interval)

    @property
    def columns(self) -> dict[str, slice]:
        """Where each field lies in a packed row."""
        return dict(self._columns)

    def add(  # type: ignore[override]
        self,
        obs: Mapping[str, np.ndarray],
        next_obs: Mapping[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
        subgoal: np.ndarray | None = None,
        segment_ends: np.ndarray | None = None,
        tested: np.ndarray | None = None,
    ) -> None:
        """
        Store one step of every environment.

        :param obs: observations before the step, arrays of shape (n_envs, ...)
        :param next_obs: observations after it (the terminal one where an episode ended)
        :param action: actions scaled to [-1, 1], shape (n_envs, action_dim)
        :param reward: the environment's rewards, shape (n_envs,)
        :param done: whether the episode ended, shape (n_envs,)
        :param infos: the environment's infos; ``TimeLimit.truncated`` marks time limits, ``is_success`` what is no failure
        :param subgoal: subgoals in force, shape (n_envs, goal_dim); ``None`` without a hierarchy
        :param segment_ends: how segments ended with this step, each a :class:`~sb3_hrl.common.subgoals.SegmentEnd`, shape
            (n_envs,)
        :param tested: whether the segment is a subgoal test, shape (n_envs,)
        """
        timeouts = [info.get("TimeLimit.truncated", False) for info in infos] if self.handle_timeout_termination else False
        self._stage("observation", obs["observation"])
        self._stage("achieved_goal", obs["achieved_goal"])
        self._stage("desired_goal", obs["desired_goal"])
        self._stage("next_observation", next_obs["observation"])
        self._stage("next_achieved_goal", next_obs["achieved_goal"])
        self._stage("action", action)
        self._stage("reward", reward)
        self._stage("terminated", done & ~np.asarray(timeouts, dtype=bool))
        self._stage("failed", np.array([is_failure(*end) for end in zip(done, infos, strict=True)]))
        if subgoal is not None:
            self._stage("subgoal", subgoal)
            self._stage("tested", tested if tested is not None else np.zeros(self.n_envs))
            self._stage("segment_end", SegmentEnd.EPISODE_OVER * done if segment_ends is None else segment_ends)
        check_finite(self._staging, self._columns)
        # Without a hierarchy nothing lists segments
        is_end = None if subgoal is None else (done if segment_ends is None else segment_ends != SegmentEnd.NONE)
        for i, writer in enumerate(self.shards.writers()):
            step = slice(i, i + 1)
            writer.write(self._staging[step], done[step], None if is_end is None else is_end[step])

    def _stage(self, field: str, value: np.ndarray) -> None:
        self._staging[:, self._columns[field]] = np.reshape(value, (self.n_envs, -1))

    def end_episodes(self) -> None:
        """Close the running episodes where they are (the environments were reset from outside); open segments are dropped."""
        if self.shards.is_allocated:
            for writer in self.shards.writers():
                writer.end_episode()

    truncate_last_trajectory = end_episodes  # HerReplayBuffer's name

    def reset(self) -> None:
        """Forget all steps."""
        self.shards.clear()

    def size(self) -> int:
        """:return: number of steps stored, over all environments"""
        return int((self.shards.head - self.shards.tail).sum())

    def n_segments(self) -> int:
        """:return: number of segments stored, over all environments"""
        return int((self.shards.segment_head - self.shards.segment_tail).sum())

    @property
    def n_added(self) -> int:
        """Number of steps ever added, over all environments."""
        return int(self.shards.head.sum())

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
        Put goals in hindsight into a field of rows.

        :return: the steps that achieved them
        """
        first, last = self.shards.episode_span(rows, shards, view)
        if window is not None:
            last = np.minimum(last, steps + window)
        goal_steps = sample_goal_steps(steps, first, last, strategy, self.rng)
        rows[:, self._columns[field]] = self._goals_after(shards, goal_steps)
        return goal_steps

    def _goals_after(self, shards: np.ndarray | int, steps: np.ndarray) -> np.ndarray:
        """Goals achieved by steps of any shape: only these columns are read."""
        return self.shards.gather_columns(shards, steps, self._columns["next_achieved_goal"])

    def sample_low(self, batch_size: int, n_sampled_goal: int, window: int) -> LowSamples:
        """
        Environment steps for the low level. The first entries get subgoals in hindsight: what was achieved within the next
        ``window`` steps; the others keep the subgoal that was in force.

        :param batch_size: number of steps
        :param n_sampled_goal: entries in hindsight per entry with the commanded subgoal
        :param window: how many steps ahead a subgoal in hindsight may lie
        :return: a batch of steps
        """
        columns = self._columns
        n_hindsight = hindsight_count(batch_size, n_sampled_goal)

        def read(view: View) -> tuple[np.ndarray, Read]:
            shards, steps = self.shards.draw(view.head, view.tail, batch_size, self.rng)
            rows = self.shards.gather(shards, steps)
            if n_hindsight > 0:
                # Rows are copies: the subgoal in hindsight replaces the one in force here, not in the buffer
                shards_, steps_ = _first(shards, n_hindsight), steps[:n_hindsight]
                self._relabel(rows[:n_hindsight], "subgoal", shards_, steps_, GoalSelectionStrategy.FUTURE, view, window)
            # Goals in hindsight come from later steps, which are trimmed later than these
            return rows, Read(shards, steps)

        rows = self.shards.read(read)
        fields = ("observation", "achieved_goal", "subgoal", "action", "next_observation", "next_achieved_goal")
        failed = rows[:, columns["failed"]].ravel() > 0
        return LowSamples(*(self._to_device(array) for array in (*(rows[:, columns[field]] for field in fields), failed)))

    def sample_high(self, batch_size: int, n_sampled_goal: int, max_steps: int, window: int | None = None) -> HighSamples:
        """
        Segments for the high level. The first entries get goals in hindsight, by ``goal_selection_strategy``, from the
        achieved goals of the episode; the others keep the desired goal.

        :param batch_size: number of segments
        :param n_sampled_goal: entries in hindsight per entry with the desired goal
        :param max_steps: length of ``visited_goals``: 1 for the segment's end only, ``subgoal_steps`` for every step
        :param window: how many environment steps ahead a goal in hindsight may lie; ``None``: the rest of the episode
        :return: a batch of segments
        """
        columns = self._columns
        n_hindsight = hindsight_count(batch_size, n_sampled_goal)

        def read(view: View) -> tuple[tuple[np.ndarray, ...], Read]:
            shards, numbers = self.shards.draw(view.segment_head, view.segment_tail, batch_size, self.rng)
            # A segment is what lies between the state before its first step and the state after its last one
            start, end = self.shards.gather_segments(shards, numbers)
            first_rows, last_rows = self.shards.gather(shards, start), self.shards.gather(shards, end - 1)
            oldest = start
            if n_hindsight > 0:
                shards_, start_ = _first(shards, n_hindsight), start[:n_hindsight]
                strategy = self.goal_selection_strategy
                rows_ = first_rows[:n_hindsight]
                goal_steps = self._relabel(rows_, "desired_goal", shards_, start_, strategy, view, window)
                # With the strategy `episode` a goal may come from before the segment
                oldest = np.append(np.minimum(start_, goal_steps), start[n_hindsight:])
            if max_steps == 1:
                visited = last_rows[:, None, columns["next_achieved_goal"]]
            else:
                # Where a segment is shorter, its last step repeats
                steps = np.minimum(start[:, None] + np.arange(max_steps), end[:, None] - 1)
                visited = self._goals_after(_column(shards), steps)
            return (first_rows, last_rows, visited), Read(shards, oldest, numbers)

        first_rows, last_rows, visited = self.shards.read(read)
        first_fields = ("observation", "achieved_goal", "desired_goal", "subgoal")
        last_fields = ("next_observation", "next_achieved_goal")
        arrays = [first_rows[:, columns[field]] for field in first_fields]
        arrays += [last_rows[:, columns[field]] for field in last_fields]
        tested = first_rows[:, columns["tested"]].ravel() > 0
        failed = last_rows[:, columns["failed"]].ravel() > 0
        ends = last_rows[:, columns["segment_end"]].ravel()
        return HighSamples(visited, *(self._to_device(array) for array in (*arrays, tested, failed, ends)))

    def sample_states(self, n: int) -> dict[str, np.ndarray]:
        """
        :param n: number of states
        :return: visited states, ``observation`` of shape (n, obs_dim) and ``achieved_goal`` of shape (n, goal_dim)
        """

        def read(view: View) -> tuple[np.ndarray, Read]:
            shards, steps = self.shards.draw(view.head, view.tail, n, self.rng)
            return self.shards.gather(shards, steps), Read(shards, steps)

        rows = self.shards.read(read)
        return {field: rows[:, self._columns[field]] for field in ("observation", "achieved_goal")}

    def _to_device(self, array: np.ndarray) -> th.Tensor:
        return th.from_numpy(array).to(self.device)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> DictReplayBufferSamples:  # type: ignore[override]
        """
        Transitions for SB3's own algorithms, in hindsight if ``compute_reward`` was given.

        :param batch_size: number of transitions
        :param env: normalises observations and rewards, if given
        :return: a batch of transitions
        """
        columns = self._columns
        n_hindsight = hindsight_count(batch_size, self.n_sampled_goal) if self.compute_reward is not None else 0

        def read(view: View) -> tuple[np.ndarray, Read]:
            shards, steps = self.shards.draw(view.head, view.tail, batch_size, self.rng)
            rows, oldest = self.shards.gather(shards, steps), steps
            if n_hindsight > 0:
                shards_, steps_ = _first(shards, n_hindsight), steps[:n_hindsight]
                strategy = self.goal_selection_strategy
                goal_steps = self._relabel(rows[:n_hindsight], "desired_goal", shards_, steps_, strategy, view)
                oldest = np.append(np.minimum(steps_, goal_steps), steps[n_hindsight:])
            return rows, Read(shards, oldest)

        rows = self.shards.read(read)
        if n_hindsight > 0:
            assert self.compute_reward is not None
            achieved, goals = (rows[:n_hindsight, columns[field]] for field in ("next_achieved_goal", "desired_goal"))
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
            rows = self.shards.newest(shard, -(-n_steps // self.n_envs))
            columns = {field: rows[:, self._columns[field]] for field in fields}
            columns["episode"] = spans(rows)[:, 0]
            shards.append(columns)
        return shards

    def reader(self, seed: int) -> "SharedMemoryReplayBuffer":
        """
        :param seed: of what it draws
        :return: a buffer that samples what this one has, but in another process, where its ``shards`` are to be set
        """
        reader = copy.copy(self)
        reader.shards = None  # type: ignore[assignment]
        reader.device, reader.rng = th.device("cpu"), np.random.default_rng(seed)
        return reader

    def __getstate__(self) -> dict[str, Any]:
        """The reward function belongs to an environment."""
        return {**self.__dict__, "compute_reward": None}


def is_failure(done: bool, info: Mapping[str, Any]) -> bool:
    """
    Whether an episode has ended for good elsewhere than at its goal, as by a fall.

    :param done: whether it has ended
    :param info: the environment's info; ``TimeLimit.truncated`` marks time limits, which are no failure. Without
        ``is_success`` nothing is known, and nothing is a failure
    :return: whether the goal can no longer be reached
    """
    return bool(done) and not info.get("TimeLimit.truncated", False) and not info.get("is_success", True)


def check_finite(rows: np.ndarray, columns: Mapping[str, slice]) -> None:
    """
    :param rows: packed rows, shape (n, row_dim)
    :param columns: where each field lies in a row
    :raises ValueError: if a value is not finite
    """
    if np.isfinite(rows[:, : rows.shape[1] - SPAN_COLUMNS]).all():
        return
    bad = [field for field, part in columns.items() if not np.isfinite(rows[:, part]).all()]
    raise ValueError(
        f"The environment or the policy gave a value that is not finite (NaN or infinite) in {', '.join(bad)}: "
        "check the environment with stable_baselines3.common.env_checker.check_env, or lower the learning rate."
    )


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


def _column(shards: np.ndarray | int) -> np.ndarray | int:
    """Shards as a column, to go with several steps of each; a single shard is just its number."""
    return shards if isinstance(shards, int) else shards[:, None]


def _first(shards: np.ndarray | int, n: int) -> np.ndarray | int:
    """Shards of the first ``n`` entries; a single shard is just its number."""
    return shards if isinstance(shards, int) else shards[:n]
