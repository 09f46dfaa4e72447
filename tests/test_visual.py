"""Videos with subgoals in the scene, maps, their callbacks for TensorBoard, and the command that creates them."""

import gc
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import imageio.v3 as imageio
import numpy as np
import pytest
from conftest import PointEnv, point_vec_env
from conftest import run as run_command
from matplotlib.collections import LineCollection, PatchCollection, PathCollection, PolyCollection
from stable_baselines3 import DDPG
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_hrl import HierarchicalDDPG, SharedMemoryReplayBuffer
from sb3_hrl.hddpg.policies import HierarchicalPolicy
from sb3_hrl.visual import SubgoalPlotCallback, SubgoalVideoCallback, plot_maze, record_agent, use_offscreen_renderer
from sb3_hrl.visual.episodes import play, single_env
from sb3_hrl.visual.maze import high_values
from sb3_hrl.visual.rendering import GOAL_COLOUR, SUBGOAL_COLOUR, Scene, _works, draw_legend
from sb3_hrl.visual.video import agent_frames, check_path
from sb3_hrl.zoo.commands import watch as watch_command

pytestmark = pytest.mark.timeout(300)

gym.register_envs(gymnasium_robotics)
needs_renderer = pytest.mark.usefixtures("renderer")
SMALL = dict(render_mode="rgb_array", width=96, height=96)
SETTINGS: dict[str, Any] = dict(learning_starts=20, batch_size=16, policy_kwargs=dict(net_arch=[16]), seed=0, buffer_size=1000)


def maze(**kwargs: Any) -> gym.Env:
    """:return: a small maze whose episodes end at success"""
    return gym.make("PointMaze_UMaze-v3", continuing_task=False, **kwargs)


@pytest.fixture(scope="module")
def maze_model() -> HierarchicalDDPG:
    """An agent that has seen a small part of the maze, and plans over landmarks."""
    config = dict(n_landmarks=8, n_members=1, n_visited=50, update_interval=100)
    planner = dict(planner="landmarks", planner_kwargs=config, subgoal_kwargs=dict(radius=1.0))
    model = HierarchicalDDPG("MultiInputPolicy", maze(), subgoal_steps=5, **planner, **SETTINGS)
    return model.learn(150)


# ------------------------------------------------------------------------------- episodes


def test_moments_are_those_of_the_episode():
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(max_steps=12), subgoal_steps=5, **SETTINGS)
    env = PointEnv(max_steps=12)
    moments = list(play(model, env, n_episodes=2, seed=3))
    assert [moment.step for moment in moments] == [*range(13), *range(13)]
    assert [moment.is_last for moment in moments] == [step == 12 for step in [*range(13), *range(13)]]
    assert {moment.episode for moment in moments[13:]} == {1}
    # The environment is in the state of the last moment
    np.testing.assert_allclose(env.position, moments[-1].achieved_goal, rtol=1e-6)
    # A subgoal stays until it is reached, or its steps are used up
    for before, after in itertools.pairwise(moments[:12]):
        assert after.issued or np.array_equal(before.subgoal, after.subgoal)
    issued = [moment.step for moment in moments[:12] if moment.issued]
    assert issued[0] == 0
    assert max(np.diff([*issued, 12])) <= 5


def test_an_episode_without_end_is_left():
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(max_steps=10**9), **SETTINGS)
    assert len(list(play(model, PointEnv(max_steps=10**9), n_episodes=1, max_steps=7))) == 8


# ------------------------------------------------------------------------------- rendering


@needs_renderer
@pytest.mark.parametrize(("env_id", "goal_dim"), [("FetchReach-v4", 3), ("PointMaze_UMaze-v3", 2), ("AntMaze_UMaze-v4", 2)])
def test_the_subgoal_changes_pixels(env_id, goal_dim):
    """There is amber where the subgoal is, and it disappears with it."""
    env = gym.make(env_id, **SMALL)
    obs, _ = env.reset(seed=0)
    scene = Scene(env, threshold=0.05 if goal_dim == 3 else 0.45)
    goal = obs["desired_goal"]
    subgoal = obs["achieved_goal"] + (np.array([0.1, 0.1, 0.1]) if goal_dim == 3 else np.array([0.8, 0.0]))
    without, again, with_subgoal = scene.frame(goal), scene.frame(goal), scene.frame(goal, subgoal)
    assert without.shape == (96, 96, 3)
    assert without.dtype == np.uint8
    np.testing.assert_array_equal(without, again)
    changed = (without != with_subgoal).any(axis=2)
    assert 10 < changed.sum() < 0.2 * changed.size, "the marker and its halo, and nothing else"
    pixels, colour = with_subgoal[changed].astype(float), np.array(SUBGOAL_COLOUR)
    likeness = (pixels @ colour) / np.linalg.norm(pixels, axis=1) / np.linalg.norm(colour)
    assert likeness.max() > 0.98
    # Previous subgoals are drawn as well, and markers do not stay
    assert (scene.frame(goal, subgoal, [obs["achieved_goal"] * 0.9]) != with_subgoal).any()
    np.testing.assert_array_equal(scene.frame(goal), without)
    env.close()


@needs_renderer
def test_the_goal_is_drawn():
    env = maze(**SMALL)
    env.reset(seed=0)
    scene = Scene(env, threshold=0.45)
    here, away = (scene.frame(np.array(goal)).astype(float) for goal in ([-1.0, -1.0], [100.0, 100.0]))
    drawn = here[(here != away).any(axis=2)]
    assert 3 < len(drawn) < 200
    assert (drawn[:, 0] > 2.0 * drawn[:, 1:].max(axis=1)).mean() > 0.5, "red"
    env.close()


@pytest.mark.parametrize("size", [96, 480])
def test_the_legend(size):
    """It names the colours of the goal and, for a hierarchical agent, of subgoals, in a corner of the picture."""
    frame = np.full((size, size, 3), 128, dtype=np.uint8)
    for has_subgoals in (True, False):
        picture = draw_legend(frame, has_subgoals)
        assert (picture[size // 3 :] == 128).all()
        assert (picture[:, 2 * size // 3 :] == 128).all()
        colours = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
        goal, subgoal = (tuple(round(255 * channel) for channel in colour) for colour in (GOAL_COLOUR, SUBGOAL_COLOUR))
        assert goal in colours
        assert (subgoal in colours) == has_subgoals
    assert (frame == 128).all()


@needs_renderer
def test_the_camera_is_the_users():
    env = maze(**SMALL)
    env.reset(seed=0)
    frames = [Scene(env, camera=camera).frame(np.zeros(2)) for camera in (None, None, dict(distance=3.0))]
    np.testing.assert_array_equal(frames[0], frames[1])
    assert (frames[0] != frames[2]).mean() > 0.2
    with pytest.raises(ValueError, match=r"`camera` has unknown keys: `zoom`.*may have `azimuth`"):
        Scene(env, camera=dict(zoom=2))
    env.close()


@needs_renderer
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # from imageio's pipes to ffmpeg
@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_record_agent(maze_model, tmp_path, suffix):
    path = tmp_path / "folder" / f"agent{suffix}"
    env = maze(**SMALL)
    successes = record_agent(maze_model, env, path, n_episodes=2, fps=20, seed=0, frame_skip=2, max_steps=10)
    assert len(successes) == 2
    _, frame = next(agent_frames(maze_model, env, n_episodes=1))
    np.testing.assert_array_equal(draw_legend(frame, has_subgoals=True), frame)
    # Before every second step, and after the last one
    assert imageio.immeta(path)["duration"] == (50 if suffix == ".gif" else pytest.approx(12 / 20, abs=0.06))
    frames = imageio.imread(path)
    assert frames.shape == (12, 96, 96, 3)
    assert (frames[0] != frames[5]).any()
    env.close()
    gc.collect()  # here, where the warning is ignored


@needs_renderer
def test_record_agent_says_what_was_reached(maze_model, tmp_path):
    env = gym.make("FetchReach-v4", **SMALL)
    model = HierarchicalDDPG("MultiInputPolicy", env, **SETTINGS)
    # At the goal immediately
    env.unwrapped.distance_threshold = 10.0
    assert record_agent(model, DummyVecEnv([lambda: env]), tmp_path / "a.gif", n_episodes=1, max_steps=2) == [True]
    env.unwrapped.distance_threshold = 0.0
    assert record_agent(model, env, tmp_path / "a.gif", n_episodes=1, max_steps=2) == [False]
    env.close()


@needs_renderer
def test_agents_without_subgoals_are_recorded_too(tmp_path):
    env = maze(**SMALL)
    kwargs = dict(replay_buffer_class=SharedMemoryReplayBuffer, policy_kwargs=dict(net_arch=[16]), buffer_size=100)
    model = DDPG("MultiInputPolicy", env, **kwargs)
    record_agent(model, env, tmp_path / "flat.gif", n_episodes=1, max_steps=3)
    assert imageio.imread(tmp_path / "flat.gif").shape[0] > 1
    _, frame = next(agent_frames(model, env, n_episodes=1))
    # Drawn once more, it is the same
    np.testing.assert_array_equal(draw_legend(frame, has_subgoals=False), frame)
    with pytest.raises(ValueError, match="must be a HierarchicalDDPG: DDPG has no subgoals"):
        plot_maze(model, env)
    env.close()


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(path="agent.avi"), "`path` must be a file that ends in .gif or .mp4, not 'agent.avi'"),
        (dict(n_episodes=0), r"`n_episodes` must be at least 1 \(episodes\), not 0"),
        (dict(frame_skip=0), "`frame_skip` must be at least 1"),
        (dict(n_past=-1), "`n_past` must be at least 0"),
        (dict(max_steps=0), "`max_steps` must be at least 1"),
        (dict(fps=0), "`fps` must be positive"),
    ],
)
def test_record_agent_refuses(maze_model, tmp_path, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        record_agent(maze_model, maze(**SMALL), **{"path": tmp_path / "agent.gif", **arguments})


def test_environments_that_cannot_be_drawn_are_refused(maze_model, tmp_path, small):
    path = tmp_path / "agent.gif"
    with pytest.raises(
        ValueError, match=r'render_mode is None: create it with `gymnasium.make\(..., render_mode="rgb_array"\)`'
    ):
        record_agent(maze_model, maze(), path)
    with pytest.raises(ValueError, match="The agent was trained on observations"):
        record_agent(maze_model, gym.make("FetchReach-v4"), path)
    with pytest.raises(ValueError, match="`env` must be goal-conditioned"):
        record_agent(maze_model, gym.make("CartPole-v1"), path)
    with pytest.raises(ValueError, match="must be one environment in this process, not DummyVecEnv of 2"):
        record_agent(maze_model, point_vec_env(2), path)
    with pytest.raises(ValueError, match="normalises observations with VecNormalize"):
        plot_maze(maze_model, VecNormalize(point_vec_env()))
    assert not path.exists()


@needs_renderer
def test_environments_without_mujoco_are_refused(small, tmp_path):
    env = PointEnv()
    env.render_mode = "rgb_array"
    model = HierarchicalDDPG("MultiInputPolicy", env, **small)
    with pytest.raises(ValueError, match=r"PointEnv.* has no `mujoco_renderer`.*rl_zoo3.record_video"):
        record_agent(model, env, tmp_path / "agent.gif")


@needs_renderer
def test_goals_that_are_no_places_are_refused():
    env = maze(**SMALL)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="Goals of length 7 cannot be drawn"):
        Scene(env).frame(np.zeros(7))
    env.close()


@pytest.fixture
def unprobed(monkeypatch) -> Iterator[pytest.MonkeyPatch]:
    """Renderers are tested again, and ``MUJOCO_GL`` is restored after the test."""
    monkeypatch.setenv("MUJOCO_GL", "")
    _works.cache_clear()
    yield monkeypatch
    _works.cache_clear()


def test_without_a_renderer_it_is_said_what_to_install(unprobed):
    """No machine has a hundred devices."""
    unprobed.setenv("MUJOCO_GL", "egl")
    unprobed.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    sentence = "MUJOCO_GL=egl does not work here. Install .* `apt-get install libegl1 libopengl0 libgl1-mesa-dri`"
    with pytest.raises(RuntimeError, match=sentence):
        use_offscreen_renderer()


@needs_renderer
@pytest.mark.parametrize("display", ["", ":1234"])
def test_a_renderer_is_found_without_a_display(unprobed, display):
    """Also if the display in the variable does not exist."""
    unprobed.setenv("DISPLAY", display)
    unprobed.setenv("WAYLAND_DISPLAY", "")
    use_offscreen_renderer()
    assert os.environ["MUJOCO_GL"] in ("egl", "osmesa")


def test_nothing_is_rendered_by_importing(tmp_path):
    """The package can be imported with a wrong MUJOCO_GL, so that it can report it."""
    code = "import sys, sb3_hrl.visual; print('mujoco' in sys.modules)"
    assert run_command(["python", "-c", code], tmp_path).split()[-1] == "False"


# ------------------------------------------------------------------------------- maps


def artists(axes: Any, kind: type) -> list[Any]:
    return [artist for artist in axes.collections if type(artist) is kind]


def test_map_of_a_maze(maze_model, tmp_path):
    env = maze()
    figure = plot_maze(maze_model, env, seed=0, n_states=100, max_steps=40)
    axes = figure.axes[0]
    walls = artists(axes, PatchCollection)[0]
    assert len(walls.get_paths()) == sum(cell == 1 for row in env.unwrapped.maze.maze_map for cell in row)
    # The maze starts at the upper left block
    assert walls.get_paths()[0].get_extents().bounds == pytest.approx((-2.5, 1.5, 1.0, 1.0))
    cells = artists(axes, PolyCollection)[0]
    assert len(cells.get_array()) > 5
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"visited", "landmarks", "path", "start", "goal"}
    assert len(lines["visited"].get_xdata()) == 100
    assert len(lines["landmarks"].get_xdata()) == maze_model.policy.numpy_policy().planner.n_landmarks
    moments = list(play(maze_model, maze(), 1, seed=0, max_steps=40))
    np.testing.assert_allclose(lines["path"].get_xydata(), [moment.achieved_goal for moment in moments], rtol=1e-5)
    np.testing.assert_allclose(lines["goal"].get_xydata()[0], moments[0].goal)
    dots = artists(axes, PathCollection)[0]
    issued = [moment for moment in moments if moment.issued]
    np.testing.assert_allclose(dots.get_offsets(), [moment.subgoal for moment in issued], rtol=1e-5)
    np.testing.assert_array_equal(dots.get_array(), [moment.step for moment in issued])
    assert artists(axes, LineCollection), "the ways between landmarks"
    assert axes.patches[0].get_radius() == pytest.approx(maze_model.policy.subgoal_threshold.item())
    assert len(figure.axes) == 3, "two colour bars"
    figure.savefig(tmp_path / "map.png")
    assert imageio.imread(tmp_path / "map.png").std() > 10


def test_map_without_a_maze_and_a_buffer():
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), subgoal_steps=5, **SETTINGS)
    axes = plot_maze(model, point_vec_env(), n_episodes=3, seed=1).axes[0]
    assert not artists(axes, PatchCollection)
    assert not artists(axes, LineCollection)
    lines = {line.get_label(): line for line in axes.lines}
    assert len(lines["visited"].get_xdata()) == 3 * 21
    assert len(lines["path"].get_xdata()) == 21


def test_values_are_those_of_the_high_level():
    """The value is the lower one of the two critics, for the state of each row."""
    kwargs = SETTINGS | dict(policy_kwargs=dict(net_arch=[16], n_critics=2))
    policy = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **kwargs).policy
    assert isinstance(policy, HierarchicalPolicy)
    rng = np.random.default_rng(0)
    observations, achieved = rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(6, 2)).astype(np.float32)
    goal = np.ones(2, dtype=np.float32)
    values = high_values(policy, observations, achieved, goal)
    acting, goals = policy.numpy_policy(), np.broadcast_to(goal, (6, 2))
    actions = acting.propose(observations, achieved, goals)
    first = acting.high_values(observations, achieved, goals, actions[:, None])[:, 0]
    assert values.shape == (6,)
    assert (values <= first + 1e-5).all()
    assert np.ptp(values) > 0.0
    np.testing.assert_allclose(high_values(policy, observations[2:3], achieved[2:3], goal), values[2:3], rtol=1e-5)


@pytest.mark.parametrize("name", ["n_states", "n_episodes", "max_steps"])
def test_map_refuses(maze_model, name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1"):
        plot_maze(maze_model, maze(), **{name: 0})


def test_the_environment_of_a_vec_env_is_the_one_inside():
    env = point_vec_env()
    assert single_env(VecNormalize(env, norm_obs=False)) is env.envs[0]


# ------------------------------------------------------------------------------- TensorBoard


def images(folder: Path, tag: str) -> list[Any]:
    """:return: what TensorBoard has stored for the tag"""
    (path,) = folder.rglob("events.*")
    events = EventAccumulator(str(path), size_guidance={"images": 0}).Reload()
    return events.Images(tag) if tag in events.Tags()["images"] else []


@needs_renderer
def test_video_in_tensorboard(tmp_path):
    model = HierarchicalDDPG("MultiInputPolicy", maze(), subgoal_steps=5, tensorboard_log=str(tmp_path), **SETTINGS)
    # The twin is created from the training environment's spec, which does not render
    callback = SubgoalVideoCallback(render_freq=20, max_steps=4, frame_skip=2)
    model.learn(50, callback=callback)
    logged = images(tmp_path, "visual/episode")
    assert [image.step for image in logged] == [20, 40]
    frames = imageio.imread(logged[-1].encoded_image_string, extension=".gif", index=None)
    assert frames.shape == (3, logged[-1].height, logged[-1].width, 3)
    assert callback.eval_env is None, "closed"


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_map_in_tensorboard(tmp_path, vec_env, leaves_nothing):
    env = vec_env([maze, maze])
    model = HierarchicalDDPG("MultiInputPolicy", env, subgoal_steps=5, tensorboard_log=str(tmp_path), **SETTINGS)
    model.learn(60, callback=SubgoalPlotCallback(render_freq=25, max_steps=5, n_states=20))
    env.close()
    # Every 25 steps, or as soon as possible afterwards, because both environments step together
    assert [image.step for image in images(tmp_path, "visual/map")] == [26, 52]


def test_pictures_change_nothing(tmp_path):
    """A run with a seed is the same with pictures."""
    weights = []
    for callback in (None, SubgoalPlotCallback(PointEnv(), render_freq=20, n_states=20)):
        kwargs = SETTINGS | dict(tensorboard_log=str(tmp_path / str(callback is None)))
        model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), subgoal_steps=5, **kwargs).learn(80, callback=callback)
        weights.append(model.policy.parameters_to_vector())
    assert images(tmp_path / "False", "visual/map")
    np.testing.assert_array_equal(*weights)


def test_callbacks_refuse(tmp_path, small):
    with pytest.raises(ValueError, match="`render_freq` must be at least 1"):
        SubgoalPlotCallback(render_freq=0)
    for name in ("n_episodes", "frame_skip", "max_steps"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1"):
            SubgoalVideoCallback(**{name: 0})
    with pytest.raises(ValueError, match="`fps` must be positive"):
        SubgoalVideoCallback(fps=-1.0)
    with pytest.raises(ValueError, match="`n_states` must be at least 1"):
        SubgoalPlotCallback(n_states=0)
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), **small)
    with pytest.warns(
        UserWarning, match=r"no TensorBoard to log to, and makes no pictures.*`tensorboard_log`.*or `-tb FOLDER` to the zoo"
    ):
        model.learn(30, callback=SubgoalPlotCallback(render_freq=10))
    model = HierarchicalDDPG("MultiInputPolicy", PointEnv(), tensorboard_log=str(tmp_path), **small)
    with pytest.raises(ValueError, match="have no `spec`: pass `eval_env`"):
        model.learn(30, callback=SubgoalPlotCallback(render_freq=10))
    # Errors come before training, not only at the first picture
    with pytest.raises(ValueError, match="render_mode is None"):
        model.learn(30, callback=SubgoalVideoCallback(PointEnv()))
    with pytest.raises(ValueError, match="The agent was trained on observations"):
        model.learn(30, callback=SubgoalPlotCallback(maze()))
    assert model.num_timesteps == 0
    flat = DDPG("MultiInputPolicy", PointEnv(), tensorboard_log=str(tmp_path), buffer_size=100)
    with pytest.raises(ValueError, match="must be a HierarchicalDDPG: DDPG has no subgoals"):
        flat.learn(30, callback=SubgoalPlotCallback(PointEnv()))
    assert flat.num_timesteps == 0


# ------------------------------------------------------------------------------- the command


def watch(*arguments: str, cwd: Path, check: bool = True, **env: str) -> str:
    """:return: what ``python -m sb3_hrl watch`` printed"""
    return run_command(["python", "-W", "ignore", "-m", "sb3_hrl", *arguments], cwd, env, check)


CALLBACKS = """
PointMaze_UMaze-v3:
  n_timesteps: 150
  policy: MultiInputPolicy
  env_wrapper: sb3_hrl.common.wrappers.add_success_info
  env_kwargs: {continuing_task: False}
  learning_starts: 100
  subgoal_steps: 5
  policy_kwargs: "dict(net_arch=[16])"
  callback:
    - sb3_hrl.visual.SubgoalPlotCallback: {render_freq: 100, max_steps: 10}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with a short run of the zoo, whose hyperparameters request maps in TensorBoard."""
    folder = tmp_path_factory.mktemp("watch")
    (folder / "tiny.yml").write_text(CALLBACKS)
    train = ["--algo", "hddpg", "--env", "PointMaze_UMaze-v3", "--conf-file", "tiny.yml", "--eval-freq", "-1"]
    watch("train", *train, "-tb", "tb", "--save-replay-buffer", "--num-threads", "1", cwd=folder)
    return folder


@pytest.mark.slow
def test_callbacks_from_the_zoos_hyperparameters(run):
    assert [image.step for image in images(run / "tb", "visual/map")] == [100]


@pytest.mark.slow
def test_watch_writes_a_map(run):
    output = watch("watch", "--env", "PointMaze_UMaze-v3", "--map", "map.png", cwd=run)
    assert "map.png: visited places from the replay buffer" in output
    assert imageio.imread(run / "map.png").std() > 10
    assert not list(run.glob("*.gif")), "a map needs no renderer"


@pytest.mark.slow
@needs_renderer
def test_watch_writes_a_video(run):
    sizes = ["--env-kwargs", "width:64", "height:64", "--camera", "distance:6.0", "--frame-skip", "20"]
    output = watch("watch", "--env", "PointMaze_UMaze-v3", "--n-episodes", "2", "-o", "out/agent.gif", *sizes, cwd=run)
    assert "of 2 episodes ended in success" in output
    assert imageio.imread(run / "out/agent.gif").shape[1:] == (64, 64, 3)


@pytest.mark.slow
def test_watch_refuses(tmp_path):
    output = watch("watch", "--env", "FetchReach-v4", "--map", "map.png", cwd=tmp_path, check=False)
    assert "watch: The logs/hddpg folder was not found" in output
    assert "Train an agent first (--train STEPS does)" in output
    assert "Traceback" not in output
    # Before training
    broken = dict(MUJOCO_GL="egl", MUJOCO_EGL_DEVICE_ID="99")
    output = watch("watch", "--env", "FetchReach-v4", "--train", "100", cwd=tmp_path, check=False, **broken)
    assert "watch: No offscreen renderer for MuJoCo" in output
    assert not (tmp_path / "logs").exists()


@pytest.fixture
def untrained(tmp_path, monkeypatch) -> pytest.MonkeyPatch:
    """Changes to an empty folder, in which nothing may be trained."""

    def train(args):
        raise AssertionError("refused after the training only")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watch_command, "train", train)
    (tmp_path / "file").touch()
    return monkeypatch


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--train 0", "--train needs a number of environment steps of at least 1, not 0"),
        ("--train 9 --load-best", "leave out --exp-id and --load-..., or --train"),
        ("--train 9 --exp-id 3", "leave out --exp-id and --load-..., or --train"),
        ("--train 9 --seed -1", "--seed must be at least 0, not -1"),
        ("--train 9 -o agent.avi", "-o must end in one of .gif, .mp4, not agent.avi"),
        ("--train 9 -o file/agent.gif", "-o: the folder of file/agent.gif cannot be created"),
        ("--train 9 --map map.gif", "--map must end in one of .png, .pdf, .svg, not map.gif"),
        ("--train 9 --map map.png --algo ddpg", "ddpg has none: leave it out, or use --algo hddpg"),
        ("--train 9 --env FetchReech-v4", "FetchReech-v4 is not registered (did you mean FetchReach-v4?)"),
        ("--train 9 --gym-packages nowhere", "--gym-packages: nowhere cannot be imported"),
        ("--train 9 --map m.png --env-kwargs wind:1", "cannot be created with {'wind': 1}: "),
        ("--train 9 --map m.png --env CartPole-v1", "`env` must be goal-conditioned"),
        ("--train 9 --map m.png --env-kwargs include_cfrc_ext_in_observation:True", "changes the observations"),
    ],
)
def test_watch_refuses_before_it_trains(untrained, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as refusal:
        watch_command.main(["--env", "AntMaze_UMaze-v5", *arguments.split()])
    assert sentence in str(refusal.value) + capsys.readouterr().err


@needs_renderer
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("-n 0", "`n_timesteps` must be at least 1"),
        ("--n-episodes 0", "`n_episodes` must be at least 1"),
        ("--fps 0", "`fps` must be positive"),
        ("--frame-skip 0", "`frame_skip` must be at least 1"),
        ("--camera zoom:2", "`camera` has unknown keys: `zoom`"),
        ("--env PointEnv-v0", "cannot be created with {'render_mode': 'rgb_array'}"),
    ],
)
def test_watch_refuses_a_video_before_it_trains(untrained, arguments, sentence):
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        watch_command.main(["--env", "FetchReach-v4", "--train", "9", *arguments.split()])


@needs_renderer
def test_watch_trains_what_can_be_drawn(untrained):
    """The folders of both files are created, and environments of `--gym-packages` are also registered for training."""
    trained = []
    untrained.setattr(watch_command, "train", trained.append)
    untrained.setattr(watch_command, "watch", lambda args: None)
    watch_command.main(["--env", "FetchReach-v4", "--train", "9", "-o", "a/agent.gif", "--map", "b/map.png"])
    assert len(trained) == 1
    assert Path("a").is_dir()
    assert Path("b").is_dir()


def test_an_mp4_is_refused_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install sb3-hrl\[visual\]`, or write a .gif"):
        check_path(Path("agent.mp4"))


@pytest.mark.slow
def test_the_command_is_listed(tmp_path):
    assert "watch            make a GIF or MP4" in watch("--help", cwd=tmp_path)
