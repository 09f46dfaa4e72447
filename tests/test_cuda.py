"""Learning on a GPU. These tests are skipped without one; CudaGraphs itself is also tested on the CPU."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch as th
from agents import make_model
from conftest import point_env_fn, point_vec_env
from gymnasium import spaces
from stable_baselines3 import SAC
from torch import nn

from sb3_hrl import HierarchicalDDPG, ParallelCollector, asynchronous
from sb3_hrl.common.cuda_graphs import CudaGraphs
from sb3_hrl.common.type_aliases import Transitions
from sb3_hrl.hddpg.config import LevelConfig
from sb3_hrl.hddpg.level import DDPGLevel, UpdateInfo

needs_gpu = pytest.mark.skipif(not th.cuda.is_available(), reason="no GPU here")


def make_level(records: bool = True, **settings) -> DDPGLevel:
    th.manual_seed(0)
    space, actions = spaces.Box(-np.inf, np.inf, (6,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)
    config = LevelConfig(**settings)
    level = DDPGLevel(space, actions, config.lr_schedule, config, net_arch=[32, 32], optimizer_kwargs={"fused": True})
    level._graphs._is_possible = records
    return level.to("cuda")


def batches(n: int) -> list[Transitions]:
    rng = th.Generator().manual_seed(1)

    def batch() -> Transitions:
        discounts = 0.99 * (th.rand(64, 1, generator=rng) < 0.7).float()
        inputs, next_inputs = (th.randn(64, 6, generator=rng) for _ in range(2))
        actions = 2.0 * th.rand(64, 2, generator=rng) - 1.0
        imitated = (th.rand(64, 1, generator=rng) < 0.5).float()
        return Transitions(inputs, actions, next_inputs, -th.ones(64, 1), discounts, imitated)

    return [Transitions(*(tensor.cuda() for tensor in batch())) for _ in range(n)]


def learn_from(level: DDPGLevel, batches: list[Transitions], first: int = 1) -> list[UpdateInfo]:
    return [level.update(level.td_targets(batch), n) for n, batch in enumerate(batches, start=first)]


def assert_same(level: DDPGLevel, other: DDPGLevel) -> None:
    for (name, tensor), twin in zip(level.state_dict().items(), other.state_dict().values(), strict=True):
        assert th.allclose(tensor, twin, atol=1e-5), name


def test_on_a_cpu_functions_are_called():
    graphs, calls = CudaGraphs(), []

    def double(x: th.Tensor) -> tuple[th.Tensor]:
        calls.append(x)
        return (2.0 * x,)

    for _ in range(10):
        assert graphs.call("double", double, (th.ones(3),), lambda: None)[0].tolist() == [2.0] * 3
    assert len(calls) == 10


def test_recordings_are_neither_copied_nor_pickled():
    graphs = CudaGraphs()
    graphs._recordings["update"] = None, 3
    for twin in (copy.deepcopy(graphs), pickle.loads(pickle.dumps(graphs))):
        assert twin._recordings == {}


@needs_gpu
@pytest.mark.parametrize("settings", [{}, dict(policy_delay=2), dict(action_l2=0.1, max_grad_value=None, n_critics=3)])
def test_a_replayed_update_is_the_update(settings):
    usual, recorded = (make_level(records, **settings) for records in (False, True))
    expected, infos = (learn_from(level, batches(30)) for level in (usual, recorded))
    recordings = [recording for _, recording in recorded._graphs._recordings.values()]
    assert len(recordings) == (3 if "policy_delay" in settings else 2)
    assert not any(isinstance(recording, int) for recording in recordings)
    assert_same(recorded, usual)
    for info, twin in zip(infos, expected, strict=True):
        for value, expected_value in zip(info, twin, strict=True):
            assert th.allclose(value, expected_value, atol=1e-5, equal_nan=True)


@needs_gpu
def test_a_replayed_target_has_new_noise():
    level = make_level(target_policy_noise=0.2)
    (batch,) = batches(1)
    # A critic that depends on the action
    learn_from(level, batches(20))
    targets = [level.td_targets(batch).target_q_values for _ in range(8)]
    assert not any(th.equal(*pair) for pair in itertools.pairwise(targets))


def new_learning_rate(level: DDPGLevel) -> None:
    level.set_learning_rate(1e-4)


def new_config(level: DDPGLevel) -> None:
    level.config = LevelConfig(tau=0.5, gamma=0.5)


def new_optimizer_state(level: DDPGLevel) -> None:
    for optimizer in (level.actor.optimizer, level.critic.optimizer):
        state = copy.deepcopy(optimizer.state_dict())
        for values in state["state"].values():
            values["exp_avg"].mul_(-3.0)
        optimizer.load_state_dict(state)


def new_option(level: DDPGLevel) -> None:
    for optimizer in (level.actor.optimizer, level.critic.optimizer):
        optimizer.param_groups[0]["weight_decay"] = 0.1


def new_weights(level: DDPGLevel) -> None:
    layer = level.actor_target.mu[0]
    layer.weight = nn.Parameter(-layer.weight.detach())


@needs_gpu
@pytest.mark.parametrize("change", [new_learning_rate, new_config, new_optimizer_state, new_option, new_weights])
def test_a_recording_does_not_outlive_what_it_depends_on(change):
    usual, recorded = (make_level(records) for records in (False, True))
    for level in (usual, recorded):
        learn_from(level, batches(10))
        change(level)
        learn_from(level, batches(20)[10:])
    assert_same(recorded, usual)
    assert all(isinstance(group["lr"], float) for group in recorded.actor.optimizer.param_groups)


class ReadsValues(nn.ReLU):
    """An activation that waits for the GPU."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return super().forward(x) if x.sum().item() < 1e9 else x


@needs_gpu
def test_an_update_that_cannot_be_recorded_runs_without(small):
    model = make_model(small, device="cuda", policy_kwargs=dict(activation_fn=ReadsValues))
    with pytest.warns(RuntimeWarning, match="cannot be recorded as CUDA graphs"):
        model.learn(200)
    before = model.policy.low.actor.mu[0].weight.clone()
    model.learn(50, reset_num_timesteps=False)
    assert not th.equal(model.policy.low.actor.mu[0].weight, before)


@needs_gpu
@pytest.mark.parametrize("planner", ["landmarks", None])
def test_an_agent_learns_on_a_gpu(small, tmp_path, planner):
    model = make_model(small, device="cuda", planner=planner).learn(600)
    assert {parameter.device.type for parameter in model.policy.parameters()} == {"cuda"}
    assert {buffer.device.type for buffer in model.policy.buffers()} == {"cpu"}
    obs = model.env.reset()
    expected = model.predict(obs, deterministic=True)[0]
    model.save(tmp_path / "agent")
    for device in ("cpu", "cuda"):
        loaded = HierarchicalDDPG.load(tmp_path / "agent", env=point_vec_env(), device=device)
        np.testing.assert_allclose(loaded.predict(obs, deterministic=True)[0], expected, atol=1e-4)
        loaded.learn(200)


@needs_gpu
@pytest.mark.timeout(120)
def test_an_agent_learns_on_a_gpu_from_batches_of_another_process(small):
    env = ParallelCollector([point_env_fn()] * 2)
    model = make_model(small, env, device="cuda", async_collection=True)
    model.learn(3_000)
    assert model._n_updates > 0
    env.close()


@needs_gpu
@pytest.mark.timeout(120)
def test_sb3s_algorithms_collect_asynchronously_for_a_gpu():
    env = ParallelCollector([point_env_fn()] * 2)
    model = asynchronous(SAC)("MultiInputPolicy", env, device="cuda", learning_starts=50, train_freq=2)
    model.learn(500)
    assert model._n_updates > 0
    env.close()
