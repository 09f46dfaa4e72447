"""Agents stay at their goals where they would fly past them or fall, and learn as fast as before where they do not."""

from typing import Any

import numpy as np
import pytest
import torch as th
from agents import fill, make_model, with_bounds
from conftest import PointEnv, point_vec_env
from stable_baselines3.common.monitor import Monitor

from sb3_hrl import HierarchicalDDPG, SerialCollector
from sb3_hrl.hddpg.relabeling import low_batch
from sb3_hrl.hddpg.staying import LEAST_FAILED, LEAST_REACHED, leaves_its_goals


def episode(reached: range | tuple[()] = (), n: int = 20, failed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """:return: success and failure after each of the n steps of an episode"""
    success, failures = np.zeros(n, bool), np.zeros(n, bool)
    success[list(reached)] = True
    failures[-1] = failed
    return success, failures


def judge(*episodes: tuple[np.ndarray, np.ndarray]) -> bool:
    success, failed = map(np.concatenate, zip(*episodes, strict=True))
    return leaves_its_goals(success, failed, np.concatenate([np.arange(len(part)) == 0 for part, _ in episodes]))


STAYS, PASSES, AWAY = episode(range(5, 20)), episode(range(5, 7)), episode()
FALLS_AT_GOAL, FALLS = episode(range(5, 20), failed=True), episode(failed=True)
ENDS_AT_GOAL = episode(range(5, 6), n=6)


@pytest.mark.parametrize(
    ("episodes", "leaves"),
    [
        ([STAYS] * 10, False),
        ([PASSES] * 10, True),
        # By chance, as in random play
        ([PASSES] * 5 + [AWAY] * 6, False),
        ([PASSES] * 5 + [AWAY] * 5, True),
        ([PASSES] * 7 + [STAYS] * 3, False),
        ([PASSES] * (LEAST_REACHED - 1), False),
        # At the goal until it falls: a reason to stay, also for an agent that hardly reaches anything, but not if it is rare
        ([FALLS_AT_GOAL] * 10, True),
        ([FALLS_AT_GOAL] * LEAST_FAILED + [FALLS] * 50, True),
        ([FALLS_AT_GOAL] * (LEAST_FAILED - 1) + [FALLS] * 50, False),
        ([FALLS_AT_GOAL] * 18 + [PASSES] * 2 + [FALLS] * 50, True),
        ([FALLS_AT_GOAL] * 17 + [PASSES] * 3 + [FALLS] * 50, False),
        ([FALLS_AT_GOAL] * 6 + [STAYS] * 4, False),
        ([FALLS] * 50, False),
        ([ENDS_AT_GOAL] * 50 + [FALLS] * 50, False),
    ],
)
def test_who_leaves_its_goals(episodes, leaves):
    assert judge(*episodes) == leaves


@pytest.mark.parametrize("stays", [True, False])
def test_the_subgoal_is_the_end_unless_the_low_level_learns_to_stay(small, stays):
    """The subgoal is at 0.5, and is reached at 0.4, 0.5 and 0.6."""
    model = with_bounds(make_model(small, low_kwargs=dict(n_sampled_goal=0, gamma=0.9, batch_size=64)))
    model.policy.stays.fill_(stays)
    fill(model, subgoal=(0.5, 0.0))
    batch = low_batch(model.policy, model.replay_buffer)
    is_reached = batch.rewards == 0.0
    assert 0 < is_reached.sum() < 64
    assert th.allclose(batch.discounts, th.tensor(0.9) if stays else 0.9 * (~is_reached))


class SlidingEnv(PointEnv):
    """Every episode slides over its goal after five steps, whatever the agent does."""

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        _, _, terminated, truncated, info = super().step(action)
        self.position = self.goal + 0.3 * (self.steps - 5)
        reward = float(self.compute_reward(self.position, self.goal, {}))
        return self._obs(), reward, terminated, truncated, info | {"is_success": reward == 0.0}


def test_an_agent_that_slides_past_its_goals_learns_to_stay(small, tmp_path):
    model = HierarchicalDDPG("MultiInputPolicy", Monitor(SlidingEnv()), **(small | dict(buffer_size=3000, train_freq=50)))
    model.learn(900, log_interval=None)
    assert not model.policy.stays
    assert model.logger.name_to_value["train/low_stays"] == 0.0
    model.learn(600, reset_num_timesteps=False, log_interval=None)
    assert model.policy.stays
    assert model.logger.name_to_value["train/low_stays"] == 1.0
    model.save(tmp_path / "agent")
    assert HierarchicalDDPG.load(tmp_path / "agent").policy.stays


class NextGoalEnv(SlidingEnv):
    """A new goal as soon as one is reached."""

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        *_, truncated, info = super().step(action)
        obs, reward = self._obs(), float(info["is_success"]) - 1.0
        if info["is_success"]:
            self.goal = obs["desired_goal"] = self.goal + 1.0
        return obs, reward, False, truncated, info


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("env_class", [PointEnv, SlidingEnv, NextGoalEnv])
def test_workers_and_several_environments_are_judged_alike(small, env_class, n_envs):
    kwargs = small | dict(buffer_size=6000, train_freq=50)
    env = SerialCollector([lambda: Monitor(env_class(ends_at_success=env_class is PointEnv))] * n_envs)
    model = HierarchicalDDPG("MultiInputPolicy", env, async_collection=True, **kwargs)
    model.learn(2500)
    env.close()
    assert bool(model.policy.stays) == (env_class is SlidingEnv)


def test_agents_that_were_saved_before_do_not_stay(small):
    model = HierarchicalDDPG("MultiInputPolicy", point_vec_env(), **small)
    parameters = model.get_parameters()
    del parameters["policy"]["stays"]
    model.policy.stays.fill_(1.0)
    model.set_parameters(parameters)
    assert not model.policy.stays
