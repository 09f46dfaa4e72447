"""
OGBench, used online: a wrapper makes its mazes goal-conditioned environments. Needs ``pip install ogbench "mujoco<3.12"``.

OGBench returns the goal in the info of ``reset``, and the observation is a vector that begins with the position of the robot.
It draws goals with NumPy's global generator: call ``np.random.seed`` for the same goals in each run.
"""

import argparse

import gymnasium as gym
import numpy as np
import ogbench  # noqa: F401  (registers its environments)
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_hrl import HierarchicalDDPG


class OGBenchGoals(gym.Wrapper):
    """Mazes of OGBench as environments with a Dict of goals, which are positions (x, y)."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        goal = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = spaces.Dict(observation=env.observation_space, achieved_goal=goal, desired_goal=goal)
        # The distance at which OGBench reports success: 1.0 for the point, 0.5 for the ant
        self.tolerance = env.unwrapped._goal_tol

    def _obs(self, obs: np.ndarray) -> dict[str, np.ndarray]:
        return {"observation": obs, "achieved_goal": obs[:2].copy(), "desired_goal": self.goal.copy()}

    def compute_reward(self, achieved_goal, desired_goal, info):
        return (np.linalg.norm(achieved_goal - desired_goal, axis=-1) <= self.tolerance) - 1.0

    def compute_terminated(self, achieved_goal, desired_goal, info):
        return bool(self.compute_reward(achieved_goal, desired_goal, info) == 0.0)

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        self.goal = np.array(info["goal"][:2], np.float64)
        return self._obs(obs), info

    def step(self, action):
        obs, _, terminated, truncated, info = self.env.step(action)
        info["is_success"] = bool(info["success"])
        return self._obs(obs), float(info["success"]) - 1.0, terminated, truncated, info


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=30_000)
    args = parser.parse_args()

    # Episodes end at the goal. With False they would go on until the time limit, and `compute_terminated` must be removed
    env = OGBenchGoals(gym.make("pointmaze-medium-v0", terminate_at_goal=True, max_episode_steps=300))
    model = HierarchicalDDPG("MultiInputPolicy", env, verbose=1)
    model.learn(args.timesteps, log_interval=10)
    mean_reward, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=5)
    print(f"mean reward {mean_reward:.1f}: minus the number of steps to the goal, at worst -300")
