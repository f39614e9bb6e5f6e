"""What holds of every page: it is well formed, its references lead somewhere, and it loads nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

_VOID = {"meta", "input", "br", "hr", "img", "link", "col"}
_SELF_CLOSED = {"path", "line", "rect", "circle", "polyline"}
_REFERENCES = ("aria-labelledby", "aria-controls", "aria-describedby", "for")


class Page(HTMLParser):
    """A page, read: its texts, ids and tags.

    Args:
        text: of the page.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: list[str] = []
        self.references: set[str] = set()
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.problems: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if len(found) != len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice")
        if found.get("id") is not None:
            self.ids.append(str(found["id"]))
        for name in _REFERENCES:
            self.references.update((found.get(name) or "").split())
        self.links += [str(found[name]) for name in ("href", "src", "action", "data", "srcset") if name in found]
        self.problems += [f"<{tag}> has {name}" for name in found if name.startswith("on") or name == "style"]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _SELF_CLOSED, tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        opened = self._open.pop() if self._open else None
        if opened != tag:
            self.problems.append(f"</{tag}> closes <{opened}>")

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        """Return what the page says, with single spaces."""
        return re.sub(r"\s+", " ", " ".join(self.words))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each element of a name."""
        return [found for name, found in self.tags if name == tag]


def checked(text: str) -> Page:
    """Return a page that is well formed, refers to ids that it has, and loads nothing from anywhere."""
    page = Page(text)
    assert page.problems == []
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    style = "".join(re.findall(r"<style>(.*?)</style>", text, flags=re.S))
    assert "url(" not in style and "@import" not in style
    assert "nan" not in re.findall(r"[\w.-]+", " ".join(str(found) for _, found in page.tags)), "a number is missing"
    assert page.named("html")[0]["lang"] == "en" and len(page.named("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels)), "a heading is skipped"
    assert len(page.named("caption")) == len(page.named("table"))
    assert all("scope" in head for head in page.named("th"))
    return page
