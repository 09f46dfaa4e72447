"""Options are passed in groups, checked at the start, and may be changed later."""

import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch as th
from agents import make_model
from conftest import PointEnv, point_vec_env

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.hddpg.batch_source import BatchSource
from sb3_hrl.hddpg.config import ExplorationConfig, HindsightConfig, LevelConfig, SubgoalConfig
from sb3_hrl.hddpg.planners import LandmarkConfig

NAN = float("nan")
NOT_POSITIVE: list[Any] = [0, -1.0, NAN, "1", True]
NEGATIVE: list[Any] = [-0.1, NAN, "1", True, None]
NO_SHARE: list[Any] = [-0.1, 1.1, NAN, "0.5", True, None]
NOT_FROM_1: list[Any] = [0, -1, 5.0, "5", True]
NOT_FROM_0: list[Any] = [-1, 5.0, "5", True, None]

SUBGOALS: dict[str, list[Any]] = {
    "radius": [0, -1.0, NAN, "a", "0.5", [0.1, 0.0], [], [0.1, NAN], {}, [0.1] * 3],
    "bounds": [1.0, "ab", (0.0,), (1.0, 0.0), (0.0, 0.0), ([0.0, 0.0], [1.0, 0.0]), ([0.0] * 2, [1.0] * 3), (0.0, NAN)],
    "threshold": NOT_POSITIVE,
    "source": ["oracle", [1.0, 2.0, 3.0], [NAN, 0.0], None, [], {}],
    "avoid_reached": [None, 1, "yes"],
    "avoid_missed": [None, 0, "no"],
}
EXPLORATION: dict[str, list[Any]] = {
    "noise_std": NEGATIVE,
    "random_action_prob": NO_SHARE,
    "noise_hold_steps": [*NOT_FROM_1, None],
    "subgoal_test_prob": NO_SHARE,
}
HINDSIGHT: dict[str, list[Any]] = {
    "n_sampled_goal": NOT_FROM_0,
    "goal_selection_strategy": ["past", None, 1],
    "action_prob": NO_SHARE,
    "trivial_segment_prob": NO_SHARE,
}
LEVEL: dict[str, list[Any]] = {
    "learning_rate": ["exp_1e-3", "lin_", "a", -1.0, NAN, None, True],
    "batch_size": [*NOT_FROM_1, None],
    "tau": [*NO_SHARE, 0.0],
    "gamma": [*NO_SHARE, 1.0],
    "n_sampled_goal": NOT_FROM_0,
    "max_grad_value": NOT_POSITIVE,
    "noise_std": NEGATIVE,
    "random_action_prob": NO_SHARE,
    "n_critics": [*NOT_FROM_1, None],
    "target_policy_noise": NEGATIVE,
    "target_noise_clip": NEGATIVE,
    "net_arch": ["16", 16, [0], [16.0], [True], dict(pi=[16])],
    "policy_delay": [*NOT_FROM_1, None],
    "action_l2": NEGATIVE,
    "reward": ["progress", None, 0, ["sparse"]],
    "hindsight_window": NOT_FROM_1,
}
HIGH_ONLY: dict[str, list[Any]] = {"imitation": NEGATIVE}
LOW_ONLY: dict[str, list[Any]] = {
    "random_target_prob": [*NO_SHARE, 0.21],  # the share that is not in hindsight is 1 / 5
    "trivial_target_prob": [value for value in NO_SHARE if value is not None],
    "oracle": ["towards", 1],
}
LANDMARKS: dict[str, list[Any]] = {
    "n_landmarks": [0, 1, 5.0, "5", True, None],
    "n_members": [*NOT_FROM_1, None],
    "n_visited": [1, 399, 2000.0, "2000", True, None],  # there are up to 400 landmarks
    "update_interval": [*NOT_FROM_1, None],
    "distance": ["manhattan", None, 0],
    "miss_cost": NEGATIVE,
}
GROUPS: dict[str, dict[str, list[Any]]] = {
    "subgoal_kwargs": SUBGOALS,
    "exploration_kwargs": EXPLORATION,
    "hindsight_kwargs": HINDSIGHT,
    "high_kwargs": LEVEL | HIGH_ONLY,
    "low_kwargs": LEVEL | LOW_ONLY,
    "planner_kwargs": LANDMARKS,
}
FLAT: dict[str, list[Any]] = {
    "subgoal_steps": NOT_FROM_1,
    "high_update_interval": [*NOT_FROM_1, None],
    "prefetch_depth": NOT_FROM_0,
    "batch_size": NOT_FROM_1,
    "tau": [0.0, 1.1, "0.5"],
    "gamma": [1.0, -0.1, "0.5"],
    "max_grad_value": NOT_POSITIVE,
    "planner": ["astar", 1, True, ["landmarks"]],
    "n_steps": [0, 3],
    "optimize_memory_usage": [True],
}
BAD = [(group, name, value) for group, options in GROUPS.items() for name, values in options.items() for value in values]


def group_of(group: str, **options: Any) -> dict[str, Any]:
    planner = dict(planner="landmarks") if group == "planner_kwargs" else {}
    return {group: options} | planner


@pytest.mark.parametrize(("group", "name", "value"), BAD)
def test_options_out_of_range_are_refused_by_a_sentence(group, name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be [a-zA-Z(].*[^.]\.$"):
        HierarchicalDDPG("MultiInputPolicy", ENV, buffer_size=10, **group_of(group, **{name: value}))


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FLAT.items() for value in values])
def test_arguments_out_of_range_are_refused_by_a_sentence(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*[^.]\.$"):
        HierarchicalDDPG("MultiInputPolicy", ENV, buffer_size=10, **{name: value})


def test_the_buffer_makes_no_n_step_returns_for_two_levels():
    with pytest.raises(ValueError, match="`n_steps` must be 1"):
        HierarchicalDDPG("MultiInputPolicy", ENV, replay_buffer_kwargs=dict(n_steps=3))


ENV = point_vec_env()


def test_there_is_a_bad_value_of_each_option():
    """New options must be checked as well."""
    config_of = dict(subgoal_kwargs=SubgoalConfig, exploration_kwargs=ExplorationConfig, hindsight_kwargs=HindsightConfig)
    for group, config in (config_of | dict(planner_kwargs=LandmarkConfig)).items():
        assert set(GROUPS[group]) == {field.name for field in fields(config)} - {"steps"}
    assert set(LEVEL | HIGH_ONLY | LOW_ONLY) == {field.name for field in fields(LevelConfig)}


@pytest.mark.parametrize("group", GROUPS)
def test_unknown_keys_name_the_nearest_known_one(group):
    known = next(name for name in GROUPS[group] if len(name) > 5)
    misspelled = known[:-1]
    with pytest.raises(ValueError, match=rf"`{group}` has unknown keys: `{misspelled}` \(did you mean `{known}`\?\)"):
        HierarchicalDDPG("MultiInputPolicy", ENV, buffer_size=10, **group_of(group, **{misspelled: 1}))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("value", ["dict(gamma=0.9)", [("gamma", 0.9)], 3])
def test_groups_are_mappings(group, value):
    with pytest.raises(ValueError, match=f"`{group}` must be a mapping"):
        HierarchicalDDPG("MultiInputPolicy", ENV, buffer_size=10, **group_of(group) | {group: value})


@pytest.mark.parametrize(("group", "name"), [("high_kwargs", name) for name in LOW_ONLY] + [("low_kwargs", "imitation")])
def test_options_of_one_level_are_refused_on_the_other(group, name):
    with pytest.raises(ValueError, match=f"`{group}` has unknown keys: `{name}`"):
        HierarchicalDDPG("MultiInputPolicy", ENV, buffer_size=10, **{group: {name: getattr(LevelConfig(), name)}})


def test_an_option_of_the_high_level_alone_is_named_with_its_group():
    with pytest.raises(TypeError, match=r"pass `high_kwargs=dict\(imitation=\.\.\.\)`"):
        HierarchicalDDPG("MultiInputPolicy", ENV, buffer_size=10, **dict(imitation=1.0))


VALUES = dict(planner="landmarks")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(low_kwargs=dict(reward="dense")), "pass `reward='sparse'` in `low_kwargs`"),
        (dict(low_kwargs=dict(reward="dense"), **VALUES), "`distance='euclidean'` in `planner_kwargs`"),
        (dict(planner=None, planner_kwargs=dict(n_members=1)), "`planner_kwargs` have no effect without a planner"),
        (dict(low_kwargs=dict(random_target_prob=0.2, n_sampled_goal=9)), "`random_target_prob` must be .* 1 / "),
        (dict(policy_kwargs=dict(n_critics=0)), "`n_critics` must be"),
        (dict(policy_kwargs=dict(net_arch=[16, 0])), "`net_arch` must be"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalDDPG("MultiInputPolicy", ENV, buffer_size=10, **options)


@pytest.mark.parametrize(
    "options",
    [
        dict(low_kwargs=dict(reward="dense"), planner="landmarks", planner_kwargs=dict(distance="euclidean")),
        dict(low_kwargs=dict(random_target_prob=0.5, n_sampled_goal=1)),
        dict(subgoal_kwargs=dict(radius=np.array([0.1, 0.2]), bounds=(np.zeros(2), np.ones(2)), threshold=np.float32(0.1))),
        dict(subgoal_steps=np.int64(5), gamma=np.float64(0.9), high_kwargs=dict(batch_size=np.int32(8)), low_kwargs={}),
        dict(hindsight_kwargs=dict(n_sampled_goal=0), subgoal_kwargs=dict(source=np.array([0.5, 0.5]))),
        dict(planner=None, planner_kwargs={}, low_kwargs=dict(net_arch=dict(pi=[8], qf=[16])), high_kwargs=dict(net_arch=[])),
    ],
)
def test_what_is_right_is_accepted(small, options):
    make_model(small, **options)


# ------------------------------------------------------------ from the door to both levels


def test_arguments_set_both_levels_and_groups_override_them():
    model = HierarchicalDDPG(
        "MultiInputPolicy",
        ENV,
        buffer_size=10,
        gamma=0.9,
        tau=0.1,
        exploration_kwargs=dict(noise_std=0.3, random_action_prob=0.4),
        hindsight_kwargs=dict(n_sampled_goal=2),
        high_kwargs=dict(gamma=0.8, n_sampled_goal=7, imitation=1.0),
        low_kwargs=dict(noise_std=0.1),
        policy_kwargs=dict(n_critics=3),
    )
    high, low = model.policy.config.high, model.policy.config.low
    assert (high.gamma, low.gamma) == (0.8, 0.9)
    assert (high.noise_std, low.noise_std) == (0.3, 0.1)
    assert (high.n_sampled_goal, low.n_sampled_goal) == (7, 2)
    assert high.tau == low.tau == 0.1
    assert (high.random_action_prob, low.random_action_prob) == (0.0, 0.4), "the high level's is one of its own"
    assert high.n_critics == low.n_critics == 3
    assert high.imitation == 1.0
    assert high.min_value == pytest.approx(-5.0)


def test_the_default_plans_calibrates_its_horizon_and_imitates():
    config = HierarchicalDDPG("MultiInputPolicy", ENV, buffer_size=10).policy.config
    assert config.planner == LandmarkConfig()
    assert config.subgoals.steps is None
    assert config.asks_values
    assert config.high.n_critics == config.low.n_critics == 2
    assert config.high.random_action_prob == 0.0 < config.low.random_action_prob
    assert config.high.imitation > 0.0


@pytest.mark.parametrize(
    "options",
    [dict(subgoal_kwargs=dict(source=source)) for source in ("goal", "random", [0.1, 0.1])]
    + [dict(low_kwargs=dict(oracle=lambda observation, achieved_goal, subgoal: subgoal - achieved_goal))],
)
def test_a_planner_is_for_subgoals_that_are_learnt(options):
    config = HierarchicalDDPG("MultiInputPolicy", ENV, buffer_size=10, **options).policy.config
    assert config.planner is None
    assert not config.asks_values


def test_options_may_be_set_after_construction(small):
    model = make_model(small, high_update_interval=1, hindsight_kwargs=dict(n_sampled_goal=0))
    model.learn(60)
    model.gamma = 0.5
    model.learn(30, reset_num_timesteps=False)
    config = model.policy.config
    assert config.low.gamma == config.high.gamma == model.policy.low.config.gamma == model.policy.high.config.gamma == 0.5
    # Targets are clipped to [-1 / (1 - gamma), 0]
    for level in (model.policy.low, model.policy.high):
        th.nn.init.constant_(level.critic_target.q_networks[0][-1].bias, -50.0)
    source = BatchSource(model.policy, model.replay_buffer, GoalTask(PointEnv().compute_reward, np.zeros((1, 2))))
    assert source.low().target_q_values.min() == source.high().target_q_values.min() == -2.0
    model.learning_rate, model.batch_size, model.max_grad_value = 0.1, 8, None
    model.train(1)
    config = model.policy.config
    assert config.low.batch_size == config.high.batch_size == 8, "train() alone sees it, too"
    assert config.low.max_grad_value is config.high.max_grad_value is None
    assert model.policy.low.actor.optimizer.param_groups[0]["lr"] == 0.1


def test_groups_may_be_replaced_after_construction(small):
    model = make_model(small).learn(30)
    model.subgoal_kwargs = dict(source="goal", radius=np.array([0.5, 0.5]))
    model.low_kwargs = dict(oracle=lambda observation, achieved_goal, subgoal: np.full((1, 2), 0.25))
    model.learn(30, reset_num_timesteps=False)
    steps = model.replay_buffer.recent(25, ("subgoal", "desired_goal"))[0]
    np.testing.assert_array_equal(steps["subgoal"], steps["desired_goal"])
    model.subgoal_kwargs = dict(source="goal", radius=np.array([0.6, 0.5]))
    model.learn(10, reset_num_timesteps=False)
    assert model.policy.config.subgoals.radius[0] == 0.6
    model.subgoal_kwargs = dict(sauce="goal")
    with pytest.raises(ValueError, match=re.escape("`sauce` (did you mean `source`?)")):
        model.learn(10, reset_num_timesteps=False)


def test_a_schedule_is_an_option(small):
    rates = dict(low=[], high=[])
    model = make_model(small, learning_rate="lin_1e-2", high_kwargs=dict(learning_rate=lambda progress: 0.5 * progress))

    def look(*_) -> bool:
        for name, seen in rates.items():
            seen.append(getattr(model.policy, name).actor.optimizer.param_groups[0]["lr"])
        return True

    model.learn(100, callback=look)
    assert rates["low"][49] == pytest.approx(0.005, abs=2e-4)
    assert rates["high"][49] == pytest.approx(0.25, abs=1e-2)
