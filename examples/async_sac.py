"""SB3's SAC with asynchronous collection: two workers step their environments while the agent learns."""

import argparse
import time

from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_hrl import ParallelCollector, asynchronous

# Worker processes import this file, so protect the main program
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=10_000)
    args = parser.parse_args()

    collector_kwargs = dict(flush_size=10, sync_interval=20)
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0, vec_env_cls=ParallelCollector, vec_env_kwargs=collector_kwargs)
    model = asynchronous(SAC)(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        gradient_steps=2,  # one update per environment step, because a step of both environments counts as one
        policy_kwargs=dict(net_arch=[64, 64]),
        verbose=1,
        seed=0,
    )
    start = time.perf_counter()
    model.learn(args.timesteps)
    print(f"{model.num_timesteps / (time.perf_counter() - start):.0f} environment steps per second")
    mean_reward, std_reward = evaluate_policy(model, make_vec_env("Pendulum-v1", n_envs=1, seed=1), n_eval_episodes=10)
    print(f"mean reward {mean_reward:.0f} +/- {std_reward:.0f}")
    env.close()
