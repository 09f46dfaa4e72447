"""The curves and hyperparameters of a run, which the checks of a log look at."""

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
# Share of the run that is judged, at its end
LATE = 1.0 / 3.0
# Minimum number of updates before an agent is judged
MIN_UPDATES = 1_000


class RunSurvey:
    """
    A run, described by its log and its hyperparameters.

    :param log: environment steps and values by key, each of shape (n,)
    :param config: hyperparameters, as in hddpg.yml
    :param n_timesteps: requested number of environment steps; ``None``: ``n_timesteps`` of ``config``
    """

    def __init__(self, log: Mapping[str, Curve], config: Mapping[str, Any], n_timesteps: int | None = None):
        self.log, self.config = dict(log), config
        asked = config.get("n_timesteps") if n_timesteps is None else n_timesteps
        self.n_asked = None if asked is None else int(asked)

    @cached_property
    def n_steps(self) -> int:
        """Number of environment steps done, according to the log."""
        return int(max((steps[-1] for steps, _ in self.log.values() if len(steps) > 0), default=0))

    def option(self, name: str) -> Any:
        """
        :param name: argument of HierarchicalDDPG
        :return: its value in this run
        """
        # None is a value: `planner: null` means no planner
        return self.config[name] if name in self.config else PARAMETERS[name].default

    @cached_property
    def options(self) -> HierarchyConfig:
        """The groups of options (``subgoal_kwargs``, ``high_kwargs``, ...) with their defaults, checked."""
        arguments = {name: self.option(name) for name in ARGUMENTS}
        # The zoo's files store it as a string, and the checks do not need it
        return HierarchyConfig.from_arguments(**arguments | {"policy_kwargs": {}})

    @cached_property
    def segment_steps(self) -> float:
        """Maximum number of environment steps per segment if given, otherwise their mean length in the log."""
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
        """Number of environments that step together."""
        return int(self.config.get("n_envs", 1))

    @cached_property
    def updates_per_step(self) -> float:
        """Number of low-level updates per environment step, according to the hyperparameters."""
        train_freq, gradient_steps = self.option("train_freq"), self.option("gradient_steps")
        frequency, unit = (train_freq, "step") if isinstance(train_freq, int) else train_freq
        steps = frequency * self.n_envs
        if unit == "episode":
            length = self.late("rollout/ep_len_mean")
            steps = frequency * (1.0 if length is None else length)
        return 1.0 if gradient_steps < 0 else gradient_steps / steps

    @cached_property
    def n_updates(self) -> int:
        """Number of low-level updates so far; estimated if it was not logged, as in TensorBoard's files."""
        logged = self.log.get("train/n_updates")
        if logged is not None and len(logged[1]) > 0:
            return int(logged[1][-1])
        return int(max(self.n_steps - self.option("learning_starts"), 0) * self.updates_per_step)

    @property
    def is_young(self) -> bool:
        """Whether it is too early to judge the agent."""
        return self.n_updates < MIN_UPDATES

    @property
    def has_own_subgoals(self) -> bool:
        """Whether the high level chooses the subgoals, and it is not too early to judge them."""
        return not self.is_young and self.options.subgoals.are_learnt

    def values(self, key: str) -> np.ndarray:
        """
        :param key: key of the log
        :return: finite values since learning has started, shape (n,)
        """
        steps, values = self.log.get(key, (np.zeros(0), np.zeros(0)))
        return values[(steps >= self.option("learning_starts")) & np.isfinite(values)]

    def late(self, key: str) -> float | None:
        """
        :param key: key of the log
        :return: mean over the last third of the run, ``None`` if there are no values
        """
        steps, values = self.log.get(key, (np.zeros(0), np.zeros(0)))
        values = values[(steps >= (1.0 - LATE) * self.n_steps) & np.isfinite(values)]
        return float(values.mean()) if len(values) > 0 else None

    @cached_property
    def success(self) -> float | None:
        """Success rate at the end of the run, without exploration noise if there were evaluations."""
        evaluated = self.late("eval/success_rate")
        return self.late("rollout/success_rate") if evaluated is None else evaluated

    def fails(self, below: float) -> bool:
        """
        :param below: a success rate
        :return: whether the agent's success rate is lower, or unknown
        """
        return self.success is None or self.success < below
