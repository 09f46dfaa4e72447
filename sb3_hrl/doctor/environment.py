"""Checks of an environment, from episodes with random actions."""

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hrl.common.env_goals import goal_task_from_env
from sb3_hrl.common.goals import GoalTask
from sb3_hrl.common.rewards import empty_infos
from sb3_hrl.doctor.episode_checks import EPISODE_CHECKS
from sb3_hrl.doctor.findings import Finding, by_severity, error, has_error
from sb3_hrl.doctor.goal_checks import GOAL_CHECKS, TOLERANCE_CHECKS
from sb3_hrl.doctor.survey import Survey, make_survey
from sb3_hrl.hddpg.config import SubgoalConfig, group_from_kwargs
from sb3_hrl.hddpg.validation import check_observation_space


def goal_spaces(env: gym.Env) -> Finding | None:
    """The observation space is not that of a goal-conditioned environment."""
    try:
        check_observation_space(env.observation_space)
    except ValueError as refusal:
        cure = (
            "Return `observation`, `achieved_goal` and `desired_goal`, with both goals in the same space; "
            "`gymnasium.wrappers.TransformObservation` changes observations, `FilterObservation` drops keys."
        )
        return error("goal_spaces", str(refusal), f"observation_space = {env.observation_space}", cure)
    return None


def action_space(env: gym.Env) -> Finding | None:
    """Actions are not vectors of bounded numbers."""
    space = env.action_space
    if not isinstance(space, spaces.Box):
        symptom, cure = "Actions are not vectors of numbers.", "Wrap the environment to take Box actions: hddpg has no others."
    elif not np.isfinite([space.low, space.high]).all():
        symptom = "The action space has no finite bounds, which are needed to scale actions."
        cure = "Set finite bounds: `gymnasium.wrappers.RescaleAction`, or a Box from -1 to 1 in the environment."
    elif not (space.low < space.high).all():
        symptom = "Some entries of the action have equal lower and upper bounds."
        cure = "Leave out the entries of the action that cannot move, or fix `low` and `high` of its Box."
    else:
        return None
    return error("action_space", symptom, f"action_space = {space}", cure)


def raises(doing: str, exception: Exception) -> Finding:
    """The environment raises an exception."""
    symptom = f"The environment raised {type(exception).__name__} {doing}: {exception}"
    cure = "Fix the environment, or the arguments it is created with (`env_kwargs`, `env_wrapper`)."
    return error("raises", symptom, type(exception).__name__, cure)


def random_reward(survey: Survey) -> Finding | None:
    """`compute_reward` returns different rewards for the same goals."""
    try:
        compute_reward = survey.env.get_wrapper_attr("compute_reward")
    except AttributeError:
        return None
    goals = survey.starts["achieved_goal"], survey.starts["desired_goal"]
    infos = empty_infos(len(goals[0]))
    try:
        first, second = (np.asarray(compute_reward(*goals, infos)) for _ in range(2))
    except Exception:
        # The check goal_reward reports it
        return None
    if np.array_equal(first, second, equal_nan=True):
        return None
    different = f"{np.mean(first != second):.0%} of the rewards" if first.shape == second.shape else "their shapes"
    cure = "Compute the reward from the two goals only: hindsight computes it again and again, long after the step."
    symptom = "`compute_reward` returns different rewards when it is called twice with the same goals."
    return error("random_reward", symptom, f"{different} differ", cure)


def goal_reward(survey: Survey) -> Finding | None:
    """`compute_reward` does not show what counts as reaching a goal."""
    try:
        _goal_task(survey)
    except ValueError as refusal:
        cure = "For two arrays of goals of shape (n, goal_dim), return one reward per row: 0 if the goal is reached, else -1."
        if "threshold`" in str(refusal):
            cure = "Set `threshold` in `subgoal_kwargs` to the distance of success, or use the sparse version of the task."
        if "No distance explains" in str(refusal):
            cure = "Give `compute_reward` a tolerance, such as `np.linalg.norm(achieved - desired, axis=-1) < 0.05`."
            return error("zero_tolerance", str(refusal), "no success at a distance of 1e-6", cure)
        return error("goal_reward", str(refusal), "compute_reward(goals, goals, [{}, ...])", cure)
    except Exception as exception:
        symptom = f"`compute_reward` fails on arrays of goals with empty infos: {type(exception).__name__}: {exception}"
        cure = "Compute the reward from the two goals only, over the last axis: in hindsight there is no `info`."
        return error("goal_reward", symptom, type(exception).__name__, cure)
    return None


def _goal_task(survey: Survey) -> GoalTask:
    goals = survey.start_goals("desired_goal")
    return goal_task_from_env(DummyVecEnv([lambda: survey.env]), goals, survey.subgoals.threshold)


class _Plain(gym.Wrapper):
    """Makes `compute_reward` visible to SB3's ``check_env``, which wrappers hide, and converts Fetch's np.float32 rewards."""

    def compute_reward(self, *args: Any) -> Any:
        """:return: the environment's reward for the goals"""
        return self.env.get_wrapper_attr("compute_reward")(*args)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """:return: what the environment returned, with the reward as a float"""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, float(reward), bool(terminated), bool(truncated), info


def sb3_check(survey: Survey) -> Finding | None:
    """SB3's own `check_env` rejects the environment for another reason."""
    try:
        # check_env prints an explanation of GoalEnv
        with contextlib.redirect_stdout(io.StringIO()):
            check_env(_Plain(survey.env), warn=False)
    except Exception as exception:
        symptom = f"Stable-Baselines3's `check_env` rejects the environment: {exception or type(exception).__name__}"
        cure = "Follow its message; see https://stable-baselines3.readthedocs.io/en/master/guide/custom_env.html."
        return error("sb3_check", symptom, type(exception).__name__, cure)
    return None


SPACE_CHECKS: tuple[Callable[[gym.Env], Finding | None], ...] = (goal_spaces, action_space)
# In stages: after an error, later checks would only repeat it in other words
STAGES: tuple[tuple[Callable[[Survey], Finding | None], ...], ...] = (EPISODE_CHECKS, (random_reward,), (goal_reward,))
# These checks need to know what counts as reaching a goal
GOAL_STAGES: tuple[tuple[Callable[[Survey], Finding | None], ...], ...] = (TOLERANCE_CHECKS, GOAL_CHECKS, (sb3_check,))
NAMES = tuple(check.__name__ for stage in (SPACE_CHECKS, *STAGES, *GOAL_STAGES) for check in stage) + ("raises",)


def diagnose_env(
    env: gym.Env,
    n_episodes: int = 5,
    n_resets: int = 30,
    max_steps: int = 2_000,
    subgoal_steps: int | None = None,
    subgoal_kwargs: Mapping[str, Any] | None = None,
    planner: str | None = "landmarks",
    seed: int = 0,
) -> list[Finding]:
    """
    Play episodes with random actions, and find problems that would keep a hierarchical agent from learning.

    :param env: goal-conditioned environment, with the wrappers used in training
    :param n_episodes: number of episodes to play
    :param n_resets: number of first observations to check
    :param max_steps: maximum number of environment steps per episode
    :param subgoal_steps: argument of :class:`~sb3_hrl.HierarchicalDDPG`: maximum number of environment steps per segment, if
        given
    :param subgoal_kwargs: argument of the algorithm: ``radius`` and ``threshold``, in the units of the goal
    :param planner: ``planner`` of the algorithm
    :param seed: seed of the environment and the actions
    :return: the problems, most severe first; passed checks are not listed
    :raises ValueError: if a number is below 1, or an option is invalid
    """
    subgoals = group_from_kwargs(SubgoalConfig, "subgoal_kwargs", subgoal_kwargs, steps=subgoal_steps)
    counts = dict(n_episodes=n_episodes, n_resets=n_resets, max_steps=max_steps)
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, not {value}.")
    findings = [finding for check in SPACE_CHECKS if (finding := check(env)) is not None]
    if findings:
        return findings
    try:
        survey = make_survey(env, n_episodes, n_resets, max_steps, seed)
    except Exception as exception:
        return [raises("while it was played with random actions", exception)]
    survey = survey._replace(subgoals=subgoals, planner=planner)
    for stage in (*STAGES, *GOAL_STAGES):
        if stage is GOAL_STAGES[0]:
            survey = survey._replace(found_task=_goal_task(survey))
        findings += [finding for check in stage if (finding := check(survey)) is not None]
        if has_error(findings):
            break
    return by_severity(findings)
