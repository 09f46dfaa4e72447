"""
Trains agents in environments on which this package is not tuned: `hddpg` with the default settings (no argument except the
seed), `flat` with the same code, and `ddpg`, `sac` and `tqc` of SB3 and sb3-contrib (with HerReplayBuffer, VecNormalize for
the observations, and the default hyperparameters of these libraries). After each tenth of the training, the agent is evaluated
on 100 deterministic episodes. The results go to benchmarks/results/strangers/<algo>-<env>.csv, with the seconds of training
without evaluations. `strangers_report.py` writes docs/strangers.md from these files.

    python benchmarks/strangers.py                                      # the light environments, all algorithms
    python benchmarks/strangers.py --env FetchPush-v4 AntMaze_UMaze-v4 --checkpoints checkpoints  # the heavy ones
    python benchmarks/strangers.py --env parking-v0 --algo sac --seeds 0 --params gamma:0.95 --results elsewhere
"""

import argparse
import ast
import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from learning import Row, run_alone, write
from stranger_envs import episode_steps, make


class Task(NamedTuple):
    """
    :param timesteps: environment steps of the training
    :param heavy: a run takes hours, so it needs `--env`, and only the algorithms of `HEAVY_ALGOS` are trained
    """

    timesteps: int
    heavy: bool = False


TASKS = {
    "StrangerArmTip-v0": Task(6_000),
    "StrangerArm-v0": Task(6_000),
    "StrangerPoint3D-v0": Task(6_000),
    "StrangerQuadrotor-v0": Task(10_000),
    "StrangerRooms-v0": Task(30_000),
    "InvertedPendulum-v5": Task(10_000),
    "MountainCarContinuous-v0": Task(10_000),
    "Pendulum-v1": Task(6_000),
    "FetchReach-v4": Task(2_000),
    "PandaReach-v3": Task(3_000),
    "PointMaze_Open-v3": Task(10_000),
    "PointMaze_UMaze-v3": Task(12_000),
    "PointMaze_Medium-v3": Task(30_000),
    "PointMaze_Large-v3": Task(60_000),
    "parking-v0": Task(20_000),
    "FetchPush-v4": Task(300_000, heavy=True),
    "AntMaze_UMaze-v4": Task(300_000, heavy=True),
}
ALGOS = ["hddpg", "flat", "ddpg", "sac", "tqc"]
HEAVY_ALGOS = ["hddpg", "flat", "tqc"]
N_EVALUATIONS = 10


def algorithm_class(algo: str) -> Any:
    """
    :param algo: one of `ALGOS`
    :return: its class
    """
    from sb3_contrib import TQC
    from stable_baselines3 import DDPG, SAC

    from sb3_hrl import HierarchicalDDPG

    return {"hddpg": HierarchicalDDPG, "flat": HierarchicalDDPG, "ddpg": DDPG, "sac": SAC, "tqc": TQC}[algo]


def make_model(algo: str, env_id: str, seed: int, params: dict[str, Any]) -> Any:
    """
    :param algo: one of `ALGOS`
    :param env_id: one of `TASKS`
    :param seed: seed of the agent and of its environment
    :param params: arguments that replace defaults of the class
    :return: the untrained agent
    """
    from stable_baselines3 import HerReplayBuffer
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    env, kwargs = make(env_id), dict[str, Any](seed=seed, device="cpu")
    if algo == "flat":
        kwargs["subgoal_kwargs"] = dict(source="goal")
    elif algo != "hddpg":
        kwargs["replay_buffer_class"] = HerReplayBuffer
        if episode_steps(env) >= 100:
            # HerReplayBuffer cannot sample before the first episode has ended; the default is 100 steps
            kwargs["learning_starts"] = 2 * episode_steps(env)
        if algo == "ddpg":
            # As in SB3's example: without noise, DDPG does not explore
            n_actions = env.action_space.shape[0]
            kwargs["action_noise"] = NormalActionNoise(np.zeros(n_actions), 0.1 * np.ones(n_actions))
        env = VecNormalize(DummyVecEnv([lambda: env]), norm_reward=False)
    return algorithm_class(algo)("MultiInputPolicy", env, **(kwargs | params))


def save_checkpoint(model: Any, rows: list[Row], folder: Path) -> None:
    """
    :param model: an agent while it learns
    :param rows: its evaluations
    :param folder: replaced by everything that the training needs to go on
    """
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    model.save(new / "agent.zip")
    model.save_replay_buffer(new / "replay_buffer.pkl")
    if model.get_vec_normalize_env() is not None:
        model.get_vec_normalize_env().save(str(new / "normalization.pkl"))
    (new / "rows.json").write_text(json.dumps(rows))
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def load_checkpoint(algo: str, env_id: str, folder: Path) -> tuple[Any, list[Row]]:
    """
    :param algo: one of `ALGOS`
    :param env_id: one of `TASKS`
    :param folder: written by :func:`save_checkpoint`
    :return: the agent and its evaluations. It goes on with a new episode, so a run in parts is not equal to a run at once
    """
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    env = DummyVecEnv([lambda: make(env_id)])
    if (folder / "normalization.pkl").exists():
        env = VecNormalize.load(str(folder / "normalization.pkl"), env)
    model = algorithm_class(algo).load(folder / "agent.zip", env=env, device="cpu")
    model.load_replay_buffer(folder / "replay_buffer.pkl")
    return model, [tuple(row) for row in json.loads((folder / "rows.json").read_text())]


def train(
    algo: str,
    env_id: str,
    seed: int,
    timesteps: int,
    n_episodes: int,
    params: dict[str, Any],
    checkpoints: Path | None = None,
) -> list[Row]:
    """
    :param algo: one of `ALGOS`
    :param env_id: one of `TASKS`
    :param seed: seed of the run; the seed of the evaluation is 10,000 more
    :param timesteps: environment steps to train
    :param n_episodes: episodes per evaluation
    :param params: arguments that replace defaults of the class
    :param checkpoints: folder where the agent is saved after each evaluation, and from which the training goes on if it was
        interrupted; ``None``: nothing is saved
    :return: rows of seed, environment steps, success rate, and seconds of training so far
    """
    import torch as th
    from evaluation import Evaluation

    th.set_num_threads(1)
    folder = None if checkpoints is None else checkpoints / f"{algo}-{env_id}-{seed}"
    if folder is not None and folder.exists():
        model, rows = load_checkpoint(algo, env_id, folder)
    else:
        model, rows = make_model(algo, env_id, seed, params), []
    marks = [timesteps * part // N_EVALUATIONS for part in range(1, N_EVALUATIONS + 1)]
    marks = [mark for mark in marks if mark > model.num_timesteps]
    evaluation = Evaluation(
        lambda: make(env_id),
        f"{algo} {env_id}",
        marks,
        seed,
        n_episodes,
        then=None if folder is None else lambda: save_checkpoint(model, evaluation.rows, folder),
        rows=rows,
    )
    model.learn(timesteps - model.num_timesteps, callback=evaluation, log_interval=None, reset_num_timesteps=False)
    return evaluation.rows


def parse_params(texts: list[str]) -> dict[str, Any]:
    """
    :param texts: such as ``learning_rate:3e-4``; a value that is not a Python literal is a string
    :return: arguments for the class of the algorithm
    """
    params = dict[str, Any]()
    for text in texts:
        key, colon, value = text.partition(":")
        if not colon:
            raise ValueError(f"`--params` takes key:value, not {text!r}.")
        try:
            params[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            params[key] = value
    return params


def run(algo: str, env_id: str, seed: int, args: argparse.Namespace, lock: threading.Lock) -> bool:
    """
    Train in a separate process. At the end, its rows replace the rows of this seed in the csv file.

    :param algo: one of `ALGOS`
    :param env_id: one of `TASKS`
    :param seed: seed of the run
    :param args: arguments of the command line
    :param lock: held while a csv file is read and written
    :return: whether the run succeeded; if not, its traceback is on standard error
    """
    command = ["--run", "--env", env_id, "--algo", algo, "--seeds", str(seed), "--eval-episodes", str(args.eval_episodes)]
    command += ["--timesteps", str(args.timesteps)] if args.timesteps else []
    command += ["--params", *args.params] if args.params else []
    command += ["--checkpoints", str(args.checkpoints)] if args.checkpoints else []
    name = f"{algo}-{env_id}.csv"
    rows = run_alone(__file__, command, name)
    if rows is None:
        print(f"{algo} {env_id} seed {seed}: FAILED", file=sys.stderr, flush=True)
        return False
    with lock:
        write(args.results / name, rows, add=True)
    print(f"{algo} {env_id} seed {seed}: " + " ".join(f"{rate:.2f}" for _, _, rate, _ in rows), flush=True)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    light = [env_id for env_id, task in TASKS.items() if not task.heavy]
    parser.add_argument("--env", nargs="+", default=light, choices=TASKS, metavar="ENV", help=", ".join(TASKS))
    parser.add_argument("--algo", nargs="+", default=ALGOS, choices=ALGOS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--timesteps", type=int, help="environment steps to train, instead of the default of the environment")
    parser.add_argument("--eval-episodes", type=int, default=100)
    parser.add_argument("--params", nargs="*", default=[], help="key:value, arguments of the class: use another --results")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results/strangers", help="folder of the csv files"
    )
    parser.add_argument("--checkpoints", type=Path, help="folder of checkpoints: interrupted runs go on with the same command")
    parser.add_argument("--run", action="store_true", help="train one run in this process")
    args = parser.parse_args()

    runs = [
        (algo, env_id, seed)
        for env_id in args.env
        for algo in args.algo
        for seed in args.seeds
        if not TASKS[env_id].heavy or algo in HEAVY_ALGOS
    ]
    if args.run:
        ((algo, env_id, seed),) = runs
        timesteps = args.timesteps or TASKS[env_id].timesteps
        rows = train(algo, env_id, seed, timesteps, args.eval_episodes, parse_params(args.params), args.checkpoints)
        write(args.results / f"{algo}-{env_id}.csv", rows, add=False)
        return
    lock = threading.Lock()
    with ThreadPoolExecutor(args.jobs) as pool:
        started = [pool.submit(run, algo, env_id, seed, args, lock) for algo, env_id, seed in runs]
        ended_well = [future.result() for future in started]
    if not all(ended_well):
        sys.exit(f"{ended_well.count(False)} of {len(runs)} runs failed.")


if __name__ == "__main__":
    main()
