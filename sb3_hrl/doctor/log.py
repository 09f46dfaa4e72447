"""Checks of a run's log. Checks of the agent's performance need at least a thousand updates."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import TrainFreq

from sb3_hrl.doctor.findings import Finding, by_severity, error, warning
from sb3_hrl.doctor.level_checks import LEVEL_CHECKS
from sb3_hrl.doctor.run import MIN_UPDATES, PARAMETERS, Curve, RunSurvey
from sb3_hrl.plots.logs import read_run

# Fewer updates per environment step than this are too few
FEW_UPDATES_PER_STEP = 1 / 16
# Number of evaluations, or of logged values, in the moving average of a success rate
SMOOTHING = 3


def learning_never_starts(run: RunSurvey) -> Finding | None:
    """The run ends before learning starts."""
    n_steps = run.n_asked or run.n_steps
    learning_starts = run.option("learning_starts")
    if n_steps == 0 or learning_starts < n_steps:
        return None
    return error(
        "learning_never_starts",
        "The run ends before learning starts: all of its actions are random.",
        f"learning_starts = {learning_starts:,}, n_timesteps = {n_steps:,}",
        f"Set `learning_starts: {max(n_steps // 10, 1)}`, or train for more than {10 * learning_starts:,} steps (`-n`).",
    )


def few_updates(run: RunSurvey) -> Finding | None:
    """There are few updates, in total or per environment step."""
    if run.n_steps == 0 or learning_never_starts(run) is not None:
        return None
    if run.updates_per_step < FEW_UPDATES_PER_STEP and run.fails(0.8):
        steps = max(round(0.25 / run.updates_per_step * max(run.option("gradient_steps"), 1)), 1)
        return error(
            "few_updates",
            "There are few updates for the number of environment steps: each `train_freq` step moves all environments.",
            f"1 update per {1 / run.updates_per_step:.0f} environment steps, {run.n_envs} environments",
            f"Set `gradient_steps: {steps}`, for one update per four environment steps.",
        )
    if not run.is_young:
        return None
    needed = int(run.option("learning_starts") + MIN_UPDATES / max(run.updates_per_step, 1e-6))
    return warning(
        "few_updates",
        "The run is too short to judge the agent.",
        f"{run.n_updates:,} updates in {run.n_steps:,} steps",
        f"Train for at least {needed:,} steps (`-n {needed}`).",
    )


def no_episodes(run: RunSurvey) -> Finding | None:
    """No episode has ended."""
    is_rollout_log = any(key.startswith(("rollout/", "train/", "time/")) for key in run.log)
    if not is_rollout_log or run.log.get("rollout/ep_len_mean") is not None:
        return None
    return error(
        "no_episodes",
        "No episode has ended, or none was logged.",
        f"no rollout/ep_len_mean in {run.n_steps:,} steps",
        "Give the environment a time limit (`max_episode_steps`), and train for longer than `log_interval` (4) episodes.",
    )


def no_success_logged(run: RunSurvey) -> Finding | None:
    """The log has no success rate."""
    has_success = any(key in run.log for key in ("rollout/success_rate", "eval/success_rate"))
    has_episodes = any(key in run.log for key in ("rollout/ep_len_mean", "eval/mean_ep_length"))
    if has_success or not has_episodes:
        return None
    return error(
        "no_success_logged",
        "Episodes ended, but no success rate was logged.",
        "no rollout/success_rate, no eval/success_rate",
        "Set `env_wrapper: sb3_hrl.common.wrappers.add_success_info` if the environment reports `info['success']`, and in "
        "mazes also `env_kwargs: {continuing_task: False}`.",
    )


def not_finite(run: RunSurvey) -> Finding | None:
    """Losses or values are NaN or infinite."""
    broken = sorted(key for key, (_, values) in run.log.items() if key.startswith("train/") and not np.isfinite(values).all())
    if not broken:
        return None
    return error(
        "not_finite",
        "The networks have diverged: losses or values are NaN or infinite.",
        ", ".join(broken[:4]),
        f"Set `learning_rate: {_third_of(run.option('learning_rate'))}` and `max_grad_value: 1.0`, and check that the "
        "environment's observations are finite and not too large.",
    )


def _third_of(learning_rate: Any) -> str:
    """:return: a third of a learning rate, at most 1e-3: ``3e-4`` or ``lin_3e-4``"""
    kind, _, value = str(learning_rate).rpartition("_")
    try:
        smaller = f"{min(float(value) / 3.0, 1e-3):.0e}".replace("e-0", "e-")
    except ValueError:
        return "3e-4"
    return f"{kind}_{smaller}" if kind else smaller


def critic_loss_grows(run: RunSurvey) -> Finding | None:
    """The loss of a critic keeps growing."""
    for level in ("low", "high"):
        losses = run.values(f"train/{level}_critic_loss")
        quarter = len(losses) // 4
        if quarter < 2:
            continue
        # At the start the loss grows because the values grow
        early, late = float(np.median(losses[quarter : 2 * quarter])), float(np.median(losses[-quarter:]))
        if late > 5.0 * early and late > (0.1 * run.level(level).min_value) ** 2:
            return error(
                "critic_loss_grows",
                f"The {level} level's critic keeps getting worse.",
                f"train/{level}_critic_loss from {early:.2g} to {late:.2g}",
                f"Set `learning_rate: {_third_of(run.option('learning_rate'))}` and `tau: {min(run.option('tau'), 0.005)}`, "
                "and keep `n_critics` at 2.",
            )
    return None


def success_falls(run: RunSurvey) -> Finding | None:
    """The success rate falls after a peak."""
    for key in ("eval/success_rate", "rollout/success_rate"):
        rates = run.values(key)
        if len(rates) < 2 * SMOOTHING:
            continue
        smooth = np.convolve(rates, np.full(SMOOTHING, 1.0 / SMOOTHING), mode="valid")
        if smooth.max() >= 0.5 and smooth[-1] < smooth.max() - 0.3:
            rate = str(run.option("learning_rate"))
            setting = f"{_third_of(rate)}`" if rate.startswith("lin_") else f"lin_{rate}`, which decreases to 0"
            return error(
                "success_falls",
                "The agent is worse now than it was before.",
                f"{key} was {smooth.max():.2f} and is now {smooth[-1]:.2f} (means of {SMOOTHING})",
                f"Set `learning_rate: {setting}; with a planner also `n_members: 16` in `planner_kwargs`. The best agent of "
                "the evaluations is in best_model.zip (`enjoy --load-best`).",
            )
        return None
    return None


def stalls_without_noise(run: RunSurvey) -> Finding | None:
    """The agent is worse without exploration noise than with it."""
    rollout, evaluated = run.late("rollout/success_rate"), run.late("eval/success_rate")
    if run.is_young or rollout is None or evaluated is None or evaluated > rollout - 0.3:
        return None
    subgoals = run.options.subgoals
    off = [f"{name}: True" for name in ("avoid_reached", "avoid_missed") if not getattr(subgoals, name)]
    cure = f"Set `subgoal_kwargs: {{{', '.join(off)}}}`; use" if off else "Act with noise (`enjoy --stochastic`); use"
    return error(
        "stalls_without_noise",
        "The agent is much worse without exploration noise: it repeats a decision that leads nowhere.",
        f"rollout/success_rate = {rollout:.2f}, eval/success_rate = {evaluated:.2f}",
        f"{cure} the `env_kwargs` of training in the evaluation as well.",
    )


def never_succeeds(run: RunSurvey) -> Finding | None:
    """There is hardly any success after many updates."""
    rates = np.concatenate([run.values(key) for key in ("rollout/success_rate", "eval/success_rate")])
    if run.n_updates < 10 * MIN_UPDATES or len(rates) == 0 or rates.max() >= 0.02:
        return None
    return error(
        "never_succeeds",
        "The agent hardly ever succeeds.",
        f"success rate at most {rates.max():.2f} in {run.n_steps:,} steps, {run.n_updates:,} updates",
        "Make the task easier first: nearby goals (`ReducedWorkspaceWrapper`), or the `env_kwargs` of a smaller maze; "
        "`subgoal_kwargs: {source: random}` shows whether the low level learns at all.",
    )


def policy_lag(run: RunSurvey) -> Finding | None:
    """Workers act with outdated weights."""
    lag = run.late("rollout/policy_lag")
    n_steps = run.n_asked or run.n_steps
    if lag is None or n_steps == 0:
        return None
    lag_steps = lag / max(run.updates_per_step, 1e-6)
    if lag_steps < 0.05 * n_steps:
        return None
    interval = max(n_steps // 200, 10)
    return (error if lag_steps >= 0.2 * n_steps else warning)(
        "policy_lag",
        "Workers act with weights that are too old for a run of this length.",
        f"rollout/policy_lag = {lag:.0f} updates, or {lag_steps:.0f} of {n_steps:,} environment steps",
        f"Set `collector_kwargs: {{flush_size: {max(interval // 2, 5)}, sync_interval: {interval}}}`.",
    )


def worker_restarts(run: RunSurvey) -> Finding | None:
    """Workers were replaced."""
    _, restarts = run.log.get("rollout/worker_restarts", (np.zeros(0), np.zeros(0)))
    if len(restarts) == 0 or restarts[-1] == 0:
        return None
    return warning(
        "worker_restarts",
        "Workers crashed or hung, and were replaced.",
        f"rollout/worker_restarts = {restarts[-1]:.0f}",
        "Look for the traceback in the output (`--vec-env dummy` shows it in a single process); if steps are slow, raise "
        "`step_timeout` in `collector_kwargs`.",
    )


RUN_CHECKS: tuple[Callable[[RunSurvey], Finding | None], ...] = (
    learning_never_starts,
    no_episodes,
    no_success_logged,
    not_finite,
    critic_loss_grows,
    success_falls,
    stalls_without_noise,
    few_updates,
    never_succeeds,
    policy_lag,
    worker_restarts,
)
NAMES = tuple(check.__name__ for check in (*RUN_CHECKS, *LEVEL_CHECKS))


def diagnose_log(log: Mapping[str, Curve], config: Mapping[str, Any], n_timesteps: int | None = None) -> list[Finding]:
    """
    Find problems in the log of a run.

    :param log: environment steps and values by key (``rollout/success_rate``, ...), each of shape (n,), in order
    :param config: hyperparameters, as in hddpg.yml
    :param n_timesteps: requested number of environment steps; ``None``: ``n_timesteps`` of ``config``
    :return: the problems, most severe first; passed checks are not listed
    :raises ValueError: if steps and values differ in length
    """
    for key, (steps, values) in log.items():
        if np.ndim(steps) != 1 or np.shape(steps) != np.shape(values):
            raise ValueError(
                f"`log[{key!r}]` must be steps and values of the same length, not {np.shape(steps)} and {np.shape(values)}."
            )
    run = RunSurvey({key: series for key, series in log.items() if len(series[0]) > 0}, config, n_timesteps)
    checks = (*RUN_CHECKS, *LEVEL_CHECKS)
    return by_severity(finding for check in checks if (finding := check(run)) is not None)


def diagnose_run(folder: str | Path, model: BaseAlgorithm | None = None) -> list[Finding]:
    """
    Find problems in a run that was trained in Python.

    :param folder: folder with the log: TensorBoard's event files (``tensorboard_log``) or SB3's ``progress.csv``, and the
        ``evaluations.npz`` of an ``EvalCallback``
    :param model: the agent, for its options; ``None``: the newest ``.zip`` in the folder, written by ``save``
    :return: the problems, most severe first; passed checks are not listed
    :raises ValueError: if the folder has no log or no agent
    """
    folder = Path(folder)
    event_files = sorted(folder.rglob("events.out.tfevents.*")) if folder.is_dir() else []
    run = read_run(folder, event_files[-1].parent if event_files else None)
    if not any(key.startswith("train/") for key in run.series):
        raise ValueError(
            f"{folder} has no training log: pass `tensorboard_log=...` to the agent, or call `model.set_logger("
            "stable_baselines3.common.logger.configure(folder, ['csv']))` before `learn`."
        )
    if model is None:
        agents = sorted(folder.glob("*.zip"), key=lambda path: path.stat().st_mtime)
        if not agents:
            raise ValueError(f"{folder} has no agent: pass `model`, or save the agent there with `model.save`.")
        options, _, _ = load_from_zip_file(agents[-1], device="cpu")
        assert options is not None
    else:
        options = vars(model)
    config = {name: options[name] for name in PARAMETERS if name in options and name != "policy"}
    # SB3 saves pairs such as (5, "episode") as objects
    frequency = config.get("train_freq")
    if isinstance(frequency, TrainFreq):
        config["train_freq"] = (frequency.frequency, frequency.unit.value)
    log = {key: (series.steps, series.values) for key, series in run.series.items()}
    return diagnose_log(log, config | {"n_envs": options["n_envs"]}, options.get("_total_timesteps"))
