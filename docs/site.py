"""Hooks of mkdocs: README is the first page, the others follow in the order of the table in docs/README.md.

GitHub shows the same files. A link that leads out of docs/ becomes one to a page of the site where there is one; else,
as for tests, recipes and folders, only its text is left.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files outside docs/ that are pages, and their names there."""
PAGES = {**OUTSIDE, "docs/README.md": "index.md"}

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Set the order of the pages."""
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[[^\]]+\]\(([\w-]+\.md)\)", index, flags=re.M)
    config["nav"] = [OUTSIDE["README.md"], *listed, *(page for page in OUTSIDE.values() if page != "index.md")]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/."""
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_others: Any) -> str:
    """Return a page with links as the site has them; those in code are left alone."""
    source = next((one for one, name in OUTSIDE.items() if name == page.file.src_uri), f"docs/{page.file.src_uri}")
    parts = re.split(r"(^```.*?^```|`[^`\n]+`(?!\]))", markdown, flags=re.M | re.S)
    return "".join(part if part.startswith("`") else LINK.sub(_changed(source), part) for part in parts)


def _changed(source: str) -> Any:
    """Return what replaces a link of a file."""

    def replacement(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        path, hash_sign, anchor = target.partition("#")
        if "://" in target or not path:
            return found[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if there in PAGES:
            return f"{mark}[{text}]({PAGES[there]}{hash_sign}{anchor})"
        if there.startswith("docs/") and "/" not in there[5:] and (ROOT / there).is_file():
            return f"{mark}[{text}]({there[5:]}{hash_sign}{anchor})"
        return text

    return replacement
