"""The documentation: it builds without warnings, links work, snippets run, and every public name is documented."""

import csv
import importlib
import inspect
import pkgutil
import re
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import browser
import gymnasium as gym
import pytest
from conftest import NO_RENDERER, renders_offscreen, run
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

import sb3_hrl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")] + PAGES
# Snippets with Ray would need a cluster; the examples cover it
SNIPPETS = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE))
    if "import ray" not in code
]


def without_code(text: str) -> str:
    """:return: Markdown without code and formulas, in which brackets are not links"""
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$", "", text, flags=re.DOTALL)


def anchors(document: Path) -> set[str]:
    """:return: anchors of its headings, as on GitHub"""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#{1,6} +(.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text())):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_check_of_links_finds_what_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title, with *words*\n\n## One\n\n[x](#two)\n")
    assert anchors(page) == {"a-title-with-words", "one"}
    with pytest.raises(AssertionError, match="#two"):
        test_links_resolve(page)
    page.write_text("[x](nowhere.md)\n")
    with pytest.raises(AssertionError, match=r"nowhere\.md"):
        test_links_resolve(page)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built like `make docs`."""
    folder = tmp_path_factory.mktemp("site")
    run(["python", "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(folder)], ROOT)
    return folder


def modules() -> list[ModuleType]:
    """:return: all modules of the package except those that Python runs at start-up"""
    names = [info.name for info in pkgutil.walk_packages(sb3_hrl.__path__, "sb3_hrl.")]
    return [importlib.import_module(name) for name in names if not name.endswith(("__main__", "_sb3_hrl_hook"))]


def public_names() -> set[str]:
    """:return: names for users: `__all__`, wrappers and callbacks, settings, collectors"""
    names = {f"sb3_hrl.{name}" for name in sb3_hrl.__all__}
    for module in modules():
        own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
        for name, value in own.items():
            is_kind = inspect.isclass(value) and (
                issubclass(value, gym.Wrapper | BaseCallback | VecEnv) or name.endswith("Config")
            )
            is_helper = inspect.isfunction(value) and module.__name__.endswith("wrappers")
            if (is_kind or is_helper) and not name.startswith("_"):
                names.add(name if f"sb3_hrl.{name}" in names else f"{module.__name__}.{name}")
    return {name for name in names if "." in name}


def test_every_public_name_is_documented(site):
    # Four lines of comments, then one compressed line per name
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    documented = {line.split()[0] for line in inventory.splitlines() if " py:" in line}
    assert {"sb3_hrl.HierarchicalDDPG", "sb3_hrl.HierarchicalDDPG.learn"} <= documented
    names = public_names()
    assert {"sb3_hrl.hddpg.config.LevelConfig", "sb3_hrl.common.wrappers.add_success_info"} <= names
    assert names <= documented, f"add to docs/api: {sorted(names - documented)}"


def test_links_to_files_outside_lead_to_pages(site):
    page = (site / "results.html").read_text()
    assert 'href="benchmarks.html"' in page
    assert "Reference to" not in page


# Widths of a small desktop window and of a phone
WIDTHS = [1280, 390]


@pytest.fixture(scope="module")
def looks(site, tmp_path_factory) -> dict[tuple[str, int], dict[str, Any]]:
    """What a browser shows of each page at each width."""
    if (program := browser.find_browser()) is None:
        pytest.skip(browser.NO_BROWSER)
    pages = [str(path.relative_to(site)) for path in sorted(site.rglob("*.html")) if "_modules" not in path.parts]
    return browser.look(program, site, pages, WIDTHS, tmp_path_factory.mktemp("profile"))


def test_nothing_is_cut_off_in_a_browser(looks):
    assert {page for page, _ in looks} >= {str(path.relative_to(ROOT / "docs").with_suffix(".html")) for path in PAGES}
    assert all(look["width"] == width for (_, width), look in looks.items())
    assert sum(look["counts"].get("table", 0) for look in looks.values()) > 50
    assert sum(look["counts"].get("pre", 0) for look in looks.values()) > 50
    assert {key: look["cut"] for key, look in looks.items() if look["cut"]} == {}
    # On a phone tables and code scroll in frames of their own, else there is room for them
    assert {page: look["scrolled"] for (page, width), look in looks.items() if look["scrolled"] and width > 390} == {}


def test_formulas_and_pictures_are_there_without_a_network(looks):
    assert looks["hddpg.html", 1280]["maths"] > 10
    assert {key: look["errors"] for key, look in looks.items() if look["errors"]} == {}
    assert {key: look["broken"] for key, look in looks.items() if look["broken"]} == {}


def test_the_browser_finds_what_is_cut_off(tmp_path):
    if (program := browser.find_browser()) is None:
        pytest.skip(browser.NO_BROWSER)
    # What is in a page 390 pixels wide; what of it is cut off; what scrolls in a frame of its own
    words, word = "word " * 100, "w" * 300
    expected = {
        "<table><td>a b c</td></table>": ([], []),
        f"<table><td>{words}</td></table>": ([], []),
        f"<table><td style='white-space: nowrap'>{words}</td></table>": (["table", "the page"], []),
        f"<div style='overflow: hidden'><table><td>{word}</td></table></div>": (["table"], []),
        f"<div style='overflow: auto'><table><td>{word}</td></table></div>": ([], ["table"]),
        f"<pre style='overflow: hidden'>{words}</pre>": (["pre"], []),
        f"<pre style='overflow: auto'>{words}</pre>": ([], ["pre"]),
        "<div style='width: 900px'>wide</div>": (["the page"], []),
    }
    pages = {f"{number}.html": content for number, content in enumerate(expected)}
    for name, content in pages.items():
        (tmp_path / name).write_text(f"<!doctype html><body><div role='main'>{content}</div></body>")
    looks = browser.look(program, tmp_path, list(pages), [390], tmp_path / "profile")
    found = {
        pages[page]: tuple([name.split(":")[0] for name in look[kind]] for kind in ("cut", "scrolled"))
        for (page, _), look in looks.items()
    }
    assert found == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_is_narrow_and_columns_have_names(page):
    text = page.read_text()
    blocks = re.findall(r"^```(?!\{)\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).splitlines() + re.findall(r"^ {4}.*", text, flags=re.MULTILINE)
    assert [line for line in lines if len(line) > 88 and not line.lstrip().startswith(":")] == []
    headers = re.findall(r"^(\|.*\|)\n\|[-:| ]+\|$", text, flags=re.MULTILINE)
    assert [header for header in headers if re.search(r"\|\s*\|", header)] == []


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets(snippet, tmp_path):
    if "record_agent" in snippet and not renders_offscreen():
        pytest.skip(NO_RENDERER)
    script = tmp_path / "snippet.py"
    snippet = re.sub(r"\.learn\([\d_]+", ".learn(300", snippet)
    script.write_text(snippet.replace("n_episodes=1)", "n_episodes=1, max_steps=10)"))
    assert "not wrapped with a ``Monitor``" not in run(["python", str(script)], tmp_path)


def test_there_are_snippets():
    assert {"custom_env-0", "quickstart-0", "quickstart-1", "async-0"} <= {snippet.id for snippet in SNIPPETS}


def test_the_drawings_are_drawn(tmp_path):
    run(["python", str(ROOT / "docs/images/figures.py"), "--out", str(tmp_path)], tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    # The others are made of csv files, by the scripts of the benchmarks
    plots = ("learning-", "strangers")
    assert drawn == {path.name for path in (ROOT / "docs/images").glob("*.svg") if not path.name.startswith(plots)}
    assert all(path.stat().st_size > 10_000 for path in tmp_path.glob("*.svg"))


def test_the_architecture_names_every_file():
    page = (ROOT / "docs/architecture.md").read_text()
    layers = ("zoo", "visual", "doctor", "plots", "hddpg", "parallel", "common")
    folders = [ROOT / "sb3_hrl" / layer for layer in layers]
    files = [path.relative_to(folder) for folder in folders for path in folder.rglob("*.py") if path.name != "__init__.py"]
    assert len(files) > 30
    assert [str(path) for path in files if f"`{path}`" not in page] == []


def test_names_of_other_projects_lead_to_their_pages(site):
    page = (site / "api/hddpg.html").read_text()
    for link in (
        "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
        "https://gymnasium.farama.org/api/env/",
    ):
        assert f'href="{link}#' in page
    # What a page loads comes with the site
    loaded = re.findall(r'<(?:script|img)[^>]*\bsrc="([^"]*)"|<link[^>]*rel="stylesheet"[^>]*href="([^"]*)"', page)
    assert len(loaded) > 5
    assert [link for pair in loaded for link in pair if "//" in link] == []


def test_the_table_of_the_algorithm_is_that_of_the_results():
    page = (ROOT / "docs/hddpg.md").read_text()
    rows = re.findall(r"^\| (\w+-v\d) \| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    assert len(rows) >= 3
    means = {}
    for env_id, steps, *columns in rows:
        for method, written in zip(("hddpg", "flat"), columns, strict=True):
            with (ROOT / f"benchmarks/results/{method}-{env_id}.csv").open() as file:
                results = [row for row in csv.DictReader(file) if row["timesteps"] == steps.replace(",", "")]
            rates = [float(row["success_rate"]) for row in results]
            assert len(rates) == 3
            means[method, env_id] = f"{sum(rates) / 3:.2f}"
            assert written == means[method, env_id]
    # What the first page says
    ant = [means[method, "AntMaze_UMaze-v4"] for method in ("hddpg", "flat")]
    assert "after 300,000 steps: {}, against {} for flat".format(*ant) in (ROOT / "docs/index.md").read_text()
