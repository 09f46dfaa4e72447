"""The commands of sb3-hrl: ``python -m sb3_hrl <command>``."""
