"""Checks of a run's log: subgoals, actions and values."""

from collections.abc import Callable

import numpy as np

from sb3_hrl.doctor.findings import Finding, error, rounded, warning
from sb3_hrl.doctor.run import RunSurvey

# Share of subgoals that are already reached when they are issued, among those that are not the goal
EASY_SHARE = 0.3


def _radius(run: RunSurvey, factor: float) -> str:
    """:return: the setting of the radius of subgoals times ``factor``, or advice if no radius was given"""
    radius = run.options.subgoals.radius
    if radius is None:
        return "`radius` in `subgoal_kwargs` to four times the goal's tolerance"
    return f"`subgoal_kwargs: {{radius: {rounded(factor * float(np.min(radius)))}}}`"


def subgoals_reached_at_issue(run: RunSurvey) -> Finding | None:
    """Subgoals are already reached when they are issued."""
    key = "eval/subgoal_reached_at_issue" if run.late("eval/subgoal_reached_at_issue") is not None else None
    key = key or "rollout/subgoal_reached_at_issue"
    share = run.late(key)
    if not run.has_own_subgoals or share is None or share < EASY_SHARE or not run.fails(0.95):
        return None
    cure = "Set `subgoal_kwargs: {avoid_reached: True}`."
    if run.options.subgoals.avoid_reached:
        cure = f"Set {_radius(run, 2.0)}, or `threshold` in `subgoal_kwargs` to half of the goal's tolerance."
    return error(
        "subgoals_reached_at_issue",
        "The high level issues subgoals that are already reached: the agent does not move, and the low level learns nothing.",
        f"{key} = {share:.2f}",
        cure,
    )


def subgoals_never_reached(run: RunSurvey) -> Finding | None:
    """The low level does not reach its subgoals."""
    share = run.late("rollout/subgoal_success_rate")
    if not run.has_own_subgoals or share is None or share >= 0.15 or not run.fails(0.8):
        return None
    steps, planner = run.options.subgoals.steps, run.options.planner
    # Waypoints of a planner are visited states, while a subgoal within the radius may not be a possible state: a goal with the
    # positions of several joints has few possible combinations of entries
    cures = ["`random_action_prob: 0` in `high_kwargs`"] if run.level("high").random_action_prob > 0.0 else []
    cures += ["`planner: landmarks`", _radius(run, 0.5)] if planner is None else []
    cures += [f"`subgoal_steps: {2 * steps}`"] if steps is not None else []
    # With one update per step, `train_freq` cannot be smaller
    more = "a smaller `train_freq`" if run.updates_per_step < 1.0 else "a larger `gradient_steps`"
    cure = f"Set {', or '.join(cures)}, and train" if cures else "Train"
    others = "`planner: null` shows whether waypoints are the cause, " if planner is not None else ""
    return (error if share < 0.05 else warning)(
        "subgoals_never_reached",
        "The low level hardly ever reaches its subgoals, so the high level cannot learn.",
        f"rollout/subgoal_success_rate = {share:.2f}",
        f"{cure} for longer, or with more updates per step ({more}). {others}`subgoal_kwargs: {{source: goal}}` shows whether "
        "a flat agent does better.",
    )


def subgoals_replaced(run: RunSurvey) -> Finding | None:
    """Most subgoals are not those that the high level proposed."""
    share = run.late("rollout/subgoal_replaced")
    if not run.has_own_subgoals or share is None or share < 0.6 or not run.fails(0.8):
        return None
    if subgoals_never_reached(run) is not None:
        # They are replaced because the low level missed them
        return None
    return warning(
        "subgoals_replaced",
        "Most of the high level's proposals were already reached or recently missed, and were replaced by other subgoals.",
        f"rollout/subgoal_replaced = {share:.2f}",
        f"Set {_radius(run, 2.0)}.",
    )


def subgoals_at_bounds(run: RunSurvey) -> Finding | None:
    """Subgoals lie at the bounds of the high level's actions."""
    share = run.late("eval/subgoal_at_bounds")
    # A planner's waypoints, and goals without a known path, may be farther away than the actor's subgoals can be
    if not run.has_own_subgoals or run.options.planner is not None or share is None or share < 0.9 or not run.fails(0.8):
        return None
    return warning(
        "subgoals_at_bounds",
        "Nearly all subgoals lie at the bounds of the high level's actions.",
        f"eval/subgoal_at_bounds = {share:.2f}",
        f"Set {_radius(run, 2.0)}; if that is large enough, `action_l2: 0.1` in `high_kwargs` pulls the actor back.",
    )


def saturated_actions(run: RunSurvey) -> Finding | None:
    """The low level's actions are at their bounds."""
    share = run.late("train/low_action_saturation")
    if run.is_young or share is None or share < 0.9 or not run.fails(0.8):
        return None
    return (error if share >= 0.97 and run.fails(0.5) else warning)(
        "saturated_actions",
        "The low level's actions are nearly always at their bounds, where its actor gets no gradient.",
        f"train/low_action_saturation = {share:.2f}",
        "Set `action_l2: 0.1` in `low_kwargs`, or add `sb3_hrl.common.wrappers.ActionLimitWrapper: {share: 0.5}` to "
        "`env_wrapper`.",
    )


def values_at_bound(run: RunSurvey) -> Finding | None:
    """A level's values are stuck at the value of never reaching anything."""
    for level in ("low", "high"):
        value, config = run.late(f"train/{level}_q_mean"), run.level(level)
        gamma, bound = config.gamma, config.min_value
        if run.is_young or value is None or not 1.1 * bound <= value <= 0.9 * bound or not run.fails(0.5):
            continue
        kwargs, steps = f"`{level}_kwargs`", run.segment_steps
        if level == "low" and -bound < steps:
            cure = f"Set `gamma: {1.0 - 0.5 / steps:.3f}` in {kwargs}: its horizon is shorter than a segment."
        elif config.n_sampled_goal < 4:
            cure = f"Set `n_sampled_goal: 4` in {kwargs}: only hindsight shows it goals that are reached."
        else:
            cure = f"Set a larger `gamma` in {kwargs} (such as {1.0 - 0.5 * (1.0 - gamma):.3f}), or make the task easier."
        return error(
            "values_at_bound",
            f"The {level} level's values say that it never reaches its targets, whatever it does.",
            f"train/{level}_q_mean = {value:.1f}, its lower bound is -1 / (1 - gamma) = {bound:.1f}",
            cure,
        )
    return None


def values_out_of_range(run: RunSurvey) -> Finding | None:
    """A level's values are out of the possible range."""
    for level in ("low", "high"):
        value = run.late(f"train/{level}_q_mean")
        bound = run.level(level).min_value
        if value is None or 1.1 * bound <= value <= -0.05 * bound:
            continue
        return error(
            "values_out_of_range",
            f"The {level} level's values are outside [-1 / (1 - gamma), 0], the range of its targets: the critic is wrong.",
            f"train/{level}_q_mean = {value:.1f}, its range is [{bound:.1f}, 0]",
            f"Set `tau: {min(run.option('tau'), 0.005)}` and a smaller `learning_rate`, and keep `n_critics` at 2.",
        )
    return None


def idle_planner(run: RunSurvey) -> Finding | None:
    """The planner finds no paths."""
    share = run.late("rollout/subgoal_planned")
    planner = run.options.planner
    if run.is_young or planner is None or share is None or share >= 0.1 or not run.fails(0.8):
        return None
    cause, cure = planner.when_idle()
    symptom = f"The planner hardly ever finds a path: {cause}."
    return warning("idle_planner", symptom, f"rollout/subgoal_planned = {share:.2f}", cure)


LEVEL_CHECKS: tuple[Callable[[RunSurvey], Finding | None], ...] = (
    subgoals_reached_at_issue,
    subgoals_never_reached,
    subgoals_replaced,
    subgoals_at_bounds,
    saturated_actions,
    values_at_bound,
    values_out_of_range,
    idle_planner,
)
