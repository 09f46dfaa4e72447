"""
Trains with the zoo's command line and the hyperparameters of hddpg.yml, and writes learning curves to
benchmarks/results/<name>-<env>.csv: the success rate over deterministic evaluation episodes, for each seed. The flat baselines
have their own hyperparameters in benchmarks/hyperparams.

    python benchmarks/learning.py --env FetchReach-v2 FetchReach-v4 --eval-freq 500
    python benchmarks/learning.py --env PointMaze_UMaze-v3 --eval-freq 5000
    python benchmarks/learning.py --env FetchReach-v4 --eval-freq 500 --jobs 1 --name hddpg-async --vec-env subproc \\
        --params n_envs:2 gradient_steps:2
    python benchmarks/learning.py --env PointMaze_Medium-v3 --eval-freq 10000 --name flat \\
        --conf-file benchmarks/hyperparams/flat.yml
    python benchmarks/learning.py --env PointMaze_Medium-v3 --eval-freq 10000 --name sb3-ddpg --algo ddpg \\
        --conf-file benchmarks/hyperparams/ddpg.yml
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import yaml

from sb3_hrl.hddpg.saving import drop_training_state

Row = tuple[int, int, float, float]


def run(env_id: str, seed: int, args: argparse.Namespace) -> list[Row]:
    """:return: rows of seed, environment steps, success rate, and seconds of the whole run"""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rl_zoo3.train", "--algo", args.algo, "--env", env_id, "--seed", str(seed)]
        command += ["--eval-freq", str(args.eval_freq), "--eval-episodes", str(args.eval_episodes), "-f", folder]
        command += ["--num-threads", "1", "--verbose", "0", "--log-interval", "-2"]
        command += ["--vec-env", args.vec_env, *(["-params", *args.params] if args.params else [])]
        command += ["--conf-file", str(args.conf_file)] if args.conf_file else []
        if args.algo != "hddpg":
            # Does what the start-up hook does for hddpg: registers environments, and evaluates in those of training
            command += ["--gym-packages", "gymnasium_robotics"]
            env_kwargs = yaml.safe_load(args.conf_file.read_text())[env_id].get("env_kwargs", {})
            command += ["--eval-env-kwargs", *(f"{key}:{value}" for key, value in env_kwargs.items())] if env_kwargs else []
        start = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        seconds = round(time.monotonic() - start)
        print(f"{env_id} seed {seed}: {seconds} s with start and evaluations", flush=True)
        trained = Path(folder) / args.algo / f"{env_id}_1"
        if args.agents is not None and seed == args.seeds[0]:
            keep(trained, env_id, args.agents / args.algo / f"{env_id}_1")
        evaluations = np.load(trained / "evaluations.npz")
        rates = evaluations["successes"].astype(float).mean(axis=1)
        return [(seed, int(steps), float(rate), seconds) for steps, rate in zip(evaluations["timesteps"], rates, strict=True)]


def keep(trained: Path, env_id: str, folder: Path) -> None:
    """Copy the files that the zoo's `enjoy` needs: the agent after the last step, hyperparameters and arguments."""
    (folder / env_id).mkdir(parents=True, exist_ok=True)
    if trained.parent.name == "hddpg":
        drop_training_state(trained / f"{env_id}.zip", folder / f"{env_id}.zip")
    else:
        shutil.copy(trained / f"{env_id}.zip", folder / f"{env_id}.zip")
    for name in (f"{env_id}/config.yml", f"{env_id}/args.yml"):
        shutil.copy(trained / name, folder / name)


def write(path: Path, rows: Sequence[Row], add: bool) -> None:
    """:param add: whether to keep rows of other seeds in the file"""
    others = []
    if add and path.exists():
        measured = {seed for seed, *_ in rows}
        with path.open() as file:
            others = [row for row in list(csv.reader(file))[1:] if int(row[0]) not in measured]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "timesteps", "success_rate", "seconds"])
        writer.writerows(sorted([*others, *rows], key=lambda row: (int(row[0]), int(row[1]))))


def run_alone(script: str, arguments: Sequence[str], name: str, n_threads: int = 1) -> list[Row] | None:
    """
    Run a script of this folder that trains one agent, in a process of its own.

    :param script: path of the script, which writes its rows to a csv file in the folder ``--results``
    :param arguments: its other arguments
    :param name: name of the csv file
    :param n_threads: number of threads per library
    :return: the rows; ``None`` if the script failed: its traceback is on standard error
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", script, *arguments, "--results", folder]
        threads = {name: str(n_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        if subprocess.run(command, env=os.environ | threads).returncode != 0:
            return None
        with (Path(folder) / name).open() as file:
            fields = list(csv.reader(file))[1:]
    return [(int(seed), int(steps), float(rate), float(seconds)) for seed, steps, rate, seconds in fields]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--eval-freq", type=int, default=500)
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--vec-env", default="dummy", choices=["dummy", "subproc"], help="subproc collects asynchronously")
    parser.add_argument("--params", nargs="*", help="other hyperparameters, as for the zoo's -params")
    parser.add_argument("--algo", default="hddpg", choices=["hddpg", "ddpg"], help="ddpg: SB3's, with HerReplayBuffer")
    parser.add_argument("--conf-file", type=Path, help="file of hyperparameters instead of hddpg.yml")
    parser.add_argument("--name", default="hddpg", help="prefix of the file names")
    parser.add_argument("--agents", type=Path, help="save the first seed's agent in this folder, for the zoo's `enjoy -f`")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder of the csv files")
    parser.add_argument("--add", action="store_true", help="keep other seeds in the csv files, to run one seed at a time")
    args = parser.parse_args()

    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {env_id: [pool.submit(run, env_id, seed, args) for seed in args.seeds] for env_id in args.env}
        for env_id, runs in futures.items():
            rows = [row for future in runs for row in future.result()]
            write(args.results / f"{args.name}-{env_id}.csv", rows, args.add)
            for seed in args.seeds:
                curve = " ".join(f"{steps}:{rate:.2f}" for row_seed, steps, rate, _ in rows if row_seed == seed)
                print(f"{env_id} seed {seed}: {curve}", flush=True)


if __name__ == "__main__":
    main()
