"""
Train in your own goal-conditioned environment: a point robot goes around a wall.

An environment needs a Dict observation with the keys ``observation``, ``achieved_goal`` and ``desired_goal``, a
``compute_reward`` that accepts batches of goals (hindsight computes rewards for other goals), and ``info["is_success"]``,
which SB3 logs as the success rate.

With seeds 0, 1 and 2, the success rate in 50 episodes is 0.98, 0.98, 1.00 after 10,000 steps (30 seconds on one core), and
0.46, 0.88, 0.72 after 5,000 steps.
"""

import argparse

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_hrl import HierarchicalDDPG


class WallEnv(gym.Env):
    """A point in the unit box, at most 0.05 per step. A wall leaves a gap at the top."""

    reach = 0.05  # distance at which a goal counts as reached
    wall = (0.4, 0.6, 0.8)  # from x, to x, up to y

    def __init__(self):
        point = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.observation_space = spaces.Dict(
            {"observation": point, "achieved_goal": point, "desired_goal": point},
        )
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def _in_wall(self, point: np.ndarray) -> bool:
        left, right, top = self.wall
        return bool(left < point[0] < right and point[1] < top)

    def _obs(self) -> dict[str, np.ndarray]:
        # The achieved goal is the position
        return {
            "observation": self.position.copy(),
            "achieved_goal": self.position.copy(),
            "desired_goal": self.goal.copy(),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        # From a random point on the left to a random point on the right
        self.position = self.np_random.uniform((0.0, 0.0), (0.4, 1.0)).astype(np.float32)
        self.goal = self.np_random.uniform((0.6, 0.0), (1.0, 1.0)).astype(np.float32)
        return self._obs(), {}

    def step(self, action):
        action = np.asarray(action, dtype=np.float32)
        position = np.clip(self.position + 0.05 * action, 0.0, 1.0)
        if not self._in_wall(position):
            self.position = position
        reward = float(self.compute_reward(self.position, self.goal, {}))
        terminated = self.compute_terminated(self.position, self.goal, {})
        return self._obs(), reward, terminated, False, {"is_success": terminated}

    def compute_reward(self, achieved_goal, desired_goal, info):
        # 0 at the goal, else -1. One pair of goals or many: the last axis holds the entries
        distance = np.linalg.norm(achieved_goal - desired_goal, axis=-1)
        return (distance <= self.reach).astype(np.float32) - 1.0

    def compute_terminated(self, achieved_goal, desired_goal, info):
        # The episode ends at its goal
        return bool(self.compute_reward(achieved_goal, desired_goal, info) == 0.0)


# Registration allows worker processes and the zoo to create the environment
gym.register("Wall-v0", entry_point=WallEnv, max_episode_steps=100)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    check_env(WallEnv())
    env = gym.make("Wall-v0")
    model = HierarchicalDDPG(
        "MultiInputPolicy",
        env,
        policy_kwargs=dict(net_arch=[64, 64]),  # small networks are enough here, and faster
        verbose=1,
        seed=args.seed,
    )
    model.learn(args.timesteps, log_interval=20)

    successes: list[bool] = []
    evaluate_policy(
        model,
        model.get_env(),
        n_eval_episodes=50,
        callback=lambda locals_, _: successes.append(locals_["info"]["is_success"]) if locals_["done"] else None,
    )
    print(f"success rate {np.mean(successes):.2f} in {len(successes)} episodes without exploration noise")
