"""Checks of goals and rewards. They need to know what counts as reaching a goal."""

from collections.abc import Callable

import numpy as np

from sb3_hrl.common.rewards import empty_infos
from sb3_hrl.common.spaces import flatten
from sb3_hrl.doctor.findings import Finding, error, rounded, warning
from sb3_hrl.doctor.survey import Episode, Survey

# Share of episodes that start at their goal, above which the check gives a warning, and an error
SOME_REACHED, MOST_REACHED = 0.25, 0.5
# Maximum ratio between the largest and the smallest range of the goal's entries
MAX_SCALE_RATIO = 100.0
# Number of dependent entries of the goal from which on the check gives a warning (the estimate of dimensions is up to 1 too
# low), and number of neighbours for the estimate
MAX_DEPENDENT = 1.5
N_NEIGHBOURS = 8


def _success(survey: Survey, episode: Episode) -> np.ndarray:
    """:return: whether the goal is reached after each step, according to `compute_reward`, shape (T,)"""
    achieved, desired = episode.goals("achieved_goal")[1:], episode.goals("desired_goal")[1:]
    return survey.task.success(achieved, desired)


def _distances(survey: Survey, offsets: np.ndarray) -> np.ndarray:
    """:return: distances in which the tolerance of success is measured, shape (n,)"""
    return np.asarray(np.linalg.norm(survey.task.weights * offsets, axis=1))


def reward_differs(survey: Survey) -> Finding | None:
    """`step` and `compute_reward` return different rewards."""
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
    # In a few steps it is a penalty, which the agent ignores; in most steps it is a different reward
    return (error if n_different > 0.5 * n_steps else warning)(
        "reward_differs",
        "`step` returns another reward than `compute_reward` does for the goals after that step. The agent learns from "
        "`compute_reward` only and ignores everything else in the reward.",
        f"{n_different} of {n_steps} steps, by up to {rounded(largest)}",
        "Let `step` return `compute_reward` of the new achieved goal, which depends on the goals only, and put the rest into "
        "`info`. To make the agent avoid something, end the episode there without success.",
    )


def success_differs(survey: Survey) -> Finding | None:
    """`info['is_success']` and `compute_reward` disagree about success."""
    claimed = np.array([bool(info.get("is_success", False)) for episode in survey.episodes for info in episode.infos])
    has_key = np.array(["is_success" in info for episode in survey.episodes for info in episode.infos])
    rewarded = np.concatenate([_success(survey, episode) for episode in survey.episodes])
    n_different = int((claimed != rewarded)[has_key].sum())
    # A comparison in another precision may give another result exactly at the tolerance
    if n_different <= 0.002 * len(claimed):
        return None
    return error(
        "success_differs",
        "`info['is_success']` and `compute_reward` disagree about success: the logged success is not what the agent learns.",
        f"{n_different} of {len(claimed)} steps; tolerance of the reward: {rounded(survey.task.threshold)}",
        "Use one tolerance for both; with a dense reward set `threshold` in `subgoal_kwargs` to that of `is_success`.",
    )


def zero_tolerance(survey: Survey) -> Finding | None:
    """A goal of real numbers only counts as reached if it is matched exactly."""
    goals = flatten(survey.starts["desired_goal"], len(survey.starts["desired_goal"]), np.float64)
    nearby = goals + 1e-6
    if not survey.task.is_sparse or not survey.has_real_goals or survey.task.success(nearby, goals).any():
        return None
    return error(
        "zero_tolerance",
        "A goal counts as reached only if it is matched to the last digit, which never happens.",
        "no success at a distance of 1e-6",
        "Give `compute_reward` a tolerance, such as `np.linalg.norm(achieved - desired, axis=-1) < 0.05`.",
    )


def coarse_numbers(survey: Survey) -> Finding | None:
    """Goals are too large for float32 to resolve the tolerance."""
    largest = np.abs(survey.start_goals("desired_goal")).max()
    spacing = float(np.spacing(largest))
    if not survey.has_real_goals or spacing < 0.25 * survey.task.threshold:
        return None
    return error(
        "coarse_numbers",
        "Goals are so large that float32, the type they are stored in, cannot resolve the tolerance.",
        f"goals up to {largest:.3g}, next float32 {spacing:.2g} away, tolerance {survey.task.threshold:.2g}",
        "Give goals relative to the centre of the workspace (`gymnasium.wrappers.TransformObservation`).",
    )


def reached_at_reset(survey: Survey) -> Finding | None:
    """Many episodes start at their goal."""
    achieved, desired = survey.start_goals("achieved_goal"), survey.start_goals("desired_goal")
    reached = survey.task.success(achieved, desired)
    if reached.mean() < SOME_REACHED:
        return None
    distance = float(np.median(_distances(survey, achieved - desired)))
    return (error if reached.mean() >= MOST_REACHED else warning)(
        "reached_at_reset",
        "Many episodes start at their goal: the agent is rewarded for doing nothing, and its success rate means little.",
        f"{reached.sum()} of {len(reached)} resets; median distance {distance:.2g}, tolerance {survey.task.threshold:.2g}",
        f"Draw goals farther away than the tolerance, or make the tolerance smaller (such as {rounded(0.25 * distance)}).",
    )


def out_of_reach(survey: Survey) -> Finding | None:
    """Goals are farther away than the agent can get within an episode."""
    moves = [_distances(survey, episode.moves) for episode in survey.episodes]
    goals = [episode.goals("achieved_goal") for episode in survey.episodes]
    spans = [_distances(survey, visited - visited[0]).max() for visited in goals]
    # If an object has to be pushed first, or if falls end the episodes, random actions do not show how far the agent can get
    if max(spans) <= survey.task.threshold or (survey.time_limit is None and any(e.terminated for e in survey.episodes)):
        return None
    length = survey.time_limit or max(len(move) for move in moves)
    reach = length * float(max(move.max() for move in moves))
    distances = _distances(survey, survey.start_goals("achieved_goal") - survey.start_goals("desired_goal"))
    too_far = distances > reach + survey.task.threshold
    if too_far.mean() < 0.5:
        return None
    return error(
        "out_of_reach",
        "Goals are farther away than an episode of the fastest observed steps can reach.",
        f"{too_far.sum()} of {len(too_far)} goals; median distance {np.median(distances):.2g}, reach {reach:.2g}",
        "Give `achieved_goal` and `desired_goal` the same origin and units, or raise the time limit (`max_episode_steps`).",
    )


def goal_scales(survey: Survey) -> Finding | None:
    """The entries of the goal have very different ranges, but the same tolerance."""
    if (survey.task.weights < 1.0).any():
        return None
    goals = [survey.start_goals("achieved_goal"), survey.start_goals("desired_goal")]
    goals += [episode.goals("achieved_goal") for episode in survey.episodes]
    ranges = np.ptp(np.concatenate(goals), axis=0)
    # An entry that moves less than the tolerance does not count, such as the height of a table
    ranges = ranges[ranges > 2.0 * survey.task.threshold]
    if len(ranges) < 2 or ranges.max() <= MAX_SCALE_RATIO * ranges.min():
        return None
    return warning(
        "goal_scales",
        "The entries of the goal have very different ranges, but one distance decides whether a subgoal is reached.",
        f"ranges from {rounded(float(ranges.min()))} to {rounded(float(ranges.max()))}",
        "Scale the entries of both goals in the same way in a wrapper, or give each entry its own tolerance in the definition "
        "of success.",
    )


def coarse_steps(survey: Survey) -> Finding | None:
    """A single step is longer than the width of the tolerance."""
    moves = _distances(survey, np.concatenate([episode.moves for episode in survey.episodes]))
    moves = moves[moves > 0.0]
    if not survey.has_real_goals or len(moves) == 0 or np.median(moves) <= 2.0 * survey.task.threshold:
        return None
    move = float(np.median(moves))
    return warning(
        "coarse_steps",
        "A single step with random actions is longer than the width of the tolerance: the agent jumps over its goals.",
        f"median step {rounded(move)}, tolerance {survey.task.threshold:.2g}",
        f"Make actions smaller, or the tolerance at least {rounded(0.5 * move)}.",
    )


def small_radius(survey: Survey) -> Finding | None:
    """The radius of subgoals is not larger than their tolerance."""
    radius, threshold = survey.subgoals.radius, survey.task.threshold
    if radius is None or np.min(radius) > threshold:
        return None
    return error(
        "small_radius",
        "Subgoals are issued within the distance at which they count as reached: all of them are reached immediately.",
        f"radius = {radius}, tolerance {threshold:.2g}",
        f"Set `subgoal_kwargs: {{radius: {rounded(4.0 * threshold)}}}` (four times the tolerance), or leave it out to "
        "estimate it from the data.",
    )


def dependent_goals(survey: Survey) -> Finding | None:
    """Entries of the goal depend on each other, and subgoals may lie anywhere within the radius."""
    # Waypoints of a planner are visited states
    if survey.planner is not None or not survey.has_real_goals or not survey.subgoals.are_learnt:
        return None
    goals = np.concatenate([survey.start_goals("achieved_goal"), survey.start_goals("desired_goal")]).astype(np.float64)
    goals = np.unique(goals[:, survey.task.weights * np.ptp(goals, axis=0) > 2.0 * survey.task.threshold], axis=0)
    n_entries = goals.shape[1]
    if len(goals) < 2 * N_NEIGHBOURS or n_entries <= MAX_DEPENDENT:
        return None
    dimension = intrinsic_dimension(goals / goals.std(axis=0), N_NEIGHBOURS)
    if n_entries - dimension < MAX_DEPENDENT:
        return None
    return warning(
        "dependent_goals",
        "The entries of the goal depend on each other, such as the positions of two joints: most subgoals that the high level "
        "can choose are no possible states.",
        f"{n_entries} entries, about {dimension:.1f} dimensions",
        "Set `planner: landmarks`, whose subgoals are visited states, or leave the dependent entries out of the goal.",
    )


def intrinsic_dimension(points: np.ndarray, n_neighbours: int) -> float:
    """
    Estimate on how many dimensions points vary near each other (maximum likelihood, Levina and Bickel 2004).

    :param points: different points, shape (n, dim), n above ``n_neighbours``
    :param n_neighbours: number of neighbours of each point
    :return: number of dimensions
    """
    distances = np.sort(np.linalg.norm(points[:, None] - points, axis=2), axis=1)[:, 1 : n_neighbours + 1]
    # The mean of the inverse estimates has the smaller bias (MacKay and Ghahramani 2005)
    return float(1.0 / np.log(distances[:, -1:] / distances[:, :-1]).mean())


def ends_without_success(survey: Survey) -> Finding | None:
    """Most episodes terminate without reaching their goal."""
    ended = [e for e in survey.episodes if e.terminated and not _success(survey, e)[-1]]
    if len(ended) < 0.5 * len(survey.episodes):
        return None
    lengths = {len(episode.rewards) for episode in ended}
    cure = "Limit the actions (`ActionLimitWrapper`), or do not terminate the episodes."
    if len(lengths) == 1 and len(ended) > 1:
        cure = "If this is a time limit, return `truncated`, not `terminated`."
    return warning(
        "ends_without_success",
        "Most episodes terminate without success, which is the worst possible outcome for both levels.",
        f"{len(ended)} of {len(survey.episodes)} episodes, after {min(lengths)} to {max(lengths)} steps",
        cure,
    )


def end_differs(survey: Survey) -> Finding | None:
    """`step` and `compute_terminated` disagree about whether an episode ends at success."""
    successes = [(_success(survey, episode), episode.terminated) for episode in survey.episodes]
    ends = [terminated for success, terminated in successes if success[-1]]
    goes_on = any(success[:-1].any() for success, _ in successes)
    declared = survey.task.ends_at_success
    if declared and goes_on:
        symptom, found = "`compute_terminated` says that an episode ends at its goal, but episodes continue.", "continues"
    elif not declared and ends and all(ends) and not goes_on:
        symptom, found = "Episodes end at their goal, but there is no `compute_terminated` that says so.", "ends"
    else:
        return None
    return warning(
        "end_differs",
        f"{symptom} The high level's hindsight depends on it.",
        f"an episode that reached its goal {found}",
        "Let `compute_terminated(achieved_goal, desired_goal, info)` return the same as `step`.",
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
    dependent_goals,
    ends_without_success,
    end_differs,
)
