"""The documentation of metrics covers all logged metrics, and no others."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import point_env_fn
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hrl import HierarchicalDDPG, ParallelCollector
from sb3_hrl.hddpg.callbacks import HierarchicalEvalCallback

ROOT = Path(__file__).parents[1]
KEY = r"(?:rollout|train|eval|time)/[a-z_]+"


def documented() -> list[str]:
    """:return: documented keys, from the first cells of the page's tables"""
    page = (ROOT / "docs/metrics.md").read_text()
    return [key for cell in re.findall(r"^\|([^|]*)\|", page, flags=re.MULTILINE) for key in re.findall(f"`({KEY})`", cell)]


class Memory(KVWriter):
    """Stores every key that is written."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.keys |= set(key_values)


def logged_by(model: HierarchicalDDPG) -> set[str]:
    """:return: keys that a short run with evaluation logs"""
    memory = Memory()
    model.set_logger(Logger(folder=None, output_formats=[memory]))
    callback = HierarchicalEvalCallback(DummyVecEnv([point_env_fn()]), eval_freq=100, n_eval_episodes=2, verbose=0)
    model.learn(400, callback=callback, log_interval=1)
    return memory.keys


def written_in_the_source() -> tuple[set[str], list[re.Pattern[str]]]:
    """:return: keys in the strings of the package, and patterns for f-strings"""
    keys, patterns = set(), []
    for path in (ROOT / "sb3_hrl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(KEY, node.value):
                keys.add(node.value)
            if isinstance(node, ast.JoinedStr):
                parts = [value.value if isinstance(value, ast.Constant) else None for value in node.values]
                is_key = all(part is None or re.fullmatch(r"[a-z_/]+", str(part)) for part in parts)  # and not a sentence
                if is_key and re.match(r"(?:rollout|train|eval|time)/", str(parts[0])):
                    patterns.append(re.compile("".join("[a-z_]+" if part is None else re.escape(str(part)) for part in parts)))
    return keys, patterns


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_logged_is_documented(small, asynchronous):
    if asynchronous:
        env = ParallelCollector([point_env_fn() for _ in range(2)], flush_size=10, sync_interval=20)
    else:
        env = DummyVecEnv([point_env_fn()] * 2)
    try:
        logged = logged_by(HierarchicalDDPG("MultiInputPolicy", env, async_collection=asynchronous, **small))
    finally:
        env.close()
    # No worker has failed
    missing = {"rollout/worker_restarts"}
    if not asynchronous:
        missing |= {"rollout/policy_lag", "rollout/policy_lag_max"}
    assert logged == set(documented()) - missing


def test_what_the_source_records_is_documented():
    keys, patterns = written_in_the_source()
    assert {"rollout/worker_restarts", "eval/segment_length", "train/high_learning_rate"} <= keys
    assert keys <= set(documented())
    assert patterns
    for pattern in patterns:
        assert any(pattern.fullmatch(key) for key in documented()), pattern


def test_each_key_is_explained_once():
    keys = documented()
    assert len(keys) == len(set(keys)) > 30
