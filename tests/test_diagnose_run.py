"""`diagnose_run`: a run that was trained in Python, without the zoo's folders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import make_model
from conftest import PointEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.doctor import Finding, diagnose_run


def test_a_run_with_a_csv_log(small, tmp_path):
    model = make_model(small, Monitor(PointEnv(10)), train_freq=(1, "episode"))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(300)
    model.save(tmp_path / "agent")
    model.logger.close()
    names = [finding.check for finding in diagnose_run(tmp_path)]
    assert names == [finding.check for finding in diagnose_run(tmp_path, model)]
    assert not {"no_episodes", "learning_never_starts"} & set(names)


def test_learning_that_never_starts_is_found(small, tmp_path):
    pytest.importorskip("tensorboard")
    model = make_model(small, Monitor(PointEnv(10)), tensorboard_log=str(tmp_path)).learn(100)
    model.logger.close()
    model.learning_starts, model._total_timesteps = 10_000, 100
    assert "learning_never_starts" in [finding.check for finding in diagnose_run(tmp_path / "HDDPG_1", model)]


def test_what_is_missing_is_named(small, tmp_path):
    with pytest.raises(ValueError, match="tensorboard_log"):
        diagnose_run(tmp_path)
    model = make_model(small, Monitor(PointEnv(10)))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(200)
    model.logger.close()
    with pytest.raises(ValueError, match="pass `model`"):
        diagnose_run(tmp_path)


@pytest.mark.timeout(300)
def test_the_cure_for_missed_subgoals_works_on_an_arm(tmp_path, monkeypatch):
    """With goals of two joints, subgoals within a box are mostly impossible positions. Waypoints are visited ones."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from stranger_envs import make

    def train(name: str, **kwargs: Any) -> tuple[list[Finding], float]:
        folder = tmp_path / name
        model = HierarchicalDDPG("MultiInputPolicy", make("StrangerArm-v0"), seed=0, device="cpu", **kwargs)
        model.set_logger(configure(str(folder), ["csv"]))
        model.learn(2_500)
        model.logger.close()
        episode_rewards, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=50, return_episode_rewards=True)
        # The reward is -1 in each of the 50 steps, unless the arm is at its goal
        return diagnose_run(folder, model), float(np.mean(np.array(episode_rewards) > -50.0))

    broken = dict(planner=None, subgoal_kwargs=dict(radius=2.0), high_kwargs=dict(random_action_prob=0.5))
    (finding, *_), before = train("broken", **broken)
    assert finding.check == "subgoals_never_reached"
    assert finding.cure.startswith("Set `random_action_prob: 0` in `high_kwargs`, or `planner: landmarks`, or ")
    findings, after = train("cured", **broken | dict(planner="landmarks", high_kwargs=None))
    assert "subgoals_never_reached" not in [finding.check for finding in findings]
    assert after > before + 0.2
