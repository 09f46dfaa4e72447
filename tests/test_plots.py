"""Learning curves from small log folders like those of rl_zoo3."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import yaml
from stable_baselines3.common.logger import configure

from sb3_hrl.plots import band, find_runs, plot_curves, read_arguments, read_run, read_runs
from sb3_hrl.zoo.commands.curves import main

START = 1_700_000_000.0
KEYS = ["rollout/success_rate", "rollout/subgoal_success_rate"] + [
    f"train/{level}_{name}" for level in ("high", "low") for name in ("actor_loss", "critic_loss", "reward")
]


def write_monitor(folder: Path, start: float, rows: list[tuple[float, int, str]], env: int = 0) -> None:
    lines = [f"#{json.dumps({'t_start': start, 'env_id': 'Point-v0'})}", "r,l,t,is_success"]
    lines += [f"-1.0,{length},{seconds},{success}" for seconds, length, success in rows]
    (folder / f"{env}.monitor.csv").write_text("\n".join(lines) + "\n")


def write_events(folder: Path, start: float, values: dict[str, list[float]]) -> None:
    """Event files as written by SB3, created at ``start``; value i belongs to step 10 (i + 1)."""
    logger = configure(str(folder), ["tensorboard"])
    for i in range(len(next(iter(values.values())))):
        for key, column in values.items():
            logger.record(key, column[i])
        logger.dump(10 * (i + 1))
    logger.close()
    for path in folder.glob("events.*"):
        parts = path.name.split(".")
        parts[3] = str(int(start))
        path.rename(folder / ".".join(parts))


def write_run(
    root: Path, algo: str, number: int, start: float, seed: int = 0, rates: tuple[float, ...] = (0.0, 1.0), tb: str = "tb"
) -> Path:
    folder = root / f"logs/{algo}/Point-v0_{number}"
    (folder / "Point-v0").mkdir(parents=True)
    arguments = f"!!python/object/apply:collections.OrderedDict\n- - - seed\n    - {seed}\n  - - tensorboard_log\n    - {tb}\n"
    (folder / "Point-v0/args.yml").write_text(arguments)
    write_monitor(folder, start, [(1.0, 10, "False"), (3.0, 10, "True")])
    successes = np.array([[rate, rate] for rate in rates])
    evaluations = {"timesteps": [10, 20], "results": -successes, "ep_lengths": 5 * successes, "successes": successes}
    np.savez(folder / "evaluations.npz", **evaluations)
    return folder


def test_runs_are_found_in_their_order(tmp_path):
    for number in (10, 2, 1):
        write_run(tmp_path, "hddpg", number, START)
    (tmp_path / "logs/hddpg/Point-v0_best").mkdir()
    (tmp_path / "logs/hddpg/Point-v01_1").mkdir()
    assert [path.name for path in find_runs(tmp_path / "logs", "hddpg", "Point-v0")] == [
        "Point-v0_1",
        "Point-v0_2",
        "Point-v0_10",
    ]
    with pytest.raises(ValueError, match=r"No run of ddpg on Point-v0.*hddpg on Point-v0.*Pass the values of `-f`"):
        find_runs(tmp_path / "logs", "ddpg", "Point-v0")
    with pytest.raises(ValueError, match="no run at all"):
        find_runs(tmp_path / "nowhere", "ddpg", "Point-v0")


def test_evaluations_and_the_time_of_the_monitors(tmp_path):
    run = read_run(write_run(tmp_path, "hddpg", 1, START, seed=7, rates=(0.25, 0.75)))
    assert run.seed == 7
    steps, rates, seconds = run.series["eval/success_rate"]
    assert steps.tolist() == [10, 20]
    assert rates.tolist() == [0.25, 0.75]
    assert seconds.tolist() == [1.0, 3.0]
    assert len(run.advice) == 1
    assert "train with `-tb FOLDER`" in run.advice[0]


def test_monitors_of_several_environments(tmp_path):
    folder = write_run(tmp_path, "hddpg", 1, START)
    write_monitor(folder, START + 1.0, [(0.5, 4, "True"), (5.0, 6, "False")], env=1)
    steps, rates, seconds = read_run(folder).series["rollout/success_rate"]
    # Episodes sorted by their end time: 1.0 (no), 1.5 (yes), 3.0 (yes), 6.0 (no)
    assert seconds.tolist() == [1.0, 1.5, 3.0, 6.0]
    assert steps.tolist() == [10, 14, 24, 30]
    assert rates == pytest.approx([0, 1 / 2, 2 / 3, 2 / 4])


def test_success_in_training_is_a_running_mean(tmp_path):
    folder = write_run(tmp_path, "hddpg", 1, START)
    write_monitor(folder, START, [(float(i), 1, str(i >= 100)) for i in range(200)])
    _, rates, _ = read_run(folder).series["rollout/success_rate"]
    assert rates[99] == 0.0
    assert rates[149] == pytest.approx(0.5)
    assert rates[199] == 1.0


def test_the_csv_logger(tmp_path):
    folder = write_run(tmp_path, "hddpg", 1, START)
    (folder / "progress.csv").write_text(
        "time/total_timesteps,time/time_elapsed,train/low_reward,eval/success_rate\n10,2,-0.5,\n15,,,0.5\n20,4,-0.25,\n"
    )
    run = read_run(folder)
    steps, values, seconds = run.series["train/low_reward"]
    assert (steps.tolist(), values.tolist(), seconds.tolist()) == ([10, 20], [-0.5, -0.25], [2, 4])
    assert run.advice == ()
    # The evaluation file contains every episode, and takes precedence
    assert run.series["eval/success_rate"].values.tolist() == [0.0, 1.0]


def test_a_value_that_is_not_a_number_is_one_that_was_logged(tmp_path):
    (tmp_path / "progress.csv").write_text("time/total_timesteps,train/low_q_mean,rollout/x\n10,,0.5\n20,nan,\n")
    series = read_run(tmp_path).series
    assert series["rollout/x"].steps.tolist() == [10.0]
    assert series["train/low_q_mean"].steps.tolist() == [20.0]
    assert np.isnan(series["train/low_q_mean"].values).all()


def test_another_kind_of_csv_is_refused(tmp_path):
    for text in ("", "a,b\n1,2\n"):
        (tmp_path / "progress.csv").write_text(text)
        with pytest.raises(ValueError, match="delete it, train with `-tb`"):
            read_run(tmp_path)


def test_event_files_are_those_that_began_with_the_run(tmp_path):
    folders = [write_run(tmp_path, "hddpg", number, START + 60.0 * number) for number in (1, 2, 3)]
    tb = tmp_path / "tb/Point-v0"
    # The numbers of TensorBoard's folders may differ from those of the runs, and run 2 has none
    write_events(tb / "HDDPG_4", START + 61.0, {"train/low_reward": [1.0, 2.0]})
    write_events(tb / "HDDPG_1", START + 183.0, {"train/low_reward": [3.0, 4.0]})
    write_events(tb / "DDPG_1", START + 120.0, {"train/low_reward": [5.0, 6.0]})
    write_events(tmp_path / "tb/Other-v0/HDDPG_2", START + 120.0, {"train/low_reward": [7.0, 8.0]})
    runs = read_runs(folders)
    assert [run.series["train/low_reward"].values.tolist() for run in (runs[0], runs[2])] == [[1.0, 2.0], [3.0, 4.0]]
    assert "train/low_reward" not in runs[1].series
    assert "no TensorBoard log" in runs[1].advice[0]
    assert runs[0].series["train/low_reward"].steps.tolist() == [10, 20]
    # After the folder was moved
    (tmp_path / "tb").rename(tmp_path / "elsewhere")
    assert "train/low_reward" not in read_runs(folders)[0].series
    assert "train/low_reward" in read_runs(folders, [tmp_path / "elsewhere"])[0].series


def test_wall_time_of_events_is_since_the_run_began(tmp_path):
    import time

    start = time.time()
    folder = write_run(tmp_path, "hddpg", 1, start - 30.0)
    write_events(tmp_path / "tb/Point-v0/HDDPG_1", start - 29.0, {"train/low_reward": [1.0, 2.0]})
    seconds = read_runs([folder])[0].series["train/low_reward"].seconds
    assert ((seconds >= 30.0) & (seconds < 60.0)).all()


def test_what_is_missing_is_said(tmp_path):
    folder = write_run(tmp_path, "hddpg", 1, START)
    (folder / "evaluations.npz").unlink()
    (folder / "0.monitor.csv").write_text(f'#{{"t_start": {START}}}\nr,l,t\n-1.0,10,1.0\n')
    run = read_run(folder)
    assert run.series == {}
    assert [word in "".join(run.advice) for word in ("-tb FOLDER", "--eval-freq N", 'info["is_success"]')] == [True] * 3
    with pytest.raises(ValueError, match="logged a curve"):
        plot_curves({"hddpg": [run]}, "Point-v0")
    with pytest.raises(ValueError, match="is no folder"):
        read_run(tmp_path / "nowhere")


def test_arguments_are_data(tmp_path):
    folder = write_run(tmp_path, "hddpg", 1, START)
    (folder / "Point-v0/args.yml").write_text(f"!!python/object/apply:os.mkdir\n- {tmp_path}/made\n")
    assert read_run(folder).seed is None
    assert not (tmp_path / "made").exists()
    arguments = OrderedDict(env_kwargs=dict(camera=(1, 2)), seed=7)  # as the zoo writes them
    (folder / "Point-v0/args.yml").write_text(yaml.dump(arguments))
    assert read_arguments(folder) == arguments


def test_mean_and_range():
    first = (np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 2.0]))
    second = (np.array([5.0, 15.0]), np.array([3.0, 3.0]))
    x, mean, low, high = band([first, second])
    assert x.tolist() == [5, 10, 15]
    assert low.tolist() == [0.5, 1.0, 1.5]
    assert high.tolist() == [3, 3, 3]
    assert mean.tolist() == [1.75, 2.0, 2.25]
    with pytest.raises(ValueError, match="at least one"):
        band([])


def test_the_figure_has_all_curves(tmp_path):
    folders = [write_run(tmp_path, "hddpg", number, START + 60.0 * number, number) for number in (1, 2)]
    for i in (1, 2):
        values = {key: [float(10 * i + j), float(i)] for j, key in enumerate(KEYS)}
        write_events(tmp_path / f"tb/Point-v0/HDDPG_{i}", START + 60.0 * i, values)
    flat = write_run(tmp_path, "ddpg", 1, START)
    write_events(tmp_path / "tb/Point-v0/DDPG_1", START, {"train/actor_loss": [5.0, 6.0]})
    figure = plot_curves({"two levels": read_runs(folders), "flat": read_runs([flat])}, "Point-v0")
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert len(figure.axes) == 10
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["two levels (2 seeds: mean, range)", "flat (1 seed)"]
    for title in (
        "high: critic loss",
        "low: subgoal success rate (training)",
        "high: reward per decision",
        "low: reward per step",
    ):
        # Two seeds and their mean
        assert len(panels[title].lines) == 3, title
    mean = panels["high: actor loss"].lines[-1].get_ydata()
    j = KEYS.index("train/high_actor_loss")
    assert mean.tolist() == [15.0 + j, 1.5]
    # SB3's flat agent has an actor loss, but no reward per batch
    assert panels["low: actor loss"].lines[-1].get_ydata().tolist() == [5.0, 6.0]
    minutes = panels["success rate (evaluation)"]
    assert minutes.get_xlabel() == "minutes"
    assert minutes.lines[-1].get_xdata() == pytest.approx([1 / 60, 3 / 60])


def test_panels_without_data_say_so(tmp_path):
    figure = plot_curves({"hddpg": [read_run(write_run(tmp_path, "hddpg", 1, START))]}, "Point-v0")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "not logged:\ntrain/low_critic_loss" in texts
    assert len(texts) == 7


def test_success_is_that_of_training_unless_every_run_has_an_evaluation(tmp_path):
    runs = [read_run(write_run(tmp_path, "hddpg", number, START)) for number in (1, 2)]
    assert plot_curves({"a": runs}, "").axes[0].get_title() == "success rate (evaluation)"
    del runs[1].series["eval/success_rate"]
    assert "training" in plot_curves({"a": runs}, "").axes[0].get_title()


def test_command(tmp_path, capsys):
    write_run(tmp_path, "hddpg", 1, START, seed=3)
    write_run(tmp_path, "ddpg", 1, START, seed=4)
    output = tmp_path / "new/curves.png"
    arguments = ["-f", str(tmp_path / "logs"), "--env", "Point-v0", "-o", str(output)]
    # Only files are needed: the environment's package, which other commands need as well, does not have to be installed
    main([*arguments, "--algo", "hddpg", "ddpg", "--labels", "two levels", "flat", "--gym-packages", "not_installed"])
    printed = capsys.readouterr().out
    assert "two levels: 1 runs, seeds 3" in printed
    assert "flat: 1 runs, seeds 4" in printed
    assert printed.count("train with `-tb FOLDER`") == 2
    assert output.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "sac"], "No run of sac on Point-v0"),
        (["--algo", "hddpg", "ddpg"], "No run of ddpg on Point-v0"),
        (["--labels", "a", "b"], "`--labels` must be 1 different names"),
        (["-o", "curves.txt"], "-o must end in one of"),
        (["-o", "logs/hddpg/Point-v0_1/0.monitor.csv/curves.png"], "-o: the folder of"),
    ],
)
def test_command_says_what_is_wrong(tmp_path, capsys, monkeypatch, arguments, message):
    """The check comes before runs are read."""

    def read_runs(*args):
        raise AssertionError("refused after the reading only")

    write_run(tmp_path, "hddpg", 1, START)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sb3_hrl.zoo.commands.curves.read_runs", read_runs)
    with pytest.raises(SystemExit):
        main(["-f", str(tmp_path / "logs"), "--env", "Point-v0", *arguments])
    assert message in " ".join(capsys.readouterr().err.split())


def test_several_folders_are_told_apart(tmp_path, capsys):
    for name in ("a", "b"):
        write_run(tmp_path / name, "hddpg", 1, START)
    folders = [str(tmp_path / name / "logs") for name in ("a", "b")]
    main(["-f", *folders, "--env", "Point-v0", "-o", str(tmp_path / "curves.svg")])
    printed = capsys.readouterr().out
    assert all(f"{folder}: hddpg: 1 runs" in printed for folder in folders)
    assert "<svg" in (tmp_path / "curves.svg").read_text()
