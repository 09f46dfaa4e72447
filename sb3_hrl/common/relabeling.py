"""Pure functions that relabel experience: which goal, which action, which reward."""

import numpy as np
import torch as th
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy


def hindsight_count(batch_size: int, n_sampled_goal: int) -> int:
    """
    Number of entries of a batch that get a goal in hindsight: SB3's ratio, ``n_sampled_goal`` virtual ones per real one.

    :param batch_size: number of entries
    :param n_sampled_goal: virtual transitions per real one; 0 switches hindsight off
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
    As in SB3 the ``future`` strategy is inclusive: a step may get what it achieved itself.

    :param steps: step numbers, shape (n,)
    :param first: first step of each one's episode, shape (n,)
    :param last: one past the last step that may be chosen, shape (n,)
    :param strategy: ``future`` (uniform from the step on), ``final`` (the last step) or ``episode`` (uniform)
    :param rng: source of randomness
    :return: chosen step numbers, shape (n,)
    """
    if strategy == GoalSelectionStrategy.FINAL:
        return last - 1
    low = steps if strategy == GoalSelectionStrategy.FUTURE else first
    return low + (rng.random(len(steps)) * (last - low)).astype(np.int64)


def apply_subgoal_tests(
    rewards: th.Tensor, discounts: th.Tensor, tested: th.Tensor, reached: th.Tensor, penalty: float
) -> tuple[th.Tensor, th.Tensor]:
    """
    HAC's subgoal test (section 4.3, https://arxiv.org/abs/1712.00948): a subgoal that the low level missed without
    exploration noise gets ``penalty`` and no bootstrap; one missed with noise is never punished.

    :param rewards: shape (n,)
    :param discounts: of what follows, shape (n,)
    :param tested: whether the segment ran without noise, shape (n,)
    :param reached: whether the subgoal was reached, shape (n,)
    :param penalty: reward of a missed test, negative
    :return: rewards and discounts, shapes (n,)
    """
    return end_worthless(rewards, discounts, tested & ~reached, penalty)


def end_worthless(rewards: th.Tensor, discounts: th.Tensor, where: th.Tensor, penalty: float) -> tuple[th.Tensor, th.Tensor]:
    """
    Let nothing follow some transitions but the worst. An episode that fails for good is one: with rewards of -1 an end
    without a penalty would be the best that can happen, and one that bootstraps as good as going on.

    :param rewards: shape (n,)
    :param discounts: of what follows, shape (n,)
    :param where: which transitions, booleans of shape (n,)
    :param penalty: their reward, the value of never reaching the goal: ``-1 / (1 - gamma)``
    :return: rewards and discounts, shapes (n,)
    """
    return rewards.masked_fill(where, penalty), discounts.masked_fill(where, 0.0)
