"""Subgoal metrics in evaluations, where no noise helps an agent out of bad subgoals."""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import EvalCallback

from sb3_hrl.common.spaces import flatten
from sb3_hrl.common.subgoals import SegmentEnd
from sb3_hrl.common.type_aliases import SubgoalState
from sb3_hrl.hddpg.level import AT_BOUND
from sb3_hrl.hddpg.policies import HierarchicalPolicy
from sb3_hrl.hddpg.segments import Segments, record_means


class HierarchicalEvalCallback(EvalCallback):
    """
    SB3's ``EvalCallback``, which also logs what happens to the subgoals: ``eval/subgoal_success_rate``,
    ``eval/subgoal_reached_at_issue``, ``eval/subgoal_at_bounds``, ``eval/subgoal_distance`` (mean weighted distance when
    issued, relative to the length of the radius) and ``eval/segment_length``. Segments that start at the goal are not counted.
    For agents without subgoals it is a plain ``EvalCallback``.
    """

    def _on_step(self) -> bool:
        if self.eval_freq > 0 and self.n_calls % self.eval_freq == 0:
            self._sums = dict.fromkeys(("issued", "at_hand", "at_bounds", "distance", "ended", "reached", "steps"), 0.0)
        return super()._on_step()

    def _log_success_callback(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        super()._log_success_callback(locals_, globals_)
        state, policy = locals_["states"], self.model.policy
        if isinstance(state, SubgoalState) and isinstance(policy, HierarchicalPolicy):
            self._count(policy, SubgoalState(*(array[[locals_["i"]]] for array in state)), locals_)
            self._record()

    def _count(self, policy: HierarchicalPolicy, state: SubgoalState, locals_: dict[str, Any]) -> None:
        """Add one step of one environment to the sums."""
        sums, acting = self._sums, policy.numpy_policy()
        i = locals_["i"]
        if locals_["done"]:
            after, goal = (locals_["info"]["terminal_observation"][key] for key in ("achieved_goal", "desired_goal"))
        else:
            after, goal = (locals_["new_observations"][key][i] for key in ("achieved_goal", "desired_goal"))
        if acting.is_reached(state.starts, flatten(goal, 1))[0]:
            # A segment that starts at the goal tells nothing about subgoals, because the agent stays there
            return
        if state.steps[0] == 0:
            offset, radius = (acting.goal_weights * part for part in (state.subgoals - state.starts, acting.bounds.radius))
            sums["issued"] += 1
            sums["at_hand"] += bool(acting.is_reached(state.starts, state.subgoals)[0])
            sums["distance"] += float(np.linalg.norm(offset) / np.linalg.norm(radius))
            sums["at_bounds"] += bool((np.abs(acting.subgoal_to_action(state.subgoals, state.starts)) >= AT_BOUND).any())
        segments = Segments.from_state(state)
        achieved = flatten(after, 1)
        (end,) = acting.advance(segments, achieved, [locals_["done"]])
        if end != SegmentEnd.NONE:
            sums["ended"] += 1
            sums["reached"] += end == SegmentEnd.REACHED
            sums["steps"] += segments.steps[0]

    def _record(self) -> None:
        means = {
            "issued": {
                "eval/subgoal_reached_at_issue": "at_hand",
                "eval/subgoal_at_bounds": "at_bounds",
                "eval/subgoal_distance": "distance",
            },
            "ended": {"eval/subgoal_success_rate": "reached", "eval/segment_length": "steps"},
        }
        record_means(self.logger, self._sums, means)
