"""``python -m sb3_hrl <command>``: rl_zoo3's command lines, without the start-up hook, and our own."""

import difflib
import importlib
import runpy
import sys
from pathlib import Path

from sb3_hrl.zoo import register

COMMANDS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "record_video": "rl_zoo3.record_video",
    "record_training": "rl_zoo3.record_training",
    "push_to_hub": "rl_zoo3.push_to_hub",
    "load_from_hub": "rl_zoo3.load_from_hub",
    "plot_train": "rl_zoo3.plots.plot_train",
    "all_plots": "rl_zoo3.plots.all_plots",
    "plot_from_file": "rl_zoo3.plots.plot_from_file",
}
# Modules with a function `main(arguments)`, and what they do
OWN_COMMANDS: dict[str, tuple[str, str]] = {
    "compare": ("sb3_hrl.zoo.commands.compare", "does an environment need a hierarchy? Trains flat and hierarchical agents"),
    "curves": ("sb3_hrl.zoo.commands.curves", "one figure of the curves of a log folder's runs"),
    "doctor": ("sb3_hrl.zoo.commands.doctor", "what is wrong with an environment, and with the run that was trained on it"),
    "export": ("sb3_hrl.zoo.commands.export", "an ONNX file of an agent"),
    "watch": ("sb3_hrl.zoo.commands.watch", "a GIF or MP4 of an agent with its subgoals in the scene, or a map of its maze"),
}


# What is in an extra
EXTRAS = {"matplotlib": "visual", "PIL": "visual", "imageio": "visual", "tensorboard": "plots", "onnx": "export"}


def main() -> None:
    """Run a command of ours, or one of rl_zoo3's as if by ``python -m``, with its own arguments."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(usage())
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    if command == "--version":
        print(f"sb3-hrl {version()}")
        return
    if command not in COMMANDS | OWN_COMMANDS:
        nearest = difflib.get_close_matches(command, COMMANDS | OWN_COMMANDS, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        print(f"{usage()}\n\npython -m sb3_hrl: error: unknown command: {command}{hint}", file=sys.stderr)
        raise SystemExit(2)
    register(force=True)
    sys.argv.pop(1)
    if command not in OWN_COMMANDS:
        # Most of these modules have no function to call, only a body for when they are run
        runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=True)
        return
    try:
        importlib.import_module(OWN_COMMANDS[command][0]).main(sys.argv[1:])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise SystemExit(f'{command} needs {package}: pip install "sb3-hrl[{EXTRAS[package]}]"') from error


def usage() -> str:
    """:return: the commands"""
    own = "\n  ".join(f"{name:16s} {purpose}" for name, (_, purpose) in OWN_COMMANDS.items())
    commands = "\n  ".join(f"{name:16s} python -m {module}" for name, module in COMMANDS.items())
    return (
        "usage: python -m sb3_hrl [-h] [--version] <command> ...\n\n"
        f"commands:\n  {own}\n\ncommands of rl_zoo3:\n  {commands}\n\n"
        "python -m sb3_hrl <command> --help says what a command takes."
    )


def version() -> str:
    """:return: of this package"""
    return Path(__file__).parents[1].joinpath("version.txt").read_text().strip()
