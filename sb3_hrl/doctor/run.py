"""What the checks of a log look at: curves, and the hyperparameters that the zoo saved."""

import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from sb3_hrl.hddpg.config import ARGUMENTS, HierarchyConfig, LevelConfig
from sb3_hrl.hddpg.hddpg import HierarchicalDDPG
from sb3_hrl.hddpg.horizon import LEAST_HORIZON

# Environment steps and values, each of shape (n,)
Curve = tuple[np.ndarray, np.ndarray]

PARAMETERS = inspect.signature(HierarchicalDDPG.__init__).parameters
# The part of a run, from its end backwards, that is judged
LATE = 1.0 / 3.0
# Updates before which nothing is said about how an agent does
MIN_UPDATES = 1_000


class RunSurvey:
    """
    A run, as its log and its hyperparameters tell it.

    :param log: environment steps and values by key, each of shape (n,)
    :param config: hyperparameters, as in hddpg.yml
    :param n_timesteps: environment steps that were asked for; ``None``: those of ``config``
    """

    def __init__(self, log: Mapping[str, Curve], config: Mapping[str, Any], n_timesteps: int | None = None):
        self.log, self.config = dict(log), config
        asked = config.get("n_timesteps") if n_timesteps is None else n_timesteps
        self.n_asked = None if asked is None else int(asked)

    @cached_property
    def n_steps(self) -> int:
        """Environment steps that were done, as far as the log says."""
        return int(max((steps[-1] for steps, _ in self.log.values() if len(steps) > 0), default=0))

    def option(self, name: str) -> Any:
        """
        :param name: argument of HierarchicalDDPG
        :return: its value in this run
        """
        # None is a value: `planner: null` is no planner
        return self.config[name] if name in self.config else PARAMETERS[name].default

    @cached_property
    def options(self) -> HierarchyConfig:
        """The groups of options (``subgoal_kwargs``, ``high_kwargs``, ...) with their defaults, checked."""
        arguments = {name: self.option(name) for name in ARGUMENTS}
        # The zoo's files have it as a string, and nothing in it is asked for here
        return HierarchyConfig.from_arguments(**arguments | {"policy_kwargs": {}})

    @cached_property
    def segment_steps(self) -> float:
        """Environment steps of a segment at most, or else what the log says of their lengths."""
        given = self.options.subgoals.steps
        if given is not None:
            return float(given)
        logged = self.late("rollout/segment_length")
        return 2.0 * LEAST_HORIZON if logged is None else logged

    def level(self, name: str) -> LevelConfig:
        """
        :param name: ``high`` or ``low``
        :return: settings of the level
        """
        return self.options.high if name == "high" else self.options.low

    @property
    def n_envs(self) -> int:
        """Environments side by side."""
        return int(self.config.get("n_envs", 1))

    @cached_property
    def updates_per_step(self) -> float:
        """Low-level updates per environment step that the hyperparameters ask for."""
        train_freq, gradient_steps = self.option("train_freq"), self.option("gradient_steps")
        frequency, unit = (train_freq, "step") if isinstance(train_freq, int) else train_freq
        steps = frequency * self.n_envs
        if unit == "episode":
            length = self.late("rollout/ep_len_mean")
            steps = frequency * (1.0 if length is None else length)
        return 1.0 if gradient_steps < 0 else gradient_steps / steps

    @cached_property
    def n_updates(self) -> int:
        """Low-level updates so far; TensorBoard is not told how many."""
        logged = self.log.get("train/n_updates")
        if logged is not None and len(logged[1]) > 0:
            return int(logged[1][-1])
        return int(max(self.n_steps - self.option("learning_starts"), 0) * self.updates_per_step)

    @property
    def is_young(self) -> bool:
        """Whether it is too early to judge how the agent does."""
        return self.n_updates < MIN_UPDATES

    @property
    def has_own_subgoals(self) -> bool:
        """Whether subgoals are the high level's, and it is not too early to judge them."""
        return not self.is_young and self.options.subgoals.are_learnt

    def values(self, key: str) -> np.ndarray:
        """
        :param key: of the log
        :return: finite values, after learning has started, shape (n,)
        """
        steps, values = self.log.get(key, (np.zeros(0), np.zeros(0)))
        return values[(steps >= self.option("learning_starts")) & np.isfinite(values)]

    def late(self, key: str) -> float | None:
        """
        :param key: of the log
        :return: mean over the last third of the run, ``None`` if there is nothing
        """
        steps, values = self.log.get(key, (np.zeros(0), np.zeros(0)))
        values = values[(steps >= (1.0 - LATE) * self.n_steps) & np.isfinite(values)]
        return float(values.mean()) if len(values) > 0 else None

    @cached_property
    def success(self) -> float | None:
        """Late success rate, without exploration noise if there were evaluations."""
        evaluated = self.late("eval/success_rate")
        return self.late("rollout/success_rate") if evaluated is None else evaluated

    def fails(self, below: float) -> bool:
        """
        :param below: a success rate
        :return: whether the agent does worse than that, or nothing is known of it
        """
        return self.success is None or self.success < below
