"""What of the wheel's metadata depends on where the repository is: links of the long description, and project URLs."""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# Address of the repository, without a slash at its end; the release workflow sets it. Without it (a clone, a fork) links stay
# as they are in the README, and the project has no repository among its URLs
REPOSITORY = "SB3_HRL_REPOSITORY"


class CustomMetadataHook(MetadataHookInterface):
    """Called by hatchling, see `dynamic` in pyproject.toml."""

    def update(self, metadata: dict[str, Any]) -> None:
        root, repository = Path(self.root), os.environ.get(REPOSITORY, "").rstrip("/")
        version = (root / "sb3_hrl/version.txt").read_text().strip()
        text = (root / "README.md").read_text(encoding="utf-8")
        if repository:
            text = absolute(text, repository, f"v{version}")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = project_urls(repository)


def absolute(text: str, repository: str, revision: str) -> str:
    """
    :param text: Markdown, whose relative links start at the root of the repository
    :param repository: its address
    :param revision: a tag, a branch or a commit
    :return: the same with absolute links, of pictures to the file itself and of others to its page
    """

    def replace(match: re.Match[str]) -> str:
        mark, name, target = match.groups()
        if re.match(r"[a-z]+:|#|/", target):
            return match.group()
        return f"{mark}[{name}]({repository}/{'raw' if mark else 'blob'}/{revision}/{target})"

    # Blocks of code stay as they are: what looks like a link there is none
    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        part if part.startswith("```") else re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", replace, part) for part in parts
    )


def project_urls(repository: str) -> dict[str, str]:
    """
    :param repository: its address, or nothing
    :return: URLs by their names on PyPI
    """
    own = {
        "Homepage": repository,
        "Documentation": f"{repository}/tree/main/docs",
        "Changelog": f"{repository}/blob/main/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    others = {
        "Stable-Baselines3": "https://github.com/DLR-RM/stable-baselines3",
        "RL Zoo": "https://github.com/DLR-RM/rl-baselines3-zoo",
    }
    return (own if repository else {}) | others
