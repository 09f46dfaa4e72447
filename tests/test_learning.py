"""
Repeats the training of the first rows of the README's table. It takes minutes, so only `make test-slow` runs it. For quick
tests, see test_run.py, which learns to reach goals in the plane, and test_trained_agents.py, which evaluates trained agents.
"""

from pathlib import Path

import numpy as np
import pytest
from conftest import run

pytestmark = [pytest.mark.learning, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(
    ("env_id", "n_steps", "success"), [("FetchReach-v2", 3_000, 0.95), ("PointMaze_UMaze-v3", 15_000, 0.9)]
)
def test_the_zoo_learns(env_id: str, n_steps: int, success: float, tmp_path: Path) -> None:
    arguments = ["--algo", "hddpg", "--env", env_id, "--seed", "3", "-n", str(n_steps), "--num-threads", "1"]
    arguments += ["--eval-freq", str(n_steps), "--eval-episodes", "50", "--n-eval-envs", "5"]
    run(["python", "-m", "rl_zoo3.train", *arguments], tmp_path, timeout=1100)
    evaluations = np.load(tmp_path / f"logs/hddpg/{env_id}_1/evaluations.npz")
    assert evaluations["successes"][-1].mean() >= success
