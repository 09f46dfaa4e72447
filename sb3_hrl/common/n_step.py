"""Pure functions for n-step returns."""

import numpy as np


def n_step_returns(rewards: np.ndarray, lengths: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Discounted sums of rewards, and the discounts of the values after them, in the formulas of SB3's ``NStepReplayBuffer``.

    :param rewards: rewards of consecutive steps, float32, shape (n, n_steps)
    :param lengths: number of steps that count, between 1 and ``n_steps``, shape (n,)
    :param gamma: discount factor
    :return: returns, and ``gamma`` to the power of ``lengths``, float32, shapes (n, 1)
    """
    numbers = np.arange(rewards.shape[1], dtype=np.float32)[None]
    counted = numbers < lengths[:, None]
    returns = (rewards * gamma**numbers * counted).sum(axis=1, keepdims=True)
    return returns, gamma ** lengths[:, None].astype(np.float32)


def n_step_ends(steps: np.ndarray, last: np.ndarray, n_steps: int, goal_steps: np.ndarray | None = None) -> np.ndarray:
    """
    Where returns end: after ``n_steps``, at the end of the episode, or when the goal in hindsight is achieved. The steps after
    that were taken on the way to another goal, so the value of the current policy is the better estimate from there on.

    :param steps: first step of each return, shape (n,)
    :param last: one past the last step of its episode, shape (n,)
    :param n_steps: maximum number of steps
    :param goal_steps: steps that achieved the goals in hindsight of the first m returns, shape (m,); a step before the first
        one, which the strategy ``episode`` may choose, does not end a return
    :return: one past the last step of each return, shape (n,)
    """
    ends = np.minimum(steps + n_steps, last)
    if goal_steps is not None:
        m = len(goal_steps)
        is_ahead = goal_steps >= steps[:m]
        ends[:m] = np.where(is_ahead, np.minimum(ends[:m], goal_steps + 1), ends[:m])
    return ends
