"""``python -m sb3_hrl watch``: see a trained agent with its subgoals, from the folder that the zoo wrote."""

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

from sb3_hrl.plots.logs import read_arguments
from sb3_hrl.zoo.registration import ALGO

# Training that is long enough to be seen, without evaluation; what a map shows of the past is in the replay buffer
TRAIN_OPTIONS = ["--eval-freq", "-1", "--save-replay-buffer", "-P"]


def parse(arguments: list[str]) -> argparse.Namespace:
    """
    :param arguments: of the command line
    :return: the same by name, as those of the zoo's ``enjoy``
    """
    from rl_zoo3.utils import ALGOS, StoreDict

    parser = argparse.ArgumentParser(prog="python -m sb3_hrl watch", description=__doc__)
    parser.add_argument("--algo", default=ALGO, choices=list(ALGOS), help="RL Algorithm")
    parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument("-f", "--folder", default="logs", help="Log folder")
    parser.add_argument("--exp-id", default=0, type=int, help="Experiment ID (default: 0: latest, -1: no exp folder)")
    parser.add_argument("--load-best", action="store_true", help="Load best model instead of last model if available")
    parser.add_argument("--load-checkpoint", type=int, help="Load the checkpoint of this number of timesteps")
    parser.add_argument("--load-last-checkpoint", action="store_true", help="Load last checkpoint instead of last model")
    parser.add_argument("--train", type=int, metavar="STEPS", help="train an agent first, for so many environment steps")
    parser.add_argument("-n", "--n-episodes", default=3, type=int, help="number of episodes in the video (default: 3)")
    parser.add_argument("-o", "--output", help="the video, .gif or .mp4 (default: ALGO-ENV.gif, unless --map is given)")
    parser.add_argument("--map", metavar="FILE", help="a picture of an episode from above, .png, .pdf or .svg")
    parser.add_argument("--fps", type=float, help="frames per second")
    parser.add_argument("--frame-skip", default=1, type=int, help="environment steps per frame")
    parser.add_argument("--camera", nargs="+", action=StoreDict, help="MuJoCo's camera, such as distance:2.0 elevation:-30")
    parser.add_argument("--stochastic", action="store_true", help="Use stochastic actions")
    parser.add_argument("--seed", default=0, type=int, help="Random generator seed")
    parser.add_argument("--device", default="auto", help="PyTorch device to be used (ex: cpu, cuda...)")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict, help="arguments of the environment, such as width:320")
    args = parser.parse_args(arguments)
    if args.train is not None and args.train < 1:
        parser.error(f"--train takes a number of environment steps of at least 1, not {args.train}")
    if args.output is None and args.map is None:
        args.output = f"{args.algo}-{args.env}.gif"
    return args


def main(arguments: list[str]) -> None:
    """
    :param arguments: of the command line, see ``--help``
    """
    args = parse(arguments)
    if args.output is not None:
        from sb3_hrl.visual import use_offscreen_renderer

        # What is missing is to be said before the training, and before MuJoCo is imported with it
        try:
            use_offscreen_renderer()
        except RuntimeError as error:
            raise SystemExit(f"watch: {error}") from error
    import gymnasium as gym
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    if args.train is not None:
        train(args)
    watch(args)


def train(args: argparse.Namespace) -> None:
    """
    Run the zoo's ``train``, as ``python -m rl_zoo3.train`` does.

    :param args: algorithm, environment, folder, seed and number of steps
    """
    options = ["--algo", args.algo, "--env", args.env, "-f", args.folder, "-n", str(args.train), "--seed", str(args.seed)]
    arguments, sys.argv = sys.argv, ["train", *options, *TRAIN_OPTIONS]
    try:
        runpy.run_module("rl_zoo3.train", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = arguments


def watch(args: argparse.Namespace) -> None:
    """
    Write the video, the map, or both.

    :param args: of the command line
    """
    from sb3_hrl.visual import plot_maze, record_agent

    model, env, log_path = load(args)
    try:
        if args.output is not None:
            successes = record_agent(
                model,
                env,
                args.output,
                n_episodes=args.n_episodes,
                fps=args.fps,
                deterministic=not args.stochastic,
                seed=args.seed,
                frame_skip=args.frame_skip,
                camera=args.camera,
            )
            print(f"{args.output}: {sum(successes)} of {len(successes)} episodes ended in success")
        if args.map is not None:
            buffer = log_path / "replay_buffer.pkl"
            if buffer.is_file() and hasattr(model, "load_replay_buffer"):
                model.load_replay_buffer(buffer)
            plot_maze(model, env, deterministic=not args.stochastic, seed=args.seed).savefig(args.map, dpi=150)
            states = "the replay buffer" if buffer.is_file() else "a few episodes (train with --save-replay-buffer for more)"
            print(f"{args.map}: visited places from {states}")
    finally:
        env.close()


def load(args: argparse.Namespace) -> tuple[Any, Any, Path]:
    """
    Find the agent, its hyperparameters and its environment's arguments, as the zoo's ``enjoy`` does.

    :param args: of the command line
    :return: the agent, its environment (a VecEnv of one), and the folder of the run
    """
    from huggingface_sb3 import EnvironmentName
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.utils import ALGOS, create_test_env, get_model_path, get_saved_hyperparams
    from stable_baselines3.common.utils import set_random_seed

    env_name = EnvironmentName(args.env)
    choice = (args.load_best, args.load_checkpoint, args.load_last_checkpoint)
    try:
        _, model_path, log_path = get_model_path(args.exp_id, args.folder, args.algo, env_name, *choice)
    except (AssertionError, ValueError) as error:
        raise SystemExit(f"watch: {error}. Train an agent first (--train STEPS does), or say where it is (-f).") from error
    print(f"Loading {model_path}")
    set_random_seed(args.seed)
    hyperparams, stats_path = get_saved_hyperparams(str(Path(log_path) / env_name), test_mode=True)
    env_kwargs = hyperparams.pop("env_kwargs", {})
    # What was given on the command line of the training, and of this
    saved = read_arguments(Path(log_path)).get("env_kwargs")
    env_kwargs = env_kwargs if saved is None else saved
    env_kwargs = {**env_kwargs, **(args.env_kwargs or {})}
    if args.output is not None:
        env_kwargs["render_mode"] = "rgb_array"
    env = create_test_env(
        env_name.gym_id,
        stats_path=stats_path,
        seed=args.seed,
        should_render=False,
        hyperparams=hyperparams,
        env_kwargs=env_kwargs,
        vec_env_cls=ExperimentManager.default_vec_env_cls,
    )
    # SB3's buffer with hindsight cannot be made without an environment; as little of it as can be
    is_hindsight = "HerReplayBuffer" in hyperparams.get("replay_buffer_class", "")
    kwargs: dict[str, Any] = {"env": env, "buffer_size": 1} if is_hindsight else {}
    schedules = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    model = ALGOS[args.algo].load(model_path, custom_objects=schedules, device=args.device, seed=args.seed, **kwargs)
    return model, env, Path(log_path)
