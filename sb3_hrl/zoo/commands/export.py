"""Exports a trained agent from the zoo's log folder as an ONNX file."""

import argparse
from pathlib import Path

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.hddpg.export import DecisionModule, LowLevelModule, export_onnx
from sb3_hrl.zoo.commands.shared import add_agent_arguments, check_output, find_agent, make_parser, register_envs
from sb3_hrl.zoo.registration import ALGO


def command_parser() -> argparse.ArgumentParser:
    """
    :return: command line parser, with the option names of the zoo's ``enjoy``
    """
    parser = make_parser("export", "Exports a trained agent from a log folder of the zoo as an ONNX file.")
    add_agent_arguments(parser, [ALGO])
    parser.add_argument("--low-level", action="store_true", help="only the low level, which takes subgoals as an input")
    parser.add_argument("-o", "--output", type=Path, help="output file, .onnx (default: ALGO-ENV.onnx)")
    return parser


def main(arguments: list[str]) -> None:
    """
    :param arguments: command line arguments, see ``--help``
    """
    parser = command_parser()
    args = parser.parse_args(arguments)
    if args.output is None:
        args.output = Path(f"{args.algo}-{args.env.replace('/', '-')}.onnx")
    check_output(parser, "-o", args.output, [".onnx"])
    register_envs(parser, args)
    try:
        model_path, _ = find_agent(args)
        policy = HierarchicalDDPG.load(model_path, device="cpu").policy
        export_onnx(LowLevelModule(policy) if args.low_level else DecisionModule(policy), policy, args.output)
    except FileNotFoundError as error:
        raise SystemExit(
            f"export: {error}. Train an agent first (python -m sb3_hrl train), or pass its log folder (-f)."
        ) from error
    except (ValueError, ImportError) as error:
        raise SystemExit(f"export: {error}") from error
    target, results = ("subgoal", "action") if args.low_level else ("desired_goal", "subgoal, action")
    print(f"{args.output}: observation, achieved_goal, {target} -> {results}")
