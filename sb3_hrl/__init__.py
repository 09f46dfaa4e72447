"""Hierarchical reinforcement learning for Stable-Baselines3."""

from pathlib import Path

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.hddpg import HierarchicalDDPG, HierarchicalPolicy
from sb3_hrl.parallel.collector import ParallelCollector
from sb3_hrl.parallel.off_policy import asynchronous
from sb3_hrl.parallel.serial import SerialCollector
from sb3_hrl.zoo import register

__version__ = Path(__file__).with_name("version.txt").read_text().strip()
__all__ = [
    "HierarchicalDDPG",
    "HierarchicalPolicy",
    "ParallelCollector",
    "SerialCollector",
    "SharedMemoryReplayBuffer",
    "__version__",
    "asynchronous",
]

register()
