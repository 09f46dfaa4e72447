"""Shows a trained agent from the zoo's log folder, with its subgoals, in a video or on a map."""

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
from huggingface_sb3 import EnvironmentName
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, StoreDict, create_test_env, get_saved_hyperparams
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_hrl.plots.logs import read_arguments
from sb3_hrl.visual import plot_maze, record_agent, use_offscreen_renderer
from sb3_hrl.visual.episodes import check_goals, single_env
from sb3_hrl.visual.maze import check_map, check_matplotlib
from sb3_hrl.visual.rendering import Scene
from sb3_hrl.visual.video import SUFFIXES, check_numbers, check_path
from sb3_hrl.zoo.commands.shared import (
    FORMATS,
    add_agent_arguments,
    check_output,
    default_hyperparameters,
    find_agent,
    make_env,
    make_parser,
    register_envs,
)
from sb3_hrl.zoo.registration import ALGO

# Training without evaluation is short enough to wait for; a map takes the visited places from the replay buffer
TRAIN_OPTIONS = ["--eval-freq", "-1", "--save-replay-buffer", "-P"]


# Exceptions whose message explains why something cannot be drawn
REFUSALS = (ValueError, ImportError, RuntimeError)


def command_parser() -> argparse.ArgumentParser:
    """
    :return: command line parser, with the option names of the zoo's ``enjoy``
    """
    parser = make_parser("watch", "Makes a video or a map of a trained agent and its subgoals, from a log folder of the zoo.")
    add_agent_arguments(parser, list(ALGOS))
    parser.add_argument("--train", type=int, metavar="STEPS", help="first train an agent for this number of steps")
    parser.add_argument("-n", "--n-timesteps", type=int, help="number of environment steps in the video")
    parser.add_argument("--n-episodes", type=int, help="number of episodes in the video (default: 3, or no limit with -n)")
    parser.add_argument(
        "-o", "--output", type=Path, help="the video, .gif or .mp4 (default: ALGO-ENV.gif, unless --map is given)"
    )
    parser.add_argument("--map", type=Path, metavar="FILE", help="a map with an episode, .png, .pdf or .svg")
    parser.add_argument("--fps", type=float, help="frames per second (default: real time, at most 30)")
    parser.add_argument("--frame-skip", default=1, type=int, help="environment steps per frame")
    parser.add_argument("--camera", nargs="+", action=StoreDict, help="MuJoCo's camera, such as distance:2.0 elevation:-30")
    parser.add_argument("--stochastic", action="store_true", help="Use stochastic actions")
    parser.add_argument("--seed", default=0, type=int, help="Random generator seed")
    parser.add_argument("--device", default="auto", help="PyTorch device to be used (ex: cpu, cuda...)")
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict, help="arguments of the environment, such as width:320")
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """
    :param arguments: command line arguments
    :return: parsed arguments; everything that does not need an environment has been checked
    """
    parser = command_parser()
    args = parser.parse_args(arguments)
    if args.train is not None and args.train < 1:
        parser.error(f"--train needs a number of environment steps of at least 1, not {args.train}")
    if args.train is not None and (args.exp_id or args.load_best or args.load_checkpoint or args.load_last_checkpoint):
        parser.error("--train shows the agent that it trains: leave out --exp-id and --load-..., or --train")
    if args.seed < 0:
        parser.error(f"--seed must be at least 0, not {args.seed}")
    if args.map is not None and args.algo != ALGO:
        parser.error(f"--map draws subgoals, but {args.algo} has none: leave it out, or use --algo {ALGO}")
    if args.n_episodes is None:
        args.n_episodes = 3 if args.n_timesteps is None else sys.maxsize
    if args.output is None and args.map is None:
        args.output = Path(f"{args.algo}-{args.env.replace('/', '-')}.gif")
    if args.map is not None:
        check_output(parser, "--map", args.map, FORMATS)
        try:
            check_matplotlib()
        except ImportError as error:
            raise SystemExit(f"watch: {error}") from error
    if args.output is not None:
        check_output(parser, "-o", args.output, SUFFIXES)
        try:
            check_path(args.output)
            check_numbers(args.n_episodes, args.frame_skip, args.fps, n_timesteps=args.n_timesteps)
            # Before MuJoCo is imported with an environment
            use_offscreen_renderer()
        except REFUSALS as error:
            raise SystemExit(f"watch: {error}") from error
    register_envs(parser, args)
    return args


def main(arguments: list[str]) -> None:
    """
    :param arguments: command line arguments, see ``--help``
    """
    args = parse(arguments)
    if args.train is not None:
        rehearse(args)
        train(args)
    watch(args)


def rehearse(args: argparse.Namespace) -> None:
    """
    Check before the training that the result can be drawn.

    :param args: command line arguments
    """
    config = default_hyperparameters(args.algo, args.env)
    options = (args.env_kwargs or {}) | ({} if args.output is None else {"render_mode": "rgb_array"})
    try:
        trained_on, env = make_env(args.env, config), make_env(args.env, config, **options)
    except Exception as error:
        raise SystemExit(f"watch: {args.env} cannot be created with {options}: {error}. Check --env-kwargs.") from error
    try:
        if env.observation_space != trained_on.observation_space:
            raise SystemExit(
                "watch: --env-kwargs changes the observations, but --train trains without it: train with `python -m sb3_hrl "
                "train --env-kwargs ...`, then watch."
            )
        check_drawable(args, env)
    finally:
        trained_on.close()
        env.close()


def check_drawable(args: argparse.Namespace, env: gym.Env | VecEnv) -> None:
    """
    Check that the environment can be drawn, by drawing it.

    :param args: command line arguments
    :param env: the environment, or a VecEnv of one
    """
    try:
        env = single_env(env)
        check_goals(env)
        if args.map is not None:
            check_map(env)
        if args.output is not None:
            scene, (obs, _) = Scene(env, camera=args.camera), env.reset(seed=args.seed)
            scene.frame(obs["desired_goal"].ravel())
    except REFUSALS as error:
        raise SystemExit(f"watch: {error}") from error


def train(args: argparse.Namespace) -> None:
    """
    Run the zoo's ``train``, as ``python -m rl_zoo3.train`` does.

    :param args: command line arguments: algorithm, environment, folder, seed and number of steps
    """
    options = ["--algo", args.algo, "--env", args.env, "-f", args.folder, "-n", str(args.train), "--seed", str(args.seed)]
    options += ["--device", args.device, *(["--gym-packages", *args.gym_packages] if args.gym_packages else [])]
    arguments, sys.argv = sys.argv, ["train", *options, *TRAIN_OPTIONS]
    try:
        runpy.run_module("rl_zoo3.train", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = arguments


def watch(args: argparse.Namespace) -> None:
    """
    Write the video, the map, or both.

    :param args: command line arguments
    """
    model, env, log_path = load(args)
    try:
        check_drawable(args, env)
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
                n_timesteps=args.n_timesteps,
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

    :param args: command line arguments
    :return: the agent, its environment (a VecEnv of one), and the folder of the run
    """
    env_name = EnvironmentName(args.env)
    try:
        model_path, log_path = find_agent(args)
    except FileNotFoundError as error:
        raise SystemExit(f"watch: {error}. Train an agent first (--train STEPS does), or pass its folder (-f).") from error
    set_random_seed(args.seed)
    hyperparams, stats_path = get_saved_hyperparams(str(log_path / env_name), test_mode=True)
    env_kwargs = hyperparams.pop("env_kwargs", {})
    # Arguments on the command line of the training, and of this command
    saved = read_arguments(log_path).get("env_kwargs")
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
    # SB3's buffer with hindsight needs an environment; here the buffer can be as small as possible
    is_hindsight = "HerReplayBuffer" in hyperparams.get("replay_buffer_class", "")
    kwargs: dict[str, Any] = {"env": env, "buffer_size": 1} if is_hindsight else {}
    schedules = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    model = ALGOS[args.algo].load(model_path, custom_objects=schedules, device=args.device, seed=args.seed, **kwargs)
    return model, env, log_path
