"""Checks of episodes with random actions, before anything is known about the reward."""

from collections.abc import Callable

import numpy as np

from sb3_hrl.common.buffers import GOAL_KEYS
from sb3_hrl.common.spaces import flatten
from sb3_hrl.doctor.findings import Finding, error, warning
from sb3_hrl.doctor.survey import Survey, differ


def non_finite(survey: Survey) -> Finding | None:
    """Observations or rewards are NaN or infinite."""
    found = {key for key in GOAL_KEYS for e in survey.episodes if not np.isfinite(e.observations[key]).all()}
    found |= {key for key in GOAL_KEYS if not np.isfinite(survey.starts[key]).all()}
    found |= {"reward" for episode in survey.episodes if not np.isfinite(episode.rewards).all()}
    if not found:
        return None
    cure = "Fix the environment: a single NaN in a batch makes all weights NaN. SB3's `VecCheckNan` finds the step."
    return error("non_finite", "The environment returns values that are NaN or infinite.", ", ".join(sorted(found)), cure)


def outside_space(survey: Survey) -> Finding | None:
    """Observations do not belong to their space."""
    outside = []
    for key in GOAL_KEYS:
        space = survey.env.observation_space[key]  # type: ignore[index]
        rows = [row for values in (survey.starts[key], *(e.observations[key] for e in survey.episodes)) for row in values]
        n_outside = sum(bool(np.isfinite(row).all()) and not space.contains(np.asarray(row)) for row in rows)
        if n_outside > 0:
            outside.append(f"`{key}` in {n_outside} of {len(rows)} steps ({rows[0].dtype}, {rows[0].shape}; space {space})")
    if not outside:
        return None
    cure = "Widen `low` and `high` of the space, or give it the shape and dtype of the observations."
    symptom = "Observations are outside the space that the environment declares."
    return error("outside_space", symptom, "; ".join(outside), cure)


def reused_arrays(survey: Survey) -> Finding | None:
    """A reset overwrites the last observation of the previous episode."""
    n_overwritten = sum(episode.was_overwritten for episode in survey.episodes)
    if n_overwritten == 0:
        return None
    return error(
        "reused_arrays",
        "The environment reuses its arrays: a reset overwrites the last observation of the previous episode, which SB3 has "
        "not stored yet.",
        f"{n_overwritten} of {len(survey.episodes)} episodes",
        "Return copies (`self.position.copy()`).",
    )


def continuing_task(survey: Survey) -> Finding | None:
    """A maze of gymnasium-robotics continues after its goal was reached."""
    if not getattr(survey.env.unwrapped, "continuing_task", False):
        return None
    return error(
        "continuing_task",
        "The maze continues after its goal was reached, so a successful episode rarely ends as a success: the success rate "
        "stays at 0, or is never logged.",
        "continuing_task = True",
        "Set `env_kwargs: {continuing_task: False}` in the hyperparameters, for training and for evaluation.",
    )


def moving_goal(survey: Survey) -> Finding | None:
    """The desired goal changes within an episode."""
    goals = [episode.observations["desired_goal"] for episode in survey.episodes]
    changes = [flatten(values[1:] != values[:-1], len(values) - 1, np.bool_).any(axis=1) for values in goals]
    n_changes = sum(int(changed.sum()) for changed in changes)
    if n_changes == 0 or continuing_task(survey) is not None:
        return None
    n_steps = sum(len(values) - 1 for values in goals)
    return error(
        "moving_goal",
        "The desired goal changes within an episode, but hindsight and the high level need one goal per episode.",
        f"{n_changes} changes in {n_steps} steps",
        "Draw a new goal in `reset` only, and end the episode at success.",
    )


def no_time_limit(survey: Survey) -> Finding | None:
    """Episodes never end."""
    endless = [episode for episode in survey.episodes if not episode.is_over]
    if not endless or survey.time_limit is not None:
        return None
    return error(
        "no_time_limit",
        "Episodes do not end, and there is no time limit: no episode is logged, and hindsight needs complete episodes.",
        f"{len(endless)} of {len(survey.episodes)} episodes were still running after {len(endless[0].rewards):,} steps",
        "Give `max_episode_steps` to `gymnasium.register`, or wrap in `gymnasium.wrappers.TimeLimit`.",
    )


def success_key(survey: Survey) -> Finding | None:
    """The info key from which success is logged is missing."""
    infos = [episode.infos[-1] for episode in survey.episodes]
    if all("is_success" in info for info in infos):
        return None
    keys = ", ".join(sorted({key for info in infos for key in info})) or "nothing"
    if any("success" in info for info in infos):
        cure = "Set `env_wrapper: sb3_hrl.common.wrappers.add_success_info`, which adds `is_success`."
        symptom = (
            "No success is logged: the environment reports `info['success']`, SB3 and the zoo look for `info['is_success']`."
        )
    else:
        cure = "Put `is_success` (a bool) into the info of every step."
        symptom = "There is no `info['is_success']` at the end of an episode, so no success is logged."
    return error("success_key", symptom, f"the last info has {keys}", cure)


def frozen_goal(survey: Survey) -> Finding | None:
    """The achieved goal never changes."""
    goals = [episode.observations["achieved_goal"] for episode in survey.episodes]
    if any((values != values[0]).any() for values in goals):
        return None
    return error(
        "frozen_goal",
        "The achieved goal is always exactly the same as at the start of the episode, whatever the actions are.",
        f"0 changes in {sum(len(values) - 1 for values in goals)} steps",
        "Compute `achieved_goal` in every step, from the state that the agent should control.",
    )


def ignored_actions(survey: Survey) -> Finding | None:
    """The actions do not change the observations."""
    if differ(survey.probes["low"], survey.probes["high"]):
        return None
    return error(
        "ignored_actions",
        "From the same seed, the lowest and the highest actions lead to the same observations.",
        f"{len(survey.probes['low']) - 1} steps each",
        "Check that `step` uses its action, and that no wrapper replaces it.",
    )


def not_seeded(survey: Survey) -> Finding | None:
    """The same seed and actions lead to different observations, in the first episode or in later ones."""
    if differ(survey.probes["same"], survey.probes["again"], rounding=1e-6):
        return warning(
            "not_seeded",
            "The same seed and the same actions lead to different observations: runs cannot be repeated or compared.",
            "reset(seed=...) twice",
            "Call `super().reset(seed=seed)` and draw from `self.np_random` only.",
        )
    if differ(*survey.resets, rounding=1e-6):
        return warning(
            "not_seeded",
            "The seed only applies to one episode: a `reset` without a seed, as in training for all episodes but the first, "
            "starts differently each time. Runs cannot be repeated or compared.",
            "reset(seed=...), reset() twice",
            "Create a new generator only if `reset` gets a seed, as `super().reset(seed=seed)` does: with None, "
            "`seeding.np_random` and `default_rng` take a seed from the operating system.",
        )
    return None


def same_goal(survey: Survey) -> Finding | None:
    """Every episode has the same desired goal."""
    goals = survey.start_goals("desired_goal")
    if len(goals) < 2 or (goals != goals[0]).any():
        return None
    return warning(
        "same_goal",
        "Every episode has the same desired goal.",
        f"1 goal in {len(goals)} resets",
        "Draw the goal in `reset`, from `self.np_random`. If the task has only one goal, ignore this warning.",
    )


def long_segments(survey: Survey) -> Finding | None:
    """A segment is longer than an episode."""
    longest = max(len(episode.rewards) for episode in survey.episodes)
    length = survey.time_limit or longest
    if survey.subgoals.steps is None or survey.subgoals.steps <= length:
        return None
    return warning(
        "long_segments",
        "A segment is longer than an episode, so the high level decides only once per episode.",
        f"subgoal_steps = {survey.subgoals.steps}, episodes of {length} steps",
        f"Set `subgoal_steps: {max(length // 4, 1)}`, a quarter of the episode.",
    )


EPISODE_CHECKS: tuple[Callable[[Survey], Finding | None], ...] = (
    non_finite,
    outside_space,
    reused_arrays,
    continuing_task,
    moving_goal,
    no_time_limit,
    success_key,
    frozen_goal,
    ignored_actions,
    not_seeded,
    same_goal,
    long_segments,
)
