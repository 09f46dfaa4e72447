"""``python -m sb3_hrl compare``: compares a flat and a hierarchical agent with the same code, steps and seeds."""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import StoreDict

from sb3_hrl.plots import plot_success, read_runs
from sb3_hrl.zoo.commands.shared import (
    FORMATS,
    add_env_arguments,
    check_output,
    default_hyperparameters,
    make_env,
    make_parser,
    register_envs,
)
from sb3_hrl.zoo.registration import ALGO, hyperparams_path

AGENTS = ("hierarchical", "flat")
N_EVALUATIONS = 10
# Training steps if neither the command line nor hddpg.yml has a number for the environment
N_TIMESTEPS = 20_000
# Bootstrap samples
N_DRAWS = 10_000


class Curve(NamedTuple):
    """
    Evaluations of one run.

    :param steps: environment steps, shape (n_evaluations,)
    :param successes: success of each episode, shape (n_evaluations, n_episodes)
    """

    steps: np.ndarray
    successes: np.ndarray


def parse(arguments: list[str]) -> argparse.Namespace:
    """
    :param arguments: command line arguments
    :return: parsed arguments; everything that does not need an environment has been checked
    """
    parser = make_parser(
        "compare",
        "Trains a flat and a hierarchical agent with the same code, steps and seeds, and reports which is better. The log "
        "folder contains the runs, a figure, and a csv file with the success rates.",
    )
    add_env_arguments(parser, is_positional=True)
    parser.add_argument(
        "-n", "--n-timesteps", type=int, help=f"environment steps of each run (default: from hddpg.yml, or {N_TIMESTEPS})"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds; each agent is trained once per seed")
    parser.add_argument("--eval-episodes", type=int, default=50, help="episodes per evaluation; each run has ten evaluations")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel runs, with one thread each")
    parser.add_argument("-f", "--folder", type=Path, default=Path("compare"), help="Log folder")
    parser.add_argument("-o", "--output", type=Path, help="figure, png, pdf or svg (default: FOLDER/ENV.png)")
    parser.add_argument("--csv", type=Path, help="success rates (default: FOLDER/ENV.csv)")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict, help="environment arguments")
    parser.add_argument("-params", "--hyperparams", nargs="+", action=StoreDict, help="hyperparameters of both to overwrite")
    args = parser.parse_args(arguments)
    if len(set(args.seeds)) != len(args.seeds) or min(args.seeds) < 0:
        parser.error(f"--seeds must be different numbers of at least 0, not {args.seeds}")
    for name in ("eval_episodes", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    register_envs(parser, args)
    if args.n_timesteps is None:
        # The default entry of hddpg.yml has too many steps for a quick comparison
        is_known = args.env in yaml.safe_load(hyperparams_path().read_text())
        args.n_timesteps = int(default_hyperparameters(ALGO, args.env)["n_timesteps"]) if is_known else N_TIMESTEPS
    if args.n_timesteps < N_EVALUATIONS:
        parser.error(f"-n must be at least {N_EVALUATIONS} (one step per evaluation), not {args.n_timesteps}")
    name = EnvironmentName(args.env)
    args.output, args.csv = args.output or args.folder / f"{name}.png", args.csv or args.folder / f"{name}.csv"
    check_output(parser, "-o", args.output, FORMATS)
    check_output(parser, "--csv", args.csv, [".csv"])
    return args


def check_success(args: argparse.Namespace, config: dict[str, Any]) -> None:
    """
    Refuse an environment without ``info["is_success"]`` or a time limit, before the training.

    :param args: command line arguments
    :param config: hyperparameters
    """
    try:
        env = make_env(args.env, config, **(args.env_kwargs or {}))
    except Exception as error:
        raise SystemExit(f"compare: {args.env} cannot be created: {error}") from error
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(10_000):
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            break
    env.close()
    if not (terminated or truncated):
        raise SystemExit("compare: no episode ended within 10,000 steps. Give the environment a time limit.")
    if "is_success" not in info:
        raise SystemExit(
            'compare: info["is_success"] is missing in the last step of an episode, so success cannot be measured. '
            f"For details, run: python -m sb3_hrl doctor --env {args.env}"
        )


def train(agent: str, seed: int, args: argparse.Namespace, config: dict[str, Any]) -> Path:
    """
    Train an agent with the zoo, in a separate process.

    :param agent: one of `AGENTS`
    :param seed: seed of the run
    :param args: command line arguments
    :param config: hyperparameters
    :return: folder of the run, in the zoo's layout, which ``python -m sb3_hrl curves`` and ``watch`` can read
    :raises RuntimeError: if the training fails
    """
    name = EnvironmentName(args.env)
    params = dict(args.hyperparams or {})
    if agent == "flat":
        # Keep the other options, such as the tolerance: they belong to the environment
        params["subgoal_kwargs"] = {**(config.get("subgoal_kwargs") or {}), "source": "goal"}
    # A folder for each run: the zoo would give the same number to runs that start at the same time
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sb3_hrl", "train", "--algo", ALGO, "--env", args.env, "--seed", str(seed)]
        command += ["-n", str(args.n_timesteps), "--eval-freq", str(args.n_timesteps // N_EVALUATIONS), "-f", folder]
        command += ["--eval-episodes", str(args.eval_episodes), "--num-threads", "1", "--verbose", "0", "--log-interval", "-2"]
        command += ["--gym-packages", *args.gym_packages] if args.gym_packages else []
        command += ["--env-kwargs", *(f"{key}:{value!r}" for key, value in args.env_kwargs.items())] if args.env_kwargs else []
        command += ["-params", *(f"{key}:{value!r}" for key, value in params.items())] if params else []
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        run = Path(folder) / ALGO / f"{name}_1"
        if done.returncode != 0 or not (run / "evaluations.npz").is_file():
            raise RuntimeError(f"the {agent} agent with seed {seed} could not be trained:\n{done.stdout[-3000:]}")
        kept = args.folder / agent / ALGO / f"{name}_{seed + 1}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(run, kept)
    rate = read_curve(kept).successes[-1].mean()
    print(f"{agent}, seed {seed}: success {rate:.2f} after {args.n_timesteps:,} steps", flush=True)
    return kept


def read_curve(run: Path) -> Curve:
    """
    :param run: folder of a run
    :return: evaluations of the run
    """
    with np.load(run / "evaluations.npz") as evaluations:
        return Curve(evaluations["timesteps"], evaluations["successes"].astype(float))


def write(path: Path, curves: dict[str, dict[int, Curve]]) -> None:
    """
    Write the success rates of all evaluations.

    :param path: csv file to write
    :param curves: evaluations by agent and seed
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["agent", "seed", "timesteps", "episodes", "success_rate"])
        for agent, by_seed in curves.items():
            for seed, curve in by_seed.items():
                for steps, successes in zip(curve.steps, curve.successes, strict=True):
                    writer.writerow([agent, seed, steps, len(successes), round(float(successes.mean()), 4)])


def interval(hierarchical: np.ndarray, flat: np.ndarray) -> tuple[float, float]:
    """
    95 % bootstrap interval of the difference of success rates, hierarchical minus flat. It resamples the seeds, and the
    episodes of each seed.

    :param hierarchical: success of each episode, shape (n_seeds, n_episodes)
    :param flat: the same for the flat agent
    :return: lower and upper end of the interval
    """
    rng = np.random.default_rng(0)
    means = []
    for successes in (hierarchical, flat):
        n_seeds, n_episodes = successes.shape
        # Resampling the episodes of a seed gives a binomial number of successes
        rates = successes.mean(axis=1)[rng.integers(n_seeds, size=(N_DRAWS, n_seeds))]
        means.append((rng.binomial(n_episodes, rates) / n_episodes).mean(axis=1))
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    return float(low), float(high)


def verdict(env_id: str, curves: dict[str, dict[int, Curve]]) -> str:
    """
    :param env_id: id of the environment
    :param curves: evaluations by agent and seed
    :return: a sentence that tells which agent is better after training, with the uncertainty of the result
    """
    last = {agent: np.stack([curve.successes[-1] for curve in by_seed.values()]) for agent, by_seed in curves.items()}
    steps = next(iter(curves["flat"].values())).steps[-1]
    n_seeds, n_episodes = last["flat"].shape
    rates = {agent: successes.mean() for agent, successes in last.items()}
    low, high = interval(last["hierarchical"], last["flat"])
    difference = rates["hierarchical"] - rates["flat"]
    better, worse = AGENTS if difference > 0 else AGENTS[::-1]
    numbers = f"{rates[better]:.2f} against {rates[worse]:.2f} success after {steps:,} steps"
    if low <= 0.0 <= high:
        which = f"On {env_id} neither agent is clearly better: {better} {numbers.replace('against', f'against {worse}')}"
    else:
        which = f"On {env_id} the {better} agent is better by {abs(difference):.2f}: {numbers}"
    seeds = "1 seed" if n_seeds == 1 else f"{n_seeds} seeds"
    episodes = "1 episode" if n_episodes == 1 else f"{n_episodes} episodes"
    more = "; use at least 3 seeds for a reliable result" if n_seeds < 3 else ""
    return (
        f"{which} ({seeds} with {episodes} each; hierarchical minus flat is between {low:+.2f} and {high:+.2f}, "
        f"95 % bootstrap interval{more})."
    )


def main(arguments: list[str]) -> None:
    """
    Train both agents, write the figure and the csv file, and print the result in one sentence.

    :param arguments: command line arguments, without the command's name
    """
    args = parse(arguments)
    config = default_hyperparameters(ALGO, args.env) | (args.hyperparams or {})
    check_success(args, config)
    print(f"{2 * len(args.seeds)} runs of {args.n_timesteps:,} steps each, logged to {args.folder}", flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        started = {(agent, seed): pool.submit(train, agent, seed, args, config) for seed in args.seeds for agent in AGENTS}
        try:
            runs = {agent: {seed: started[agent, seed].result() for seed in args.seeds} for agent in AGENTS}
        except RuntimeError as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise SystemExit(f"compare: {error}") from error
    curves = {agent: {seed: read_curve(run) for seed, run in by_seed.items()} for agent, by_seed in runs.items()}
    write(args.csv, curves)
    figure = plot_success({agent: read_runs(list(by_seed.values())) for agent, by_seed in runs.items()}, args.env)
    figure.savefig(args.output)
    print(f"Saved {args.output} and {args.csv}")
    print(verdict(args.env, curves))
