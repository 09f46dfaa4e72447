"""Implements ``python -m sb3_hrl curves``: plots runs of the zoo, such as flat against hierarchical with all seeds."""

import argparse
from pathlib import Path

from sb3_hrl.plots import find_runs, plot_curves, read_runs
from sb3_hrl.zoo.commands.shared import FORMATS, add_env_arguments, check_output, make_parser


def main(arguments: list[str]) -> None:
    """
    Plot the learning curves of a folder's runs into a file.

    :param arguments: command line arguments, without the command's name
    """
    parser = make_parser(
        "curves",
        "Plots success rates against environment steps and wall time, and success, losses and reward per level, "
        "for runs in log folders of rl_zoo3. Each pair of folder and algorithm has its own colour.",
    )
    parser.add_argument("-f", "--log-folder", nargs="+", type=Path, default=[Path("logs")], help="log folder (-f of training)")
    parser.add_argument("--algo", nargs="+", default=["hddpg"], help="algorithms, such as hddpg ddpg")
    # The environment is not created, so its packages are not needed; the option exists for consistency with other commands
    add_env_arguments(parser)
    parser.add_argument("-tb", "--tensorboard-log", nargs="+", type=Path, help="TensorBoard folder (default: -tb of training)")
    parser.add_argument("--labels", nargs="+", help="names for the legend, one per pair of folder and algorithm that has runs")
    parser.add_argument("-o", "--output", type=Path, help="png, pdf or svg (default: curves-ENV.png)")
    args = parser.parse_args(arguments)
    output = args.output or Path(f"curves-{args.env.replace('/', '-')}.png")
    check_output(parser, "-o", output, FORMATS)
    try:
        groups = {label: read_runs(folders, args.tensorboard_log) for label, folders in _groups(args).items()}
        figure = plot_curves(groups, args.env)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    for label, runs in groups.items():
        seeds = ", ".join("unknown" if run.seed is None else str(run.seed) for run in runs)
        print(f"{label}: {len(runs)} runs, seeds {seeds}")
    for sentence in dict.fromkeys(sentence for runs in groups.values() for run in runs for sentence in run.advice):
        print(sentence)
    figure.savefig(output)
    print(f"Written to {output}")


def _groups(args: argparse.Namespace) -> dict[str, list[Path]]:
    """
    :param args: command line arguments
    :return: folders of runs by label: the algorithm, with its log folder if there are several
    """
    groups: dict[str, list[Path]] = {}
    found, missing = set(), {}
    for folder in args.log_folder:
        for algo in args.algo:
            try:
                runs = find_runs(folder, algo, args.env)
            except ValueError as error:
                missing[algo] = error
                continue
            found.add(algo)
            label = algo if len(args.log_folder) == 1 else f"{folder}: {algo}"
            groups[label] = runs
    # An algorithm may be in only one of the folders
    for algo, reason in missing.items():
        if algo not in found:
            raise reason
    if args.labels is not None:
        if len(args.labels) != len(groups) or len(set(args.labels)) != len(groups):
            raise ValueError(f"`--labels` must be {len(groups)} different names, for {', '.join(groups)}.")
        groups = dict(zip(args.labels, groups.values(), strict=True))
    return groups
