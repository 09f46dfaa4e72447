"""Finds problems of an environment, and of the run that was trained on it."""

import argparse
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import StoreDict, get_latest_run_id, get_saved_hyperparams

from sb3_hrl.doctor import Finding, diagnose_env, diagnose_log
from sb3_hrl.doctor.environment import raises
from sb3_hrl.doctor.findings import by_severity, has_error, warning
from sb3_hrl.doctor.run import Curve, RunSurvey
from sb3_hrl.plots import read_arguments, read_runs
from sb3_hrl.zoo.commands.shared import add_env_arguments, default_hyperparameters, make_env, make_parser, register_envs
from sb3_hrl.zoo.registration import ALGO


def parse(arguments: list[str]) -> argparse.Namespace:
    """
    :param arguments: command line arguments
    :return: parsed arguments
    """
    parser = make_parser("doctor", "Finds problems of an environment, and of the run that was trained on it.")
    parser.add_argument("--algo", default=ALGO, choices=[ALGO], help="RL Algorithm")
    add_env_arguments(parser)
    parser.add_argument("-f", "--folder", type=Path, default=Path("logs"), help="log folder (-f of training)")
    parser.add_argument("--exp-id", type=int, default=0, help="experiment to check (default: 0: latest, -1: environment only)")
    parser.add_argument("-tb", "--tensorboard-log", type=Path, help="TensorBoard folder (default: -tb of training)")
    parser.add_argument("--n-episodes", type=int, default=5, help="number of episodes with random actions")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict, help="environment arguments (default: those of training)")
    parser.add_argument("-params", "--hyperparams", nargs="+", action=StoreDict, help="hyperparameters to overwrite")
    args = parser.parse_args(arguments)
    if args.n_episodes < 1:
        parser.error(f"--n-episodes must be at least 1, not {args.n_episodes}")
    register_envs(parser, args)
    return args


def run_folder(args: argparse.Namespace) -> Path | None:
    """
    :param args: command line arguments
    :return: the folder of the run, with the zoo's naming; ``None`` if there is no run
    """
    name, folder = EnvironmentName(args.env), args.folder / args.algo
    exp_id = get_latest_run_id(str(folder), name) if args.exp_id == 0 else args.exp_id
    if exp_id < 1:
        return None
    path = folder / f"{name}_{exp_id}"
    if not path.is_dir():
        raise SystemExit(f"There is no run in {path}: check -f and --exp-id.")
    return path


def hyperparameters(args: argparse.Namespace, folder: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    :param args: command line arguments
    :param folder: folder of the run
    :return: hyperparameters (those saved by the run, otherwise those of hddpg.yml), and the arguments of the training
    """
    trained_with: dict[str, Any] = {}
    config: dict[str, Any] = {}
    if folder is not None:
        saved = folder / EnvironmentName(args.env)
        config, _ = get_saved_hyperparams(str(saved))
        trained_with = read_arguments(folder)
    if not config:
        config = default_hyperparameters(args.algo, args.env)
    config = dict(config) | (args.hyperparams or {})
    env_kwargs = args.env_kwargs or trained_with.get("env_kwargs")
    try:
        RunSurvey({}, config).options  # noqa: B018
    except ValueError as refusal:
        raise SystemExit(f"The agent's options are invalid: {refusal}") from None
    return config | ({"env_kwargs": env_kwargs} if env_kwargs else {}), trained_with


def judge_env(args: argparse.Namespace, config: Mapping[str, Any]) -> list[Finding]:
    """
    :param args: command line arguments
    :param config: hyperparameters
    :return: problems of the environment
    """
    try:
        env = make_env(args.env, config)
    except Exception as exception:
        return [raises("while it was created", exception)]
    return diagnose_env(
        env,
        n_episodes=args.n_episodes,
        **{name: config[name] for name in ("subgoal_steps", "subgoal_kwargs", "planner") if name in config},
    )


def judge_log(
    args: argparse.Namespace, folder: Path, config: Mapping[str, Any], trained_with: Mapping[str, Any]
) -> tuple[list[Finding], list[Path]]:
    """
    :param args: command line arguments
    :param folder: folder of the run
    :param config: hyperparameters
    :param trained_with: arguments of the training
    :return: problems of the run, and the files that were read
    """
    log: dict[str, Curve] = {}
    sources: list[Path] = []
    try:
        (run,) = read_runs([folder], [args.tensorboard_log] if args.tensorboard_log else None)
        log, sources = {key: (series.steps, series.values) for key, series in run.series.items()}, list(run.sources)
        unreadable = "only evaluations" if sources else "no log"
    except (ImportError, ValueError) as refusal:
        unreadable = str(refusal)
    is_logged = any(key.startswith("train/") for key in log)
    if not is_logged:
        # Monitor files contain the success, but none of the logger's other values
        log = {key: series for key, series in log.items() if key.startswith("eval/")}
    n_asked = trained_with.get("n_timesteps") or -1
    findings = diagnose_log(log, config, n_asked if n_asked > 0 else None)
    if not is_logged:
        findings.append(no_log(folder, unreadable))
    return findings, sources


def no_log(folder: Path, found: str) -> Finding:
    """The zoo did not save a log of subgoals, actions and values."""
    symptom = "There is no log of subgoals, actions and values: by default the zoo prints it, but does not save it."
    return warning("no_log", symptom, f"{folder}: {found}", "Train with `-tb tb`; the run's args.yml tells where the log is.")


def show(finding: Finding) -> None:
    """
    :param finding: finding to print
    """
    width = max(shutil.get_terminal_size((110, 24)).columns, 60)
    print(f"{finding.severity.upper()} {finding.check} ({textwrap.shorten(finding.metric, 200)})")
    for sentence in (finding.symptom, "-> " + finding.cure):
        print(textwrap.fill(sentence, width, initial_indent="  ", subsequent_indent="     " if sentence[0] == "-" else "  "))


def main(arguments: list[str]) -> None:
    """
    Print the problems, most severe first, and exit with 1 if there is an error.

    :param arguments: command line arguments
    """
    args = parse(arguments)
    folder = run_folder(args)
    config, trained_with = hyperparameters(args, folder)
    findings = judge_env(args, config)
    looked_at = [args.env]
    if folder is not None:
        of_log, sources = judge_log(args, folder, config, trained_with)
        findings = by_severity([*findings, *of_log])
        looked_at += [str(source) for source in sources] or [str(folder)]
    for finding in findings:
        show(finding)
    n_errors = sum(finding.severity == "error" for finding in findings)
    verdict = f"{n_errors} errors, {len(findings) - n_errors} warnings" if findings else "no problems found"
    print(f"doctor: {verdict} in {', '.join(looked_at)}")
    if has_error(findings):
        raise SystemExit(1)
