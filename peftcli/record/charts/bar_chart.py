"""Horizontal bars with their names and values, such as shares of importance."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.record.charts.drawing import Drawing, shortened, text_width, words

_ROW = 28


def bars(title: str, description: str, rows: Sequence[tuple[str, float, str]], *, width: float) -> Drawing:
    """Draw bars, one below the other.

    Args:
        title, description: see `Drawing`.
        rows: name, value of 0 or more, and the value as text.
        width: in pixels.
    """
    longest = int(width * 0.45 / 7)
    left = max((text_width(shortened(name, longest)) for name, _, _ in rows), default=0.0) + 12
    room = width - left - max((text_width(text) for _, _, text in rows), default=0.0) - 12
    largest = max((value for _, value, _ in rows), default=0.0) or 1.0
    parts = []
    for index, (name, value, text) in enumerate(rows):
        top, length = index * _ROW, max(1.0, value / largest * room)
        parts.append(words(shortened(name, longest), left - 12, top + 17, kind="name", anchor="end"))
        parts.append(f'<rect class="bar" x="{left:.1f}" y="{top + 5}" width="{length:.1f}" height="16" rx="2"/>')
        parts.append(words(text, left + length + 8, top + 17))
    return Drawing(width, max(_ROW, _ROW * len(rows)), "".join(parts), title, description)
