"""A map of a maze with the agent's subgoals and values, drawn with matplotlib (nothing is rendered)."""

import importlib.util
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_hrl.common.buffers import SharedMemoryReplayBuffer
from sb3_hrl.common.checks import require
from sb3_hrl.hddpg.planners.landmarks import LandmarkPlanner
from sb3_hrl.hddpg.policies import HierarchicalPolicy
from sb3_hrl.visual.episodes import Moment, check_fit, play, single_env

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Number of cells of the heat map along the longer axis
N_CELLS = 30


def subgoal_policy(model: BaseAlgorithm) -> HierarchicalPolicy:
    """
    :param model: an agent
    :return: its policy
    :raises ValueError: if the policy has no subgoals
    """
    if not isinstance(model.policy, HierarchicalPolicy):
        raise ValueError(f"`model` must be a HierarchicalDDPG: {type(model).__name__} has no subgoals to draw.")
    return model.policy


def check_matplotlib() -> None:
    """
    :raises ImportError: if matplotlib is not installed; the message names the extra that installs it
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError('A map needs matplotlib: `pip install "sb3-hrl[visual]"`.')


def check_map(env: gym.Env) -> None:
    """
    :param env: goal-conditioned environment
    :raises ValueError: if its goals are not positions in a plane
    """
    shape = env.observation_space["desired_goal"].shape  # type: ignore[index]
    if np.prod(shape) < 2:
        raise ValueError(f"`env` must have goals of at least two dimensions to be drawn as a map, not of shape {shape}.")


def plot_maze(
    model: BaseAlgorithm,
    env: gym.Env | VecEnv,
    deterministic: bool = True,
    seed: int | None = None,
    n_states: int = 10_000,
    n_episodes: int = 10,
    max_steps: int = 1_000,
) -> "Figure":
    """
    Draw a map of an episode: its path, its subgoals (coloured by the step at which they were issued), and its goal. The
    background shows the high level's values of visited places, for the goal of this episode: roughly minus the discounted
    number of segments to the goal. Visited places come from the replay buffer or, if it is empty, from ``n_episodes``
    episodes. Walls are drawn if the environment has a maze, and landmarks with the paths between them if the agent has a
    planner. If goals have more than two dimensions, the first two are shown.

    :param model: a :class:`~sb3_hrl.HierarchicalDDPG`
    :param env: its environment, or a ``DummyVecEnv`` of one; it does not have to support rendering
    :param deterministic: whether the agent acts without noise
    :param seed: seed of the environment's first reset
    :param n_states: number of visited states to draw from the replay buffer
    :param n_episodes: number of episodes to play if there is no replay buffer; the map shows the first one
    :param max_steps: maximum number of environment steps per episode
    :return: the figure; save it with ``savefig``
    :raises ValueError: if an argument is out of range, or the agent has no subgoals
    :raises ImportError: if matplotlib is not installed
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    policy, env = subgoal_policy(model), single_env(env)
    require(n_states >= 1, "n_states", "at least 1 (visited states)", n_states)
    require(n_episodes >= 1, "n_episodes", "at least 1 (episodes)", n_episodes)
    require(max_steps >= 1, "max_steps", "at least 1 (environment steps)", max_steps)
    check_fit(model, env)
    check_map(env)
    buffer = getattr(model, "replay_buffer", None)
    has_buffer = isinstance(buffer, SharedMemoryReplayBuffer) and buffer.size() > 0
    moments = list(play(model, env, 1 if has_buffer else n_episodes, deterministic, seed, max_steps))
    if has_buffer:
        assert isinstance(buffer, SharedMemoryReplayBuffer)
        observations, achieved = _states(buffer, n_states)
    else:
        observations = np.stack([moment.observation for moment in moments])
        achieved = np.stack([moment.achieved_goal for moment in moments])
    shown = [moment for moment in moments if moment.episode == 0]
    values = high_values(policy, observations, achieved, shown[0].goal)

    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    axes = figure.subplots()
    _draw_values(figure, axes, achieved, values)
    _draw_walls(axes, env.unwrapped)
    _draw_landmarks(axes, policy)
    _draw_episode(figure, axes, shown, policy.subgoal_threshold.item())
    axes.set_aspect("equal")
    outcome = "success" if shown[-1].success else "no success"
    axes.set_title(f"{model.num_timesteps:,} steps of training; this episode: {shown[-1].step} steps, {outcome}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _states(buffer: SharedMemoryReplayBuffer, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample visited states with a separate generator, so that a picture does not affect a run with a seed."""
    states = buffer.sample_states(n, np.random.default_rng(0))
    return states["observation"], states["achieved_goal"]


def high_values(policy: HierarchicalPolicy, observations: np.ndarray, achieved: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """
    Values of states according to the high level's most pessimistic critic.

    :param policy: the policy
    :param observations: shape (n, obs_dim)
    :param achieved: achieved goals of the states, shape (n, goal_dim)
    :param goal: desired goal, shape (goal_dim,)
    :return: values, shape (n,)
    """
    arrays = (observations, achieved, np.broadcast_to(goal, achieved.shape).copy())
    policy.set_training_mode(False)
    with th.no_grad():
        inputs = policy.high_inputs(*(th.as_tensor(array, dtype=th.float32) for array in arrays)).to(policy.device)
        actor, critics = policy.high.acting_networks
        pairs = th.cat([inputs, actor(inputs)], dim=1)
        values = th.cat([critic(pairs) for critic in critics], dim=1)
    return values.amin(dim=1).cpu().numpy()


def _draw_values(figure: "Figure", axes: "Axes", achieved: np.ndarray, values: np.ndarray) -> None:
    x, y = achieved[:, 0], achieved[:, 1]
    width, height = np.maximum(np.ptp(achieved[:, :2], axis=0), 1e-6)
    cell = max(width, height) / N_CELLS
    # Regular hexagons: the distance between rows is smaller than between columns
    grid = (max(round(width / cell), 1), max(round(height / cell / np.sqrt(3.0)), 1))
    cells = axes.hexbin(x, y, C=values, reduce_C_function=np.mean, gridsize=grid, cmap="Blues", linewidths=0.1, zorder=1)
    axes.plot(x, y, ".", color="0.4", markersize=0.7, zorder=2, label="visited")
    figure.colorbar(cells, ax=axes, label="high level's value of being here", shrink=0.8)


def _draw_walls(axes: "Axes", env: Any) -> None:
    """Draw the walls of gymnasium-robotics' mazes."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    maze = getattr(env, "maze", None)
    if maze is None:
        return
    size = maze.maze_size_scaling
    cells = [(row, column) for row, line in enumerate(maze.maze_map) for column, cell in enumerate(line) if cell == 1]
    corners = [maze.cell_rowcol_to_xy(np.array(cell)) - 0.5 * size for cell in cells]
    walls = [Rectangle(tuple(corner), size, size) for corner in corners]
    axes.add_collection(PatchCollection(walls, facecolor="0.75", edgecolor="0.75", zorder=0), autolim=True)
    axes.autoscale_view()


def _draw_landmarks(axes: "Axes", policy: HierarchicalPolicy) -> None:
    from matplotlib.collections import LineCollection

    planner = policy.numpy_policy().planner
    if not isinstance(planner, LandmarkPlanner) or planner.n_landmarks == 0:
        return
    goals, steps, n = planner.places[:, :2], planner.steps, planner.n_landmarks
    starts, ends = np.nonzero(np.isfinite(steps) & ~np.eye(n, dtype=bool))
    edges = np.stack([goals[starts], goals[ends]], axis=1)
    axes.add_collection(LineCollection(list(edges), colors="tab:green", linewidths=0.4, alpha=0.35, zorder=3))
    axes.plot(*goals.T, "s", color="tab:green", markersize=2.5, zorder=3, label="landmarks")


def _draw_episode(figure: "Figure", axes: "Axes", moments: list[Moment], threshold: float) -> None:
    from matplotlib.patches import Circle

    path = np.stack([moment.achieved_goal for moment in moments])
    axes.plot(path[:, 0], path[:, 1], "-", color="black", linewidth=1.5, zorder=4, label="path")
    axes.plot(*path[0, :2], "o", color="white", markeredgecolor="black", markersize=8, zorder=5, label="start")
    issued = [moment for moment in moments if moment.issued]
    subgoals = np.stack([moment.subgoal for moment in issued if moment.subgoal is not None])
    steps = [moment.step for moment in issued]
    x, y = subgoals[:, 0], subgoals[:, 1]
    style: dict[str, Any] = dict(cmap="autumn_r", edgecolors="black", zorder=6, label="subgoals")
    dots = axes.scatter(x, y, c=steps, vmin=0, vmax=moments[-1].step, **style)
    figure.colorbar(dots, ax=axes, label="subgoal issued at step", shrink=0.8)
    goal = moments[0].goal
    axes.plot(*goal[:2], "*", color="red", markeredgecolor="black", markersize=16, zorder=7, label="goal")
    # The region in which the goal counts as reached
    axes.add_patch(Circle((goal[0], goal[1]), threshold, fill=False, edgecolor="red", linestyle="--", zorder=7))
