"""Commands of the tests, each in a process of its own, most of which need not import torch and the like anew."""

import atexit
import functools
import multiprocessing as mp
import os
import runpy
import subprocess
import sys
import tempfile
import types
import warnings
from pathlib import Path

# What takes seconds to import, and changes nothing by it. Not among them: sb3_hrl and rl_zoo3, so that each command has the
# start-up hook at work; gymnasium_robotics, whose import registers environments; mujoco, whose import reads MUJOCO_GL.
PRELOADED = [
    "torch",
    "torch._dynamo",  # with the first optimizer
    "scipy.stats",
    "pandas",
    "matplotlib.pyplot",
    "stable_baselines3",
    "sb3_contrib",
    "optuna.visualization.matplotlib",
    "tensorboard.backend.event_processing.event_accumulator",
]
# One thread per process and no windows, as in the Makefile; both are read when torch and matplotlib are imported
os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
# Workers that tests start in their own process are forks of the same server
mp.set_forkserver_preload(PRELOADED)


def run(
    command: list[str],
    cwd: Path,
    env: dict[str, str] | None = None,
    check: bool = True,
    cold: bool = False,
    timeout: float = 280.0,
) -> str:
    """
    :param command: to be run in a process of its own, where ``python`` is this interpreter
    :param cwd: where
    :param env: variables on top of this process's
    :param check: whether it is to succeed; else it is to fail
    :param cold: start the interpreter anew, for a test of what happens then, or with variables that `PRELOADED` read
    :param timeout: in seconds, less than that of the test
    :return: what it printed, standard output and error
    """
    environ = os.environ | (env or {})
    if command[0] == "python" and not cold:
        code, output = _run_forked(command[1:], cwd, environ, timeout)
    else:
        code, output = _run_cold([sys.executable if part == "python" else part for part in command], cwd, environ, timeout)
    assert (code == 0) == check, output[-5000:]
    return output


def _run_cold(command: list[str], cwd: Path, environ: dict[str, str], timeout: float) -> tuple[int, str]:
    result = subprocess.run(
        command,
        cwd=cwd,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return result.returncode, result.stdout


def _run_forked(arguments: list[str], cwd: Path, environ: dict[str, str], timeout: float) -> tuple[int, str]:
    """:return: exit code and output of ``python <arguments>``, run by a fork of a process that has imported `PRELOADED`"""
    with tempfile.NamedTemporaryFile("r") as output:
        process = mp.get_context("forkserver").Process(
            target=_interpret, args=(arguments, cwd, environ, _search_path(), output.name)
        )
        process.start()
        try:
            process.join(timeout)
            code = process.exitcode
        finally:
            process.kill()
        if code is None:
            raise TimeoutError(f"{arguments} has not ended after {timeout} seconds: {output.read()[-5000:]}")
        return code, output.read()


@functools.cache
def _search_path() -> list[str]:
    """:return: ``sys.path`` of a new interpreter without its first entry: what pytest has added to ours is not for commands"""
    code = "import sys; print(*sys.path[1:], sep='\\n')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


def _interpret(arguments: list[str], cwd: Path, environ: dict[str, str], search_path: list[str], output: str) -> None:
    """Do what ``python <arguments>`` does, in the process that this is."""
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    if arguments[0] == "-W":
        assert arguments[1] == "ignore", arguments
        warnings.simplefilter("ignore")
        arguments = arguments[2:]
    what, *rest = arguments
    try:
        if what == "-m":
            sys.argv, sys.path = rest, [str(cwd), *search_path]
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif what == "-c":
            sys.argv, sys.path = ["-c", *rest[1:]], ["", *search_path]
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), vars(main))
        else:
            sys.argv, sys.path = arguments, [str(Path(what).parent), *search_path]
            runpy.run_path(what, run_name="__main__")
    finally:
        # multiprocessing ends a process without these
        atexit._run_exitfuncs()
