"""Files that are complete, or not there at all."""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | pathlib.Path, suffix: str) -> Iterator[io.BufferedWriter]:
    """
    Write a file as a whole: write to another file in the same folder, which replaces the file when it is complete. If writing
    fails, or the process is killed, an older file of this name is still there.

    :param path: path of the file; its folder is created
    :param suffix: suffix of the file if the path has none, as in SB3, such as ``zip``
    :return: file to write to
    """
    path = pathlib.Path(path)
    if path.suffix == "":
        path = pathlib.Path(f"{path}.{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
