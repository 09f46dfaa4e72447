"""Exported modules act like `predict`."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch as th
from agents import made_by
from conftest import PointEnv, point_vec_env
from gymnasium import spaces

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.hddpg import choosers
from sb3_hrl.hddpg.export import DecisionModule, LowLevelModule, export_onnx
from sb3_hrl.zoo.commands import export as export_command

N = 500
FETCH = Path(__file__).parents[1] / "trained_agents/hddpg/FetchReach-v4_1/FetchReach-v4.zip"
KEYS = ("observation", "achieved_goal", "desired_goal")


def trained(small, env=None, n_steps=120, **kwargs):
    """:return: an agent with bounds, moments and weights that differ from the initial ones"""
    return HierarchicalDDPG("MultiInputPolicy", env or point_vec_env(), **(small | kwargs)).learn(n_steps)


def observations(model, seed=0, scale=1.0):
    """:return: random observations; in every fifth the goal is achieved"""
    rng = np.random.default_rng(seed)
    obs = {key: (scale * rng.normal(size=(N, *model.observation_space[key].shape))).astype(np.float32) for key in KEYS}
    obs["achieved_goal"][::5] = obs["desired_goal"][::5]
    return obs


def assert_equal(module, model, obs):
    actions, state = model.predict(obs, deterministic=True)
    subgoal, action = module(*(th.as_tensor(obs[key]) for key in KEYS))
    np.testing.assert_allclose(subgoal.reshape(N, -1), state.subgoals, rtol=0.0, atol=1e-6)
    np.testing.assert_allclose(action.reshape(N, -1), actions.reshape(N, -1), rtol=0.0, atol=1e-6)
    return state


def far_from_goals(model, quantile=0.5):
    """Set the horizon so that this share of random observations is within it, or none of them with 0."""
    config = model.policy.config
    model.policy.config = dataclasses.replace(config, subgoals=dataclasses.replace(config.subgoals, steps=None))
    observation, achieved, goal = (observations(model)[key] for key in KEYS)
    steps = model.policy.numpy_policy().steps(observation[:, None], achieved[:, None], goal)
    model.policy.horizon.fill_(-1.0 if quantile == 0.0 else np.quantile(steps, quantile))
    return model


def mixed(small):
    """:return: an agent that uses the goal itself, the actor's proposal and the best candidate for some of the observations"""
    return far_from_goals(trained(small, subgoal_kwargs=dict(threshold=0.3, radius=0.4)))


@pytest.mark.parametrize(
    "subgoal_kwargs",
    [
        dict(),
        dict(avoid_reached=False),
        dict(avoid_missed=False, radius=0.4),
        # Nearly all proposals, and often all candidates, are already reached
        dict(threshold=0.5, radius=0.3),
        dict(threshold=0.3, radius=0.3),
        dict(source="goal"),
        dict(source="random"),
        dict(source=[0.3, -0.2]),
    ],
)
@pytest.mark.parametrize("kwargs", [dict(), dict(subgoal_steps=None), dict(low_kwargs=dict(reward="dense"))])
def test_the_decision_is_that_of_predict(subgoal_kwargs, kwargs, small):
    model = trained(small, subgoal_kwargs=subgoal_kwargs, **kwargs)
    assert_equal(DecisionModule(model.policy), model, observations(model))
    if model.policy.config.asks_values:
        assert_equal(DecisionModule(far_from_goals(model, 0.0).policy), model, observations(model))


def test_all_rules_of_the_decision_are_met(small):
    model = mixed(small)
    observation, achieved, goal = (observations(model)[key] for key in KEYS)
    situation = choosers.Situation(observation, achieved, goal, missed=None)
    decision = choosers.choose_subgoals(model.policy.numpy_policy(), situation)
    rules = (choosers.near_goal, choosers.actor_proposal, choosers.best_candidate)
    assert min(made_by(decision, rule) for rule in rules) > 10
    assert_equal(DecisionModule(model.policy), model, observations(model))


def test_the_low_level_is_that_of_predict(small):
    model = trained(small)
    obs = observations(model)
    actions, state = model.predict(obs, deterministic=True)
    inputs = (obs["observation"], obs["achieved_goal"], state.subgoals)
    action = LowLevelModule(model.policy)(*map(th.as_tensor, inputs))
    np.testing.assert_allclose(action, actions, rtol=0.0, atol=1e-6)
    assert np.abs(action).max() > 1.0, "in the units of the environment, whose actions lie between -2 and 2"


class Shaped(PointEnv):
    """Observations and goals are matrices; the action space is asymmetric, with double precision."""

    def __init__(self):
        super().__init__()
        goal = spaces.Box(-np.inf, np.inf, (2, 1), np.float64)
        observation = spaces.Box(-np.inf, np.inf, (1, 3), np.float64)
        self.observation_space = spaces.Dict(observation=observation, achieved_goal=goal, desired_goal=goal)
        self.action_space = spaces.Box(np.array([-1.0, -3.0]), np.array([2.0, 0.5]), dtype=np.float64)

    def _obs(self):
        return {key: value.reshape(self.observation_space[key].shape) for key, value in super()._obs().items()}

    def compute_reward(self, achieved, desired, info):
        return super().compute_reward(np.reshape(achieved, (-1, 2)), np.reshape(desired, (-1, 2)), info).squeeze()


def test_shapes_are_those_of_the_environment(small):
    model = trained(small, Shaped())
    module = DecisionModule(model.policy)
    obs = observations(model)
    assert_equal(module, model, obs)
    subgoal, action = module(*(th.as_tensor(obs[key]) for key in KEYS))
    assert subgoal.shape == (N, 2, 1)
    assert action.shape == (N, 2)
    assert action.dtype == th.float64
    # Also with flat goals
    assert LowLevelModule(model.policy)(th.zeros(4, 3), th.zeros(4, 2), th.zeros(4, 2)).shape == (4, 2)


class Grid(PointEnv):
    """Goals are integers."""

    def __init__(self):
        super().__init__()
        goal = spaces.Box(-15, 15, (2,), np.int64)
        observation = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.observation_space = spaces.Dict(observation=observation, achieved_goal=goal, desired_goal=goal)

    def _obs(self):
        obs = super()._obs()
        return {key: value if key == "observation" else np.rint(10 * value).astype(np.int64) for key, value in obs.items()}


def test_subgoals_of_whole_numbers_are_whole(small):
    model = trained(small, Grid())
    obs = observations(model, scale=5.0)
    state = assert_equal(DecisionModule(model.policy), model, obs | {key: np.rint(obs[key]) for key in KEYS[1:]})
    assert np.array_equal(state.subgoals, np.rint(state.subgoals))


class Switched(PointEnv):
    """Actions are integers."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Box(-3, 2, (2,), np.int64)


def test_actions_of_whole_numbers_are_whole(small):
    model = trained(small, Switched())
    obs = observations(model)
    assert_equal(DecisionModule(model.policy), model, obs)
    actions = model.predict(obs, deterministic=True)[0]
    assert actions.dtype == np.int64
    assert len(np.unique(actions)) > 2


def test_it_is_a_copy(small):
    model = trained(small)
    module, obs = DecisionModule(model.policy), [th.zeros(1, 3), th.zeros(1, 2), th.ones(1, 2)]
    before = [tensor.clone() for tensor in module(*obs)]
    model.learn(60, reset_num_timesteps=False)
    assert all(map(th.equal, module(*obs), before))
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_tracing_is_faithful(small, tmp_path):
    model = mixed(small)
    module, obs = DecisionModule(model.policy), observations(model)
    example = tuple(th.as_tensor(obs[key][:3]) for key in KEYS)
    th.jit.trace(module, example).save(tmp_path / "agent.pt")
    assert_equal(th.jit.load(tmp_path / "agent.pt"), model, obs)
    shapes = tuple({0: th.export.Dim("n")} for _ in KEYS)
    assert_equal(th.export.export(module, example, dynamic_shapes=shapes).module(), model, obs)


def test_a_trained_agent_is_as_equal_as_float32_allows():
    """`predict` shows the same difference between one observation and a batch, because sums have another order."""
    model = HierarchicalDDPG.load(FETCH, device="cpu")
    policy, obs = model.policy, observations(model)
    for key, moments in zip(KEYS, (policy.observation_moments, policy.goal_moments, policy.goal_moments), strict=True):
        obs[key] = (moments.mean.numpy() + moments.std.numpy() * obs[key]).astype(np.float32)
    actions, state = model.predict(obs, deterministic=True)
    single = [model.predict({key: obs[key][i] for key in KEYS}, deterministic=True)[0] for i in range(N)]
    subgoal, action = DecisionModule(policy)(*(th.as_tensor(obs[key]) for key in KEYS))
    np.testing.assert_allclose(subgoal, state.subgoals, rtol=0.0, atol=1e-6)
    own_error = np.abs(single - actions).max()
    assert np.abs(action.numpy() - actions).max() <= max(3.0 * own_error, 1e-6)
    assert own_error < 1e-4


@pytest.mark.parametrize("part", [LowLevelModule, DecisionModule])
def test_onnx(part, small, tmp_path):
    pytest.importorskip("onnxscript", reason="pip install sb3-hrl[export]")
    runtime = pytest.importorskip("onnxruntime", reason="pip install sb3-hrl[export]")
    model = mixed(small)
    export_onnx(part(model.policy), model.policy, tmp_path / "agent.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["agent.onnx"]
    session, obs = runtime.InferenceSession(tmp_path / "agent.onnx"), observations(model)
    actions, state = model.predict(obs, deterministic=True)
    if part is LowLevelModule:
        obs["subgoal"] = state.subgoals
        del obs["desired_goal"]
        (action,) = session.run(["action"], obs)
    else:
        subgoal, action = session.run(["subgoal", "action"], obs)
        np.testing.assert_allclose(subgoal, state.subgoals, rtol=0.0, atol=1e-6)
    np.testing.assert_allclose(action, actions, rtol=0.0, atol=1e-6)
    one = session.run(["action"], {key: value[:1] for key, value in obs.items()})[0]
    np.testing.assert_allclose(one, actions[:1], rtol=0.0, atol=1e-6)


def test_onnx_says_what_to_install(small, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    policy = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **small).policy
    with pytest.raises(ImportError, match=r"pip install sb3-hrl\[export\]"):
        export_onnx(LowLevelModule(policy), policy, tmp_path / "agent.onnx")


@pytest.fixture
def folder(small, tmp_path, monkeypatch):
    """A log folder with an agent, in the zoo's layout."""
    monkeypatch.chdir(tmp_path)
    for run in (1, 2):
        (tmp_path / f"logs/hddpg/PointEnv-v0_{run}").mkdir(parents=True)
    model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **small)
    model.save(tmp_path / "logs/hddpg/PointEnv-v0_1/PointEnv-v0")
    return tmp_path


@pytest.mark.parametrize("option", [[], ["--low-level"]])
def test_the_command_writes_a_file(folder, capsys, option):
    pytest.importorskip("onnxscript", reason="pip install sb3-hrl[export]")
    export_command.main(
        ["--algo", "hddpg", "--env", "PointEnv-v0", "-f", "logs", "--exp-id", "1", "-o", "out/agent.onnx", *option]
    )
    assert (folder / "out/agent.onnx").stat().st_size > 1000
    assert ("desired_goal -> subgoal, action" in capsys.readouterr().out) == (not option)


def test_the_command_refuses_by_a_sentence(folder, small, capsys, monkeypatch):
    with pytest.raises(SystemExit, match=r"export: The nowhere/hddpg folder was not found.*Train an agent first"):
        export_command.main(["--env", "PointEnv-v0", "-f", "nowhere"])
    with pytest.raises(SystemExit):
        export_command.main(["--env", "PointEnv-v0", "-o", "agent.pt"])
    assert "-o must end in one of .onnx" in capsys.readouterr().err
    planning = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **(small | dict(planner="landmarks")))
    planning.save(folder / "logs/hddpg/PointEnv-v0_2/PointEnv-v0")
    with pytest.raises(SystemExit, match=r"export: .*`planner`.*`--low-level`"):
        export_command.main(["--env", "PointEnv-v0"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"export: .*pip install"):
        export_command.main(["--env", "PointEnv-v0", "--exp-id", "1"])


def test_the_policy_itself_is_not_traced(small):
    """The traced policy would return the same action for every input."""
    policy = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **small).policy
    obs = {key: th.zeros(2, *policy.observation_space[key].shape) for key in KEYS}
    with pytest.raises(RuntimeError, match=r"sb3_hrl\.hddpg\.export\.DecisionModule"):
        th.jit.trace(policy, (obs,), strict=False)
    for strict in (False, True):
        with pytest.raises(Exception, match=r"sb3_hrl\.hddpg\.export\.DecisionModule"):
            th.export.export(policy, (obs,), strict=strict)
    assert policy(obs).shape == (2, 2), "nothing has changed otherwise"


def test_what_is_no_network_is_refused(small, monkeypatch):
    planning = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **(small | dict(planner="landmarks"))).policy
    with pytest.raises(ValueError, match=r"`planner`.*LowLevelModule"):
        DecisionModule(planning)
    assert LowLevelModule(planning)(th.zeros(2, 3), th.zeros(2, 2), th.zeros(2, 2)).shape == (2, 2)

    told = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), low_kwargs=dict(oracle=lambda o, a, s: s - a), **small)
    for part in (LowLevelModule, DecisionModule):
        with pytest.raises(ValueError, match="`oracle`"):
            part(told.policy)

    monkeypatch.setattr(choosers, "CHOOSERS", choosers.CHOOSERS[1:])
    with pytest.raises(ValueError, match="CHOOSERS"):
        DecisionModule(HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **small).policy)
