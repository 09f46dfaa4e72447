"""
Whether the low level has to learn to stay at its subgoals.

With a reward of -1 until the subgoal is reached, and a terminal transition there, the value is the number of steps to the
subgoal (HAC, https://arxiv.org/abs/1712.00948). It is learnt fast, but what happens after the arrival does not count: agents
may arrive at full speed, or fall over right there. This is fine if episodes end at their goals, or if it is easy to stop.
Otherwise the transition is not terminal, and a reward of 0 in every step at the subgoal teaches the agent to stay (HER,
https://arxiv.org/abs/1707.01495).
"""

import numpy as np

# The number of recent steps that show whether the agent stays at its goals, and the least number of episodes that reached them
N_STEPS = 5_000
LEAST_REACHED = 5

# An agent that reaches its goals in at least this share of the episodes does so on purpose
SKILLED_SHARE = 0.5
# An agent that stays is at its goal in at least this share of the steps after its arrival, in spite of exploration noise
STAYING_SHARE = 0.25
# An agent that cannot survive at its goals fails in at least this share of the episodes that reached them, and this often
FAILING_SHARE = 0.9
LEAST_FAILED = 10


def leaves_its_goals(success: np.ndarray, failed: np.ndarray, is_new: np.ndarray) -> bool:
    """
    :param success: whether the goal is reached after a step, shape (n,), in chronological order within an episode
    :param failed: whether the episode terminates without success with a step, shape (n,)
    :param is_new: whether an episode, or a new goal in it, begins with a step, shape (n,)
    :return: whether the agent reaches its goals and does not stay there, or does not survive there; ``False`` if episodes end
        at their goals
    """
    starts = np.flatnonzero(is_new)
    n_reached, n_failed, stayed = 0, 0, []
    for start, end in zip(starts, [*starts[1:], len(success)], strict=True):
        arrivals = np.flatnonzero(success[start:end])
        if len(arrivals) == 0:
            continue
        n_reached += 1
        after_arrival = success[start + arrivals[0] + 1 : end]
        if len(after_arrival) > 0:
            n_failed += failed[end - 1]
            stayed.append(0.0 if failed[end - 1] else after_arrival.mean())
    if len(stayed) < LEAST_REACHED or np.mean(stayed) >= STAYING_SHARE:
        return False
    is_skilled = n_reached >= SKILLED_SHARE * len(starts)
    return bool(is_skilled or n_failed >= max(LEAST_FAILED, FAILING_SHARE * len(stayed)))
