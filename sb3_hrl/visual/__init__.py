"""Pictures of a hierarchical agent: videos with its subgoals in the scene, and maps of mazes, also in TensorBoard."""

from sb3_hrl.visual.callbacks import SubgoalPlotCallback, SubgoalVideoCallback
from sb3_hrl.visual.maze import plot_maze
from sb3_hrl.visual.rendering import use_offscreen_renderer
from sb3_hrl.visual.video import record_agent

__all__ = ["SubgoalPlotCallback", "SubgoalVideoCallback", "plot_maze", "record_agent", "use_offscreen_renderer"]
