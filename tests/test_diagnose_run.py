"""`diagnose_run`: a run that was trained in Python, without the zoo's folders."""

import pytest
from agents import make_model
from conftest import PointEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor

from sb3_hrl.doctor import diagnose_run


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
