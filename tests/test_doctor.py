"""Each check of the doctor finds its planted fault, and the doctor finds nothing if nothing is wrong."""

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
from conftest import FaultyEnv, PointEnv, UnjudgedEnv, run
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.envs import BitFlippingEnv

from sb3_hrl.doctor import diagnose_env, diagnose_log
from sb3_hrl.doctor.environment import NAMES as ENV_CHECKS
from sb3_hrl.doctor.log import NAMES as LOG_CHECKS
from sb3_hrl.zoo.commands import doctor

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[1]
UNBOUNDED = spaces.Box(-np.inf, np.inf, (2,), np.float64)
SMALL = spaces.Box(-0.5, 0.5, (2,), np.float64)


def stranger(env_id: str) -> gym.Env:
    """:return: an environment of benchmarks/stranger_envs.py"""
    with mock.patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path]):
        return importlib.import_module("stranger_envs").make(env_id)


def space(**changed: spaces.Space) -> spaces.Dict:
    """:return: the observation space of a PointEnv, with changes"""
    known = dict(PointEnv().observation_space.spaces)
    return spaces.Dict(known | changed)


class Changed(PointEnv):
    """
    A PointEnv whose observations and infos are modified.

    :param change: function of (env, obs, info) that modifies them in place
    :param options: arguments of PointEnv
    """

    def __init__(self, change, **options):
        super().__init__(**options)
        self.change = change

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        self.change(self, obs, info)
        return obs, info

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.change(self, obs, info)
        return obs, reward, terminated, truncated, info


class Rewarded(PointEnv):
    """A PointEnv with another reward, a function of (achieved, desired, info), which `step` returns as well."""

    def __init__(self, reward, **options):
        super().__init__(**options)
        self.compute_reward = reward


def renamed(env, obs, info):
    if "is_success" in info:
        info["success"] = info.pop("is_success")


class Reused(PointEnv):
    """It always returns the same arrays as observations."""

    def _obs(self):
        new = super()._obs()
        self.arrays = getattr(self, "arrays", new)
        for key, value in new.items():
            self.arrays[key][...] = value
        return self.arrays


class Wandering(PointEnv):
    """Its goal moves in the middle of an episode."""

    def step(self, action):
        if self.steps == 10:
            self.goal = self.goal + 0.5
        return super().step(action)


class Deaf(PointEnv):
    """It ignores its actions."""

    def step(self, action):
        return super().step(self.np_random.uniform(-2.0, 2.0, 2))


class Unseeded(PointEnv):
    """It uses a generator that is never seeded."""

    def reset(self, **kwargs):
        super().reset(**kwargs)
        self.position, self.goal = np.random.default_rng().uniform(-1.0, 1.0, (2, 2))
        return self._obs(), {}


class Reseeding(PointEnv):
    """It creates a new generator in every reset, like panda-gym: without a seed, the operating system provides one."""

    def reset(self, *, seed=None, options=None):
        self.np_random, _ = seeding.np_random(seed)
        return super().reset(options=options)


class Placed(PointEnv):
    """A PointEnv with goals at `place`, or at the same offset from its position."""

    def __init__(self, place=None, offset=None, **options):
        super().__init__(**options)
        self.place, self.offset = place, offset

    def reset(self, **kwargs):
        super().reset(**kwargs)
        self.goal = np.array(self.place) if self.offset is None else self.position + self.offset
        return self._obs(), {}


class Costly(PointEnv):
    """Its step also rewards actions."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward - 0.1 * float(np.abs(action).sum()), *rest


class Falling(PointEnv):
    """Its episodes terminate after some steps, at any position."""

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, self.steps >= 7, truncated, info


class Quiet(PointEnv):
    """Its episodes end at success, but compute_terminated does not report that; it reaches its goal immediately."""

    threshold = 3.0

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, info["is_success"], truncated, info

    def reset(self, **kwargs):
        super().reset(**kwargs)
        # 0.01 beyond the threshold, or in the other direction if the edge is close
        self.position, self.goal = np.zeros(2), np.array([3.05, self.np_random.uniform(0.0, 0.01)])
        return self._obs(), {}


class Shifted(PointEnv):
    """A PointEnv far away from the origin."""

    def reset(self, **kwargs):
        super().reset(**kwargs)
        self.position, self.goal = self.position + 1e7, self.goal + 1e7
        return self._obs(), {}

    def step(self, action):
        self.position = self.position - 1e7
        self.goal = self.goal - 1e7
        _, reward, terminated, truncated, info = super().step(action)
        self.position, self.goal = self.position + 1e7, self.goal + 1e7
        return self._obs(), reward, terminated, truncated, info


class Silent(PointEnv):
    """Its reset returns no info, which only SB3 rejects."""

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0], None


class Stretched(PointEnv):
    """One entry of its goal has a range that is a thousand times larger."""

    def _obs(self):
        obs = super()._obs()
        return obs | {key: obs[key] * np.array([1.0, 1000.0]) for key in ("achieved_goal", "desired_goal")}

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        reward = self.compute_reward(obs["achieved_goal"], obs["desired_goal"], {})
        return obs, float(reward), terminated, truncated, info | {"is_success": bool(reward == 0.0)}


class Tolerant(Stretched):
    """Its tolerance is a thousand times larger for this entry."""

    def compute_reward(self, achieved, desired, info):
        return super().compute_reward(achieved / [1.0, 1000.0], desired / [1.0, 1000.0], info)


def nan_at_times(env, obs, info):
    if env.steps == 15:
        obs["observation"][0] = np.nan


def other(name: str, value: Any, **options: Any) -> PointEnv:
    """:return: a PointEnv with a changed attribute"""
    env = PointEnv(**options)
    setattr(env, name, value)
    return env


def is_near(achieved, desired, radius=0.1):
    return np.linalg.norm(achieved - desired, axis=-1) <= radius


def random_reward(achieved, desired, info):
    return np.random.default_rng().integers(-1, 1, np.shape(achieved)[:-1]).astype(float)


class Matrix(PointEnv):
    """Goals, actions and observations that are not vectors; other shapes raise an error."""

    def __init__(self):
        super().__init__()
        goal = spaces.Box(-np.inf, np.inf, (1, 2), np.float64)
        self.observation_space = space(
            observation=spaces.Box(-2, 2, (1, 1), np.float32), achieved_goal=goal, desired_goal=goal
        )
        self.action_space = spaces.Box(-2.0, 2.0, (2, 1), np.float64)

    def _obs(self):
        obs = super()._obs()
        goals = {key: obs[key][None] for key in ("achieved_goal", "desired_goal")}
        return {"observation": obs["observation"][:1, None].astype(np.float32), **goals}

    def step(self, action):
        return super().step(action[:, 0])

    def compute_reward(self, achieved, desired, info):
        assert np.shape(achieved)[-2:] in [(1, 2), (2,)]
        achieved, desired = (np.reshape(goal, (*goal.shape[:-2], 2)) for goal in (achieved, desired))
        return super().compute_reward(achieved, desired, info)


class RandomMatrix(Matrix):
    """Its reward is not a function of the goals."""

    def compute_reward(self, achieved, desired, info):
        n = np.shape(achieved)[:-2]
        assert np.ndim(achieved) == 1 or np.shape(achieved)[-2:] == (1, 2)
        return np.random.default_rng().integers(-1, 1, n).astype(float)


ENV_FAULTS = [
    ("goal_spaces", lambda: other("observation_space", spaces.Dict(observation=UNBOUNDED)), {}),
    ("goal_spaces", lambda: other("observation_space", space(desired_goal=spaces.Box(-1, 1, (3,)))), {}),
    ("action_space", lambda: other("action_space", UNBOUNDED), {}),
    ("action_space", lambda: other("action_space", spaces.Discrete(3)), {}),
    ("raises", lambda: FaultyEnv("raise", 10), {}),
    ("non_finite", lambda: Changed(nan_at_times), {}),
    ("outside_space", lambda: other("observation_space", space(observation=spaces.Box(-0.1, 0.1, (3,), np.float64))), {}),
    ("outside_space", lambda: other("observation_space", space(observation=spaces.Box(-9, 9, (3,), np.float32))), {}),
    ("outside_space", lambda: other("observation_space", space(achieved_goal=SMALL, desired_goal=SMALL)), {}),
    ("reused_arrays", Reused, {}),
    ("continuing_task", lambda: other("continuing_task", True), {}),
    ("moving_goal", Wandering, {}),
    ("no_time_limit", lambda: PointEnv(max_steps=10**9), dict(max_steps=300)),
    ("success_key", lambda: Changed(renamed), {}),
    ("success_key", lambda: Changed(lambda env, obs, info: info.clear()), {}),
    ("frozen_goal", lambda: Changed(lambda env, obs, info: obs["achieved_goal"].fill(0.0)), {}),
    ("ignored_actions", Deaf, {}),
    ("not_seeded", Unseeded, {}),
    ("not_seeded", Reseeding, {}),
    ("same_goal", lambda: Placed([0.3, 0.3]), {}),
    ("long_segments", PointEnv, dict(subgoal_steps=21)),
    ("random_reward", lambda: Rewarded(random_reward), {}),
    ("random_reward", lambda: RandomMatrix(), {}),
    ("goal_reward", UnjudgedEnv, {}),
    ("goal_reward", lambda: Rewarded(lambda a, g, info: float(np.linalg.norm(a - g) <= 0.1) - 1.0), {}),
    ("goal_reward", lambda: Rewarded(lambda a, g, info: np.zeros(np.shape(a)[:-1])), {}),
    ("goal_reward", lambda: Rewarded(lambda a, g, info: info[0]["bonus"] if np.ndim(a) > 1 else 0.0), {}),
    ("reward_differs", Costly, {}),
    ("success_differs", lambda: Changed(lambda env, obs, info: info.update(is_success=True)), {}),
    ("zero_tolerance", lambda: Rewarded(lambda a, g, info: np.equal(a, g).all(-1) - 1.0), {}),
    ("coarse_numbers", lambda: Shifted(), {}),
    ("reached_at_reset", lambda: Placed(offset=0.01), {}),
    ("out_of_reach", lambda: Placed(offset=1000.0), {}),
    ("goal_scales", Stretched, {}),
    ("coarse_steps", lambda: other("threshold", 0.01), {}),
    ("small_radius", PointEnv, dict(subgoal_kwargs=dict(radius=[0.3, 0.05]))),
    ("dependent_goals", lambda: stranger("StrangerArm-v0"), dict(planner=None)),
    ("ends_without_success", Falling, {}),
    ("end_differs", Quiet, {}),
    ("sb3_check", Silent, {}),
]


@pytest.mark.parametrize(("name", "make", "options"), ENV_FAULTS)
def test_planted_fault_of_an_environment(name, make, options):
    findings = diagnose_env(make(), **options)
    assert name in [finding.check for finding in findings]
    severe = {finding.check for finding in findings if finding.severity == "error"}
    assert severe <= {name}
    assert [finding.severity for finding in findings] == sorted(finding.severity for finding in findings)
    for finding in findings:
        assert all(len(text) > 3 for text in finding)


@pytest.mark.parametrize(
    "make",
    [
        PointEnv,
        Tolerant,
        lambda: PointEnv(ends_at_success=True),
        lambda: TimeLimit(PointEnv(max_steps=10**9), 30),
        lambda: Rewarded(lambda a, g, info: 1.0 * is_near(a, g)),
        lambda: BitFlippingEnv(n_bits=6, continuous=True),
        Matrix,
    ],
)
def test_silent_on_sound_environments(make):
    findings = {finding.check for finding in diagnose_env(make(), subgoal_steps=5)}
    assert findings == ({"same_goal"} if isinstance(make(), BitFlippingEnv) else set())


def test_a_dense_reward_with_a_threshold_is_sound():
    assert diagnose_env(PointEnv(dense=True), subgoal_kwargs=dict(threshold=0.1)) == []


def test_a_seed_that_holds_for_one_episode_only_has_its_own_cure():
    (finding,) = diagnose_env(Reseeding())
    assert finding.metric == "reset(seed=...), reset() twice"
    assert "only if `reset` gets a seed" in finding.cure


def test_what_the_learner_says_is_in_the_finding():
    (finding,) = diagnose_env(UnjudgedEnv())
    assert "dense" in finding.symptom
    assert "`threshold` in `subgoal_kwargs`" in finding.cure
    (finding,) = diagnose_env(Changed(renamed))
    assert "add_success_info" in finding.cure


@pytest.mark.parametrize("name", ["n_episodes", "n_resets", "max_steps"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1"):
        diagnose_env(PointEnv(), **{name: 0})


def test_options_are_refused_as_the_agent_does():
    with pytest.raises(ValueError, match="`subgoal_steps` must be a whole number of at least 1"):
        diagnose_env(PointEnv(), subgoal_steps=0)
    with pytest.raises(ValueError, match="did you mean `radius`"):
        diagnose_env(PointEnv(), subgoal_kwargs=dict(radios=0.1))
    with pytest.raises(SystemExit, match="did you mean `gamma`"):
        doctor.main(["--env", "FetchReach-v4", "--exp-id", "-1", "-params", "low_kwargs:dict(gama=0.9)"])


REAL = ["FetchReach-v4", "FetchPush-v4", "PointMaze_UMaze-v3", "AntMaze_UMaze-v4"]


@pytest.mark.parametrize("env_id", REAL)
def test_silent_on_real_environments(env_id, capsys):
    doctor.main(["--algo", "hddpg", "--env", env_id, "--exp-id", "-1"])
    assert capsys.readouterr().out.strip() == f"doctor: no problems found in {env_id}"


def test_the_maze_as_it_is_made(capsys):
    """Without the hyperparameters of hddpg.yml, the maze continues after success, and does not log it."""
    options = ["--env-kwargs", "continuing_task:True", "-params", "env_wrapper:None"]
    with pytest.raises(SystemExit) as end:
        doctor.main(["--env", "PointMaze_UMaze-v3", "--exp-id", "-1", *options])
    assert end.value.code == 1
    output = capsys.readouterr().out
    assert re.findall(r"^ERROR (\w+)", output, re.MULTILINE) == ["continuing_task", "success_key"]
    assert "continuing_task: False" in output
    assert "add_success_info" in output


# ------------------------------------------------------------------- logs

CONFIG = dict(
    n_timesteps=20_000,
    learning_starts=500,
    train_freq=1,
    subgoal_steps=10,
    gamma=0.95,
    subgoal_kwargs=dict(radius=0.2),
    planner=None,
)
# Without the options of agents whose actor chooses subgoals
DEFAULT = dict(n_timesteps=20_000, learning_starts=500, gamma=0.96)
STEPS = np.arange(500, 20_001, 500, dtype=float)


def learning_log(**changed: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """:return: the log of a run that learns; changed keys have dots instead of slashes, None removes a key"""
    progress = STEPS / STEPS[-1]
    values = {
        "rollout/success_rate": np.minimum(1.2 * progress, 0.8),
        "rollout/ep_len_mean": np.full_like(STEPS, 50.0),
        "rollout/subgoal_success_rate": np.minimum(progress, 0.8),
        "rollout/subgoal_reached_at_issue": 0.3 * progress,
        "rollout/subgoal_replaced": 0.2 * progress,
        "eval/success_rate": np.minimum(1.5 * progress, 1.0),
        "eval/mean_ep_length": np.full_like(STEPS, 50.0),
        "eval/subgoal_reached_at_issue": 0.1 * progress,
        "eval/subgoal_at_bounds": np.full_like(STEPS, 0.1),
        "train/low_action_saturation": 0.3 * progress,
        "train/low_critic_loss": 0.3 - 0.2 * progress,
        "train/high_critic_loss": 5.0 * progress,
        "train/low_q_mean": -1.0 - 3.0 * progress,
        "train/high_q_mean": np.full_like(STEPS, 0.1),
    }
    for key, value in changed.items():
        values[key.replace("__", "/")] = value
    return {
        key: (STEPS[: np.size(value)] if np.ndim(value) else STEPS, value if np.ndim(value) else np.full_like(STEPS, value))
        for key, value in values.items()
        if value is not None
    }


FAILS = dict(eval__success_rate=0.1, rollout__success_rate=0.1, eval__subgoal_reached_at_issue=0.0)
RISE = np.linspace(0.0, 1.0, len(STEPS))
BROKEN = np.where(RISE > 0.8, np.nan, -1.0)

LOG_FAULTS = [
    ("learning_never_starts", dict(learning_starts=20_000), {}),
    ("no_episodes", {}, dict(rollout__ep_len_mean=None)),
    ("no_success_logged", {}, dict(rollout__success_rate=None, eval__success_rate=None, eval__subgoal_reached_at_issue=0.0)),
    ("not_finite", {}, dict(train__low_q_mean=BROKEN)),
    ("critic_loss_grows", {}, dict(train__low_critic_loss=100.0 * RISE**4)),
    ("success_falls", {}, FAILS | dict(eval__success_rate=np.where(RISE < 0.7, RISE + 0.3, 0.3))),
    ("success_falls", {}, dict(rollout__success_rate=np.where(RISE < 0.7, RISE + 0.3, 0.3), eval__success_rate=None)),
    ("stalls_without_noise", {}, dict(eval__success_rate=0.2, eval__subgoal_reached_at_issue=0.0)),
    ("few_updates", dict(train_freq=8, n_envs=16), FAILS),
    ("never_succeeds", {}, FAILS | dict(eval__success_rate=0.0, rollout__success_rate=0.0)),
    ("policy_lag", {}, dict(rollout__policy_lag=5_000.0)),
    ("policy_lag", dict(train_freq=4), dict(rollout__policy_lag=300.0)),
    ("worker_restarts", {}, dict(rollout__worker_restarts=2.0)),
    (
        "subgoals_reached_at_issue",
        {},
        dict(eval__success_rate=0.5, rollout__success_rate=0.5, eval__subgoal_reached_at_issue=0.4),
    ),
    (
        "subgoals_reached_at_issue",
        {},
        dict(eval__success_rate=0.0, rollout__success_rate=0.1, eval__subgoal_reached_at_issue=0.5),
    ),
    ("subgoals_never_reached", {}, FAILS | dict(rollout__subgoal_success_rate=0.02)),
    ("subgoals_replaced", {}, FAILS | dict(rollout__subgoal_replaced=0.8)),
    ("subgoals_at_bounds", {}, FAILS | dict(eval__subgoal_at_bounds=0.95)),
    ("saturated_actions", {}, FAILS | dict(train__low_action_saturation=0.99)),
    ("values_at_bound", {}, FAILS | dict(train__low_q_mean=-19.9)),
    ("values_at_bound", dict(high_kwargs=dict(gamma=0.9)), FAILS | dict(train__high_q_mean=-9.9)),
    ("values_out_of_range", {}, dict(train__low_q_mean=-40.0)),
    ("values_out_of_range", dict(low_kwargs=dict(gamma=0.5)), dict(train__low_q_mean=1.0)),
    ("idle_planner", dict(planner="landmarks"), FAILS | dict(rollout__subgoal_planned=0.0)),
]


@pytest.mark.parametrize(("name", "config", "changed"), LOG_FAULTS)
def test_planted_fault_of_a_log(name, config, changed):
    findings = diagnose_log(learning_log(**changed), CONFIG | config)
    assert name in [finding.check for finding in findings]
    # This planted fault only makes the run fail
    assert {finding.check for finding in findings if finding.severity == "error"} <= {name}


@pytest.mark.parametrize(
    ("env_id", "n_dependent"), [("StrangerArm-v0", 2), ("StrangerArmTip-v0", 0), ("StrangerPoint3D-v0", 0)]
)
def test_entries_of_the_goal_that_depend_on_each_other(env_id, n_dependent):
    """The positions of an arm's elbow and tip have four entries, but the arm has two joints."""
    expected = ["dependent_goals"] if n_dependent else []
    assert [finding.check for finding in diagnose_env(stranger(env_id), planner=None)] == expected
    assert diagnose_env(stranger(env_id)) == [], "waypoints are visited states"
    assert diagnose_env(stranger(env_id), planner=None, subgoal_kwargs=dict(source="goal")) == []


@pytest.mark.parametrize("config", [CONFIG, DEFAULT])
def test_silent_on_a_log_of_learning(config):
    assert diagnose_log(learning_log(), config) == []
    assert diagnose_log({}, config) == []


@pytest.mark.parametrize("length", [None, 30.0])
def test_runs_without_a_fixed_number_of_steps_are_judged(length):
    """Without ``subgoal_steps``, the check uses the length of segments; waypoints may be far away."""
    missed = dict(rollout__subgoal_success_rate=0.02, eval__subgoal_at_bounds=0.95, rollout__segment_length=length)
    (finding,) = diagnose_log(learning_log(**FAILS, **missed), DEFAULT)
    assert finding.check == "subgoals_never_reached"
    assert finding.cure.startswith("Train for longer, or with more updates per step (a larger `gradient_steps`).")
    assert "`planner: null`" in finding.cure
    (finding,) = diagnose_log(learning_log(**FAILS, **missed), DEFAULT | dict(train_freq=4))
    assert "(a smaller `train_freq`)" in finding.cure
    stuck = dict(train__low_q_mean=-24.9, rollout__segment_length=length)
    (finding,) = diagnose_log(learning_log(**FAILS, **stuck), DEFAULT)
    assert finding.check == "values_at_bound"
    assert ("shorter than a segment" in finding.cure) == (length is not None)
    assert diagnose_env(PointEnv()) == []


def test_none_is_a_value():
    assert diagnose_log(learning_log(**FAILS, rollout__subgoal_planned=0.0), DEFAULT | dict(planner=None)) == []


def test_nothing_is_said_of_an_agent_before_it_has_learnt():
    """The finding says that a thousand steps are too few to judge, and how many are needed."""
    young = {key: (steps[:2], values[:2]) for key, (steps, values) in learning_log(**FAILS).items()}
    (finding,) = diagnose_log(young, CONFIG)
    assert (finding.check, finding.severity) == ("few_updates", "warning")
    assert "-n 1500" in finding.cure


def test_cures_do_not_contradict_each_other():
    """Missed subgoals are replaced because they are too far away, not too close."""
    log = learning_log(**FAILS, rollout__subgoal_success_rate=0.02, rollout__subgoal_replaced=0.8)
    assert [finding.check for finding in diagnose_log(log, CONFIG)] == ["subgoals_never_reached"]


def test_cures_have_values():
    def cure(config=None, n_timesteps=None, **changed):
        (finding,) = diagnose_log(learning_log(**changed), CONFIG | (config or {}), n_timesteps)
        return finding.cure

    assert "`subgoal_kwargs: {radius: 0.1}`" in cure(**FAILS, rollout__subgoal_success_rate=0.02)
    assert "`gradient_steps: 32`" in cure(dict(train_freq=8, n_envs=16), **FAILS)
    assert "lin_0.001" in cure(rollout__success_rate=np.where(RISE < 0.7, RISE + 0.3, 0.3), eval__success_rate=None)
    assert "lin_3e-4" in cure(dict(learning_rate="lin_1e-3"), train__low_q_mean=BROKEN)
    assert "`learning_rate: 1e-3`" in cure(dict(learning_rate=0.05), train__low_q_mean=BROKEN)
    assert "learning_starts: 100" in cure(dict(learning_starts=1_000), 1_000)
    few_goals = dict(hindsight_kwargs=dict(n_sampled_goal=2))
    assert "n_sampled_goal: 4" in cure(few_goals, **FAILS, train__low_q_mean=-19.9)
    stalls = dict(eval__success_rate=0.2, eval__subgoal_reached_at_issue=0.0)
    assert "--stochastic" in cure(**stalls)
    assert "`subgoal_kwargs: {avoid_missed: True}`" in cure(dict(subgoal_kwargs=dict(avoid_missed=False)), **stalls)
    assert "gamma: 0.950" in cure(dict(gamma=0.8, high_kwargs=dict(gamma=0.95)), **FAILS, train__low_q_mean=-4.9)


def test_a_log_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match="the same length"):
        diagnose_log({"rollout/success_rate": (STEPS, STEPS[1:])}, CONFIG)


# ---------------------------------------------------------------- the command


def test_every_check_is_planted_and_on_the_page():
    checks = {*ENV_CHECKS, *LOG_CHECKS, "no_log"}
    assert {name for name, _, _ in ENV_FAULTS} == set(ENV_CHECKS)
    assert {name for name, _, _ in LOG_FAULTS} == set(LOG_CHECKS)
    page = (ROOT / "docs/troubleshooting.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == sorted(checks, key=[*ENV_CHECKS, *LOG_CHECKS, "no_log"].index)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with the logs of a miniature run."""
    folder = tmp_path_factory.mktemp("doctor")
    small = ["-params", "learning_starts:100", "policy_kwargs:dict(net_arch=[16])"]
    arguments = ["--algo", "hddpg", "--env", "FetchReach-v4", "-n", "250", "-tb", "tb", "--eval-freq", "100"]
    arguments += ["--eval-episodes", "1", "--log-interval", "1", "--num-threads", "1", *small]
    run(["python", "-m", "sb3_hrl", "train", *arguments], folder)
    return folder


def test_the_command(trained):
    arguments = ["--algo", "hddpg", "--env", "FetchReach-v4", "-f", "logs"]
    output = run(["python", "-m", "sb3_hrl", "doctor", *arguments], trained)
    assert re.findall(r"^(\w+) (\w+) \(", output, re.MULTILINE) == [("WARNING", "few_updates")]
    assert "150 updates in 250 steps" in output
    assert "tb/FetchReach-v4/HDDPG_1, logs/hddpg/FetchReach-v4_1/evaluations.npz" in output.splitlines()[-1]


def test_the_command_reads_what_is_there(trained, monkeypatch, capsys):
    """In this process: a run whose learning never started, a moved TensorBoard folder, and a log in the run's own folder."""
    monkeypatch.chdir(trained)
    with pytest.raises(SystemExit) as end:
        doctor.main(["--env", "FetchReach-v4", "-params", "learning_starts:250", "subgoal_kwargs:dict(radius=0.01)"])
    assert end.value.code == 1
    found = re.findall(r"^(\w+) (\w+) \(", capsys.readouterr().out, re.MULTILINE)
    assert found == [("ERROR", "small_radius"), ("ERROR", "learning_never_starts")]
    doctor.main(["--env", "FetchReach-v4", "--exp-id", "1", "-tb", "elsewhere"])
    assert "WARNING no_log" in capsys.readouterr().out
    (trained / "logs/hddpg/FetchReach-v4_1/progress.csv").write_text("time/total_timesteps,train/low_q_mean\n200,nan\n")
    with pytest.raises(SystemExit):
        doctor.main(["--env", "FetchReach-v4"])
    output = capsys.readouterr().out
    assert "ERROR not_finite" in output
    assert "progress.csv" in output.splitlines()[-1]


def test_environments_are_found_as_the_zoo_finds_them(tmp_path):
    """Environments of packages that rl_zoo3 imports, such as panda_gym, and of `--gym-packages`."""
    (tmp_path / "panda_gym.py").write_text(
        "import conftest, gymnasium\ngymnasium.register('PandaReach-v3', entry_point=conftest.PointEnv)\n"
    )
    (tmp_path / "my_robots.py").write_text(
        "import conftest, gymnasium\ngymnasium.register('MyRobot-v0', entry_point=conftest.PointEnv)\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    code = (
        "from sb3_hrl.zoo.commands import doctor, watch; doctor.main(['--env', 'PandaReach-v3']); "
        "print(watch.parse(['--env', 'MyRobot-v0', '--gym-packages', 'my_robots', '--map', 'map.png']).env)"
    )
    output = run(["python", "-W", "ignore", "-c", code], tmp_path, {"PYTHONPATH": path}, cold=True)
    assert output.splitlines()[-2:] == ["doctor: no problems found in PandaReach-v3", "MyRobot-v0"]


def test_the_command_refuses_what_it_does_not_know(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments, sentence in (
        (["--env", "Nowhere-v0"], "not registered"),
        (["--env", "FetchReech-v4"], "did you mean FetchReach-v4?"),
        (["--env", "Nowhere-v0", "--gym-packages", "no_such_package"], "no_such_package cannot be imported"),
        (["--env", "PointEnv-v0", "--n-episodes", "0"], "at least 1"),
    ):
        with pytest.raises(SystemExit):
            doctor.main(arguments)
        assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no run in"):
        doctor.main(["--env", "PointEnv-v0", "--exp-id", "3"])
    with pytest.raises(SystemExit):
        doctor.main(["--env", "PointEnv-v0", "--env-kwargs", "wind:1.0"])
    assert "ERROR raises" in capsys.readouterr().out
    assert gym.spec("PointEnv-v0") is not None


class Rarely(PointEnv):
    """Gives a penalty in every tenth step."""

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward - 5.0 * (self.steps % 10 == 0), *rest


def test_penalties_now_and_then_are_a_warning():
    (finding,) = diagnose_env(Rarely())
    assert (finding.check, finding.severity) == ("reward_differs", "warning")
