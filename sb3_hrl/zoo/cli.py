"""``python -m sb3_hrl <command>``: our own commands, and those of rl_zoo3 without the need for the start-up hook."""

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
# Modules with a function `main(arguments)`, and their descriptions
OWN_COMMANDS: dict[str, tuple[str, str]] = {
    "compare": ("sb3_hrl.zoo.commands.compare", "train a flat and a hierarchical agent, and report which is better"),
    "curves": ("sb3_hrl.zoo.commands.curves", "plot the learning curves of all runs in a log folder"),
    "doctor": ("sb3_hrl.zoo.commands.doctor", "find problems of an environment, and of the run that was trained on it"),
    "export": ("sb3_hrl.zoo.commands.export", "export an agent as an ONNX file"),
    "watch": ("sb3_hrl.zoo.commands.watch", "make a GIF or MP4 of an agent with its subgoals, or a map of its maze"),
}
# Packages by the extra that installs them
EXTRAS = {"matplotlib": "visual", "PIL": "visual", "imageio": "visual", "tensorboard": "plots", "onnx": "export"}


def main() -> None:
    """Run one of our commands, or one of rl_zoo3's (as with ``python -m``), with its own arguments."""
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
        # Most of these modules have no main function: their code only runs as a script
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
    """:return: usage message with all commands"""
    own = "\n  ".join(f"{name:16s} {purpose}" for name, (_, purpose) in OWN_COMMANDS.items())
    commands = "\n  ".join(f"{name:16s} python -m {module}" for name, module in COMMANDS.items())
    return (
        "usage: python -m sb3_hrl [-h] [--version] <command> ...\n\n"
        f"commands:\n  {own}\n\ncommands of rl_zoo3:\n  {commands}\n\n"
        "python -m sb3_hrl <command> --help lists the options of a command."
    )


def version() -> str:
    """:return: version of this package"""
    return Path(__file__).parents[1].joinpath("version.txt").read_text().strip()
