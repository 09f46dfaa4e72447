"""
Evaluates the trained agents and writes their model cards, README.md in the folder of each run, with the function that
rl_zoo3.push_to_hub uses. With --hub, also writes the files of their repositories on the Hugging Face Hub, from which
`python -m rl_zoo3.load_from_hub` downloads an agent. It needs no network and uploads nothing.

    python benchmarks/model_cards.py
    python benchmarks/model_cards.py --hub hub
    hf upload ORGANIZATION/hddpg-FetchReach-v4 hub/hddpg-FetchReach-v4    # uploads one of them
"""

import argparse
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rl_zoo3.push_to_hub import generate_model_card, save_model_card
from rl_zoo3.utils import get_saved_hyperparams, get_wrapper_class
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_hrl import HierarchicalDDPG
from sb3_hrl.zoo.envs import register_robotics

FOLDER = Path(__file__).parents[1] / "trained_agents"
NOTES = """
## Notes
- `hddpg` is an algorithm of sb3-hrl, hierarchical reinforcement learning for SB3, which also installs the RL Zoo
- Success rate: {success:.2f} in {episodes} episodes without exploration noise, after {steps:,} environment steps of training
- The agent is a pickle, which can run any code when it is loaded: set TRUST_REMOTE_CODE only if you trust its author
- The file has no optimizer states and no target networks, which only training needs
"""


def evaluate(run: Path, env_kwargs: dict[str, Any], hyperparams: dict[str, Any], episodes: int) -> dict[str, Any]:
    """
    :param run: folder of a run of the zoo
    :param env_kwargs: arguments of the environment
    :param hyperparams: hyperparameters of the run
    :param episodes: number of episodes
    :return: the results, with the names of rl_zoo3's results.json, the success rate, and the number of steps of training
    """
    env_id = run.name.removesuffix("_1")
    env = make_vec_env(env_id, seed=0, env_kwargs=env_kwargs, wrapper_class=get_wrapper_class(hyperparams))
    model = HierarchicalDDPG.load(run / f"{env_id}.zip", seed=0)
    successes: list[bool] = []

    def count(local: dict[str, Any], _: dict[str, Any]) -> None:
        if local["done"]:
            successes.append(bool(local["info"]["is_success"]))

    mean, std = evaluate_policy(model, env, n_eval_episodes=episodes, callback=count)
    env.close()
    rewards = {"mean_reward": mean, "std_reward": std, "is_deterministic": True, "n_eval_episodes": episodes}
    return rewards | {"success_rate": float(np.mean(successes)), "n_timesteps": model.num_timesteps}


def write_card(folder: Path, run: Path, organization: str, results: dict[str, Any], env_kwargs: dict[str, Any]) -> None:
    """
    :param folder: folder of the README.md
    :param run: folder of a run of the zoo
    :param organization: name of the organization or user on the Hub
    :param results: see :func:`evaluate`
    :param env_kwargs: arguments of the environment
    """
    env_id = run.name.removesuffix("_1")
    hyperparams, _ = get_saved_hyperparams(str(run / env_id))
    mean, std = results["mean_reward"], results["std_reward"]
    card, metadata = generate_model_card(
        "hddpg", HierarchicalDDPG.__name__, organization, env_id, mean, std, dict(hyperparams), env_kwargs
    )
    notes = NOTES.format(success=results["success_rate"], episodes=results["n_eval_episodes"], steps=results["n_timesteps"])
    card = card.replace("pip install rl_zoo3", "pip install sb3-hrl")
    card = card.replace("python -m rl_zoo3.load_from_hub", "TRUST_REMOTE_CODE=True python -m rl_zoo3.load_from_hub")
    save_model_card(folder, card + notes, metadata)


def write_repository(folder: Path, run: Path, results: dict[str, Any], env_kwargs: dict[str, Any]) -> None:
    """
    Write the files that rl_zoo3.push_to_hub uploads, without the card.

    :param folder: folder of the repository
    :param run: folder of a run of the zoo
    :param results: see :func:`evaluate`
    :param env_kwargs: arguments of the environment
    """
    env_id = run.name.removesuffix("_1")
    shutil.copy(run / f"{env_id}.zip", folder / f"hddpg-{env_id}.zip")
    for name in ("args.yml", "config.yml"):
        shutil.copy(run / env_id / name, folder / name)
    (folder / "env_kwargs.yml").write_text(yaml.dump(env_kwargs))
    (folder / "results.json").write_text(json.dumps(results))
    # load_from_hub needs it, even if the run has kept none of these files
    with zipfile.ZipFile(folder / "train_eval_metrics.zip", "w") as archive:
        for path in (run / "evaluations.npz", *sorted(run.glob("*.csv"))):
            if path.is_file():
                archive.write(path, path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", help="environments (default: all)")
    parser.add_argument("--episodes", type=int, default=50, help="evaluation episodes of each agent")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="log folder of the zoo with the agents")
    parser.add_argument("--organization", default="ORGANIZATION", help="the owner's name on the Hub")
    parser.add_argument("--hub", type=Path, help="also write the files of the Hub's repositories to this folder")
    args = parser.parse_args()

    register_robotics()
    runs = sorted(args.folder.glob("hddpg/*_1"))
    unknown = set(args.env or []) - {run.name.removesuffix("_1") for run in runs}
    if unknown or not runs:
        parser.error(f"there is no run {args.folder}/hddpg/{min(unknown, default='ENV')}_1: check --folder and --env")
    for run in runs:
        env_id = run.name.removesuffix("_1")
        if args.env and env_id not in args.env:
            continue
        hyperparams, _ = get_saved_hyperparams(str(run / env_id))
        # rl_zoo3.push_to_hub reads only args.yml, and would evaluate a maze without the arguments of config.yml
        env_kwargs = hyperparams.get("env_kwargs", {})
        results = evaluate(run, env_kwargs, hyperparams, args.episodes)
        write_card(run, run, args.organization, results, env_kwargs)
        if args.hub is not None:
            repository = args.hub / f"hddpg-{env_id}"
            repository.mkdir(parents=True, exist_ok=True)
            write_repository(repository, run, results, env_kwargs)
            shutil.copy(run / "README.md", repository)
        print(f"{env_id}: success rate {results['success_rate']:.2f}, mean reward {results['mean_reward']:.1f}", flush=True)


if __name__ == "__main__":
    main()
