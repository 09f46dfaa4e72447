"""``python -m sb3_hrl <command>``: our own commands, and those of rl_zoo3 without the need for the start-up hook."""

import importlib
import runpy
import sys

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
    "curves": ("sb3_hrl.zoo.commands.curves", "plot the learning curves of all runs in a log folder"),
    "doctor": ("sb3_hrl.zoo.commands.doctor", "find problems of an environment, and of the run that was trained on it"),
    "export": ("sb3_hrl.zoo.commands.export", "export an agent as an ONNX file"),
    "watch": ("sb3_hrl.zoo.commands.watch", "make a GIF or MP4 of an agent with its subgoals, or a map of its maze"),
}


def main() -> None:
    """Run one of our commands, or one of rl_zoo3's (as with ``python -m``), with its own arguments."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS | OWN_COMMANDS:
        own = "\n  ".join(f"{name:16s} {purpose}" for name, (_, purpose) in OWN_COMMANDS.items())
        commands = "\n  ".join(f"{name:16s} python -m {module}" for name, module in COMMANDS.items())
        asked_for_help = len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help")
        print(f"usage: python -m sb3_hrl <command> ...\n\ncommands:\n  {own}\n\ncommands of rl_zoo3:\n  {commands}")
        raise SystemExit(0 if asked_for_help else 2)
    register(force=True)
    command = sys.argv.pop(1)
    if command in OWN_COMMANDS:
        importlib.import_module(OWN_COMMANDS[command][0]).main(sys.argv[1:])
        return
    # Most of these modules have no main function: their code only runs as a script
    runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=True)
