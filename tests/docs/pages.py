"""What the tests of README and docs share: code blocks and commands of a page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]


def text_of(page: str) -> str:
    """Return a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    """Return the contents of fenced code blocks of these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text_of(page), flags=re.M | re.S)
    return [body for language, body in found if language in languages]


def commands(page: str) -> list[list[str]]:
    """Return the arguments of each `peft` command line in code blocks and inline code; `...` ends one."""
    lines = [line for body in blocks(page, "bash", "console", "sh") for line in body.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    lines += re.findall(r"`(peft [^`]+)`", prose)
    found = []
    for line in lines:
        for part in line.removeprefix("$ ").split("&&"):
            words = shlex.split(part.split(" > ")[0].replace("\\|", "|"), comments=True)
            if words[:1] == ["peft"] and "..." not in words:
                found.append(words[1:])
            elif words[-1:] and "peftcli" in words and words[0] == "torchrun":
                found.append(words[words.index("peftcli") + 1 :])
    return found
