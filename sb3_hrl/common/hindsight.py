"""Pure functions for hindsight: which entries of a batch get another goal, and from which steps."""

import numpy as np
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy


def hindsight_count(batch_size: int, n_sampled_goal: int) -> int:
    """
    Number of entries of a batch with a goal in hindsight: as in SB3, ``n_sampled_goal`` virtual ones per real one.

    :param batch_size: number of entries
    :param n_sampled_goal: number of virtual transitions per real one; 0 disables hindsight
    :return: between 0 and ``batch_size``
    """
    return int((1.0 - 1.0 / (n_sampled_goal + 1)) * batch_size)


def sample_goal_steps(
    steps: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    strategy: GoalSelectionStrategy,
    rng: np.random.Generator,
) -> np.ndarray:
    """
    Steps whose achieved goals serve as goals in hindsight (HER, section 4.5, https://arxiv.org/abs/1707.01495).
    As in SB3, the ``future`` strategy includes the step itself: a step may get its own achieved goal.

    :param steps: step numbers, shape (n,)
    :param first: first step of each step's episode, shape (n,)
    :param last: one past the last step that may be chosen, shape (n,)
    :param strategy: ``future`` (uniform from the step on), ``final`` (the last step) or ``episode`` (uniform)
    :param rng: random number generator
    :return: chosen step numbers, shape (n,)
    """
    if strategy == GoalSelectionStrategy.FINAL:
        return last - 1
    low = steps if strategy == GoalSelectionStrategy.FUTURE else first
    return low + (rng.random(len(steps)) * (last - low)).astype(np.int64)
