"""Runs the tests' commands in separate processes, which are mostly forked to avoid importing torch etc. again."""

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

# Modules that take seconds to import, without side effects. Not included: sb3_hrl and rl_zoo3, so that the start-up hook works
# in each command; gymnasium_robotics, which registers environments; mujoco, which reads MUJOCO_GL.
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
# One thread per process and no windows, as in the Makefile; torch and matplotlib read both when they are imported
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
    :param command: command to run in a separate process, where ``python`` is this interpreter
    :param cwd: working directory
    :param env: environment variables, in addition to those of this process
    :param check: whether the command must succeed; otherwise it must fail
    :param cold: start a new interpreter, to test its start-up, or with variables that the modules in `PRELOADED` read
    :param timeout: in seconds, less than that of the test
    :return: standard output and error
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
    """:return: ``sys.path`` of a new interpreter without its first entry, and without pytest's changes in this process"""
    code = "import sys; print(*sys.path[1:], sep='\\n')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()


def _interpret(arguments: list[str], cwd: Path, environ: dict[str, str], search_path: list[str], output: str) -> None:
    """Do the same as ``python <arguments>``, in the current process."""
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
        # multiprocessing does not flush these when it ends a process
        atexit._run_exitfuncs()
