"""Commands in a fork get the same input, and give the same output, as in a separate interpreter."""

import subprocess

import pytest
from conftest import run

CODE = "import os, sys; print(sys.argv, sys.path, os.getcwd(), os.environ.get('COLOUR'), __name__, file=sys.stderr)"


@pytest.mark.parametrize("arguments", [["-c", CODE, "a"], ["script.py", "a", "b"], ["-m", "script", "a"]])
def test_it_is_like_an_interpreter_of_its_own(tmp_path, arguments):
    (tmp_path / "script.py").write_text(CODE)
    if arguments[0] == "script.py":
        arguments = [str(tmp_path / "script.py"), *arguments[1:]]
    forked, cold = (run(["python", *arguments], tmp_path, dict(COLOUR="red"), cold=cold) for cold in (False, True))
    assert forked == cold
    assert "red __main__" in forked


@pytest.mark.parametrize("code", ["raise SystemExit('too few arguments')", "raise ArithmeticError('too few arguments')"])
def test_a_command_that_fails_says_why(tmp_path, code):
    assert "too few arguments" in run(["python", "-c", code], tmp_path, check=False)
    with pytest.raises(AssertionError, match="too few arguments"):
        run(["python", "-c", code], tmp_path)


@pytest.mark.parametrize(("cold", "error"), [(False, TimeoutError), (True, subprocess.TimeoutExpired)])
def test_a_command_that_hangs_is_ended(tmp_path, cold, error):
    with pytest.raises(error):
        run(["python", "-c", "import time; time.sleep(100)"], tmp_path, check=False, cold=cold, timeout=0.3)


def test_what_the_package_does_when_it_is_imported_is_left_to_the_command(tmp_path):
    code = (
        "import sys; print({'sb3_hrl', 'rl_zoo3', 'gymnasium_robotics', 'mujoco'} & set(sys.modules), 'torch' in sys.modules)"
    )
    assert run(["python", "-c", code], tmp_path) == "set() True\n"
