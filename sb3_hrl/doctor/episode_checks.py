"""Checks of what episodes with random actions look like, before anything is known of their reward."""

from collections.abc import Callable

import numpy as np

from sb3_hrl.common.buffers import GOAL_KEYS
from sb3_hrl.common.spaces import flatten
from sb3_hrl.doctor.findings import Finding, error, warning
from sb3_hrl.doctor.survey import Survey, differ


def non_finite(survey: Survey) -> Finding | None:
    """Observations or rewards that are no numbers."""
    found = {key for key in GOAL_KEYS for e in survey.episodes if not np.isfinite(e.observations[key]).all()}
    found |= {key for key in GOAL_KEYS if not np.isfinite(survey.starts[key]).all()}
    found |= {"reward" for episode in survey.episodes if not np.isfinite(episode.rewards).all()}
    if not found:
        return None
    cure = "Mend the environment: a single NaN in a batch makes all weights NaN. `VecCheckNan` of SB3 finds the step."
    return error("non_finite", "The environment gives values that are NaN or infinite.", ", ".join(sorted(found)), cure)


def outside_space(survey: Survey) -> Finding | None:
    """Observations that do not belong to their space."""
    outside = []
    for key in GOAL_KEYS:
        space = survey.env.observation_space[key]  # type: ignore[index]
        rows = [row for values in (survey.starts[key], *(e.observations[key] for e in survey.episodes)) for row in values]
        n_outside = sum(bool(np.isfinite(row).all()) and not space.contains(np.asarray(row)) for row in rows)
        if n_outside > 0:
            outside.append(f"`{key}` in {n_outside} of {len(rows)} steps ({rows[0].dtype}, {rows[0].shape}; space {space})")
    if not outside:
        return None
    cure = "Widen `low` and `high` of the space, or give it the shape and dtype that observations have."
    symptom = "Observations lie outside of the space that the environment declares."
    return error("outside_space", symptom, "; ".join(outside), cure)


def reused_arrays(survey: Survey) -> Finding | None:
    """Resetting overwrites the last observation of the episode before."""
    n_overwritten = sum(episode.was_overwritten for episode in survey.episodes)
    if n_overwritten == 0:
        return None
    return error(
        "reused_arrays",
        "The environment returns the same arrays again and again: resetting it overwrites the last observation of the episode "
        "before, which SB3 has not stored yet.",
        f"{n_overwritten} of {len(survey.episodes)} episodes",
        "Return copies (`self.position.copy()`).",
    )


def continuing_task(survey: Survey) -> Finding | None:
    """A maze of gymnasium-robotics that goes on after its goal was reached."""
    if not getattr(survey.env.unwrapped, "continuing_task", False):
        return None
    return error(
        "continuing_task",
        "The maze goes on after its goal was reached, so that an episode that was a success seldom ends as one: the "
        "success rate stays at 0, or is never logged.",
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
        "The desired goal changes within an episode, while hindsight and the high level take it for one goal.",
        f"{n_changes} changes in {n_steps} steps",
        "Draw a new goal in `reset` only, and end the episode at success.",
    )


def no_time_limit(survey: Survey) -> Finding | None:
    """Episodes that never end."""
    endless = [episode for episode in survey.episodes if not episode.is_over]
    if not endless or survey.time_limit is not None:
        return None
    return error(
        "no_time_limit",
        "Episodes do not end, and there is no time limit: none is logged, and hindsight has no end to look back from.",
        f"{len(endless)} of {len(survey.episodes)} episodes still ran after {len(endless[0].rewards):,} steps",
        "Give `max_episode_steps` to `gymnasium.register`, or wrap in `gymnasium.wrappers.TimeLimit`.",
    )


def success_key(survey: Survey) -> Finding | None:
    """The info that success is logged from is missing."""
    infos = [episode.infos[-1] for episode in survey.episodes]
    if all("is_success" in info for info in infos):
        return None
    keys = ", ".join(sorted({key for info in infos for key in info})) or "nothing"
    if any("success" in info for info in infos):
        cure = "Set `env_wrapper: sb3_hrl.common.wrappers.add_success_info`, which makes it `is_success`."
        symptom = (
            "No success is logged: the environment says `info['success']`, SB3 and the zoo look for `info['is_success']`."
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
        "The achieved goal stays what it was at the start of the episode, bit by bit, whatever is done.",
        f"0 changes in {sum(len(values) - 1 for values in goals)} steps",
        "Compute `achieved_goal` anew in every step, from what the agent is to move.",
    )


def ignored_actions(survey: Survey) -> Finding | None:
    """Whatever is done, the same is observed."""
    if differ(survey.probes["low"], survey.probes["high"]):
        return None
    return error(
        "ignored_actions",
        "From the same seed, the lowest and the highest actions lead to the same observations.",
        f"{len(survey.probes['low']) - 1} steps each",
        "Check that `step` uses its action, and that no wrapper replaces it.",
    )


def not_seeded(survey: Survey) -> Finding | None:
    """The same seed and the same actions lead to different observations, in the first episode or in the next ones."""
    if differ(survey.probes["same"], survey.probes["again"], rounding=1e-6):
        return warning(
            "not_seeded",
            "The same seed and the same actions lead to different observations: no run can be repeated, and no two can be "
            "compared.",
            "reset(seed=...) twice",
            "Call `super().reset(seed=seed)` and draw from `self.np_random` only.",
        )
    if differ(*survey.resets, rounding=1e-6):
        return warning(
            "not_seeded",
            "The seed holds for one episode only: a `reset` without a seed, as all but the first are in training, begins "
            "differently each time. No run can be repeated, and no two can be compared.",
            "reset(seed=...), reset() twice",
            "Make a new generator only if `reset` gets a seed, as `super().reset(seed=seed)` does: given None, "
            "`seeding.np_random` and `default_rng` take one from the operating system.",
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
        "Draw the goal in `reset`, from `self.np_random`; if there is only one, this is as it should be.",
    )


def long_segments(survey: Survey) -> Finding | None:
    """A segment is longer than an episode."""
    longest = max(len(episode.rewards) for episode in survey.episodes)
    length = survey.time_limit or longest
    if survey.subgoals.steps is None or survey.subgoals.steps <= length:
        return None
    return warning(
        "long_segments",
        "A segment is longer than an episode, so that the high level decides once per episode.",
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
