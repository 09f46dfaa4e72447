"""
Measures the cost of shared memory: writing to the buffer from a worker, sampling from several shards, publishing and fetching
weights. It also checks 10 million steps with checksums, written by 4 writers while a reader samples (``--steps``).

    OMP_NUM_THREADS=1 python benchmarks/sharing.py
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_hrl import SharedMemoryReplayBuffer
from sb3_hrl.common.weight_sync import WeightPublisher, WeightSubscriber

SPACE = spaces.Dict(
    {
        "observation": spaces.Box(-np.inf, np.inf, (10,)),
        "achieved_goal": spaces.Box(-np.inf, np.inf, (3,)),
        "desired_goal": spaces.Box(-np.inf, np.inf, (3,)),
    }
)


def median_us(function: Callable[[], object], repeats: int = 200) -> float:
    """:return: median time of a call, in microseconds"""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def make_buffer(n_shards: int, n_steps: int) -> SharedMemoryReplayBuffer:
    """:return: a full buffer of FetchReach's shapes, episodes of 50 steps"""
    buffer = SharedMemoryReplayBuffer(n_steps, SPACE, spaces.Box(-1.0, 1.0, (4,)), device="cpu", n_envs=n_shards)
    ends = np.arange(1, 51) == 50
    segments = np.arange(1, 51) % 10 == 0
    for writer in buffer.shards.writers():
        for _ in range(n_steps // n_shards // 50):
            writer.write(np.random.default_rng(0).random((50, buffer.shards.row_dim), dtype=np.float32), ends, segments)
    return buffer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="samples from one shard and from eight")
    parser.add_argument("--steps", type=int, default=10_000_000, help="steps of the run with checksums; 0 to skip it")
    args = parser.parse_args()
    th.set_num_threads(1)

    one, eight = make_buffer(1, 200_000), make_buffer(8, 200_000)
    rows, ends = np.zeros((50, one.shards.row_dim), np.float32), np.arange(1, 51) == 50
    writer = one.shards.writers()[0]
    print(f"writing a block of 50 steps: {median_us(lambda: writer.write(rows, ends, ends)) / 50:.2f} us a step")
    for name, args_ in (("sample_low", (256, 4, 10)), ("sample_high", (256, 4, 10))):
        rounds: dict[int, list[float]] = {1: [], 8: []}
        for _ in range(args.rounds):
            for n, buffer in ((1, one), (8, eight)):
                rounds[n].append(median_us(partial(getattr(buffer, name), *args_)))
        medians = {n: statistics.median(times) for n, times in rounds.items()}
        print(f"{name}(256) from 1 shard {medians[1]:.0f} us, from 8 {medians[8]:.0f} us: {medians[8] / medians[1]:.2f}")

    # A [256, 256] actor with 71,000 parameters, and the time to pickle it
    actor = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 4))
    flat = nn.utils.parameters_to_vector(actor.parameters()).detach().numpy()
    publisher = WeightPublisher(len(flat))
    subscriber, vector = WeightSubscriber(publisher.block), np.empty_like(flat)

    def sync() -> None:
        publisher.publish(lambda out: np.copyto(out, flat))
        subscriber.fetch(vector)

    def pickled() -> None:
        file = io.BytesIO()
        th.save(actor.state_dict(), file)
        file.seek(0)
        actor.load_state_dict(th.load(file, weights_only=True))

    print(f"publish and fetch {len(flat)} weights: {median_us(sync):.0f} us; pickled: {median_us(pickled):.0f} us")

    if args.steps > 0:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from test_shards import stress

        start = time.perf_counter()
        n_read = stress(n_writers=4, n_steps=args.steps // 4, size=50, capacity=20_000)
        seconds = time.perf_counter() - start
        print(
            f"{args.steps} steps by 4 writers under a reader in {seconds:.0f} s, {n_read} steps read and compared: "
            "0 torn, 0 lost, 0 double"
        )


if __name__ == "__main__":
    main()
