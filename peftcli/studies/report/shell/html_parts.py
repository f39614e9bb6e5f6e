"""The parts that pages are made of: tables, figures with their numbers, lists of pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from peftcli.record.charts.drawing import Drawing, grid_file
from peftcli.shown_text import escape

MISSING = '<span aria-hidden="true">\u2013</span><span class="hidden">none</span>'
"""A cell without a value."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: its heading.
        number: whether it is aligned and sorted as numbers.
        hint: shown when the heading is pointed at.
        first: how a first click sorts: `ascending` or `descending`.
        sorted: how the rows are sorted by it as they are written, if they are.
        picture: whether its cells are pictures, which nothing can be sorted by.
    """

    title: str
    number: bool = False
    hint: str = ""
    first: str = "ascending"
    sorted: str = ""
    picture: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: HTML, and the number or text to sort by; None sorts last."""

    html: str
    value: float | str | None = None


def text_cell(text: str | None) -> Cell:
    """Return a cell of a text, escaped."""
    return Cell(MISSING) if text in (None, "") else Cell(escape(str(text)), str(text))


def number_cell(value: float | None, text: str) -> Cell:
    """Return a cell of a number and how it is written; `text` is not used without a value."""
    return Cell(MISSING) if value is None else Cell(escape(text), value)


def sortable_table(name: str, caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> str:
    """Return a table with a field to filter it and buttons to sort it; the first column names the row.

    Args:
        name: its id, unique in the page.
        caption: in words; no HTML.
        columns: at least one.
        rows: a cell a column.
    """
    head = "".join(map(_heading, columns))
    body = "\n".join(_row(columns, row) for row in rows)
    return (
        f'<div class="tools" hidden><label for="{name}-filter">Filter rows</label>'
        f'<input type="search" id="{name}-filter" aria-controls="{name}" autocomplete="off" spellcheck="false">'
        f'<span role="status" aria-live="polite"></span></div>\n'
        f'<div class="scroll" role="region" aria-labelledby="{name}-caption" tabindex="0">'
        f'<table class="main sortable" id="{name}"><caption id="{name}-caption">{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _heading(column: Column) -> str:
    if column.picture:
        return f'<th scope="col">{escape(column.title)}</th>'
    kind = ' class="n"' if column.number else ""
    order = f' aria-sort="{column.sorted}"' if column.sorted else ""
    hint = f' title="{escape(column.hint)}"' if column.hint else ""
    return (
        f'<th scope="col"{kind}{order}{hint} data-first="{column.first}">'
        f'<button type="button" disabled>{escape(column.title)}</button></th>'
    )


def _row(columns: Sequence[Column], cells: Sequence[Cell]) -> str:
    parts = []
    for index, (column, cell) in enumerate(zip(columns, cells, strict=True)):
        value = f' data-value="{_sorted_by(cell.value)}"' if cell.value is not None else ""
        kind = ' class="n"' if column.number else ""
        tag, scope = ("th", ' scope="row"') if index == 0 else ("td", "")
        parts.append(f"<{tag}{scope}{kind}{value}>{cell.html}</{tag}>")
    return f"<tr>{''.join(parts)}</tr>"


def _sorted_by(value: float | str) -> str:
    return escape(value) if isinstance(value, str) else f"{value:.12g}"


def plain_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """Return a table of texts, which are escaped.

    Args:
        caption: in words.
        columns: headings.
        rows: a text a column; an empty one is a missing value.
        texts: so many columns from the left are texts, the others numbers.
    """
    kinds = ["" if index < texts else ' class="n"' for index in range(len(columns))]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(columns, kinds, strict=True))
    body = []
    for row in rows:
        cells = [f"<td{kind}>{escape(text) if text else MISSING}</td>" for text, kind in zip(row, kinds, strict=True)]
        first = cells[0].replace("<td", '<th scope="row"', 1).removesuffix("</td>") + "</th>"
        body.append(f"<tr>{first}{''.join(cells[1:])}</tr>")
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def folded(summary: str, label: str, table: str) -> str:
    """Return a table that one click opens; `label` names the area that it scrolls in."""
    return (
        f'<details><summary>{escape(summary)}</summary><div class="scroll" role="region" tabindex="0" '
        f'aria-label="{escape(label)}">{table}</div></details>'
    )


@dataclass(frozen=True)
class Figure:
    """A figure of a page, which is also a file.

    Args:
        name: unique in the page, and the file's name; ids begin with it.
        heading: in words.
        drawings: one chart by width of the screen (`wide` and `narrow`), or many small ones.
        caption: in words.
        table: HTML of the numbers.
        legend: SVG or text of a sign, which is HTML, and what it means in words.
    """

    name: str
    heading: str
    drawings: Mapping[str, Drawing] | Sequence[Drawing]
    caption: str
    table: str
    legend: Sequence[tuple[str, str]] = ()

    def html(self) -> str:
        """Return the figure with its numbers behind one click."""
        if isinstance(self.drawings, Mapping):
            drawn = "".join(one.inline(f"{self.name}-{kind}", kind=kind) for kind, one in self.drawings.items())
        else:
            small = "".join(one.inline(f"{self.name}-{index}") for index, one in enumerate(self.drawings))
            drawn = f'<div class="panels">{small}</div>'
        signs = "".join(f"<li>{sign}<span>{escape(meaning)}</span></li>" for sign, meaning in self.legend)
        legend = f'<ul class="legend">{signs}</ul>' if signs else ""
        text = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        heading = f'<h3 id="{self.name}-heading">{escape(self.heading)}</h3>'
        return (
            f'<figure id="{self.name}" aria-labelledby="{self.name}-heading">{heading}{drawn}{legend}{text}'
            f"{folded('Numbers of this figure', f'{self.heading}: numbers', self.table)}</figure>"
        )

    def file(self) -> str:
        """Return the text of an SVG file."""
        if isinstance(self.drawings, Mapping):
            return self.drawings["wide"].file()
        return grid_file(self.heading, self.caption, self.drawings, columns=4)


def pairs(items: Iterable[tuple[str, str]], *, kind: str = "pairs") -> str:
    """Return a list of names and values, both escaped; those without a value are left out."""
    rows = [(name, value) for name, value in items if value]
    wrap = kind == "tiles"
    parts = []
    for name, value in rows:
        main, _, small = value.partition("\n")
        extra = f"<small>{escape(small)}</small>" if small else ""
        pair = f"<dt>{escape(name)}</dt><dd>{escape(main)}{extra}</dd>"
        parts.append(f"<div>{pair}</div>" if wrap else pair)
    return f'<dl class="{kind}">{"".join(parts)}</dl>' if parts else ""


def bullets(heading: str, lines: Sequence[str]) -> str:
    """Return a list of sentences under a heading, or nothing."""
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="beside"><h2>{escape(heading)}</h2><ul>{items}</ul></div>'
