"""A chart that was drawn: for a page, or as a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

from peftcli.record.charts.palette import FILE_STYLE
from peftcli.shown_text import escape

TITLE_HEIGHT = 26


@dataclass(frozen=True)
class Drawing:
    """SVG elements with their size in pixels, and what they show in words.

    Args:
        width, height: of the area that `body` fills.
        body: SVG elements.
        title: what is drawn.
        description: what a reader who cannot see it must know.
    """

    width: float
    height: float
    body: str
    title: str
    description: str

    def inline(self, name: str, *, kind: str = "") -> str:
        """Return the chart as an element of a page.

        Args:
            name: its id, unique in the page.
            kind: further CSS classes.
        """
        return (
            f'<svg class="chart {kind}" role="img" aria-labelledby="{name}-title {name}-desc" '
            f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" height="{self.height:g}">'
            f'<title id="{name}-title">{escape(self.title)}</title>'
            f'<desc id="{name}-desc">{escape(self.description)}</desc>{self.body}</svg>'
        )

    def file(self) -> str:
        """Return the text of an SVG file: with its title, and with colours for light and dark."""
        return _file(self.title, self.description, self.width, self.height, self.body)


def grid_file(title: str, description: str, panels: Sequence[Drawing], *, columns: int) -> str:
    """Return the text of an SVG file with many small charts, row by row.

    Args:
        title, description: of the whole.
        panels: at least one; all of one size.
        columns: how many stand side by side.
    """
    width, height, gap = panels[0].width, panels[0].height, 16
    columns = min(columns, len(panels))
    parts = []
    for index, panel in enumerate(panels):
        x, y = index % columns * (width + gap), index // columns * (height + gap)
        parts.append(f'<g transform="translate({x:g},{y:g})">{panel.body}</g>')
    rows = -(-len(panels) // columns)
    return _file(title, description, columns * (width + gap) - gap, rows * (height + gap) - gap, "".join(parts))


def _file(title: str, description: str, width: float, height: float, body: str) -> str:
    edge = 12
    across, down = width + 2 * edge, height + TITLE_HEIGHT + 2 * edge
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {across:g} {down:g}" '
        f'width="{across:g}" height="{down:g}"><title>{escape(title)}</title><desc>{escape(description)}</desc>'
        f'<style>{FILE_STYLE}</style><rect class="ground" width="100%" height="100%"/>'
        f'<text class="title large" x="{edge}" y="{edge + 12}">{escape(title)}</text>'
        f'<g transform="translate({edge},{edge + TITLE_HEIGHT})">{body}</g></svg>\n'
    )


def text_width(text: str, size: float = 13) -> float:
    """Return about how many pixels a text takes in a system's sans-serif font; rather too many than too few."""
    return sum(size if east_asian_width(char) in "WF" else 0.59 * size for char in text)


def shortened(text: str, longest: int = 26) -> str:
    """Return a text of at most `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "\u2026"


def words(text: str, x: float, y: float, *, kind: str = "", anchor: str = "start") -> str:
    """Return a text element."""
    kind = f' class="{kind}"' if kind else ""
    anchor = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}"{anchor}>{escape(text)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "") -> str:
    """Return a line element."""
    kind = f' class="{kind}"' if kind else ""
    return f'<line{kind} x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
