"""Parallel collection. It uses a policy and a buffer, and is independent of the hierarchy."""
