"""Sphinx configuration: Markdown pages by MyST, the look of SB3's documentation. `make docs`; warnings are errors."""

import re
import zlib
from pathlib import Path
from typing import Any

import sb3_hrl

ROOT = Path(__file__).parents[1]

project = "sb3-hrl"
copyright = "the sb3-hrl contributors, MIT licence"
version = release = sb3_hrl.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
# `images` also has the script that draws the figures
exclude_patterns = ["_build", "images", "_static"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
# Links to headings work as they do on GitHub
myst_heading_anchors = 3


def inventories() -> dict[str, tuple[str, str]]:
    """
    Write the inventories of other projects that references.txt asks for, in the format of Sphinx.

    :return: address and file by project, as intersphinx takes them
    """
    folder = ROOT / "docs/_build/inventories"
    folder.mkdir(parents=True, exist_ok=True)
    projects = {}
    text = (ROOT / "docs/references.txt").read_text().partition("\n\n")[2]
    for block in text.strip().split("\n\n"):
        (name, address), *places = (line.split() for line in block.splitlines())
        header = f"# Sphinx inventory version 2\n# Project: {name}\n# Version:\n"
        header += "# The remainder of this file is compressed using zlib.\n"
        lines = "".join(f"{key} py:class 1 {place} -\n" for key, place in places)
        path = folder / f"{name}.inv"
        path.write_bytes(header.encode() + zlib.compress(lines.encode()))
        projects[name] = (address, str(path))
    return projects


intersphinx_mapping = inventories()

autodoc_member_order = "bysource"
autodoc_typehints = "description"
# Parameters that have no `:param:` line of their own are not repeated
autodoc_typehints_description_target = "documented_params"

html_theme = "sphinx_rtd_theme"
html_title = f"sb3-hrl {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
# MathJax 3.2.2 comes with the site: pages load nothing from elsewhere
mathjax_path = "mathjax/startup.js"
mathjax3_config = {
    "loader": {
        "load": [
            "core",
            "input/tex-base",
            "[tex]/ams",
            "output/chtml",
            "output/chtml/fonts/tex.js",
            "a11y/assistive-mml",
        ]
    },
    "tex": {"packages": ["base", "ams"]},
}
# The prompt is not part of a command
copybutton_prompt_text = "$ "

# On GitHub, pages link to files that lie outside of this folder. In the site, other pages include these
PAGES_OF_FILES = {
    "../README.md": "index.md",
    "../CHANGELOG.md": "changelog.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../benchmarks/README.md": "benchmarks.md",
    "../benchmarks/results": "benchmarks.md",
    "../examples": "quickstart.md",
}


def link_pages(app: Any, docname: str, source: list[str]) -> None:
    """
    Let links lead to the pages of the site that stand for files outside of it.

    :param app: Sphinx
    :param docname: name of the page that was read
    :param source: its text, a list of one entry that is changed in place
    """
    above = "../" * docname.count("/")
    for target, page in PAGES_OF_FILES.items():
        source[0] = re.sub(
            rf"\]\({re.escape(above + target)}(?=[)#])", f"]({above}{page}", source[0]
        )


def setup(app: Any) -> None:
    """
    :param app: Sphinx
    """
    app.connect("source-read", link_pages)
