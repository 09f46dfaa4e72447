"""
Registers ``hddpg`` in rl_zoo3. It has no plugin mechanism, so entries are added to its dictionaries in place. Existing entries
are never replaced.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.hddpg import HierarchicalDDPG
from sb3_hrl.hddpg.callbacks import HierarchicalEvalCallback
from sb3_hrl.parallel.collector import ParallelCollector
from sb3_hrl.zoo.envs import ALIASES, is_robotics_installed, register_robotics

ALGO = "hddpg"


def hyperparams_path() -> Path:
    """
    :return: the file with our hyperparameters, from the wheel or the repository of an editable installation
    """
    package = Path(__file__).parents[1]
    candidates = [folder / "hyperparams" / f"{ALGO}.yml" for folder in (package, package.parent)]
    return next((path for path in candidates if path.is_file()), candidates[0])


def patch_utils(module: ModuleType) -> None:
    """
    :param module: ``rl_zoo3.utils``, whose dictionary of algorithms is used by all commands of the zoo
    """
    module.ALGOS.setdefault(ALGO, HierarchicalDDPG)
    # For values that are evaluated in that module, such as `-params replay_buffer_class:SharedMemoryReplayBuffer`
    vars(module).setdefault("SharedMemoryReplayBuffer", SharedMemoryReplayBuffer)


def patch_hyperparams_opt(module: ModuleType) -> None:
    """
    :param module: ``rl_zoo3.hyperparams_opt``
    """
    from sb3_hrl.zoo.hyperparams_opt import convert_hddpg_params, sample_hddpg_params

    module.HYPERPARAMS_SAMPLER.setdefault(ALGO, sample_hddpg_params)
    module.HYPERPARAMS_CONVERTER.setdefault(ALGO, convert_hddpg_params)


def patch_exp_manager(module: ModuleType) -> None:
    """
    Make the zoo find our hyperparameters (it only searches its own folder), and evaluate on the environment that they define:
    rl_zoo3 2.9.2 passes the ``env_kwargs`` of the file to the training environment, but not to the evaluation environment.
    With ``--vec-env subproc``, environments step in the background (``async_collection``), unless the hyperparameters disable
    it; ``collector_kwargs`` in the hyperparameters are arguments of :class:`~sb3_hrl.ParallelCollector`. Evaluations also log
    what happens to the subgoals.

    :param module: ``rl_zoo3.exp_manager``
    """
    vars(module).setdefault("SharedMemoryReplayBuffer", SharedMemoryReplayBuffer)
    manager = module.ExperimentManager
    init, preprocess, create_callbacks = manager.__init__, manager._preprocess_hyperparams, manager.create_callbacks
    if hasattr(init, "__wrapped__"):
        return

    @functools.wraps(init)
    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        init(self, *args, **kwargs)
        config = inspect.signature(init).bind(self, *args, **kwargs).arguments.get("config")
        if config is None and self.algo == ALGO and not Path(self.config).is_file():
            self.config = str(hyperparams_path())

    @functools.wraps(preprocess)
    def _preprocess_hyperparams(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        hyperparams, *others = preprocess(self, *args, **kwargs)
        if self.algo == ALGO:
            self.eval_env_kwargs = self.eval_env_kwargs or self.env_kwargs
            collector_kwargs = hyperparams.pop("collector_kwargs", {})
            is_parallel = self.vec_env_class is SubprocVecEnv
            if is_parallel:
                self.vec_env_class, self.vec_env_kwargs = ParallelCollector, collector_kwargs
            hyperparams.setdefault("async_collection", is_parallel)
        return hyperparams, *others

    @functools.wraps(create_callbacks)
    def _create_callbacks(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        eval_callback = module.EvalCallback
        if self.algo == ALGO:
            vars(module)["EvalCallback"] = HierarchicalEvalCallback
        try:
            return create_callbacks(self, *args, **kwargs)
        finally:
            vars(module)["EvalCallback"] = eval_callback

    manager.__init__, manager._preprocess_hyperparams = __init__, _preprocess_hyperparams
    manager.create_callbacks = _create_callbacks


def patch_import_envs(module: ModuleType) -> None:
    """
    Register the environments of our hyperparameters, because the zoo refuses unregistered ids. This imports
    gymnasium-robotics, so it is only done if ``hddpg`` or the older id of a Fetch environment is on the command line.

    :param module: ``rl_zoo3.import_envs``
    """
    is_needed = any(ALGO in argument or argument in ALIASES for argument in sys.argv)
    if is_needed and is_robotics_installed():
        register_robotics()


def patch_push_to_hub(module: ModuleType) -> None:
    """
    rl_zoo3 2.9.2 imports a function that has another name in sb3-team-hf-integration 3.2.

    :param module: ``huggingface_sb3.push_to_hub``
    """
    if not hasattr(module, "generate_metadata") and hasattr(module, "_generate_metadata"):

        def generate_metadata(*args, **kwargs):  # type: ignore[no-untyped-def]
            return module._generate_metadata(*args, **kwargs).to_dict()

        module.generate_metadata = generate_metadata  # type: ignore[attr-defined]


def patch_load_from_hub(module: ModuleType) -> None:
    """
    rl_zoo3 2.9.2 expects an exception of ``requests`` if a repository has no statistics of VecNormalize, which most have not.
    Since huggingface_hub no longer uses ``requests``, ``rl_zoo3.load_from_hub`` fails without this patch.

    :param module: ``huggingface_sb3.load_from_hub``
    """
    load = module.load_from_hub
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    def load_from_hub(*args, **kwargs):  # type: ignore[no-untyped-def]
        from huggingface_hub.errors import EntryNotFoundError
        from requests.exceptions import HTTPError

        class MissingFileError(EntryNotFoundError, HTTPError):
            """The exception that rl_zoo3 expects, and that of huggingface_hub for others."""

        try:
            return load(*args, **kwargs)
        except EntryNotFoundError as error:
            raise MissingFileError(str(error)) from error

    module.load_from_hub = load_from_hub  # type: ignore[attr-defined]


PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "rl_zoo3.utils": patch_utils,
    "rl_zoo3.import_envs": patch_import_envs,
    "rl_zoo3.hyperparams_opt": patch_hyperparams_opt,
    "rl_zoo3.exp_manager": patch_exp_manager,
    "huggingface_sb3.push_to_hub": patch_push_to_hub,
    "huggingface_sb3.load_from_hub": patch_load_from_hub,
}
