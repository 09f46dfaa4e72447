"""
The drawings of the documentation, as SVG.

    python docs/images/figures.py            # writes them here
    python docs/images/figures.py --out tmp  # elsewhere
"""

import argparse
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

HIGH, LOW, ENV, SHARED, PLAIN = "#cfe2f3", "#fce5cd", "#e0e0e0", "#d9ead3", "#ffffff"


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """:return: a figure of this size in inches, and axes in tenths of an inch"""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, 10 * width), ylim=(0, 10 * height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, w: float, h: float, title: str, text: str = "", color: str = PLAIN) -> None:
    """Draw a box with its lower left corner at (x, y)."""
    style = "round,pad=0,rounding_size=0.8"
    axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, facecolor=color, edgecolor="#444444", linewidth=1))
    centre = y + h / 2
    n_lines = text.count("\n") + 1
    axes.text(x + w / 2, centre + (0.85 * n_lines if text else 0), title, ha="center", va="center", fontsize=10, weight="bold")
    if text:
        axes.text(x + w / 2, centre - 0.9, text, ha="center", va="center", fontsize=8.5, linespacing=1.35)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", at: tuple[float, float] = (0, 0)
) -> None:
    """Draw an arrow, with a text beside its middle."""
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color="#444444", linewidth=1.1, shrinkA=0, shrinkB=0)
    )
    if text:
        middle = (start[0] + end[0]) / 2 + at[0], (start[1] + end[1]) / 2 + at[1]
        axes.text(*middle, text, ha="center", va="center", fontsize=8.5, linespacing=1.3)


def levels() -> Figure:
    """The two levels, and an episode of three segments."""
    figure, axes = canvas(8.6, 5.4)
    box(axes, 5, 43, 32, 8, "high level", "once per segment:  u = π_high(o, a, g)", HIGH)
    box(axes, 5, 27, 32, 8, "low level", "at every step:  action = π_low(o, a, s)", LOW)
    box(axes, 56, 27, 26, 24, "environment", "observation o\nachieved goal a\ndesired goal g", ENV)
    arrow(axes, (21, 43), (21, 35), "subgoal  s = clip(a + R u, lo, hi)", (14.5, 0))
    arrow(axes, (37, 30), (56, 30), "action", (0, 1.2))
    arrow(axes, (56, 33), (37, 33), "o, a", (0, 1.2))
    arrow(axes, (56, 48), (37, 48), "o, a, g", (0, 1.2))
    y = 13
    axes.annotate("", (84, y), (4, y), arrowprops={"arrowstyle": "-|>", "color": "#444444"})
    axes.text(84, y - 2.6, "environment steps", ha="right", fontsize=8.5)
    segments = [(6, 26, "subgoal reached"), (26, 56, "its steps are over"), (56, 74, "the episode is over")]
    for i, (start, end, reason) in enumerate(segments):
        axes.axvspan(start, end, ymin=y / 54, ymax=(y + 4) / 54, facecolor=HIGH, edgecolor="#444444")
        axes.text((start + end) / 2, y + 2, f"segment {i + 1}", ha="center", va="center", fontsize=9)
        axes.text(start, y + 5.2, f"$s_{i + 1}$", ha="center", fontsize=10)
        axes.plot([end, end], [y - 1.4, y], color="#444444", linewidth=1)
        axes.text(end, y - 5, f"ends:\n{reason}", ha="center", va="center", fontsize=8, linespacing=1.3)
        for step in range(start, end, 2):
            axes.plot([step, step], [y - 0.6, y], color="#888888", linewidth=0.8)
    axes.text(4, 2.4, "high level: reward 0 if the segment reaches g, else -1", fontsize=8.5)
    axes.text(46, 2.4, "low level: reward 0 if the step reaches s, else -1", fontsize=8.5)
    return figure


def layers() -> Figure:
    """The layers of the package, imports go downwards."""
    figure, axes = canvas(8.6, 6.4)
    box(axes, 4, 55, 78, 7, "sb3_hrl.zoo", "what rl_zoo3 has to be told; command line", ENV)
    box(axes, 4, 42, 23, 9, "sb3_hrl.visual", "videos and maps with\nsubgoals", ENV)
    box(axes, 31.5, 42, 23, 9, "sb3_hrl.doctor", "what is wrong, and\nwhat to change", ENV)
    box(axes, 59, 42, 23, 9, "sb3_hrl.plots", "files to figures,\nimports none of the others", ENV)
    box(
        axes,
        4,
        29,
        78,
        9,
        "sb3_hrl.hddpg",
        "the algorithm: options, policy, two levels, hindsight,\nsegments, choosers of subgoals, planners, evaluation",
        HIGH,
    )
    box(
        axes,
        4,
        16,
        78,
        9,
        "sb3_hrl.parallel",
        "workers that step environments, collectors, prefetching;\nknows a policy and a buffer, never the algorithm",
        LOW,
    )
    box(
        axes,
        4,
        3,
        78,
        9,
        "sb3_hrl.common",
        "building blocks: replay storage, shared memory, weights, networks,\narithmetic of goals and subgoals, wrappers",
        SHARED,
    )
    for top in (29, 16):
        arrow(axes, (43, top), (43, top - 4), "imports", (4.2, 0))
    for x in (15.5, 43, 70.5):
        arrow(axes, (x, 55), (x, 51))
    for x in (15.5, 43):
        arrow(axes, (x, 42), (x, 38))
    arrow(axes, (54.5, 46.5), (59, 46.5))
    return figure


def processes() -> Figure:
    """Who writes what into shared memory with async_collection=True."""
    figure, axes = canvas(9.6, 6.0)
    for shift in (2, 1):  # those behind
        box(axes, 2 + shift, 26 - shift, 24, 29, "", color=LOW)
    text = "step by themselves\n\nenvironment(s),\ncopy of the policy\nin NumPy,\nstaged steps"
    box(axes, 2, 26, 24, 29, "workers", text, LOW)
    box(
        axes,
        2,
        3,
        24,
        13,
        "prefetch process",
        "samples, hindsight, targets\nof the low level,\ntarget networks of its own",
        LOW,
    )
    style = "round,pad=0,rounding_size=0.8"
    axes.add_patch(FancyBboxPatch((38, 1.5), 24, 55, boxstyle=style, facecolor="none", edgecolor="#6aa84f", linestyle="--"))
    axes.text(50, 58, "shared memory (anonymous)", ha="center", va="center", fontsize=9, color="#38761d")
    box(axes, 40, 46, 20, 8, "weights", "one vector, a version", SHARED)
    box(axes, 40, 35, 20, 8, "step budget", "steps for each worker", SHARED)
    box(axes, 40, 20, 20, 12, "replay buffer", "a shard per environment:\nsteps, segments, counts", SHARED)
    box(axes, 40, 4, 20, 9, "batches", "that are ready", SHARED)
    box(
        axes,
        75,
        3,
        19,
        52,
        "learner",
        "counts steps,\nupdates both levels,\ncallbacks, log\n\nbatches of the\nhigh level",
        HIGH,
    )
    arrow(axes, (40, 50), (28, 50), "fetch every\nsync_interval", (-0.3, 2.4))
    arrow(axes, (40, 39), (28, 39), "how far", (-0.3, 1.3))
    arrow(axes, (28, 29), (40, 29), "flush_size\nsteps at once", (-0.6, 2.4))
    arrow(axes, (40, 21.5), (24, 16), "reads", (0.5, 1.8))
    arrow(axes, (26, 8.5), (40, 8.5), "prefetch_depth\nahead", (-1.0, 2.4))
    arrow(axes, (75, 50), (60, 50), "publishes", (0.8, 1.3))
    arrow(axes, (75, 39), (60, 39), "grants", (0.8, 1.3))
    arrow(axes, (60, 26), (75, 26), "counts, samples", (0.9, 1.3))
    arrow(axes, (60, 8.5), (75, 8.5), "low level", (0.9, 1.3))
    return figure


FIGURES = {"levels": levels, "layers": layers, "processes": processes}


def main() -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--format", default="svg", choices=["svg", "png"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    # The same file each time: no date, no random ids
    matplotlib.rcParams["svg.hashsalt"] = "sb3-hrl"
    for name, draw in FIGURES.items():
        metadata = {"Date": None} if args.format == "svg" else None
        draw().savefig(args.out / f"{name}.{args.format}", metadata=metadata, dpi=110)


if __name__ == "__main__":
    main()
