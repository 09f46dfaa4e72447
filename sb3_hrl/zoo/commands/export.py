"""``python -m sb3_hrl export``: write a trained agent as an ONNX file, from the folder that the zoo wrote."""

import argparse
from pathlib import Path

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.hddpg.export import DecisionModule, LowLevelModule, export_onnx
from sb3_hrl.zoo.commands.shared import add_agent_arguments, check_output, find_agent, make_parser, register_envs
from sb3_hrl.zoo.registration import ALGO


def command_parser() -> argparse.ArgumentParser:
    """
    :return: of the command line, with the names of the zoo's ``enjoy``
    """
    parser = make_parser("export", "Write a trained agent as an ONNX file, from the folder that the zoo wrote.")
    add_agent_arguments(parser, [ALGO])
    parser.add_argument("--low-level", action="store_true", help="the low level alone, which acts on subgoals from elsewhere")
    parser.add_argument("-o", "--output", type=Path, help="the file, .onnx (default: ALGO-ENV.onnx)")
    return parser


def main(arguments: list[str]) -> None:
    """
    :param arguments: of the command line, see ``--help``
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
            f"export: {error}. Train an agent first (python -m sb3_hrl train), or say where it is (-f)."
        ) from error
    except (ValueError, ImportError) as error:
        raise SystemExit(f"export: {error}") from error
    target, results = ("subgoal", "action") if args.low_level else ("desired_goal", "subgoal, action")
    print(f"{args.output}: observation, achieved_goal, {target} -> {results}")
