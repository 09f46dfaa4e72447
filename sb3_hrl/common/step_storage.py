"""Storage of environment steps in shared memory: packed rows, one shard per environment."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_hrl.common.shards import SPAN_COLUMNS, Shards
from sb3_hrl.common.spaces import flatten
from sb3_hrl.common.subgoals import SegmentEnd

# Stored values for predicted steps that are not finite
_NOT_KNOWN, _NEVER = np.float32(-1.0), np.float32(1e6)

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


class StepStorage(ReplayBuffer):
    """
    The storage of a replay buffer, without sampling. See :class:`~sb3_hrl.SharedMemoryReplayBuffer`.

    :param buffer_size: total number of steps to store, over all environments
    :param observation_space: Dict space with the keys ``observation``, ``achieved_goal`` and ``desired_goal``, or a Box space
    :param action_space: action space
    :param device: device of the sampled tensors
    :param n_envs: number of parallel environments, with one shard each
    :param optimize_memory_usage: not supported, must be False
    :param handle_timeout_termination: do not treat time limits as terminations (bootstrapping continues)
    :param trim_interval: a full shard drops old episodes once every so many steps (at most a tenth of its capacity)
    :param folder: folder on a disk that holds the steps, for buffers larger than the memory; ``None``: memory
    """

    # The fields of a row from observations, and the part of the observation space that defines their length
    _GOAL_FIELDS: ClassVar[dict[str, str]] = {
        "observation": "observation",
        "achieved_goal": "achieved_goal",
        "desired_goal": "desired_goal",
        "next_observation": "observation",
        "next_achieved_goal": "achieved_goal",
        "subgoal": "achieved_goal",
    }
    _BOX_FIELDS: ClassVar[dict[str, str]] = {"observation": "observation", "next_observation": "observation"}

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        trim_interval: int = 100,
        folder: str | None = None,
    ):
        if not isinstance(observation_space, spaces.Box) and set(getattr(observation_space, "spaces", ())) != set(GOAL_KEYS):
            raise ValueError(
                f"SharedMemoryReplayBuffer needs a Dict observation space with exactly the keys {GOAL_KEYS}, or a Box space, "
                f"not {observation_space}."
            )
        if optimize_memory_usage:
            raise ValueError("SharedMemoryReplayBuffer does not support `optimize_memory_usage=True`: leave it at False.")
        if buffer_size < n_envs:
            raise ValueError(f"`buffer_size` must be at least the number of environments ({n_envs}), not {buffer_size}.")
        if trim_interval < 1:
            raise ValueError(f"`trim_interval` must be at least 1, not {trim_interval}.")
        # Do not call ReplayBuffer's constructor: it would allocate its own arrays
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = buffer_size // n_envs
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination

        shapes: Any = self.obs_shape if self.has_goals else {"observation": self.obs_shape}
        fields = self._GOAL_FIELDS if self.has_goals else self._BOX_FIELDS
        sizes = {field: int(np.prod(shapes[key])) for field, key in fields.items()}
        self.observation_size, self.packed_dtype = sizes["observation"], packed_dtype(observation_space)
        if self.packed_dtype is not None:
            sizes = {field: packed_size(size, self.packed_dtype) for field, size in sizes.items()}
        sizes |= {"action": self.action_dim, "reward": 1, "terminated": 1}
        if self.has_goals:
            sizes |= {"failed": 1, "tested": 1, "planned": 1, "predicted_steps": 1, "segment_end": 1}
        ends = np.cumsum(list(sizes.values())).tolist()
        self._columns = {field: slice(end - size, end) for (field, size), end in zip(sizes.items(), ends, strict=True)}
        self._float_columns = float_columns(self._columns, self.packed_dtype)
        # The span of the episode comes last, at an even column, because each of its integers takes two columns
        self._staging = np.zeros((n_envs, ends[-1] + ends[-1] % 2 + SPAN_COLUMNS), dtype=np.float32)
        self.shards = Shards(n_envs, self.buffer_size, self._staging.shape[1], trim_interval, folder)

    @property
    def has_goals(self) -> bool:
        """Whether the observations are those of a goal-conditioned environment."""
        return isinstance(self.observation_space, spaces.Dict)

    @property
    def columns(self) -> dict[str, slice]:
        """Position of each field in a packed row."""
        return dict(self._columns)

    # ------------------------------------------------------------------ writing

    def add(
        self,
        obs: Mapping[str, np.ndarray] | np.ndarray,
        next_obs: Mapping[str, np.ndarray] | np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
        subgoal: np.ndarray | None = None,
        segment_ends: np.ndarray | None = None,
        tested: np.ndarray | None = None,
        planned: np.ndarray | None = None,
        predicted_steps: np.ndarray | None = None,
    ) -> None:
        """
        Store one step of every environment.

        :param obs: observations before the step, of shape (n_envs, ...); a dict of arrays if the observation space is a Dict
        :param next_obs: observations after the step (the terminal observation if an episode ended)
        :param action: actions scaled to [-1, 1], shape (n_envs, action_dim)
        :param reward: the environment's rewards, shape (n_envs,)
        :param done: whether the episode ended, shape (n_envs,)
        :param infos: the environment's infos; ``TimeLimit.truncated`` marks time limits, ``is_success`` marks successes
        :param subgoal: current subgoals, shape (n_envs, goal_dim); ``None`` without a hierarchy
        :param segment_ends: how segments ended with this step, each a :class:`~sb3_hrl.common.subgoals.SegmentEnd`, shape
            (n_envs,)
        :param tested: whether the segment is a subgoal test, shape (n_envs,)
        :param planned: whether the subgoal is a planner's waypoint, shape (n_envs,)
        :param predicted_steps: number of environment steps to the subgoal, predicted when it was issued; infinite or NaN
            without a prediction, shape (n_envs,)
        """
        timeouts = [info.get("TimeLimit.truncated", False) for info in infos] if self.handle_timeout_termination else False
        # One row per environment
        if self.has_goals:
            # The desired goal is stored only once, because it is constant in an episode
            assert isinstance(obs, Mapping)
            assert isinstance(next_obs, Mapping)
            self._stage("observation", obs["observation"])
            self._stage("achieved_goal", obs["achieved_goal"])
            self._stage("desired_goal", obs["desired_goal"])
            self._stage("next_observation", next_obs["observation"])
            self._stage("next_achieved_goal", next_obs["achieved_goal"])
            # Two kinds of ends: SB3's algorithms stop bootstrapping at every termination, the hierarchy only at failures
            self._stage("failed", np.array([is_failure(*end) for end in zip(done, infos, strict=True)]))
        else:
            self._stage("observation", self._packed(obs))
            self._stage("next_observation", self._packed(next_obs))
        self._stage("action", action)
        self._stage("reward", reward)
        self._stage("terminated", done & ~np.asarray(timeouts, dtype=bool))
        if subgoal is not None:
            self._stage("subgoal", subgoal)
            self._stage("tested", tested if tested is not None else np.zeros(self.n_envs))
            self._stage("planned", planned if planned is not None else np.zeros(self.n_envs))
            self._stage("predicted_steps", storable_steps(predicted_steps, self.n_envs))
            self._stage("segment_end", SegmentEnd.EPISODE_OVER * done if segment_ends is None else segment_ends)
        # Check first: a step that is refused is not stored at all
        check_finite(self._staging, self._float_columns)
        # Without a hierarchy there are no segments
        is_end = None if subgoal is None else (done if segment_ends is None else segment_ends != SegmentEnd.NONE)
        for i, writer in enumerate(self.shards.writers()):
            # A slice, because writers take several consecutive steps of an environment; here it is one step
            step = slice(i, i + 1)
            writer.write(self._staging[step], done[step], None if is_end is None else is_end[step])

    def _stage(self, field: str, value: Any) -> None:
        """Write a value of every environment, shape (n_envs, ...), into its columns of the staged rows."""
        self._staging[:, self._columns[field]] = flatten(value, self.n_envs)

    def _packed(self, obs: Any) -> Any:
        return obs if self.packed_dtype is None else pack(obs, self.n_envs, self.packed_dtype)

    def _values(self, rows: np.ndarray, field: str) -> np.ndarray:
        """:return: a field of packed rows, shape (n, dim), a view"""
        values = rows[:, self._columns[field]]
        if self.packed_dtype is None or field in self._float_columns:
            return values
        return unpack(values, self.observation_size, self.packed_dtype)

    def end_episodes(self) -> None:
        """Close the running episodes (their environments were reset from outside); open segments are dropped."""
        if self.shards.is_allocated:
            for writer in self.shards.writers():
                writer.end_episode()

    truncate_last_trajectory = end_episodes  # HerReplayBuffer's name

    def reset(self) -> None:
        """Delete all steps."""
        self.shards.clear()

    # ----------------------------------------------------------------- counting

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

    # SB3 counts steps in these two attributes. Here they come from the counters, which workers also update: workers may differ
    # in speed, so they are averages over the environments. Only SB3's constructor sets them, to 0

    @property
    def pos(self) -> int:
        """Position of the next step in the ring of each environment, as in SB3, below ``buffer_size``."""
        return self.n_added // self.n_envs % self.buffer_size

    @pos.setter
    def pos(self, value: int) -> None:
        pass

    @property
    def full(self) -> bool:
        """Whether the rings have been filled at least once, as in SB3."""
        return self.n_added // self.n_envs >= self.buffer_size

    @full.setter
    def full(self, value: bool) -> None:
        pass

    # ------------------------------------------------------------------- saving

    def check_replacement(self, saved: Any) -> None:
        """
        :param saved: an object loaded from a file, to replace this buffer
        :raises ValueError: if it is not a buffer of the same class, or belongs to other environments
        """
        if not isinstance(saved, type(self)):
            raise ValueError(
                f"The file contains a {type(saved).__name__}, but the model has a {type(self).__name__}: load a buffer that "
                "`save_replay_buffer` of such a model wrote, or pass the class as `replay_buffer_class`."
            )
        if saved.n_envs != self.n_envs:
            raise ValueError(
                f"The saved replay buffer has n_envs={saved.n_envs}, the model n_envs={self.n_envs}: load the model with as "
                f"many environments as the buffer was saved with (in the zoo `-params n_envs:{saved.n_envs}`), or continue "
                "without the buffer (in the zoo move `replay_buffer.pkl` out of the agent's folder)."
            )
        if (saved.obs_shape, saved.action_space.shape) != (self.obs_shape, self.action_space.shape):
            raise ValueError(
                f"The saved replay buffer has observations of shape {saved.obs_shape} and actions of shape "
                f"{saved.action_space.shape}, the model {self.obs_shape} and {self.action_space.shape}: load a buffer that "
                "was saved with the same environment and wrappers."
            )


def packed_dtype(space: spaces.Space) -> np.dtype | None:
    """
    :param space: observation space
    :return: dtype in which observations are stored, if they are whole numbers of one or two bytes, such as images; ``None`` if
        they are stored as float32
    """
    dtype = space.dtype if isinstance(space, spaces.Box) else None
    is_small = dtype is not None and dtype.kind in "iub" and dtype.itemsize < np.dtype(np.float32).itemsize
    return dtype if is_small else None


def packed_size(size: int, dtype: np.dtype) -> int:
    """
    :param size: number of values
    :param dtype: their dtype
    :return: number of float32 columns with room for them
    """
    return -(-size * dtype.itemsize // np.dtype(np.float32).itemsize)


def pack(values: Any, n: int, dtype: np.dtype) -> np.ndarray:
    """
    Small values as the bytes of float32 columns, which must only be copied: as numbers they have no meaning.

    :param values: shape (n, ...), or without the first dimension if ``n=1``
    :param n: number of rows
    :param dtype: dtype of the values
    :return: float32, shape (n, packed_size)
    """
    flat = flatten(values, n, dtype)
    columns = np.zeros((n, packed_size(flat.shape[1], dtype)), dtype=np.float32)
    unpack(columns, flat.shape[1], dtype)[:] = flat
    return columns


def unpack(columns: np.ndarray, size: int, dtype: np.dtype) -> np.ndarray:
    """
    :param columns: result of :func:`pack`, or such columns of rows, shape (n, packed_size)
    :param size: number of values
    :param dtype: dtype of the values
    :return: a view of the values, shape (n, size)
    """
    return columns.view(dtype)[:, :size]


def float_columns(columns: Mapping[str, slice], dtype: np.dtype | None) -> dict[str, slice]:
    """
    :param columns: position of each field in a row
    :param dtype: dtype of packed observations, which come first in a row; ``None``: they are float32
    :return: positions of the fields that are float32 numbers
    """
    return {field: part for field, part in columns.items() if dtype is None or not field.endswith("observation")}


def storable_steps(steps: np.ndarray | None, n_envs: int) -> np.ndarray:
    """
    :param steps: predicted environment steps, infinite: never, NaN: unknown, shape (n_envs,); ``None``: all are unknown
    :param n_envs: number of environments
    :return: finite values, shape (n_envs, 1)
    """
    if steps is None:
        return np.full((n_envs, 1), _NOT_KNOWN, dtype=np.float32)
    return np.where(np.isnan(steps), _NOT_KNOWN, np.minimum(steps, _NEVER)).astype(np.float32)[:, None]


def read_steps(column: np.ndarray) -> np.ndarray:
    """
    :param column: values from :func:`storable_steps`, shape (n,)
    :return: predicted environment steps, shape (n,)
    """
    return np.where(column == _NOT_KNOWN, np.float32(np.nan), np.where(column == _NEVER, np.float32(np.inf), column))


def is_failure(done: bool, info: Mapping[str, Any]) -> bool:
    """
    Whether an episode has terminated without success, such as by a fall.

    :param done: whether the episode has ended
    :param info: the environment's info; ``TimeLimit.truncated`` marks time limits, which are not failures. Without
        ``is_success`` success is unknown, and an end is not a failure
    :return: whether the goal can no longer be reached
    """
    return bool(done) and not info.get("TimeLimit.truncated", False) and not info.get("is_success", True)


def check_finite(rows: np.ndarray, columns: Mapping[str, slice]) -> None:
    """
    :param rows: packed rows, shape (n, row_dim)
    :param columns: position of each field of float32 numbers, in the order of the row, see :func:`float_columns`
    :raises ValueError: if a value is not finite
    """
    parts = list(columns.values())
    if np.isfinite(rows[:, parts[0].start : parts[-1].stop]).all():
        return
    bad = [field for field, part in columns.items() if not np.isfinite(rows[:, part]).all()]
    raise ValueError(
        f"The environment or the policy returned a value that is not finite (NaN or infinite) in {', '.join(bad)}: "
        "check the environment with stable_baselines3.common.env_checker.check_env, or lower the learning rate."
    )
