"""Planners choose subgoals in place of the high level's actor, where they know a way to the goal."""

from sb3_hrl.hddpg.planners.base import Planner, PlannerConfig, Reach
from sb3_hrl.hddpg.planners.landmarks import LandmarkConfig

# The argument `planner`, and the class of its `planner_kwargs`
PLANNERS: dict[str, type[PlannerConfig]] = {"landmarks": LandmarkConfig}

__all__ = ["PLANNERS", "LandmarkConfig", "Planner", "PlannerConfig", "Reach"]
