"""
Measures the wall time until an agent succeeds in 90 % of its episodes, as a user sees it: from the start of the process, with
imports, the start of workers and everything else, but without the evaluations, during which the clock stops. Success is the
first evaluation of 100 deterministic episodes with a rate of at least 0.9; then the run ends. The agents are

- ``hddpg``: HierarchicalDDPG with its default settings
- ``hddpg-async``: the same with two workers (`--workers`), and as many updates per step
- ``ddpg``, ``sac``, ``tqc``: the algorithms of SB3 and sb3-contrib, with HerReplayBuffer, VecNormalize and the settings of
  `CONTROLS`

The results go to benchmarks/results/time-to-success/<agent>-<env>.csv. Seeds that are there already are not run again. Nothing
else should run on the machine. `--report` writes the table of docs/results.md from these files.

    python benchmarks/time_to_success.py --env FetchReach-v4 PointMaze_Large-v3
    python benchmarks/time_to_success.py --agent hddpg-async --workers 6 --params device:cuda --results gpu
    python benchmarks/time_to_success.py --report           # --check: fails if the page differs from the csv files
"""

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from learning import run_alone, write
from report import ROOT, fill, rows_by_seed
from strangers import make_model, parse_params

SUCCESS = 0.9


class Task(NamedTuple):
    """
    :param timesteps: environment steps after which a run ends without success
    :param spacing: environment steps between evaluations
    """

    timesteps: int
    spacing: int


TASKS = {
    "FetchReach-v4": Task(10_000, 250),
    "PointMaze_UMaze-v3": Task(60_000, 1_000),
    "PointMaze_Medium-v3": Task(100_000, 2_500),
    "PointMaze_Large-v3": Task(150_000, 5_000),
    "AntMaze_UMaze-v4": Task(500_000, 20_000),
    "StrangerArmTip-v0": Task(20_000, 500),
}
AGENTS = {
    "hddpg": "hierarchical, default",
    "hddpg-async": "hierarchical, default, 2 workers",
    "ddpg": "DDPG + HER (SB3)",
    "sac": "SAC + HER (SB3)",
    "tqc": "TQC + HER (sb3-contrib)",
}
# Settings that are stronger than the defaults: the target networks follow as fast as ours, the learning rate is that of the
# zoo's Fetch environments, and DDPG has two critics, as ours
CONTROLS: dict[str, dict[str, Any]] = {
    "ddpg": dict(tau=0.02, policy_kwargs=dict(n_critics=2)),
    "sac": dict(tau=0.02, learning_rate=1e-3),
    "tqc": dict(tau=0.02, learning_rate=1e-3),
}
BEGIN, END = "<!-- time: written by benchmarks/time_to_success.py -->", "<!-- end of time -->"


def make_agent(agent: str, env_id: str, seed: int, params: dict[str, Any], n_workers: int = 2) -> Any:
    """
    :param agent: one of `AGENTS`
    :param env_id: one of `TASKS`
    :param seed: seed of the agent and of its environments
    :param params: arguments that replace those of the agent
    :param n_workers: number of workers of ``hddpg-async``
    :return: the untrained agent
    """
    if agent != "hddpg-async":
        return make_model(agent, env_id, seed, CONTROLS.get(agent, {}) | params)
    from stranger_envs import make

    from sb3_hrl import HierarchicalDDPG, ParallelCollector

    env = ParallelCollector([functools.partial(make, env_id)] * n_workers)
    kwargs = dict(async_collection=True, gradient_steps=n_workers, device="cpu") | params
    return HierarchicalDDPG("MultiInputPolicy", env, seed=seed, **kwargs)


def run(args: argparse.Namespace) -> None:
    """
    Train in this process, and write the rows of the csv file.

    :param args: arguments of the command line, with one environment, agent and seed
    """
    import torch as th
    from evaluation import Evaluation
    from stranger_envs import make

    th.set_num_threads(args.threads)
    (env_id,), (agent,), (seed,) = args.env, args.agent, args.seeds
    timesteps = args.timesteps or TASKS[env_id].timesteps
    spacing = args.spacing or TASKS[env_id].spacing
    marks = range(spacing, timesteps + 1, spacing)
    make_env = functools.partial(make, env_id)
    evaluation = Evaluation(make_env, f"{agent} {env_id}", marks, seed, args.eval_episodes, args.started, SUCCESS)
    model = make_agent(agent, env_id, seed, parse_params(args.params), args.workers)
    try:
        model.learn(timesteps, callback=evaluation, log_interval=None)
    finally:
        model.get_env().close()
    write(args.results / f"{agent}-{env_id}.csv", evaluation.rows, add=True)


def measured_seeds(path: Path) -> set[int]:
    """:return: seeds whose rows are in a csv file"""
    return set(rows_by_seed(path)) if path.exists() else set()


def run_in_process(agent: str, env_id: str, seed: int, args: argparse.Namespace) -> bool:
    """:return: whether the run in a process of its own succeeded; if not, its traceback is on standard error"""
    command = ["--env", env_id, "--agent", agent, "--seeds", str(seed), "--eval-episodes", str(args.eval_episodes)]
    command += ["--timesteps", str(args.timesteps)] if args.timesteps else []
    command += ["--spacing", str(args.spacing)] if args.spacing else []
    command += ["--params", *args.params] if args.params else []
    command += ["--workers", str(args.workers), "--threads", str(args.threads)]
    name = f"{agent}-{env_id}.csv"
    # The clocks of processes on the same machine agree
    rows = run_alone(__file__, [*command, "--started", repr(time.monotonic())], name, args.threads)
    if rows is None:
        print(f"{agent} {env_id} seed {seed}: FAILED", file=sys.stderr, flush=True)
        return False
    write(args.results / name, rows, add=True)
    return True


# -------------------------------------------------------------------------------------------------------- report


def cell(path: Path) -> str:
    """
    :param path: csv file of an agent in an environment
    :return: median over the seeds of the time and of the steps to 90 %, and how many seeds there are if they are not three
    """
    if not path.exists():
        return "not measured"
    times, steps, last = list[float](), list[float](), 0
    for rows in rows_by_seed(path).values():
        row, last = rows[-1], max(last, int(rows[-1]["timesteps"]))
        reached = float(row["success_rate"]) >= SUCCESS
        times.append(float(row["seconds"]) if reached else float("inf"))
        steps.append(int(row["timesteps"]) if reached else float("inf"))
    # Of an even number of seeds the worse one in the middle
    median = statistics.median_high(times)
    n_seeds = "" if len(times) == 3 else f", {len(times)} seed{'s' if len(times) > 1 else ''}"
    if median == float("inf"):
        return f"not within {last:,} steps{n_seeds}"
    time_ = f"{median:.0f} s" if median < 300 else f"{median / 60:.0f} min"
    return f"{time_} ({statistics.median_high(steps):,} steps{n_seeds})"


def table(folder: Path) -> str:
    """
    :param folder: folder of the csv files
    :return: a table with one row per environment that is in the files
    """
    lines = ["| environment | " + " | ".join(AGENTS.values()) + " |", "|---|" + "---|" * len(AGENTS)]
    measured = {path.name.removeprefix(f"{agent}-") for agent in AGENTS for path in folder.glob(f"{agent}-*.csv")}
    for env_id in (env_id for env_id in TASKS if f"{env_id}.csv" in measured):
        cells = [cell(folder / f"{agent}-{env_id}.csv") for agent in AGENTS]
        lines.append(f"| {env_id} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=list(TASKS), choices=TASKS, metavar="ENV", help=", ".join(TASKS))
    parser.add_argument("--agent", nargs="+", default=list(AGENTS), choices=AGENTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--timesteps", type=int, help="maximum number of steps, instead of that of the environment")
    parser.add_argument("--spacing", type=int, help="steps between evaluations, instead of that of the environment")
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2, help="number of workers of hddpg-async")
    parser.add_argument("--threads", type=int, default=1, help="number of threads of torch in the learner")
    parser.add_argument("--params", nargs="*", default=[], help="key:value, arguments of the class: use another --results")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks/results/time-to-success", help="folder of the csv files"
    )
    parser.add_argument("--report", action="store_true", help="write the table from the csv files")
    parser.add_argument("--check", action="store_true", help="only compare the table with the csv files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/results.md", help="page with the table")
    parser.add_argument("--started", type=float, help="used internally: time at which this process was started")
    args = parser.parse_args()

    if args.started is not None:
        run(args)
    elif args.report or args.check:
        fill(args.page, table(args.results), (BEGIN, END), args.check)
    else:
        runs = [
            (agent, env_id, seed)
            for env_id in args.env
            for agent in args.agent
            for seed in args.seeds
            if seed not in measured_seeds(args.results / f"{agent}-{env_id}.csv")
        ]
        # One after the other: a run has the machine for itself
        ended_well = [run_in_process(*each, args) for each in runs]
        if not all(ended_well):
            sys.exit(f"{ended_well.count(False)} of {len(runs)} runs failed.")


if __name__ == "__main__":
    main()
