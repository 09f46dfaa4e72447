"""
Measures how much time the start-up hook adds to each start of the interpreter.
Run it with the interpreter of an environment in which sb3-hrl is installed.

    python benchmarks/startup.py
"""

import argparse
import statistics
import subprocess
import sys
import time


def import_time() -> float:
    """:return: time of the hook according to ``-X importtime``, ms"""
    result = subprocess.run([sys.executable, "-X", "importtime", "-c", "pass"], capture_output=True, text=True, check=True)
    line = next(line for line in result.stderr.splitlines() if line.split("|")[-1].strip() == "_sb3_hrl_hook")
    return int(line.split("|")[1]) / 1e3


def wall_time(*options: str) -> float:
    """:return: time of an interpreter that does nothing, ms"""
    start = time.perf_counter()
    subprocess.run([sys.executable, *options, "-c", "pass"], check=True)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    hook = [import_time() for _ in range(args.rounds)]
    print(f"import of the hook (-X importtime, cumulative): median {statistics.median(hook):.3f} ms, worst {max(hook):.3f} ms")

    # Starting the interpreter without site's .pth files gives an upper bound for their total time
    walls: dict[str, list[float]] = {"with all .pth files": [], "without site (-S)": []}
    for _ in range(args.rounds):
        walls["with all .pth files"].append(wall_time())
        walls["without site (-S)"].append(wall_time("-S"))
    for name, values in walls.items():
        print(f"start of the interpreter {name}: median {statistics.median(values):.2f} ms")


if __name__ == "__main__":
    main()
