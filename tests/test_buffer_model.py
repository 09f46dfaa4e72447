"""The replay buffer against a plain list: any sequence of operations, and always the same contents."""

import pickle
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sb3_hrl import SharedMemoryReplayBuffer
from sb3_hrl.common.shards import spans
from sb3_hrl.common.subgoals import SegmentEnd

SPACE = spaces.Dict({key: spaces.Box(-np.inf, np.inf, (1,)) for key in ("observation", "achieved_goal", "desired_goal")})
ACTIONS = spaces.Box(-1.0, 1.0, (1,))
FLAGS = st.lists(st.booleans(), min_size=3, max_size=3)


def reward_of(achieved: np.ndarray, desired: np.ndarray, infos: Any) -> np.ndarray:
    return (achieved == desired).all(axis=-1) - 1.0


@dataclass
class Step:
    """A step in the list. Its observation and achieved goal are ``value``, after the step ``value + 0.5``."""

    value: int
    goal: float
    terminated: bool
    episode: int  # number of its episode's first step
    end: int = 0  # one past the number of its episode's last step, 0 while it runs


@dataclass
class Shard:
    """The steps of an environment."""

    steps: list[Step] = field(default_factory=list)  # all steps ever added
    segments: list[tuple[int, int]] = field(default_factory=list)  # all finished ones that are still stored
    tail: int = 0
    episode: int = 0  # first step of the running episode
    segment: int = 0  # first step of the running segment

    def close(self) -> None:
        for step in self.steps[self.episode :]:
            step.end = len(self.steps)
        self.episode = len(self.steps)

    def make_room(self, capacity: int, room: int) -> None:
        """Whole episodes go, the oldest first, but of an episode that fills the shard only what is necessary."""
        head = len(self.steps)
        if head + 1 - self.tail <= capacity:
            return
        while head + max(1, room) - self.tail > capacity:
            if self.steps[self.tail].end == 0:
                self.tail = max(self.tail, head + 1 - capacity)
                break
            self.tail = self.steps[self.tail].end
        self.segments = [segment for segment in self.segments if segment[0] >= self.tail]

    def add(self, step: Step, done: bool, segment_ends: bool) -> None:
        self.steps.append(step)
        if done:
            self.close()
        if done or segment_ends:
            if self.segment >= self.tail:
                self.segments.append((self.segment, len(self.steps)))
            self.segment = len(self.steps)


class BufferAgainstList(RuleBasedStateMachine):
    """Adds, ends of episodes, time limits, full rings, pickles and samples, in any order."""

    @initialize(
        n_envs=st.integers(1, 3),
        capacity=st.integers(3, 25),
        trim_interval=st.integers(1, 4),
        strategy=st.sampled_from(["future", "final", "episode"]),
    )
    def start(self, n_envs: int, capacity: int, trim_interval: int, strategy: str) -> None:
        self.n_envs, self.capacity, self.strategy = n_envs, capacity, strategy
        self.room = min(trim_interval, capacity // 10)
        options = dict(compute_reward=reward_of, goal_selection_strategy=strategy, trim_interval=trim_interval)
        self.buffer = SharedMemoryReplayBuffer(capacity * n_envs, SPACE, ACTIONS, device="cpu", n_envs=n_envs, **options)
        self.forget()

    def forget(self) -> None:
        self.shards = [Shard() for _ in range(self.n_envs)]

    # ------------------------------------------------------------------ operations

    @rule(dones=FLAGS, timeouts=FLAGS, segment_ends=FLAGS, n_steps=st.integers(1, 8))
    def add(self, dones: list[bool], timeouts: list[bool], segment_ends: list[bool], n_steps: int) -> None:
        """Some steps, of which only the last one may end episodes."""
        for i in range(n_steps):
            n, is_last = self.n_envs, i == n_steps - 1
            done = np.array(dones[:n]) & is_last
            ends = (np.array(segment_ends[:n]) & is_last) | done
            # Different values in all environments
            values = np.array([[3 * len(shard.steps) + env] for env, shard in enumerate(self.shards)], dtype=np.float32)
            goals = np.array([[-1.0 - shard.episode] for shard in self.shards])
            obs = {"observation": values, "achieved_goal": values, "desired_goal": goals}
            after = {"observation": values + 0.5, "achieved_goal": values + 0.5, "desired_goal": goals}
            infos = [{"TimeLimit.truncated": bool(limit and over)} for limit, over in zip(timeouts, done, strict=False)]
            kinds = np.where(ends, SegmentEnd.OUT_OF_STEPS, SegmentEnd.NONE)
            self.buffer.add(obs, after, values / 1000, np.full(n, -1.0), done, infos, values + 0.25, kinds)
            for env, shard in enumerate(self.shards):
                shard.make_room(self.capacity, self.room)
                terminated = bool(done[env] and not timeouts[env])
                step = Step(int(values[env, 0]), float(goals[env, 0]), terminated, shard.episode)
                shard.add(step, bool(done[env]), bool(ends[env]))

    @rule()
    def end_episodes(self) -> None:
        self.buffer.end_episodes()
        for shard in self.shards:
            shard.close()
            shard.segment = len(shard.steps)

    @rule()
    def pickle(self) -> None:
        """Episodes continue, but the running segments are dropped."""
        self.buffer = pickle.loads(pickle.dumps(self.buffer))
        self.buffer.compute_reward = reward_of
        for shard in self.shards:
            shard.segment = len(shard.steps)

    @rule()
    def reset(self) -> None:
        self.buffer.reset()
        self.forget()

    # --------------------------------------------------------------------- reading

    def stored(self, value: float) -> tuple[Shard, int]:
        """:return: shard and number of the stored step with this observation"""
        shard, number = self.shards[int(value) % 3], int(value) // 3
        assert shard.tail <= number < len(shard.steps)
        assert value == shard.steps[number].value
        return shard, number

    def possible_goals(self, shard: Shard, number: int, window: int | None = None) -> set[float]:
        """:return: goals in hindsight of a step, which are achieved in the stored part of its episode"""
        step = shard.steps[number]
        last = step.end or len(shard.steps)
        first = max(step.episode, shard.tail)
        if window is not None:
            last = min(last, number + window)
        numbers = {"future": range(number, last), "final": range(last - 1, last), "episode": range(first, last)}
        return {shard.steps[i].value + 0.5 for i in numbers["future" if window else self.strategy]}

    @precondition(lambda self: self.buffer.size() > 0)
    @rule(seed=st.integers(0, 100))
    def sample(self, seed: int) -> None:
        self.buffer.rng = np.random.default_rng(seed)
        batch = self.buffer.sample(20)
        for i in range(20):
            value = batch.observations["observation"][i].item()
            shard, number = self.stored(value)
            step = shard.steps[number]
            assert batch.next_observations["observation"][i].item() == value + 0.5
            assert batch.dones[i].item() == step.terminated
            goal = batch.observations["desired_goal"][i].item()
            # Four of five have a goal in hindsight
            if i < 16:
                assert goal in self.possible_goals(shard, number)
                assert batch.rewards[i].item() == (0.0 if goal == value + 0.5 else -1.0)
            else:
                assert goal == step.goal
                assert batch.rewards[i].item() == -1.0

    @precondition(lambda self: self.buffer.size() > 0)
    @rule(seed=st.integers(0, 100), window=st.integers(1, 6))
    def sample_low(self, seed: int, window: int) -> None:
        self.buffer.rng = np.random.default_rng(seed)
        batch = self.buffer.sample_low(20, n_sampled_goal=1, window=window)
        for i in range(20):
            value, subgoal = batch.observations[i].item(), batch.subgoals[i].item()
            shard, number = self.stored(value)
            if i < 10:
                assert subgoal in self.possible_goals(shard, number, window)
            else:
                assert subgoal == value + 0.25

    @precondition(lambda self: self.buffer.n_segments() > 0)
    @rule(seed=st.integers(0, 100))
    def sample_high(self, seed: int) -> None:
        self.buffer.rng = np.random.default_rng(seed)
        batch = self.buffer.sample_high(10, n_sampled_goal=0, max_steps=1)
        for i in range(10):
            shard, first = self.stored(batch.observations[i].item())
            _, last = self.stored(batch.next_observations[i].item() - 0.5)
            assert (first, last + 1) in shard.segments

    @invariant()
    def contents_are_equal(self) -> None:
        if not hasattr(self, "buffer"):
            return
        buffer, shards = self.buffer, self.shards
        assert buffer.n_added == sum(len(shard.steps) for shard in shards)
        assert buffer.size() == sum(len(shard.steps) - shard.tail for shard in shards)
        assert buffer.n_segments() == sum(len(shard.segments) for shard in shards)
        if not buffer.shards.is_allocated:
            return
        for env, shard in enumerate(shards):
            steps = shard.steps[shard.tail :]
            assert len(steps) <= self.capacity
            rows = buffer.shards.between(env, 0, len(shard.steps))
            assert rows[:, buffer.columns["observation"]].ravel().tolist() == [step.value for step in steps]
            # The first step of an episode may be dropped, its number stays
            assert spans(rows).tolist() == [[step.episode, step.end] for step in steps]
            numbers = np.arange(buffer.shards.segment_tail[env], buffer.shards.segment_head[env])
            assert buffer.shards.gather_segments(env, numbers).T.tolist() == [list(segment) for segment in shard.segments]


TestBufferAgainstList = pytest.mark.timeout(100)(BufferAgainstList.TestCase)
TestBufferAgainstList.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
