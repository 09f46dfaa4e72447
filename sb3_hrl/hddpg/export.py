"""An agent as stateless torch modules that can be traced: for TorchScript, ``torch.export`` and ONNX."""

import copy
import importlib.util
import pathlib
import warnings

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_hrl.common.spaces import flatten, is_whole
from sb3_hrl.common.subgoals import SubgoalBounds, action_to_subgoal, is_reached, subgoal_to_action
from sb3_hrl.hddpg import choosers
from sb3_hrl.hddpg.inference import HIGH, INPUT_CLIP, LOW, N_CANDIDATES, candidate_actions
from sb3_hrl.hddpg.policies import HierarchicalPolicy

# The rules that DecisionModule supports, in the order in which it applies them
_KNOWN_CHOOSERS = (
    choosers.given_subgoal,
    choosers.random_subgoal,
    choosers.near_goal,
    choosers.planned_waypoint,
    choosers.random_place,
    choosers.far_goal,
    choosers.actor_proposal,
    choosers.best_candidate,
    choosers.any_proposal,
)


class LowLevelModule(nn.Module):
    """
    The low level: actions to reach a subgoal. It acts like ``predict`` with ``deterministic=True``.

    :param policy: an agent's policy; its current weights and statistics are copied to the CPU
    :raises ValueError: if an oracle replaces the low level
    """

    def __init__(self, policy: HierarchicalPolicy):
        super().__init__()
        if policy.config.low.oracle is not None:
            raise ValueError(
                "The low level is an `oracle` (in `low_kwargs`), a Python function that cannot be exported: export an "
                "agent with a low level that has learnt."
            )
        assert isinstance(policy.action_space, spaces.Box)
        self._action_shape, self._rounds_actions = policy.action_space.shape, is_whole(policy.action_space)
        limits = (policy.action_space.low, policy.action_space.high)
        lowest, highest = (flatten(limit, 1, np.float32 if self._rounds_actions else limit.dtype)[0] for limit in limits)
        self.actor = _copy_of(policy.low.acting_networks[0])
        self._lowest: th.Tensor
        self._highest: th.Tensor
        self._shift: th.Tensor
        self._scale: th.Tensor
        self.register_buffer("_lowest", th.as_tensor(lowest))
        self.register_buffer("_highest", th.as_tensor(highest))
        self.register_buffer("_shift", policy.input_shift.cpu().clone())
        self.register_buffer("_scale", policy.input_scale.cpu().clone())
        self.eval()

    def inputs(self, level: int, observation: th.Tensor, achieved_goal: th.Tensor, target: th.Tensor) -> th.Tensor:
        """
        :param level: ``HIGH`` or ``LOW``
        :param observation: shape (n, obs_dim)
        :param achieved_goal: shape (n, goal_dim)
        :param target: shape (n, goal_dim)
        :return: inputs of the level's networks, shape (n, obs_dim + 3 * goal_dim)
        """
        inputs = th.cat([observation, achieved_goal, target, target - achieved_goal], dim=1)
        return ((inputs - self._shift[level]) * self._scale[level]).clamp(-INPUT_CLIP, INPUT_CLIP)

    def forward(self, observation: th.Tensor, achieved_goal: th.Tensor, subgoal: th.Tensor) -> th.Tensor:
        """
        :param observation: shape (n, ...) like the environment's observations
        :param achieved_goal: shape (n, ...) like the environment's goals
        :param subgoal: shape (n, ...) like the environment's goals, in the units of the achieved goal
        :return: actions in the units of the environment, shape (n, ...) like its actions; integers are rounded
        """
        scaled = self.actor(self.inputs(LOW, _flat(observation), _flat(achieved_goal), _flat(subgoal)))
        action = self._lowest + 0.5 * (scaled + 1.0) * (self._highest - self._lowest)
        action = th.minimum(th.maximum(action, self._lowest), self._highest)
        return (action.round() if self._rounds_actions else action).reshape(-1, *self._action_shape)


class DecisionModule(nn.Module):
    """
    Both levels: a subgoal to issue now, and actions to reach it, like ``predict`` with ``state=None`` and
    ``deterministic=True``. It has no state: to keep a subgoal for a segment, as ``predict`` does with its state, call this
    module at the start of the segment and :class:`LowLevelModule` for its other steps.

    :param policy: an agent's policy; its current weights and statistics are copied to the CPU
    :raises ValueError: if its subgoals do not come from networks only, but from a planner, or from your own rules
    """

    def __init__(self, policy: HierarchicalPolicy):
        super().__init__()
        if policy.config.planner is not None:
            raise ValueError(
                "The agent's subgoals come from a `planner`, whose search for a path cannot be exported: export its low "
                "level, LowLevelModule(policy) or `--low-level`, and let your own code send it subgoals."
            )
        if choosers.CHOOSERS != _KNOWN_CHOOSERS:
            raise ValueError(
                "`sb3_hrl.hddpg.choosers.CHOOSERS` contains your own rules, which cannot be exported: export the low level, "
                "LowLevelModule(policy), or write a torch module for the rules."
            )
        self.low_level = LowLevelModule(policy)
        self._subgoals, self._low_gamma = policy.config.subgoals, policy.config.low.gamma
        # The goal is near within this number of steps; if values do not predict steps, it is never near
        self._horizon = policy.numpy_policy().horizon if policy.config.asks_values else None
        self._rounds_goals, self._threshold = policy.rounds_goals, policy.subgoal_threshold.item()
        self._goal_shape = policy.observation_space["desired_goal"].shape  # type: ignore[index]
        actor, critics = policy.high.acting_networks
        self.high_actor, self.high_critic = _copy_of(actor), _copy_of(critics[0])
        self.low_critics = nn.ModuleList([_copy_of(critic) for critic in policy.low.acting_networks[1]])
        self._low: th.Tensor
        self._high: th.Tensor
        self._radius: th.Tensor
        self._candidates: th.Tensor
        self._weights: th.Tensor
        for name, value in zip(("_low", "_high", "_radius", "_weights"), (*policy.bounds, policy.goal_weights), strict=True):
            self.register_buffer(name, value.cpu().clone())
        self.register_buffer("_candidates", th.tensor(candidate_actions(policy.goal_dim)))
        self.eval()

    def forward(
        self, observation: th.Tensor, achieved_goal: th.Tensor, desired_goal: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param observation: shape (n, ...) like the environment's observations
        :param achieved_goal: shape (n, ...) like the environment's goals
        :param desired_goal: shape (n, ...) like the environment's goals
        :return: subgoals, shape (n, ...) like the environment's goals, and actions in the units of the environment, shape
            (n, ...) like the environment's actions
        """
        observation, achieved_goal = _flat(observation), _flat(achieved_goal)
        subgoal = self._subgoal(observation, achieved_goal, _flat(desired_goal))
        return subgoal.reshape(-1, *self._goal_shape), self.low_level(observation, achieved_goal, subgoal)

    def _subgoal(self, observation: th.Tensor, achieved: th.Tensor, goal: th.Tensor) -> th.Tensor:
        """Apply the rules of :data:`~sb3_hrl.hddpg.choosers.CHOOSERS`, starting with the last one."""
        options = self._subgoals
        if not isinstance(options.source, str):
            return th.zeros_like(goal) + th.tensor(np.asarray(options.source, dtype=np.float32))
        if options.source != "policy":
            return goal
        inputs = self.low_level.inputs(HIGH, observation, achieved, goal)
        subgoal = self._commanded(self.high_actor(inputs), achieved)
        if options.avoid_reached:
            is_futile = self._is_reached(achieved, subgoal) & ~self._is_reached(achieved, goal)
            candidate, is_one = self._best_candidate(inputs, achieved)
            subgoal = th.where((is_futile & is_one)[:, None], candidate, subgoal)
        if self._horizon is not None:
            is_near = self._steps(observation, achieved, goal) <= self._horizon
            subgoal = th.where(is_near[:, None], goal, subgoal)
        return subgoal

    def _best_candidate(self, inputs: th.Tensor, achieved: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """:return: the best candidate that is not reached, shape (n, goal_dim), and whether there is one, shape (n,)"""
        achieved = achieved[:, None]
        subgoals = self._commanded(self._candidates, achieved)
        actions = subgoal_to_action(subgoals, achieved, self._bounds)
        pairs = th.cat([inputs[:, None].expand(-1, N_CANDIDATES, -1), actions], dim=2)
        values = self.high_critic(pairs.flatten(0, 1)).reshape(-1, N_CANDIDATES)
        values = values.masked_fill(self._is_reached(achieved, subgoals), -np.inf)
        value, best = values.max(dim=1)
        rows = best[:, None, None].expand(-1, 1, subgoals.shape[2])
        return subgoals.gather(1, rows).squeeze(1), ~value.isinf()

    def _steps(self, observation: th.Tensor, achieved: th.Tensor, goal: th.Tensor) -> th.Tensor:
        """:return: environment steps to the goal from the low level's value, see ``NumpyPolicy.steps``, shape (n,)"""
        inputs = self.low_level.inputs(LOW, observation, achieved, goal)
        pairs = th.cat([inputs, self.low_level.actor(inputs)], dim=1)
        values = th.stack([critic(pairs)[:, 0] for critic in self.low_critics]).amin(dim=0)
        remaining = (1.0 + (1.0 - self._low_gamma) * values).clamp(max=1.0)
        steps = remaining.clamp(min=1e-30).log() / np.log(self._low_gamma)
        return steps.masked_fill(remaining <= 0.0, np.inf)

    @property
    def _bounds(self) -> SubgoalBounds:
        return SubgoalBounds(self._low, self._high, self._radius)

    def _commanded(self, action: th.Tensor, achieved: th.Tensor) -> th.Tensor:
        subgoal = action_to_subgoal(action, achieved, self._bounds)
        return subgoal.round() if self._rounds_goals else subgoal

    def _is_reached(self, achieved: th.Tensor, subgoal: th.Tensor) -> th.Tensor:
        return is_reached(achieved, subgoal, self._threshold, self._weights)


def export_onnx(module: LowLevelModule | DecisionModule, policy: HierarchicalPolicy, path: str | pathlib.Path) -> None:
    """
    Write a module to an ONNX file, for any number of environments.

    Inputs are ``observation``, ``achieved_goal``, and ``subgoal`` or ``desired_goal``. The output is ``action``; a
    :class:`DecisionModule` also has the output ``subgoal``, before ``action``. Shapes are those of the environment's spaces,
    with the number of environments as the first dimension. Inputs and subgoals are float32, actions have the type of the
    action space.

    :param module: the module to export
    :param policy: the policy from which the module was created
    :param path: the file, usually ``.onnx``
    :raises ImportError: if onnx or onnxscript is not installed
    """
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        raise ImportError("Exporting to ONNX needs onnx and onnxscript: pip install sb3-hrl[export]")
    is_low = isinstance(module, LowLevelModule)
    space = policy.observation_space
    assert isinstance(space, spaces.Dict)
    # Two environments: with one, the exporter would treat their number as a constant
    keys = ("observation", "achieved_goal", "desired_goal")
    example = tuple(th.zeros(2, *space[key].shape) for key in keys)  # type: ignore[misc]
    with warnings.catch_warnings():
        # The exporter warns about its own internals, and about a name that all inputs share
        warnings.simplefilter("ignore")
        th.onnx.export(
            module,
            example,
            str(path),
            input_names=["observation", "achieved_goal", "subgoal" if is_low else "desired_goal"],
            output_names=["action"] if is_low else ["subgoal", "action"],
            dynamic_shapes=tuple({0: th.export.Dim("n_envs")} for _ in example),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _copy_of(network: nn.Module) -> nn.Module:
    """:return: a copy on the CPU, in evaluation mode and without gradients"""
    return copy.deepcopy(network).cpu().eval().requires_grad_(False)


def _flat(x: th.Tensor) -> th.Tensor:
    """:return: float32, shape (n, dim)"""
    return x.float().reshape(x.shape[0], -1)
