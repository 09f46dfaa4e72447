"""
Writes the table and the figures of docs/results.md from the csv files of learning.py: the success rate at the end with a 95 %
interval over the seeds (rliable's stratified bootstrap), the steps to 90 % and the wall time; learning curves as SVG.

    python benchmarks/report.py            # writes the table and the figures
    python benchmarks/report.py --check    # fails if docs/results.md differs from the csv files
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
METHODS = {
    "hddpg": "hierarchical",
    "hddpg-async": "hierarchical, async",
    "flat": "flat, same code",
    "sb3-ddpg": "flat, SB3's DDPG + HER",
}
BEGIN, END = "<!-- results: written by benchmarks/report.py -->", "<!-- end of results -->"

# The curve of each seed: steps and success rates
Curves = dict[int, tuple[np.ndarray, np.ndarray]]


def rows_by_seed(path: Path) -> dict[int, list[dict[str, str]]]:
    """:return: rows of a csv file by seed, in the order of the file"""
    rows: dict[int, list[dict[str, str]]] = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            rows[int(row["seed"])].append(row)
    return rows


def read(path: Path) -> tuple[Curves, list[int]]:
    """:return: curves by seed, and the seconds of each run if the file has them"""
    rows = rows_by_seed(path)
    curves = {
        seed: (np.array([int(row["timesteps"]) for row in own]), np.array([float(row["success_rate"]) for row in own]))
        for seed, own in rows.items()
    }
    return curves, [int(own[0]["seconds"]) for own in rows.values() if own[0].get("seconds")]


def find(folder: Path) -> dict[str, dict[str, Path]]:
    """:return: paths of the csv files by environment and method"""
    files: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in sorted(folder.glob("*.csv")):
        for method in sorted(METHODS, key=len, reverse=True):
            if path.stem.startswith(f"{method}-"):
                files[path.stem.removeprefix(f"{method}-")][method] = path
                break
    return files


def interval(rates: np.ndarray) -> tuple[float, float]:
    """:return: 95 % interval of the mean over seeds"""
    from rliable import library, metrics

    np.random.seed(0)
    scores = {"all": rates[:, None]}
    _, intervals = library.get_interval_estimates(scores, lambda x: np.array([metrics.aggregate_mean(x)]), reps=2_000)
    return float(intervals["all"][0, 0]), float(intervals["all"][1, 0])


def first_at(curve: tuple[np.ndarray, np.ndarray], rate: float) -> str:
    """:return: steps of the first evaluation with at least this success rate"""
    steps, rates = curve
    reached = np.flatnonzero(rates >= rate)
    return f"{steps[reached[0]]:,}" if len(reached) else "-"


def table(files: dict[str, dict[str, Path]]) -> str:
    lines = [
        "| task | agent | steps | success, each seed | worst | mean, 95 % interval | first evaluation >= 90 % | wall time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for env_id, methods in files.items():
        for method in METHODS:
            if method not in methods:
                continue
            curves, seconds = read(methods[method])
            final = np.array([rates[-1] for _, rates in curves.values()])
            low, high = interval(final)
            cells = [
                env_id,
                METHODS[method],
                " to ".join(f"{n:,}" for n in sorted({steps[-1] for steps, _ in curves.values()})),
                ", ".join(f"{rate:.2f}" for rate in final),
                f"**{final.min():.2f}**",
                f"{final.mean():.2f} [{low:.2f}, {high:.2f}]",
                ", ".join(first_at(curve, 0.9) for curve in curves.values()),
                f"{np.median(seconds) / 60:.0f} min" if seconds else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def save(figure: "Figure", path: Path) -> None:
    """
    Save a figure as SVG without a date and random ids, so that the file is always the same.

    :param figure: figure, which is closed afterwards
    :param path: where to save the figure
    """
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "sb3-hrl"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def plot(env_id: str, methods: dict[str, Path], folder: Path) -> None:
    import matplotlib.pyplot as plt

    # Two figures in a row fill a page of the site
    figure, axes = plt.subplots(figsize=(4.2, 2.8))
    for color, method in enumerate(METHODS):
        if method not in methods:
            continue
        curves, _ = read(methods[method])
        steps = min((steps for steps, _ in curves.values()), key=len)
        rates = np.array([rates[: len(steps)] for _, rates in curves.values()])
        axes.plot(steps, rates.mean(axis=0), color=f"C{color}", label=METHODS[method])
        axes.fill_between(steps, rates.min(axis=0), rates.max(axis=0), color=f"C{color}", alpha=0.2, linewidth=0)
    axes.set(xlabel="environment steps", ylabel="success rate", title=env_id, ylim=(-0.02, 1.02))
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="best", fontsize=7)
    figure.tight_layout()
    save(figure, folder / f"learning-{env_id}.svg")


def fill(page: Path, tables: str, marks: tuple[str, str], check: bool) -> None:
    """
    Write tables between two marks of a page, or compare them with the page. The script exits if they differ.

    :param page: a Markdown file
    :param tables: text for the place between the marks
    :param marks: the lines before and after this place
    :param check: whether to only compare
    """
    text = page.read_text()
    before, begin, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        sys.exit(f"{page} has no place for the tables: it needs a line {marks[0]!r}, and a later line {marks[1]!r}.")
    new = f"{before}{begin}\n\n{tables}\n\n{end}{after}"
    if not check:
        page.write_text(new)
    elif new != text:
        sys.exit(f"{page} differs from the csv files: run `python benchmarks/{Path(sys.argv[0]).name}`.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results", help="folder of the csv files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/results.md", help="page with the table")
    parser.add_argument("--check", action="store_true", help="only compare the page with the csv files")
    args = parser.parse_args()

    files = find(args.results)
    fill(args.page, table(files), (BEGIN, END), args.check)
    if args.check:
        return
    for env_id, methods in files.items():
        plot(env_id, methods, args.page.parent / "images")


if __name__ == "__main__":
    main()
