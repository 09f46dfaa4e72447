"""Checks of an environment, by playing at random."""

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hrl.common.goals import GoalTask, goal_task_from_env
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
            "Give `observation`, `achieved_goal` and `desired_goal`, the goals in one and the same space; "
            "`gymnasium.wrappers.TransformObservation` changes observations, `FilterObservation` drops keys."
        )
        return error("goal_spaces", str(refusal), f"observation_space = {env.observation_space}", cure)
    return None


def action_space(env: gym.Env) -> Finding | None:
    """Actions are not bounded numbers."""
    space = env.action_space
    if not isinstance(space, spaces.Box):
        symptom, cure = "Actions are not vectors of numbers.", "Wrap the environment to take Box actions: hddpg has no others."
    elif not np.isfinite([space.low, space.high]).all():
        symptom = "The action space has no finite bounds, and actions are scaled by these."
        cure = "Give finite bounds: `gymnasium.wrappers.RescaleAction`, or a Box from -1 to 1 in the environment."
    elif not (space.low < space.high).all():
        symptom = "Some actions have no room between their bounds."
        cure = "Leave out the entries of the action that cannot move, or mend `low` and `high` of its Box."
    else:
        return None
    return error("action_space", symptom, f"action_space = {space}", cure)


def raises(doing: str, exception: Exception) -> Finding:
    """The environment raises an exception."""
    symptom = f"The environment raised {type(exception).__name__} {doing}: {exception}"
    cure = "Mend the environment, or the arguments it is made with (`env_kwargs`, `env_wrapper`)."
    return error("raises", symptom, type(exception).__name__, cure)


def random_reward(survey: Survey) -> Finding | None:
    """Asked twice, `compute_reward` gives two answers."""
    try:
        compute_reward = survey.env.get_wrapper_attr("compute_reward")
    except AttributeError:
        return None
    goals = survey.starts["achieved_goal"], survey.starts["desired_goal"]
    infos = empty_infos(len(goals[0]))
    try:
        first, second = (np.asarray(compute_reward(*goals, infos)) for _ in range(2))
    except Exception:
        # goal_reward says so
        return None
    if np.array_equal(first, second, equal_nan=True):
        return None
    different = f"{np.mean(first != second):.0%} of the rewards" if first.shape == second.shape else "their shapes"
    cure = "Compute the reward from the two goals alone: hindsight asks for it again and again, long after the step."
    symptom = "Asked twice about the same goals, `compute_reward` gives two answers."
    return error("random_reward", symptom, f"{different} differ", cure)


def goal_reward(survey: Survey) -> Finding | None:
    """What reaching a goal means cannot be found out from `compute_reward`."""
    try:
        _goal_task(survey)
    except ValueError as refusal:
        cure = "Return -1, or 0 where the goal is reached, for each row of two arrays of goals of shape (n, goal_dim)."
        if "threshold`" in str(refusal):
            cure = "Set `threshold` in `subgoal_kwargs` to the distance of success, or use the sparse version of the task."
        if "No distance explains" in str(refusal):
            cure = "Give `compute_reward` a tolerance, such as `np.linalg.norm(achieved - desired, axis=-1) < 0.05`."
            return error("zero_tolerance", str(refusal), "no success at a distance of 1e-6", cure)
        return error("goal_reward", str(refusal), "compute_reward(goals, goals, [{}, ...])", cure)
    except Exception as exception:
        symptom = f"`compute_reward` fails on arrays of goals with empty infos: {type(exception).__name__}: {exception}"
        cure = "Compute the reward from the two goals alone, over the last axis: in hindsight there is no `info`."
        return error("goal_reward", symptom, type(exception).__name__, cure)
    return None


def _goal_task(survey: Survey) -> GoalTask:
    goals = survey.start_goals("desired_goal")
    return goal_task_from_env(DummyVecEnv([lambda: survey.env]), goals, survey.subgoals.threshold)


class _Plain(gym.Wrapper):
    """What SB3's ``check_env`` asks of goal-conditioned environments, which wrappers hide; it refuses Fetch's np.float32."""

    def compute_reward(self, *args: Any) -> Any:
        """:return: the environment's reward of goals"""
        return self.env.get_wrapper_attr("compute_reward")(*args)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """:return: what the environment returned, the reward as a float"""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, float(reward), bool(terminated), bool(truncated), info


def sb3_check(survey: Survey) -> Finding | None:
    """SB3's own `check_env` refuses the environment for another reason."""
    try:
        # It tells the user what a GoalEnv is
        with contextlib.redirect_stdout(io.StringIO()):
            check_env(_Plain(survey.env), warn=False)
    except Exception as exception:
        symptom = f"Stable-Baselines3's `check_env` refuses the environment: {exception or type(exception).__name__}"
        cure = "Do as it says; see https://stable-baselines3.readthedocs.io/en/master/guide/custom_env.html."
        return error("sb3_check", symptom, type(exception).__name__, cure)
    return None


SPACE_CHECKS: tuple[Callable[[gym.Env], Finding | None], ...] = (goal_spaces, action_space)
# In stages: where there is an error, the next ones would only repeat it in other words
STAGES: tuple[tuple[Callable[[Survey], Finding | None], ...], ...] = (EPISODE_CHECKS, (random_reward,), (goal_reward,))
# These know what reaching a goal means
GOAL_STAGES: tuple[tuple[Callable[[Survey], Finding | None], ...], ...] = (TOLERANCE_CHECKS, GOAL_CHECKS, (sb3_check,))
NAMES = tuple(check.__name__ for stage in (SPACE_CHECKS, *STAGES, *GOAL_STAGES) for check in stage) + ("raises",)


def diagnose_env(
    env: gym.Env,
    n_episodes: int = 5,
    n_resets: int = 30,
    max_steps: int = 2_000,
    subgoal_steps: int | None = None,
    subgoal_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> list[Finding]:
    """
    Play at random, and say what would keep a hierarchical agent from learning.

    :param env: goal-conditioned environment, with the wrappers that training has
    :param n_episodes: episodes to play
    :param n_resets: first observations to look at
    :param max_steps: environment steps of an episode after which it is given up
    :param subgoal_steps: as of :class:`~sb3_hrl.HierarchicalDDPG`, environment steps per segment, if that is given
    :param subgoal_kwargs: as of the algorithm: ``radius`` and ``threshold``, in the units of the goal
    :param seed: of the environment and of the actions
    :return: what is wrong, the severe first; empty if nothing is
    :raises ValueError: if a number is below 1, or an option is refused
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
        return [raises("while it was played at random", exception)]
    survey = survey._replace(subgoals=subgoals)
    for stage in (*STAGES, *GOAL_STAGES):
        if stage is GOAL_STAGES[0]:
            survey = survey._replace(found_task=_goal_task(survey))
        findings += [finding for check in stage if (finding := check(survey)) is not None]
        if has_error(findings):
            break
    return by_severity(findings)
