"""A checkpoint is complete, or the one before is still there."""

import io
import os
import pickle
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from conftest import point_vec_env
from stable_baselines3.common import save_util
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_hrl import HierarchicalDDPG


@pytest.fixture
def model(small):
    return HierarchicalDDPG("MultiInputPolicy", point_vec_env(2), **small).learn(40)


def buffer_file(folder: Path, n_steps: int) -> Path:
    return folder / f"rl_model_replay_buffer_{n_steps}_steps.pkl"


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_buffer_is_refused_and_an_older_one_is_named(model, tmp_path, kept):
    model.learn(80, callback=CheckpointCallback(20, str(tmp_path), save_replay_buffer=True))
    os.utime(buffer_file(tmp_path, 40), (0, 0))
    newest = buffer_file(tmp_path, 80)
    content = newest.read_bytes()
    newest.write_bytes(content[: int(kept * len(content))])
    own = model.replay_buffer
    with pytest.raises(ValueError, match="incomplete or damaged") as info:
        model.load_replay_buffer(newest)
    assert model.replay_buffer is own
    # The one that is named loads
    assert str(buffer_file(tmp_path, 80)) in str(info.value)
    older = buffer_file(tmp_path, 40)
    assert f"such as {older}" in str(info.value)
    model.load_replay_buffer(older)
    # SB3 calls callbacks before it stores the step
    assert model.replay_buffer.size() == 40 + 40 - 2
    model.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize("content", [b"no pickle", pickle.dumps(range(3))[:-1], b"cno_module\nBuffer\n."], ids=range(3))
def test_what_is_no_buffer_is_refused(model, tmp_path, content):
    path = tmp_path / "replay_buffer.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="incomplete or damaged") as info:
        model.load_replay_buffer(path)
    assert "such as" not in str(info.value), "there is no other one"
    with pytest.raises(ValueError, match="incomplete or damaged"):
        model.load_replay_buffer(io.BytesIO(content))
    with pytest.raises(FileNotFoundError):
        model.load_replay_buffer(tmp_path / "missing.pkl")


def save(model: HierarchicalDDPG, folder: Path) -> None:
    model.save(folder / "model")
    model.save_replay_buffer(str(folder / "replay_buffer"))


@pytest.mark.parametrize("kill", [False, True])
def test_an_older_file_is_there_until_the_new_one_is_complete(model, tmp_path, monkeypatch, kill):
    save(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.zip", "replay_buffer.pkl"}
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    model.learn(40, reset_num_timesteps=False)
    dump = pickle.dump

    def half(obj: Any, file: Any, **kwargs: Any) -> None:
        dump(obj, half_of(file, kill), **kwargs)

    # The zip file contains pickles as well, but they are written at once
    monkeypatch.setattr(save_util.pickle, "dump", half)
    monkeypatch.setattr(save_util.th, "save", lambda *args, **kwargs: stop(kill))
    for write in (lambda: model.save(tmp_path / "model"), lambda: model.save_replay_buffer(tmp_path / "replay_buffer.pkl")):
        if kill:
            process = get_context("fork").Process(target=write)
            process.start()
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
        else:
            with pytest.raises(OSError, match="No space left"):
                write()
    left = {path.name for path in tmp_path.iterdir()} - {path.name for path in before}
    assert left == ({"model.zip.partial", "replay_buffer.pkl.partial"} if kill else set())
    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.undo()
    # The next time it works, and nothing is left
    save(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.zip", "replay_buffer.pkl"}
    loaded = HierarchicalDDPG.load(tmp_path / "model", env=point_vec_env(2))
    loaded.load_replay_buffer(tmp_path / "replay_buffer")
    assert loaded.num_timesteps == loaded.replay_buffer.size() == 80


def stop(kill: bool) -> None:
    """The disk is full, or the process is killed."""
    if kill:
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError("No space left on device")


def half_of(file: Any, kill: bool) -> Any:
    """:return: a file whose first write ends in the middle, as when the disk is full"""

    class Half:
        def write(self, data: Any) -> int:
            file.write(bytes(data)[: len(data) // 2])
            file.flush()
            stop(kill)
            return 0

    return Half()


def test_open_files_are_written_in_place(model, tmp_path):
    model.save(stream := io.BytesIO())
    model.save_replay_buffer(buffer := io.BytesIO())
    stream.seek(0)
    buffer.seek(0)
    loaded = HierarchicalDDPG.load(stream, env=point_vec_env(2))
    loaded.load_replay_buffer(buffer)
    assert loaded.replay_buffer.size() == 40
    # Suffixes are those of SB3
    model.save(tmp_path / "model.v1")
    model.save_replay_buffer(tmp_path / "buffer")
    assert {path.name for path in tmp_path.iterdir()} == {"model.v1", "buffer.pkl"}


def test_folders_are_created(model, tmp_path):
    save(model, tmp_path / "new" / "folder")
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"model.zip", "replay_buffer.pkl"}
