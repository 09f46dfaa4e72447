"""Building blocks that know nothing of the algorithm: goals, subgoals, relabelling, replay storage."""
