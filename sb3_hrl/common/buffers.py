"""The replay buffer of both levels: samples steps and segments with goals in hindsight, and stores each step once."""

import copy

import numpy as np
import torch as th
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from sb3_hrl.common.hindsight import hindsight_count
from sb3_hrl.common.shards import Read, Shards, View, spans
from sb3_hrl.common.shared_memory import SharedArrays
from sb3_hrl.common.step_storage import GOAL_KEYS, read_steps
from sb3_hrl.common.transition_buffer import TransitionBuffer, first_of, goal_strategy, new_generator, shard_column
from sb3_hrl.common.type_aliases import HighSamples, LowSamples, SegmentOutcomes

__all__ = ["GOAL_KEYS", "SharedMemoryReplayBuffer", "goal_strategy", "new_generator"]


class SharedMemoryReplayBuffer(TransitionBuffer):
    """
    Replay buffer of environment steps in shared memory, from which both levels of a hierarchy sample.

    Every step is stored once, as a packed float32 row, so that a batch is a single gather. Each environment has its own shard:
    a ring of ``buffer_size // n_envs`` steps that drops its oldest episodes as a whole. Each step stores where its episode
    starts and ends, and a second ring stores the segments of the high level as (start, end) pairs. The cost of a batch does
    not grow with the size of the buffer. Steps of running episodes are sampled as well.

    A shard has one writer at a time (this process with ``add``, or a worker of a collector), and its readers do not need a
    lock: see :class:`~sb3_hrl.common.shards.ShardWriter`. The memory is allocated at the first ``add``. A pickled buffer
    contains only the stored steps.

    The buffer also works with SB3's own algorithms (``DDPG(..., replay_buffer_class=SharedMemoryReplayBuffer)``): with
    goal-conditioned environments, and hindsight if ``compute_reward`` is given, or with a Box observation space, where whole
    numbers of one or two bytes, such as images, are stored in their own dtype. The desired goal of a step is also used for its
    next observation.
    ``compute_reward`` belongs to an environment and is not pickled: set it again after ``load_replay_buffer``, otherwise
    :meth:`sample` raises an error.

    :param buffer_size: total number of steps to store, over all environments
    :param observation_space: Dict space with the keys ``observation``, ``achieved_goal`` and ``desired_goal``, or a Box space
    :param action_space: action space
    :param device: device of the tensors of :meth:`sample`; those of the other methods are on the CPU
    :param n_envs: number of parallel environments, with one shard each
    :param optimize_memory_usage: not supported, must be False
    :param handle_timeout_termination: do not treat time limits as terminations (bootstrapping continues)
    :param n_sampled_goal: number of virtual transitions per real one in :meth:`sample`, needs ``compute_reward``; ``None``: 4
        with ``compute_reward``, else 0
    :param goal_selection_strategy: ``future``, ``final`` or ``episode``, as in SB3's ``HerReplayBuffer``
    :param compute_reward: vectorised ``compute_reward(achieved, desired, infos)`` of the environment; it is called in this
        process with goals in the shape and type of the goal space, and an array of empty infos
    :param trim_interval: a full shard drops old episodes once every so many steps (at most a tenth of its capacity)
    :param n_steps: number of steps of the returns in :meth:`sample`, as in SB3's ``NStepReplayBuffer``, also for goals in
        hindsight. A return ends earlier at the end of an episode, or when a goal in hindsight is achieved. SB3's algorithms do
        not pass it on to a ``replay_buffer_class``: pass ``replay_buffer_kwargs=dict(n_steps=3, gamma=0.99)``
    :param gamma: discount factor of n-step returns, the same as the algorithm's
    :param folder: folder on a disk that holds the steps, for buffers larger than the memory; ``None``: memory. The file has no
        name, reserves its space at the first ``add``, and disappears with the last process that uses it
    """

    # ------------------------------------------------------------------- levels

    def sample_low(self, batch_size: int, n_sampled_goal: int, window: int | None = None) -> LowSamples:
        """
        Sample environment steps for the low level. The first entries get subgoals in hindsight, achieved within the next
        ``window`` steps; the others keep the subgoal that was issued.

        :param batch_size: number of steps
        :param n_sampled_goal: number of entries in hindsight per entry with the issued subgoal
        :param window: maximum number of steps to a subgoal in hindsight; ``None``: the rest of the episode
        :return: a batch of steps
        """
        columns = self._columns
        n_hindsight = hindsight_count(batch_size, n_sampled_goal)

        def read(view: View) -> tuple[np.ndarray, Read]:
            shards, steps = self.shards.draw(view.head, view.tail, batch_size, self.rng)
            rows = self.shards.gather(shards, steps)
            if n_hindsight > 0:
                # Rows are copies: the buffer keeps the issued subgoal
                shards_, steps_ = first_of(shards, n_hindsight), steps[:n_hindsight]
                self._relabel(rows[:n_hindsight], "subgoal", shards_, steps_, GoalSelectionStrategy.FUTURE, view, window)
            # Goals in hindsight come from later steps, which are dropped later than these
            return rows, Read(shards, steps)

        rows = self.shards.read(read)
        fields = ("observation", "achieved_goal", "subgoal", "action", "next_observation", "next_achieved_goal")
        failed = rows[:, columns["failed"]].ravel() > 0
        return LowSamples(*(th.from_numpy(array) for array in (*(rows[:, columns[field]] for field in fields), failed)))

    def sample_high(self, batch_size: int, n_sampled_goal: int, max_steps: int, window: int | None = None) -> HighSamples:
        """
        Sample segments for the high level. The first entries get goals in hindsight from the achieved goals of the episode,
        according to ``goal_selection_strategy``; the others keep the desired goal.

        :param batch_size: number of segments
        :param n_sampled_goal: number of entries in hindsight per entry with the desired goal
        :param max_steps: number of ``visited_goals`` per segment: 1 for the end of the segment only; segments up to this
            length have all their steps
        :param window: maximum number of environment steps to a goal in hindsight; ``None``: the rest of the episode
        :return: a batch of segments
        """
        columns = self._columns
        n_hindsight = hindsight_count(batch_size, n_sampled_goal)

        def read(view: View) -> tuple[tuple[np.ndarray, ...], Read]:
            shards, numbers = self.shards.draw(view.segment_head, view.segment_tail, batch_size, self.rng)
            # A segment goes from the state before its first step to the state after its last step
            start, end = self.shards.gather_segments(shards, numbers)
            first_rows, last_rows = self.shards.gather(shards, start), self.shards.gather(shards, end - 1)
            oldest = start
            if n_hindsight > 0:
                shards_, start_ = first_of(shards, n_hindsight), start[:n_hindsight]
                strategy = self.goal_selection_strategy
                rows_ = first_rows[:n_hindsight]
                goal_steps = self._relabel(rows_, "desired_goal", shards_, start_, strategy, view, window)
                # With the strategy `episode`, a goal may come from before the segment
                oldest = np.append(np.minimum(start_, goal_steps), start[n_hindsight:])
            if max_steps == 1:
                visited = last_rows[:, None, columns["next_achieved_goal"]]
            else:
                # Evenly spaced, always with the last step; shorter segments repeat some steps
                shares = np.arange(1, max_steps + 1) / max_steps
                steps = start[:, None] + np.ceil((end - start)[:, None] * shares).astype(np.int64) - 1
                visited = self._goals_after(shard_column(shards), steps)
            return (first_rows, last_rows, visited), Read(shards, oldest, numbers)

        first_rows, last_rows, visited = self.shards.read(read)
        first_fields = ("observation", "achieved_goal", "desired_goal", "subgoal")
        last_fields = ("next_observation", "next_achieved_goal")
        arrays = [first_rows[:, columns[field]] for field in first_fields]
        arrays += [last_rows[:, columns[field]] for field in last_fields]
        tested = first_rows[:, columns["tested"]].ravel() > 0
        planned = first_rows[:, columns["planned"]].ravel() > 0
        # A waypoint to the desired goal is not a waypoint to a goal in hindsight
        planned[:n_hindsight] = False
        failed = last_rows[:, columns["failed"]].ravel() > 0
        ends = last_rows[:, columns["segment_end"]].ravel()
        return HighSamples(visited, *(th.from_numpy(array) for array in (*arrays, tested, planned, failed, ends)))

    def recent_segments(self, n: int) -> SegmentOutcomes:
        """
        :param n: maximum number of segments, over all shards
        :return: the newest segments
        """
        columns, per_shard = self._columns, -(-n // self.n_envs)

        def read(view: View) -> tuple[tuple[np.ndarray, ...], Read]:
            n_stored = np.minimum(view.segment_head - view.segment_tail, per_shard)
            shards = np.repeat(np.arange(self.n_envs), n_stored)
            numbers = np.concatenate([np.arange(head - m, head) for head, m in zip(view.segment_head, n_stored, strict=True)])
            start, end = self.shards.gather_segments(shards, numbers)
            predicted = self.shards.gather_columns(shards, start, columns["predicted_steps"]).ravel()
            ends = self.shards.gather_columns(shards, end - 1, columns["segment_end"]).ravel()
            return (predicted, end - start, ends), Read(shards, start, numbers)

        predicted, lengths, ends = self.shards.read(read)
        return SegmentOutcomes(read_steps(predicted), lengths, ends)

    def sample_states(self, n: int, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """
        :param n: number of states
        :param rng: random number generator; ``None``: the buffer's own
        :return: visited states, ``observation`` of shape (n, obs_dim) and ``achieved_goal`` of shape (n, goal_dim)
        """

        def read(view: View) -> tuple[np.ndarray, Read]:
            shards, steps = self.shards.draw(view.head, view.tail, n, rng or self.rng)
            return self.shards.gather(shards, steps), Read(shards, steps)

        rows = self.shards.read(read)
        return {field: rows[:, self._columns[field]] for field in ("observation", "achieved_goal")}

    def recent(self, n_steps: int, fields: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
        """
        The newest steps of each shard in chronological order, with ``episode``: the first step of each step's episode.

        :param n_steps: maximum number of steps, over all shards
        :param fields: names of the fields, such as ``observation`` or ``next_achieved_goal``
        :return: arrays of shape (n, dim) by field, for each shard
        """
        heads = self.shards.head.copy()
        # An equal share of each shard, rounded up
        return self.between(heads - -(-n_steps // self.n_envs), heads, fields)

    def between(self, first: np.ndarray, last: np.ndarray, fields: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
        """
        Steps of each shard by their numbers, counted from the first one ever stored. Steps that were dropped are left out.

        :param first: first step of each shard, shape (n_envs,)
        :param last: one past the last step of each shard, shape (n_envs,)
        :param fields: as in :meth:`recent`
        :return: as :meth:`recent`
        """
        shards = []
        for shard, span in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            rows = self.shards.between(shard, *span)
            columns = {field: self._values(rows, field) for field in fields}
            # Steps of the same episode have the same number here, even if its first steps are not included or were dropped
            columns["episode"] = spans(rows)[:, 0]
            shards.append(columns)
        return shards

    def detached(self, seed: int) -> "SharedMemoryReplayBuffer":
        """
        :param seed: seed for sampling
        :return: a buffer that samples from the same memory in another process, after a call of :meth:`attach`
        """
        reader = copy.copy(self)
        reader.shards = None  # type: ignore[assignment]
        reader.device, reader.rng = th.device("cpu"), np.random.default_rng(seed)
        return reader

    def attach(self, blocks: tuple[SharedArrays, SharedArrays]) -> None:
        """
        :param blocks: shared memory of the original buffer, see ``Shards.blocks``
        """
        self.shards = Shards.attached(blocks)
