"""An inspection as one HTML page without scripts or outside files, to send to a colleague."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcli.data.store.data_report import counted, template_in_words
from peftcli.shown_text import escape

if TYPE_CHECKING:
    from peftcli.data.inspection import Example, Inspection, Token

_STYLE = """
:root { color-scheme: light dark; color: light-dark(#1a1a1a, #e6e8ea); background: light-dark(#fff, #14171a); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .8em; border-radius: 6px; }
pre { background: light-dark(#f6f6f4, #1e2226); }
.read { color: light-dark(#666, #a0a6ab); }
.learnt { color: light-dark(#05602b, #9fe3b8); background: light-dark(#d9f2e1, #173a26); font-weight: 600; }
.rejected { color: light-dark(#8a1020, #f4b3ba); background: light-dark(#fbe0e0, #45191e); }
.special { border: 1px solid light-dark(#b04fb0, #c984c9); border-radius: 3px; }
sub { color: light-dark(#9a3d9a, #d59ad5); }
td, th { text-align: left; padding: .1em 1.2em .1em 0; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; height: .8em; background: light-dark(#4a7ebb, #6f9fd8); }
"""
_HEAD = "<meta charset='utf-8'><meta name='viewport' content='width=device-width, initial-scale=1'>"
BAR = 300  # pixels of the longest bar


def page(found: Inspection, *, title: str) -> str:
    """Return the whole page."""
    report = found.report
    parts = [
        f"<!doctype html><html lang='en'>{_HEAD}<title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{_learnt(found)} <span class='read'>read only</span> <span class='special read'>special</span></p>",
        *map(_example, found.examples),
        "<h2>Rows</h2>",
        *(f"<p>{escape(line)}</p>" for line in [*report["evidence"], *report["notes"]]),
        f"<p>chat template: {escape(template_in_words(report['template']))}</p>",
        _table([(counted(name, split=report["split"]), f"{number:,}") for name, number in found.counts.items()]),
        f"<h2>Lengths in tokens (max_length {found.max_length})</h2>",
        _histogram(found.lengths),
    ]
    for name, counts in found.labels.items():
        parts += [f"<h2>Labels: {escape(name)}</h2>", _table([(label, str(n)) for label, n in counts.items()])]
    parts.append(f"<h2>Equal rows</h2><p>duplicates in training: {found.duplicates}</p>")
    parts.append(_table(found.duplicate_pairs))
    if found.contradictions is not None:
        parts.append(
            f"<p>preferences that contradict an earlier one (chosen and rejected swapped): {found.contradictions}</p>"
        )
        parts.append(_table(found.contradicting_pairs))
    if found.overlap:
        parts.append(f"<p>validation rows that are also training rows: {sum(found.overlap.values())}</p>")
        parts.append(_table(found.overlap_pairs))
    skipped = [(f"{bad['source']}:{bad['row']}", str(bad["message"])) for bad in report["skipped"]]
    if skipped:
        parts += ["<h2>Skipped rows</h2>", _table(skipped)]
    return "\n".join(parts) + "</html>\n"


def _learnt(found: Inspection) -> str:
    if found.contradictions is None:
        return "<span class='learnt'>learnt</span>"
    return "<span class='learnt'>chosen</span> <span class='learnt rejected'>rejected</span>"


def _example(example: Example) -> str:
    label = f", label {escape(example.label)}" if example.label is not None else ""
    head = f"<h3>{escape(example.source)}:{example.row} ({len(example.tokens)} tokens{label})</h3>"
    return f"{head}<pre>{''.join(map(_token, example.tokens))}</pre>"


def _token(token: Token) -> str:
    kind = ("learnt" if token.supervised else "read") + (" special" if token.special else "")
    kind += " rejected" if token.supervised and token.rejected else ""
    tag = f"<sub>{escape(token.label)}</sub>" if token.label is not None else ""
    return f"<span class='{kind}'>{escape(token.text)}</span>{tag}"


def _table(rows: list[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{escape(a)}</td><td class='n'>{escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{cells}</table>"


def _histogram(lengths: list[tuple[int, int, int]]) -> str:
    most = max((rows for _, _, rows in lengths), default=1)
    lines = "".join(
        f"<tr><td class='n'>{first} - {last}</td><td><span class='bar' style='width:{round(BAR * rows / most)}px'>"
        f"</span> {rows}</td></tr>"
        for first, last, rows in lengths
    )
    return f"<table>{lines}</table>"
