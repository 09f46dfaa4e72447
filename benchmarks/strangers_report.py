"""
Writes the tables and the figure of docs/strangers.md from the csv files of strangers.py: the success rate at the end, the
hierarchical agent against the flat agent with the same code at every evaluation.

    python benchmarks/strangers_report.py            # writes the tables and the figure
    python benchmarks/strangers_report.py --check    # fails if docs/strangers.md differs from the csv files
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from report import ROOT, fill, rows_by_seed, save
from strangers import ALGOS, TASKS

TITLES = {
    "hddpg": "hierarchical, default",
    "flat": "flat, same code",
    "ddpg": "DDPG + HER (SB3)",
    "sac": "SAC + HER (SB3)",
    "tqc": "TQC + HER (sb3-contrib)",
}
CONTROLS = ["ddpg", "sac", "tqc"]
BEGIN, END = "<!-- results: written by benchmarks/strangers_report.py -->", "<!-- end of results -->"


class Curves(NamedTuple):
    """
    :param seeds: seeds of the runs
    :param steps: environment steps at the evaluations, shape (n_evaluations,)
    :param rates: success rates, shape (n_seeds, n_evaluations)
    """

    seeds: list[int]
    steps: np.ndarray
    rates: np.ndarray


Results = dict[tuple[str, str], Curves]


def read(path: Path) -> Curves:
    """
    :param path: csv file of `strangers.py`
    :return: curves of this file
    :raises ValueError: if the seeds were not evaluated at the same steps
    """
    rows = rows_by_seed(path)
    steps = {tuple(int(row["timesteps"]) for row in own) for own in rows.values()}
    if len(steps) != 1:
        raise ValueError(f"The seeds of {path} were evaluated at different steps: run the seeds that differ again.")
    rates = np.array([[float(row["success_rate"]) for row in own] for own in rows.values()])
    return Curves(list(rows), np.array(steps.pop()), rates)


def find(folder: Path) -> Results:
    """:return: curves by algorithm and environment"""
    paths = {(algo, env_id): folder / f"{algo}-{env_id}.csv" for env_id in TASKS for algo in ALGOS}
    return {key: read(path) for key, path in paths.items() if path.exists()}


def success_at_end(curves: Curves | None) -> str:
    """:return: success rate at the end: mean over the seeds and worst seed; empty without curves"""
    if curves is None:
        return ""
    rates = curves.rates[:, -1]
    return f"{rates[0]:.2f} (one seed)" if len(rates) == 1 else f"{rates.mean():.2f} ({rates.min():.2f})"


def success_table(results: Results) -> str:
    """:return: table of the success rate at the end: mean over the seeds, and worst seed"""
    lines = [
        "| environment | steps | " + " | ".join(TITLES[algo] for algo in ALGOS) + " |",
        "|---|---|" + "---|" * len(ALGOS),
    ]
    for env_id, task in TASKS.items():
        cells = [env_id, f"{task.timesteps:,}"]
        for algo in ALGOS:
            cells.append(success_at_end(results.get((algo, env_id))))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def lead_over_flat(hierarchical: Curves, flat: Curves) -> np.ndarray:
    """
    :param hierarchical: curves of the hierarchical agent with the default settings
    :param flat: curves of the flat agent in the same environment
    :return: mean success rate minus that of flat, in percentage points, at the evaluations after the first fifth of training
    :raises ValueError: if they were not evaluated at the same steps
    """
    if not np.array_equal(hierarchical.steps, flat.steps):
        raise ValueError(f"Evaluations at {hierarchical.steps} and {flat.steps} cannot be compared: run one agent again.")
    late = flat.steps > flat.steps[-1] / 5
    return 100.0 * (hierarchical.rates.mean(axis=0) - flat.rates.mean(axis=0))[late]


def comparison_table(results: Results) -> str:
    """:return: table of the hierarchical agent against the flat agent and the best baseline"""
    lines = [
        "| environment | mean lead over flat after the first fifth | smallest lead | never more than 5 points below flat | "
        "lead over the best baseline at the end |",
        "|---|---|---|---|---|",
    ]
    for env_id in TASKS:
        hierarchical, flat = results.get(("hddpg", env_id)), results.get(("flat", env_id))
        cells = [env_id, "", "", "", ""]
        if hierarchical and flat:
            leads = lead_over_flat(hierarchical, flat)
            least = round(float(leads.min()), 1)
            cells[1:4] = [f"{leads.mean():+.1f}", f"{least:+.1f}", "yes" if least >= -5.0 else "**no**"]
        controls = [results[key].rates[:, -1].mean() for algo in CONTROLS if (key := (algo, env_id)) in results]
        if hierarchical and controls:
            cells[4] = f"{100.0 * (hierarchical.rates[:, -1].mean() - max(controls)):+.1f}"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Results, path: Path) -> None:
    """
    Plot one panel per environment with results: the mean and the range of the seeds.

    :param results: curves by algorithm and environment
    :param path: where to save the figure
    """
    import matplotlib.pyplot as plt

    env_ids = [env_id for env_id in TASKS if any((algo, env_id) in results for algo in ALGOS)]
    algos = [algo for algo in ALGOS if any((algo, env_id) in results for env_id in TASKS)]
    n_columns = min(3, len(env_ids))
    n_rows = -(-len(env_ids) // n_columns)
    size = (3.2 * n_columns, 2.4 * n_rows + 0.8)
    figure, panels = plt.subplots(n_rows, n_columns, figsize=size, sharey=True, squeeze=False)
    for axes in panels.flat[len(env_ids) :]:
        axes.axis("off")
    for axes, env_id in zip(panels.flat, env_ids, strict=False):
        for algo in algos:
            color = f"C{ALGOS.index(algo)}"
            # Plot an empty line if there are no results, because the legend is that of the first panel
            line = axes.plot([], [], color=color, label=TITLES[algo])[0]
            if (curves := results.get((algo, env_id))) is None:
                continue
            line.set_data(curves.steps, curves.rates.mean(axis=0))
            low, high = curves.rates.min(axis=0), curves.rates.max(axis=0)
            axes.fill_between(curves.steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set(title=env_id, xlim=(0, TASKS[env_id].timesteps), ylim=(-0.02, 1.02))
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.supxlabel("environment steps")
    figure.supylabel("success rate")
    legend = panels.flat[0].get_legend_handles_labels()
    figure.legend(*legend, loc="upper center", ncols=n_columns, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.5 / size[1]))
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/strangers", help="folder of the csv files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/strangers.md", help="page with the tables")
    parser.add_argument("--check", action="store_true", help="only compare the page with the csv files")
    args = parser.parse_args()

    results = find(args.results)
    fill(args.page, f"{success_table(results)}\n\n{comparison_table(results)}", (BEGIN, END), args.check)
    if args.check:
        return
    (args.page.parent / "images").mkdir(exist_ok=True)
    if results:
        plot(results, args.page.parent / "images/strangers.svg")


if __name__ == "__main__":
    main()
