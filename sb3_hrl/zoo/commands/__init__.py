"""The commands of ours: ``python -m sb3_hrl <command>``."""
