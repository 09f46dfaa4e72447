"""Build hook for the metadata that depends on the URL of the repository: links of the long description, and project URLs."""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# Environment variable with the URL of the repository, which the release workflow sets. Without it, the links of the README
# stay relative, and the project URLs do not include the repository
REPOSITORY = "SB3_HRL_REPOSITORY"


class CustomMetadataHook(MetadataHookInterface):
    """Sets the fields that are `dynamic` in pyproject.toml."""

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
    :param text: Markdown with links that are relative to the root of the repository
    :param repository: URL of the repository
    :param revision: tag, branch or commit
    :return: the text with absolute links: images link to the raw file, other links to its page
    """

    def replace(match: re.Match[str]) -> str:
        mark, name, target = match.groups()
        if re.match(r"[a-z]+:|#|/", target):
            return match.group()
        return f"{mark}[{name}]({repository}/{'raw' if mark else 'blob'}/{revision}/{target})"

    # Code blocks have no links
    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        part if part.startswith("```") else re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", replace, part) for part in parts
    )


def project_urls(repository: str) -> dict[str, str]:
    """
    :param repository: URL of the repository, or an empty string
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
