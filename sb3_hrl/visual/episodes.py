"""Episodes of an agent, step by step, with the current subgoals."""

from collections.abc import Iterator
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_hrl.common.buffers import GOAL_KEYS
from sb3_hrl.common.spaces import flatten
from sb3_hrl.common.type_aliases import SubgoalState


class Moment(NamedTuple):
    """State before a step of an episode, or after its last step."""

    episode: int
    step: int  # environment steps since the start of the episode
    observation: np.ndarray  # (obs_dim,)
    achieved_goal: np.ndarray  # (goal_dim,)
    goal: np.ndarray  # (goal_dim,), desired goal
    subgoal: np.ndarray | None  # (goal_dim,), current subgoal; None for agents without subgoals
    issued: bool  # whether the subgoal is new
    is_last: bool  # whether the episode is over
    success: bool  # whether the environment reported success after the last step


def single_env(env: gym.Env | VecEnv) -> gym.Env:
    """
    :param env: an environment, or a ``DummyVecEnv`` of one
    :return: the environment itself, because a VecEnv resets it before its last state can be shown
    :raises ValueError: if there are several environments, if it is in another process, or if its observations are normalised
    """
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize) and env.norm_obs:
            raise ValueError("`env` normalises observations with VecNormalize, which is not supported: pass `norm_obs=False`.")
        env = env.venv
    if isinstance(env, VecEnv):
        if not isinstance(env, DummyVecEnv) or env.num_envs != 1:
            raise ValueError(
                f"`env` must be one environment in this process, not {type(env).__name__} of {env.num_envs}: "
                "pass the result of `gymnasium.make`, or a DummyVecEnv of one environment."
            )
        env = env.envs[0]
    return env


def check_goals(env: gym.Env) -> None:
    """
    :param env: an environment
    :raises ValueError: if it is not goal-conditioned
    """
    space = env.observation_space
    if not isinstance(space, spaces.Dict) or not set(GOAL_KEYS) <= set(space.spaces):
        raise ValueError(f"`env` must be goal-conditioned: its observations need the keys {GOAL_KEYS}, not {space}.")


def check_fit(model: BaseAlgorithm, env: gym.Env) -> None:
    """
    :param model: an agent
    :param env: the environment to play in
    :raises ValueError: if the environment has no goals, or differs from the one that the agent was trained on
    """
    check_goals(env)
    if model.observation_space != env.observation_space:
        raise ValueError(
            f"The agent was trained on observations {model.observation_space}, but `env` has {env.observation_space}: pass an "
            "environment with the same id and the same arguments as in training."
        )


def play(
    model: BaseAlgorithm,
    env: gym.Env,
    n_episodes: int,
    deterministic: bool = True,
    seed: int | None = None,
    max_steps: int = 1_000,
) -> Iterator[Moment]:
    """
    Let an agent act, and yield every moment: the environment is then in the state of this moment, and can be rendered.

    :param model: the agent; any algorithm of SB3
    :param env: goal-conditioned environment
    :param n_episodes: number of episodes
    :param deterministic: whether the agent acts without noise
    :param seed: seed of the environment's first reset
    :param max_steps: maximum number of environment steps per episode, for environments without a time limit
    :return: the moments; an episode of n steps has n + 1 moments
    """
    for episode in range(n_episodes):
        obs, info = env.reset(seed=seed if episode == 0 else None)
        state: SubgoalState | None = None
        starts, step, is_over = np.array([True]), 0, False
        while not is_over:
            # The state of the episode, as with recurrent algorithms
            action, state = model.predict(obs, state, starts, deterministic)  # type: ignore[assignment]
            yield _moment(model, obs, state, (episode, step), info)
            obs, _, terminated, truncated, info = env.step(action)
            starts, step = np.array([False]), step + 1
            is_over = terminated or truncated or step >= max_steps
        yield _moment(model, obs, state, (episode, step), info)._replace(issued=False, is_last=True)


def _moment(
    model: BaseAlgorithm, obs: dict[str, np.ndarray], state: SubgoalState | None, when: tuple[int, int], info: dict
) -> Moment:
    subgoal, issued = None, False
    if isinstance(state, SubgoalState):
        subgoal, issued = state.subgoals[0].copy(), int(state.steps[0]) == 0
    observation, achieved, goal = (flatten(obs[key], 1)[0].copy() for key in GOAL_KEYS)
    success = bool(info.get("is_success", info.get("success", False)))
    return Moment(*when, observation, achieved, goal, subgoal, issued, is_last=False, success=success)
