"""The project's own files: the files for GitHub, pre-commit and citation tools are valid, and their commands exist."""

import re
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"


def load(path: Path):
    return yaml.safe_load(path.read_text())


def commands(workflow: dict) -> list[str]:
    """:return: commands in the steps of a workflow"""
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


def test_ci_calls_the_script_that_developers_call():
    workflow = load(GITHUB / "workflows/ci.yml")
    # YAML 1.1 reads the key `on` as a boolean
    assert set(workflow[True]) == {"push", "pull_request"}
    scripts = [command.removeprefix("bash ") for command in commands(workflow) if command.startswith("bash ")]
    assert scripts == [".ci/run"]
    assert (ROOT / scripts[0]).read_text().startswith("#!/usr/bin/env bash")


def test_ci_runs_on_the_python_of_the_constraints():
    steps = load(GITHUB / "workflows/ci.yml")["jobs"]["test"]["steps"]
    version = next(step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", ""))
    assert f"CPython {version}" in (ROOT / "constraints.txt").read_text()


def test_a_release_is_built_checked_and_published_without_a_password():
    workflow = load(GITHUB / "workflows/release.yml")
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    run = "\n".join(commands(workflow))
    assert "python -m build" in run
    assert "twine check" in run
    version_file = re.search(r"cat (\S+?)\)", run).group(1)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", (ROOT / version_file).read_text().strip())
    publish = workflow["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    assert "secrets." not in (GITHUB / "workflows/release.yml").read_text()


@pytest.mark.parametrize("name", ["bug", "question", "feature"])
def test_issue_forms(name):
    form = load(GITHUB / f"ISSUE_TEMPLATE/{name}.yml")
    assert form["name"]
    assert form["description"]
    fields = {element["id"]: element for element in form["body"]}
    assert len(fields) == len(form["body"])
    assert {element["type"] for element in form["body"]} <= {"textarea", "checkboxes"}
    if name != "feature":
        wanted = fields["system"]["attributes"]["description"]
        assert "get_system_info()" in wanted
        assert "sb3_hrl.__version__" in wanted


def test_the_command_of_the_issue_forms_runs(capsys):
    wanted = load(GITHUB / "ISSUE_TEMPLATE/bug.yml")["body"][3]["attributes"]["description"]
    exec(re.search(r'python -c "(.+)"', wanted).group(1), {})
    output = capsys.readouterr().out
    assert f"sb3_hrl {(ROOT / 'sb3_hrl/version.txt').read_text().strip()}" in output
    assert "Stable-Baselines3:" in output


def test_pre_commit_calls_the_makefile():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    repositories = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"], "nothing is downloaded"
    called = [hook["entry"].split()[1] for hook in repositories[0]["hooks"]]
    assert called == ["lint", "type", "imports"]
    assert set(called) <= set(targets)


def test_the_citation_is_of_this_version():
    citation = load(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == (ROOT / "sb3_hrl/version.txt").read_text().strip()
    assert citation["authors"] == [{"name": "The sb3-hrl developers"}]
    assert citation["license"] == "MIT"


def test_the_site_is_built_elsewhere_as_it_is_here():
    settings = load(ROOT / ".readthedocs.yml")
    assert (ROOT / settings["sphinx"]["configuration"]).exists()
    assert settings["sphinx"]["fail_on_warning"]
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert {"docs"} <= set(settings["python"]["install"][0]["extra_requirements"]) <= set(extras)
