"""Planners choose subgoals if they know a path to the goal; they replace the high level's actor."""

from sb3_hrl.hddpg.planners.base import Planner, PlannerConfig, Reach
from sb3_hrl.hddpg.planners.landmarks import LandmarkConfig

# Values of the argument `planner`, and the classes of their `planner_kwargs`
PLANNERS: dict[str, type[PlannerConfig]] = {"landmarks": LandmarkConfig}

__all__ = ["PLANNERS", "LandmarkConfig", "Planner", "PlannerConfig", "Reach"]
