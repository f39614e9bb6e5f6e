"""An inspection on the terminal: tokens that are trained on in colour, special tokens in brackets of another colour."""

from __future__ import annotations

import sys
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from peftcli.console.output import print_table, table
from peftcli.console.terminal import safe_console, wrapped
from peftcli.data.store.data_report import counted, template_in_words
from peftcli.record.shown_numbers import count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from peftcli.data.inspection import Example, Inspection

LEARNT, SPECIAL, LEARNT_SPECIAL, READ = "bold green", "magenta", "bold green reverse", "dim"
REJECTED, REJECTED_SPECIAL = "bold red", "bold red reverse"
BAR = 40  # columns of the longest bar of a histogram
MARKS = ("\u27e6", "\u27e7")  # around learnt text where there are no colours
REJECTED_MARKS = ("\u27ea", "\u27eb")  # around a rejected answer
ASCII_MARKS, ASCII_REJECTED_MARKS = ("[[", "]]"), ("<<", ">>")  # where the encoding lacks these
Marks = tuple[str, str]


def print_inspection(found: Inspection, width: int | None = None) -> None:
    """Print an inspection on standard output."""
    console = safe_console(width=width or (None if sys.stdout.isatty() else 100))
    _examples(console, found)
    _facts(console, found)
    _lengths(console, found)
    _labels(console, found)
    _equal_rows(console, found)


def _examples(console: Console, found: Inspection) -> None:
    from rich.text import Text

    for example in found.examples:
        learnt = f"{sum(token.supervised for token in example.tokens)} learnt"
        about = learnt if example.label is None else f"label: {example.label}"
        head = f"{example.source}:{example.row}  {len(example.tokens)} tokens, {about}"
        console.print(Text(head, style="bold cyan"), soft_wrap=True)
        console.print(render(example, colours=_colours(console), marks=_marks(console)))
        console.print()
    if found.examples and _colours(console):
        pairs = found.contradictions is not None
        answers = [("chosen", LEARNT), ("rejected", REJECTED)] if pairs else [("learnt", LEARNT)]
        kinds = [*answers, ("read only", READ), ("special", SPECIAL)]
        console.print(Text("  ").join(Text(name, style=style) for name, style in kinds))
    elif any(token.supervised for example in found.examples for token in example.tokens):
        (begin, end), (begin_rejected, end_rejected) = _marks(console)
        marked = f"{begin}learnt{end}"
        if found.contradictions is not None:
            marked = f"{begin}chosen{end}, {begin_rejected}rejected{end_rejected}"
        console.print(f"{marked}, the rest is read only", markup=False)


def _colours(console: Console) -> bool:
    """Return whether colours can be seen: not in a pipe, on a dumb terminal, or with NO_COLOR."""
    return console.is_terminal and console.color_system is not None and not console.no_color


def _writable(console: Console, text: str, instead: str) -> str:
    """Return a text, or what to write instead where the encoding lacks it, as Windows' older ones do."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return instead
    return text


def _marks(console: Console) -> tuple[Marks, Marks]:
    """Return the marks around learnt text and around a rejected answer."""
    if _writable(console, "".join((*MARKS, *REJECTED_MARKS)), ""):
        return MARKS, REJECTED_MARKS
    return ASCII_MARKS, ASCII_REJECTED_MARKS


def render(example: Example, *, colours: bool, marks: tuple[Marks, Marks] = (MARKS, REJECTED_MARKS)) -> Text:
    """Return the tokens of a row as one text; without colours the learnt parts stand in double brackets.

    The rejected side of a pair begins a line, and its answer has a colour or brackets of its own.
    """
    from rich.text import Text

    pieces: list[tuple[str, str]] = []
    (learnt, rejected), inside, around, second = marks, False, marks[0], False
    for token in example.tokens:
        if not colours and token.supervised != inside:
            pieces.append((around[1] if inside else (rejected if token.rejected else learnt)[0], ""))
            inside, around = token.supervised, rejected if token.rejected else learnt
        if token.rejected and not second:
            pieces += [("\n", "")] if pieces else []
            second = True
        style = (REJECTED if token.rejected else LEARNT) if token.supervised else READ
        if token.special and token.supervised:
            style = REJECTED_SPECIAL if token.rejected else LEARNT_SPECIAL
        elif token.special:
            style = SPECIAL
        pieces.append((token.text if token.label is None else f"{token.text}[{token.label}]", style))
    if inside and not colours:
        pieces.append((around[1], ""))
    # neighbours of one style as one piece: escape codes around every token would fill the terminal's buffer
    merged = [("".join(text for text, _ in same), style) for style, same in groupby(pieces, key=itemgetter(1))]
    return Text.assemble(*merged)


def _facts(console: Console, found: Inspection) -> None:
    report = found.report
    for line in report["evidence"]:
        _sentence(console, line)
    console.print(f"chat template: {template_in_words(report['template'])}", markup=False)
    rows = [[counted(name, split=report["split"]), count(number)] for name, number in found.counts.items()]
    rows.append(["training rows", count(report["train_rows"])])
    rows += [[f"validation rows {name}".strip(), count(n)] for name, n in report["validation_rows"].items()]
    if report["packed_rows"] is not None:
        rows.append(["packed rows", count(report["packed_rows"])])
    rows.append(["tokens", count(report["tokens"])])
    if not found.labels:
        rows.append(["learnt tokens", count(report["supervised_tokens"])])
    print_table(console, table(["", "number"], rows, numeric=(1,)))
    _sentence(console, f"prepared {'before' if report['cache'] == 'hit' else 'now'}: {report['cache_directory']}")
    for bad in report["skipped"][:5]:
        _sentence(console, f"skipped {bad['source']}:{bad['row']}: {bad['message']}")
    for note in report["notes"]:
        _sentence(console, f"note: {note}")
    console.print()


def _sentence(console: Console, text: str) -> None:
    """Print a text that a terminal shows in several lines, parted between words."""
    shown = wrapped(text, console.width) if console.is_terminal else text
    console.print(shown, soft_wrap=True, markup=False)


def _lengths(console: Console, found: Inspection) -> None:
    if not found.lengths:
        return
    quantiles = ", ".join(f"{name} {number}" for name, number in found.length_quantiles.items())
    _sentence(console, f"lengths in tokens: {quantiles}; max_length {found.max_length}")
    if found.uncut_quantiles != found.length_quantiles:
        uncut = ", ".join(f"{name} {number}" for name, number in found.uncut_quantiles.items())
        _sentence(console, f"before cutting: {uncut}")
    most = max(rows for _, _, rows in found.lengths)
    block = _writable(console, "█", "#")
    digits = len(str(found.lengths[-1][1]))
    for first, last, rows in found.lengths:
        bar = block * max(1 if rows else 0, round(BAR * rows / most))
        console.print(f"{first:>{digits}} - {last:>{digits}}  {bar} {rows or ''}".rstrip())
    console.print()


def _labels(console: Console, found: Inspection) -> None:
    if not found.labels:
        return
    sets = list(found.labels)
    totals = {name: sum(found.labels[name].values()) or 1 for name in sets}
    rows = [
        [label, *(f"{count(found.labels[s][label])} ({found.labels[s][label] / totals[s]:.1%})" for s in sets)]
        for label in found.labels[sets[0]]
    ]
    print_table(console, table(["label", *sets], rows, numeric=range(1, len(sets) + 1)))
    console.print()


def _equal_rows(console: Console, found: Inspection) -> None:
    _pairs(console, f"duplicates in training: {found.duplicates}", found.duplicate_pairs)
    if found.contradictions is not None:
        head = f"preferences that contradict an earlier one (chosen and rejected swapped): {found.contradictions}"
        _pairs(console, head, found.contradicting_pairs, "against")
    total = sum(found.overlap.values())
    if found.overlap:
        _pairs(console, f"validation rows that are also training rows: {total}", found.overlap_pairs)


def _pairs(console: Console, head: str, pairs: list[tuple[str, str]], between: str = "=") -> None:
    console.print(head)
    for first, second in pairs:
        console.print(f"  {first} {between} {second}", soft_wrap=True, markup=False)
