"""Asynchronous collection for SB3's own off-policy algorithms."""

import functools
import inspect
import warnings
from typing import Any, ClassVar, TypeVar, cast

from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.step_storage import GOAL_KEYS
from sb3_hrl.parallel.actors import ActorAgent, ActorSnapshot
from sb3_hrl.parallel.async_algorithm import AsyncOffPolicyAlgorithm
from sb3_hrl.parallel.async_rollouts import Acting, NoStatistics

Algorithm = TypeVar("Algorithm", bound=OffPolicyAlgorithm)


class AsyncActorAlgorithm(AsyncOffPolicyAlgorithm):
    """
    The part of :func:`asynchronous` that goes before an algorithm of SB3.

    :param args: arguments of the algorithm
    :param async_collection: collect in the background; False: as SB3 does, with any ``VecEnv``
    :param kwargs: arguments of the algorithm
    """

    _uses_rewards: ClassVar[bool] = True

    def __init__(self, *args: Any, async_collection: bool = True, **kwargs: Any):
        self.async_collection = async_collection
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        name = type(self).__name__
        if self.use_sde:
            raise ValueError(
                f"{name} does not support `use_sde=True`: leave it at False, and explore with `action_noise`, or with the "
                "noise that the actor learns."
            )
        if self.optimize_memory_usage:
            raise ValueError(f"{name} needs `optimize_memory_usage=False`.")
        self.replay_buffer_class = self.replay_buffer_class or SharedMemoryReplayBuffer
        if not issubclass(self.replay_buffer_class, SharedMemoryReplayBuffer):
            raise ValueError(
                f"{name} needs a SharedMemoryReplayBuffer or a subclass, which workers can write to, not "
                f"{self.replay_buffer_class.__name__}. For hindsight pass `replay_buffer_kwargs=dict(n_sampled_goal=4, "
                "compute_reward=...)`."
            )
        if not isinstance(self.action_space, spaces.Box):
            raise ValueError(f"{name} needs continuous actions, a Box space, not {self.action_space}.")
        if self.n_steps > 1:
            # As SB3 does for its own NStepReplayBuffer
            self.replay_buffer_kwargs = {**self.replay_buffer_kwargs, "n_steps": self.n_steps, "gamma": self.gamma}
        with warnings.catch_warnings():
            # SB3 warns that other classes of buffers do not get `n_steps`
            warnings.filterwarnings("ignore", message="`n_steps=")
            super()._setup_model()
        assert isinstance(self.train_freq, TrainFreq)
        if self.train_freq.unit == TrainFrequencyUnit.EPISODE and self.n_envs > 1:
            raise ValueError('`train_freq=(n, "episode")` needs a single environment: use a number of steps.')

    def _acting(self) -> Acting:
        actor = cast(BasePolicy, self.actor)
        snapshot = ActorSnapshot(actor, GOAL_KEYS if self.replay_buffer.has_goals else None)
        noise = getattr(self.action_noise, "base_noise", self.action_noise)
        agent = ActorAgent(snapshot, self.replay_buffer.action_dim, noise)
        return Acting(agent, lambda vector: snapshot.write(actor, vector), NoStatistics())


@functools.cache
def asynchronous(algorithm: type[Algorithm]) -> type[Algorithm]:
    """
    Asynchronous collection for an algorithm of SB3 or sb3-contrib: DDPG, TD3, SAC, TQC or CrossQ.

    The environments step in the background while the algorithm learns, in the workers of a
    :class:`~sb3_hrl.ParallelCollector`; in a :class:`~sb3_hrl.SerialCollector`, they take turns. The replay buffer is a
    :class:`~sb3_hrl.SharedMemoryReplayBuffer`, for Box observations or goal-conditioned environments. The algorithm's own
    class can also load the files that ``save`` writes.

    With ``async_collection=False``, the returned class collects as SB3 does.

    Example::

        env = make_vec_env("Pendulum-v1", 2, vec_env_cls=ParallelCollector)
        model = asynchronous(SAC)("MlpPolicy", env, gradient_steps=2)

    :param algorithm: the class of the algorithm
    :return: a subclass, always the same one for an algorithm
    :raises TypeError: if the algorithm has no actor, such as DQN, or already collects asynchronously
    """
    is_off_policy = isinstance(algorithm, type) and issubclass(algorithm, OffPolicyAlgorithm)
    if not is_off_policy or issubclass(algorithm, AsyncOffPolicyAlgorithm) or "actor" not in _annotations(algorithm):
        name = getattr(algorithm, "__name__", algorithm)
        raise TypeError(f"`asynchronous` extends DDPG, TD3, SAC, TQC or CrossQ, or a subclass of these, not {name}.")
    body = {"__doc__": f"{algorithm.__name__}, see :func:`asynchronous`.", "__module__": __name__}
    return cast(type[Algorithm], type(f"Async{algorithm.__name__}", (AsyncActorAlgorithm, algorithm), body))


def _annotations(algorithm: type) -> set[str]:
    """:return: attributes that an algorithm declares, apart from those of all off-policy algorithms"""
    classes = algorithm.__mro__[: algorithm.__mro__.index(OffPolicyAlgorithm)]
    return {name for cls in classes for name in inspect.get_annotations(cls)}
