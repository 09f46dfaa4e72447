"""Two runs with the same seed are identical."""

import numpy as np
import pytest
import torch as th
from conftest import point_vec_env

from sb3_hrl import HierarchicalDDPG


def run(small, seed, n_envs, **kwargs):
    options = small | dict(seed=seed, high_update_interval=2) | kwargs
    return HierarchicalDDPG("MultiInputPolicy", point_vec_env(n_envs), **options).learn(150)


PLANS = dict(planner="landmarks", subgoal_steps=None, planner_kwargs=dict(n_landmarks=20, n_visited=50, update_interval=40))


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("options", [dict(), dict(exploration_kwargs=dict(subgoal_test_prob=0.5)), PLANS])
def test_same_seed_same_run(small, n_envs, options):
    first, second = (run(small, 3, n_envs, **options) for _ in range(2))
    assert len(first.policy.state_dict()) > 20
    for key, value in first.policy.state_dict().items():
        assert th.equal(value, second.policy.state_dict()[key]), key
    n = 150 // n_envs
    np.testing.assert_array_equal(first.replay_buffer.shards.rows[:, :n], second.replay_buffer.shards.rows[:, :n])


def test_other_seed_other_run(small):
    first, second = run(small, 3, 1), run(small, 4, 1)
    assert not np.array_equal(first.replay_buffer.shards.rows[:, :150], second.replay_buffer.shards.rows[:, :150])
    for one, other in zip(first.policy.low.actor.parameters(), second.policy.low.actor.parameters(), strict=True):
        assert not th.equal(one, other)
