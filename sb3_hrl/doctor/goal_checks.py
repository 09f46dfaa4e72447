"""Checks of goals and rewards, once it is known what reaching a goal means."""

from collections.abc import Callable

import numpy as np

from sb3_hrl.common.rewards import empty_infos
from sb3_hrl.common.spaces import flatten
from sb3_hrl.doctor.findings import Finding, error, rounded, warning
from sb3_hrl.doctor.survey import Episode, Survey

# Share of episodes that may begin at their goal
SOME_REACHED, MOST_REACHED = 0.25, 0.5
# Largest range of an entry of the goal over the smallest
MAX_SCALE_RATIO = 100.0


def _success(survey: Survey, episode: Episode) -> np.ndarray:
    """:return: whether goals were reached after each step, by `compute_reward`, shape (T,)"""
    achieved, desired = episode.goals("achieved_goal")[1:], episode.goals("desired_goal")[1:]
    return survey.task.success(achieved, desired)


def reward_differs(survey: Survey) -> Finding | None:
    """`step` returns another reward than `compute_reward`."""
    n_different, largest, n_steps = 0, 0.0, 0
    for episode in survey.episodes:
        achieved, desired = (episode.observations[key][1:] for key in ("achieved_goal", "desired_goal"))
        returned = survey.task.compute_reward(achieved, desired, empty_infos(len(achieved)))
        computed = np.asarray(returned, np.float64).reshape(-1)
        difference = np.abs(computed - episode.rewards)
        n_different += int((difference > 1e-4 + 1e-4 * np.abs(computed)).sum())
        largest, n_steps = max(largest, float(difference.max())), n_steps + len(difference)
    if n_different == 0:
        return None
    # Now and then it is a penalty, which is ignored; mostly it is another reward
    return (error if n_different > 0.5 * n_steps else warning)(
        "reward_differs",
        "`step` returns another reward than `compute_reward` does for the goals after that step. The agent learns from "
        "`compute_reward` alone: what else is in the reward is ignored.",
        f"{n_different} of {n_steps} steps, by up to {rounded(largest)}",
        "Let `step` return `compute_reward` of the new achieved goal, from the goals alone, and put the rest into `info`. Let "
        "what is to be avoided end the episode without success.",
    )


def success_differs(survey: Survey) -> Finding | None:
    """`info['is_success']` is another success than that of `compute_reward`."""
    claimed = np.array([bool(info.get("is_success", False)) for episode in survey.episodes for info in episode.infos])
    has_key = np.array(["is_success" in info for episode in survey.episodes for info in episode.infos])
    rewarded = np.concatenate([_success(survey, episode) for episode in survey.episodes])
    n_different = int((claimed != rewarded)[has_key].sum())
    # A tolerance that is compared in another precision may differ at its very edge
    if n_different <= 0.002 * len(claimed):
        return None
    return error(
        "success_differs",
        "`info['is_success']` is another success than the one that `compute_reward` pays for: what is logged is not what is "
        "learnt.",
        f"{n_different} of {len(claimed)} steps; tolerance of the reward: {rounded(survey.task.threshold)}",
        "Use one tolerance for both; with a dense reward set `threshold` in `subgoal_kwargs` to that of `is_success`.",
    )


def zero_tolerance(survey: Survey) -> Finding | None:
    """A goal of real numbers counts as reached only by itself."""
    goals = flatten(survey.starts["desired_goal"], len(survey.starts["desired_goal"]), np.float64)
    nearby = goals + 1e-6
    if not survey.task.is_sparse or not survey.has_real_goals or survey.task.success(nearby, goals).any():
        return None
    return error(
        "zero_tolerance",
        "A goal counts as reached only if it is met to the last digit, which never happens.",
        "no success at a distance of 1e-6",
        "Give `compute_reward` a tolerance, such as `np.linalg.norm(achieved - desired, axis=-1) < 0.05`.",
    )


def coarse_numbers(survey: Survey) -> Finding | None:
    """Goals are too large for the tolerance in float32."""
    largest = np.abs(survey.start_goals("desired_goal")).max()
    spacing = float(np.spacing(largest))
    if not survey.has_real_goals or spacing < 0.25 * survey.task.threshold:
        return None
    return error(
        "coarse_numbers",
        "Goals are so large that float32, in which they are stored, cannot tell apart what the tolerance does.",
        f"goals up to {largest:.3g}, next float32 {spacing:.2g} away, tolerance {survey.task.threshold:.2g}",
        "Give goals relative to the middle of the workspace (`gymnasium.wrappers.TransformObservation`).",
    )


def reached_at_reset(survey: Survey) -> Finding | None:
    """Episodes that begin at their goal."""
    achieved, desired = survey.start_goals("achieved_goal"), survey.start_goals("desired_goal")
    reached = survey.task.success(achieved, desired)
    if reached.mean() < SOME_REACHED:
        return None
    distance = float(np.median(np.linalg.norm(achieved - desired, axis=1)))
    return (error if reached.mean() >= MOST_REACHED else warning)(
        "reached_at_reset",
        "Many episodes begin at their goal: the agent is rewarded for doing nothing, and its success rate says little.",
        f"{reached.sum()} of {len(reached)} resets; median distance {distance:.2g}, tolerance {survey.task.threshold:.2g}",
        f"Draw goals farther away than the tolerance, or make the tolerance smaller (such as {rounded(0.25 * distance)}).",
    )


def out_of_reach(survey: Survey) -> Finding | None:
    """Goals that lie farther away than an episode can go."""
    moves = [episode.moves for episode in survey.episodes]
    spans = [np.linalg.norm(goals - goals[0], axis=1).max() for e in survey.episodes for goals in [e.goals("achieved_goal")]]
    # What has to be pushed first says nothing about how far it can be pushed, nor do falls about the length of an episode
    if max(spans) <= survey.task.threshold or (survey.time_limit is None and any(e.terminated for e in survey.episodes)):
        return None
    length = survey.time_limit or max(len(move) for move in moves)
    reach = length * float(max(move.max() for move in moves))
    distances = np.linalg.norm(survey.start_goals("achieved_goal") - survey.start_goals("desired_goal"), axis=1)
    too_far = distances > reach + survey.task.threshold
    if too_far.mean() < 0.5:
        return None
    return error(
        "out_of_reach",
        "Goals lie farther away than an episode of the fastest steps seen could go.",
        f"{too_far.sum()} of {len(too_far)} goals; median distance {np.median(distances):.2g}, reach {reach:.2g}",
        "Give `achieved_goal` and `desired_goal` the same origin and units, or raise the time limit (`max_episode_steps`).",
    )


def goal_scales(survey: Survey) -> Finding | None:
    """Entries of the goal have very different ranges."""
    goals = [survey.start_goals("achieved_goal"), survey.start_goals("desired_goal")]
    goals += [episode.goals("achieved_goal") for episode in survey.episodes]
    ranges = np.ptp(np.concatenate(goals), axis=0)
    # An entry that moves less than the tolerance has no say: the height of a table
    ranges = ranges[ranges > 2.0 * survey.task.threshold]
    if len(ranges) < 2 or ranges.max() <= MAX_SCALE_RATIO * ranges.min():
        return None
    return warning(
        "goal_scales",
        "Entries of the goal have very different ranges, while one distance is to say whether a subgoal is reached.",
        f"ranges from {rounded(float(ranges.min()))} to {rounded(float(ranges.max()))}",
        "Scale the entries of both goals alike in a wrapper, so that the tolerance means the same in each.",
    )


def coarse_steps(survey: Survey) -> Finding | None:
    """A single step goes farther than the tolerance is wide."""
    moves = np.concatenate([episode.moves for episode in survey.episodes])
    moves = moves[moves > 0.0]
    if not survey.has_real_goals or len(moves) == 0 or np.median(moves) <= 2.0 * survey.task.threshold:
        return None
    move = float(np.median(moves))
    return warning(
        "coarse_steps",
        "A single step with random actions goes farther than the tolerance is wide: the agent jumps over its goals.",
        f"median step {rounded(move)}, tolerance {survey.task.threshold:.2g}",
        f"Make actions smaller, or the tolerance at least {rounded(0.5 * move)}.",
    )


def small_radius(survey: Survey) -> Finding | None:
    """Subgoals are issued within their own tolerance."""
    radius, threshold = survey.subgoals.radius, survey.task.threshold
    if radius is None or np.min(radius) > threshold:
        return None
    return error(
        "small_radius",
        "Subgoals are issued within the distance at which they count as reached: all of them are reached at once.",
        f"radius = {radius}, tolerance {threshold:.2g}",
        f"Set `subgoal_kwargs: {{radius: {rounded(4.0 * threshold)}}}` (four times the tolerance), or leave it out, so that "
        "it is found.",
    )


def ends_without_success(survey: Survey) -> Finding | None:
    """Episodes terminate, and not at their goal."""
    ended = [e for e in survey.episodes if e.terminated and not _success(survey, e)[-1]]
    if len(ended) < 0.5 * len(survey.episodes):
        return None
    lengths = {len(episode.rewards) for episode in ended}
    cure = "Leave it a share of its actions (`ActionLimitWrapper`), or let episodes go on."
    if len(lengths) == 1 and len(ended) > 1:
        cure = "If this is a time limit, return `truncated`, not `terminated`."
    return warning(
        "ends_without_success",
        "Most episodes terminate without success, which for both levels is the worst that can happen.",
        f"{len(ended)} of {len(survey.episodes)} episodes, after {min(lengths)} to {max(lengths)} steps",
        cure,
    )


def end_differs(survey: Survey) -> Finding | None:
    """Episodes end at success and `compute_terminated` does not say so, or the other way round."""
    successes = [(_success(survey, episode), episode.terminated) for episode in survey.episodes]
    ends = [terminated for success, terminated in successes if success[-1]]
    goes_on = any(success[:-1].any() for success, _ in successes)
    declared = survey.task.ends_at_success
    if declared and goes_on:
        symptom, found = "`compute_terminated` says that an episode ends at its goal, but episodes go on there.", "goes on"
    elif not declared and ends and all(ends) and not goes_on:
        symptom, found = "Episodes end at their goal, but there is no `compute_terminated` that says so.", "ends"
    else:
        return None
    return warning(
        "end_differs",
        f"{symptom} Hindsight for the high level depends on it.",
        f"an episode that reached its goal {found}",
        "Let `compute_terminated(achieved_goal, desired_goal, info)` return what `step` does.",
    )


TOLERANCE_CHECKS: tuple[Callable[[Survey], Finding | None], ...] = (zero_tolerance, coarse_numbers)
GOAL_CHECKS: tuple[Callable[[Survey], Finding | None], ...] = (
    reward_differs,
    success_differs,
    reached_at_reset,
    out_of_reach,
    goal_scales,
    coarse_steps,
    small_radius,
    ends_without_success,
    end_differs,
)
