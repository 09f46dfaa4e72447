"""How old the weights are that choose an action."""

import csv
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
from conftest import PointEnv, point_env_fn
from stable_baselines3 import TD3
from stable_baselines3.common.logger import configure

from sb3_hrl import HierarchicalDDPG, ParallelCollector, SerialCollector, SharedMemoryReplayBuffer, asynchronous
from sb3_hrl.common.weight_sync import LocalWeights, WeightPublisher, WeightSubscriber
from sb3_hrl.parallel.async_rollouts import AsyncRollouts, collect_task
from sb3_hrl.parallel.worker import Worker, WorkerConfig

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("leaves_nothing")]


@pytest.fixture
def make_model(small):
    """Creates models that learn asynchronously, and closes their environments at the end."""
    envs = []

    def make(cls: Any = ParallelCollector, algorithm: Any = HierarchicalDDPG, n_envs: int = 2, **env_kwargs: Any) -> Any:
        # Without `max_lag`, workers would keep the first weights
        options = dict(flush_size=7, sync_interval=100_000) | env_kwargs
        options |= dict(start_method="fork") if cls is ParallelCollector else {}
        envs.append(cls([point_env_fn()] * n_envs, **options))
        if algorithm is HierarchicalDDPG:
            return HierarchicalDDPG(
                "MultiInputPolicy", envs[-1], async_collection=True, prefetch_depth=0, gradient_steps=4, **small
            )
        sizes = {key: small[key] for key in ("learning_starts", "batch_size", "policy_kwargs", "buffer_size", "seed")}
        return asynchronous(algorithm)("MultiInputPolicy", envs[-1], gradient_steps=4, **sizes)

    yield make
    for env in envs:
        env.close()


@pytest.fixture
def oldest(monkeypatch):
    """
    Measures in the workers, which are forks of this process, how old the weights are that choose an action.

    :return: shared array; its first entry is the maximum age, in gradient steps of the learner
    """
    context = get_context("fork")
    result, counts = context.RawArray("q", 1), context.RawArray("q", 50_000)
    start, publish, round_ = AsyncRollouts.__init__, AsyncRollouts.publish, Worker.round

    def count_and_start(self: AsyncRollouts, *args: Any, **kwargs: Any) -> None:
        counts[0] = counts[1] = kwargs["n_updates"]
        start(self, *args, **kwargs)

    def count_and_publish(self: AsyncRollouts, n_updates: int) -> None:
        # Gradient steps by version, which workers may only read when this version is published
        counts[len(self._updates_of)] = n_updates
        publish(self, n_updates)
        # The newest number of gradient steps
        counts[0] = n_updates

    def measured_round(self: Worker) -> None:
        n_updates = counts[0]
        round_(self)
        result[0] = max(result[0], n_updates - counts[self._version])

    monkeypatch.setattr(AsyncRollouts, "__init__", count_and_start)
    monkeypatch.setattr(AsyncRollouts, "publish", count_and_publish)
    monkeypatch.setattr(Worker, "round", measured_round)
    return result


@pytest.mark.parametrize(
    ("algorithm", "max_lag"), [(HierarchicalDDPG, None), (HierarchicalDDPG, 10), (HierarchicalDDPG, 0), (TD3, 6)]
)
def test_no_action_is_chosen_with_weights_older_than_max_lag(make_model, oldest, algorithm, max_lag):
    # Four gradient steps per step of both environments
    model = make_model(algorithm=algorithm, max_lag=max_lag).learn(300)
    assert model._n_updates == 4 * 140
    if max_lag is None:
        assert oldest[0] > 200, "the test does not measure the age"
    else:
        assert oldest[0] <= max_lag


def test_max_lag_holds_after_a_second_start_and_in_one_process(make_model, oldest):
    model = make_model(SerialCollector, max_lag=6).learn(100)
    model.learn(100, reset_num_timesteps=False)
    assert model._n_updates == 4 * 90
    # Four gradient steps at once: more than 6 are 8
    assert oldest[0] == 4


def test_without_a_maximum_workers_check_as_often_as_before(make_model):
    """`max_lag` that is never reached changes nothing."""
    first, second = (
        make_model(SerialCollector, sync_interval=20, max_lag=max_lag).learn(200).replay_buffer.shards.rows[:, :100]
        for max_lag in (None, 10_000)
    )
    np.testing.assert_array_equal(first, second)


def test_the_age_of_every_step_is_logged(make_model, tmp_path):
    model = make_model(SerialCollector, n_envs=1, flush_size=10, max_lag=0)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(100, log_interval=2)
    model.logger.close()
    with (tmp_path / "progress.csv").open() as file:
        row = list(csv.DictReader(file))[-1]
    # A block of ten steps is collected with the newest weights, and no step of it is older when it is received
    assert float(row["rollout/policy_lag"]) == float(row["rollout/policy_lag_max"]) == 0


class Still:
    """An agent whose actions are zero, see :class:`~sb3_hrl.parallel.worker.Agent`."""

    n_weights = 1

    def start(self, n_envs: int, weights: np.ndarray, rng: np.random.Generator, noise_scale: np.ndarray) -> None:
        self.weights, self.acted_with = weights, []

    def refresh(self) -> None:
        pass

    def act(self, inputs: Any, is_warm_up: bool) -> np.ndarray:
        self.acted_with.append(float(self.weights[0]))
        return np.zeros((2, 2))

    def fields(self) -> dict[str, np.ndarray]:
        return {}

    def step(self, next_inputs: Any, dones: Any) -> None:
        return None

    def statistics(self) -> list[float]:
        return []


def test_a_report_has_the_version_of_every_step():
    """Regression test: all steps of a block counted as made with the newest weights of the block."""
    envs, weights = [PointEnv(), PointEnv()], LocalWeights(1)
    buffer = SharedMemoryReplayBuffer(100, envs[0].observation_space, envs[0].action_space, n_envs=2)
    task = collect_task(Still(), buffer, 0)
    weights.publish(lambda out: out.fill(1))
    worker = Worker(envs, [None, None], 0, 2, task, WorkerConfig(5, 1000), buffer.shards.writers(), weights)
    worker.round()
    worker.round()
    # Newer weights wait for the next check, required ones do not
    weights.publish(lambda out: out.fill(2))
    worker.round()
    weights.publish(lambda out: out.fill(3), is_required=True)
    worker.round()
    weights.publish(lambda out: out.fill(4))
    worker.round()
    assert worker.flush().versions == [(1, 6), (3, 4)]
    assert worker._agent.acted_with == [1, 1, 1, 3, 3]
    worker.round()
    assert worker.flush().versions == [(3, 2)]


@pytest.mark.parametrize("shared", [True, False])
def test_required_weights_are_there_when_they_are_required(shared):
    publisher: Any = WeightPublisher(3) if shared else LocalWeights(3)
    source: Any = WeightSubscriber(publisher.block) if shared else publisher
    assert source.required == 0
    for version, is_required in enumerate((False, True, False, False), start=1):
        publisher.publish(lambda out, value=version: out.fill(value), is_required)
        assert source.version == version
        assert source.required == (0 if version == 1 else 2)
    out = np.zeros(3, np.float32)
    assert source.fetch(out) == 4
    assert (out == 4).all()


@pytest.mark.parametrize("cls", [ParallelCollector, SerialCollector])
def test_a_bad_maximum_is_refused(make_model, cls):
    with pytest.raises(ValueError, match="max_lag"):
        make_model(cls, max_lag=-1)
