"""Parallel collection: knows a policy and a buffer, never the algorithm."""
