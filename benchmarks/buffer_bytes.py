"""
Counts the bytes per environment step of SharedMemoryReplayBuffer and of SB3's replay buffers, for a table in
docs/api/buffers.md.

    python benchmarks/buffer_bytes.py
"""

from typing import Any

import gymnasium as gym
import gymnasium_robotics
import numpy as np
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hrl import SharedMemoryReplayBuffer

N_STEPS = 1_000


def bytes_per_step(buffer: ReplayBuffer) -> float:
    """:return: size of all arrays of a buffer, divided by its capacity"""
    if isinstance(buffer, SharedMemoryReplayBuffer):
        return sum(block.n_bytes for block in buffer.shards.blocks()) / N_STEPS
    values = [part for value in vars(buffer).values() for part in (value.values() if isinstance(value, dict) else [value])]
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray)) / N_STEPS


def row(name: str, observation: spaces.Space, action: spaces.Space, env: Any = None) -> str:
    """:return: a row of the table"""
    shared = dict(observation_space=observation, action_space=action, device="cpu")
    cells = [f"{bytes_per_step(SharedMemoryReplayBuffer(N_STEPS, **shared)):,.0f}"]
    if env is None:
        cells.append(f"{bytes_per_step(ReplayBuffer(N_STEPS, **shared)):,.0f}")
        lean: dict[str, Any] = dict(optimize_memory_usage=True, handle_timeout_termination=False)
        cells += [f"{bytes_per_step(ReplayBuffer(N_STEPS, **shared, **lean)):,.0f}", "", ""]
    else:
        cells += ["", "", f"{bytes_per_step(DictReplayBuffer(N_STEPS, **shared)):,.0f}"]
        cells.append(f"{bytes_per_step(HerReplayBuffer(N_STEPS, **shared, env=env)):,.0f}")
    return "| " + " | ".join([name, *cells]) + " |"


def main() -> None:
    gym.register_envs(gymnasium_robotics)
    print("| bytes per step | this buffer | plain | lean | Dict | HER |\n" + "|---" * 6 + "|")
    for env_id in ("FetchReach-v4", "PointMaze_UMaze-v3", "AntMaze_UMaze-v4"):
        env = DummyVecEnv([lambda env_id=env_id: gym.make(env_id)])  # type: ignore[misc]
        print(row(env_id, env.observation_space, env.action_space, env))
        env.close()
    cheetah, image = spaces.Box(-np.inf, np.inf, (17,), np.float64), spaces.Box(0, 255, (3, 84, 84), np.uint8)
    print(row("HalfCheetah-v5", cheetah, spaces.Box(-1.0, 1.0, (6,))))
    print(row("images, 3 x 84 x 84", image, spaces.Box(-1.0, 1.0, (6,))))


if __name__ == "__main__":
    main()
