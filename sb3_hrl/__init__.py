"""Hierarchical reinforcement learning for Stable-Baselines3."""

from pathlib import Path

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.hddpg import HierarchicalDDPG

__version__ = Path(__file__).with_name("version.txt").read_text().strip()
__all__ = ["HierarchicalDDPG", "SharedMemoryReplayBuffer", "__version__"]
