"""Noise, random actions and subgoal tests in training environments."""

import itertools

import numpy as np
from agents import float32, make_model, with_bounds
from conftest import point_vec_env

from sb3_hrl.hddpg.exploration import Explorer

FAR = float32((5.0, 5.0), (-5.0, 5.0))


def act(model, explorer, is_warm_up: bool = False) -> np.ndarray:
    """:return: actions of two environments at the origin, whose segments continue"""
    zeros = np.zeros((2, 2), np.float32)
    return explorer.act(model.policy.numpy_policy(), np.zeros((2, 3), np.float32), zeros, FAR, is_warm_up)


def make_explorer(**kwargs) -> Explorer:
    return Explorer(2, 2, 2, np.random.default_rng(0), **kwargs)


def test_noise_is_held(small):
    options = dict(noise_hold_steps=4, noise_std=0.01, random_action_prob=0.0)
    model, explorer = with_bounds(make_model(small, exploration_kwargs=options)), make_explorer()
    actions = [act(model, explorer) for _ in range(12)]
    same = [bool((a == b).all()) for a, b in itertools.pairwise(actions)]
    assert same == [True, True, True, False] * 2 + [True] * 3


def test_each_environment_has_a_scale_of_noise(small):
    model = with_bounds(make_model(small, exploration_kwargs=dict(noise_std=0.01, random_action_prob=0.0)))
    explorer = make_explorer(noise_scale=np.array([0.0, 10.0]))
    std = np.std([act(model, explorer) for _ in range(50)], axis=0)
    assert std[0].max() < 1e-6
    assert std[1].min() > 0.05


def test_random_actions_are_uniform(small):
    model = with_bounds(make_model(small, exploration_kwargs=dict(noise_std=0.0, random_action_prob=0.25)))
    explorer = make_explorer()
    actions = np.array([act(model, explorer) for _ in range(800)])
    greedy = model.policy.numpy_policy().act(np.zeros((2, 3), np.float32), np.zeros((2, 2)), explorer.segments.subgoals)
    is_random = (np.abs(actions - greedy) > 1e-5).any(axis=2)
    assert 0.2 < is_random.mean() < 0.3
    assert np.abs(actions[is_random]).max() <= 1.0
    np.testing.assert_allclose(actions[is_random].std(axis=0), 1 / np.sqrt(3), atol=0.05)
    warm_up = np.array([act(model, make_explorer(), is_warm_up=True) for _ in range(3)])
    assert (warm_up[0] == warm_up[1]).all(), "by its generator alone"
    assert np.abs(warm_up).max() <= 1.0


def test_a_subgoal_test_runs_without_noise(small):
    options = dict(noise_std=0.5, random_action_prob=0.5, subgoal_test_prob=1.0)
    model = make_model(small, point_vec_env(2), exploration_kwargs=options, gradient_steps=0).learn(200)
    (tested,) = (np.concatenate(parts) for parts in zip(*_rows(model, "tested"), strict=True))
    assert tested[:10].sum() == 0, "not in the warm-up"
    assert (tested[20:] == 1).any()
    for shard in _rows(model, "observation", "achieved_goal", "subgoal", "action", "tested"):
        *inputs, actions, tested = shard
        is_test = tested[:, 0] > 0
        expected = model.policy.numpy_policy().act(*(array[is_test] for array in inputs))
        np.testing.assert_allclose(actions[is_test], expected, atol=1e-5)


def _rows(model, *fields: str) -> list[tuple[np.ndarray, ...]]:
    return [tuple(steps[field] for field in fields) for steps in model.replay_buffer.recent(10**6, fields)]
