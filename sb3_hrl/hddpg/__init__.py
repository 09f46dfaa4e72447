from sb3_hrl.hddpg.hddpg import HierarchicalDDPG
from sb3_hrl.hddpg.policies import HierarchicalPolicy, MultiInputPolicy

__all__ = ["HierarchicalDDPG", "HierarchicalPolicy", "MultiInputPolicy"]
