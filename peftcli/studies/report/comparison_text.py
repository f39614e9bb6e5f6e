"""The words and cells of a comparison's report that its table in the terminal and its Markdown share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peftcli.record.shown_numbers import byte_size, count, duration, short_count
from peftcli.studies.compare.comparison import ComparedMethod, Comparison
from peftcli.studies.report.shell.report_numbers import ScoreScale, share_text

Cell = Callable[[ComparedMethod], str]


@dataclass(frozen=True)
class Column:
    """One column: its heading and what stands in it; `numbers` are put to the right."""

    heading: str
    cell: Cell
    numbers: bool = True


def ordered_methods(comparison: Comparison) -> list[ComparedMethod]:
    """Return the methods from the best score to the worst, then those without one."""
    sign = -1.0 if comparison.greater_is_better else 1.0
    return sorted(comparison.methods, key=lambda row: (row.score is None, sign * (row.score or 0.0)))


def narrow_columns(comparison: Comparison) -> list[Column]:
    """Return the columns for which 80 characters have room."""
    scale = ScoreScale(comparison.metric, comparison.greater_is_better)
    wanted = [
        Column("method", lambda row: row.label, numbers=False),
        Column(scale.name, lambda row: score_cell(row, scale)),
        Column("verdict", lambda row: verdict_text(row, comparison), numbers=False),
        Column("trains", lambda row: "" if row.trainable is None else short_count(row.trainable)),
        Column("time", lambda row: "" if row.seconds is None else duration(row.seconds)),
    ]
    return _filled(comparison, wanted)


def wide_columns(comparison: Comparison) -> list[Column]:
    """Return every column that has a value."""
    scale = ScoreScale(comparison.metric, comparison.greater_is_better)
    wanted = [
        Column("method", lambda row: row.label, numbers=False),
        Column(scale.name, lambda row: scale.score(row.score, row.interval)),
        Column("95% interval", lambda row: scale.range(row.interval)),
        Column("verdict", lambda row: verdict_text(row, comparison), numbers=False),
        Column("before", lambda row: scale.score(row.score_before, row.interval_before)),
        Column("rate", lambda row: "" if row.rate is None else f"{row.rate:g}"),
        Column("steps to reference", lambda row: steps_text(row, comparison)),
        Column("trains", lambda row: "" if row.trainable is None else short_count(row.trainable)),
        Column("% of model", lambda row: "" if row.percent is None else share_text(row.percent)),
        Column("saved numbers", lambda row: "" if row.saved is None else short_count(row.saved)),
        Column("adapter", lambda row: "" if row.adapter_bytes is None else byte_size(row.adapter_bytes)),
        Column("memory", lambda row: "" if row.peak_memory_bytes is None else byte_size(row.peak_memory_bytes)),
        Column("tokens/s", lambda row: "" if row.tokens_per_second is None else count(round(row.tokens_per_second))),
        Column("time", lambda row: "" if row.seconds is None else duration(row.seconds)),
        Column("merges", lambda row: {True: "yes", False: "no", None: ""}[row.merges], numbers=False),
        Column("loaded by", lambda row: ", ".join(row.servers), numbers=False),
        Column("forgotten", _forgotten),
    ]
    return _filled(comparison, wanted)


def _filled(comparison: Comparison, columns: list[Column]) -> list[Column]:
    """Return the columns in which something stands; method and verdict always."""
    kept = ("method", "verdict")
    return [one for one in columns if one.heading in kept or any(one.cell(row) for row in comparison.methods)]


def score_cell(row: ComparedMethod, scale: ScoreScale) -> str:
    """Return a score and its interval: `91% (89% to 93%)`."""
    return scale.score_text(row.score, row.interval)


def verdict_text(row: ComparedMethod, comparison: Comparison) -> str:
    """Return the verdict in words, "behind" with how far; without a verdict, how the runs ended and why."""
    if row.verdict is None:
        ended = row.status if row.status != "finished" else "no score"
        return f"{ended}: {row.reason}" if row.reason else ended
    words: str = row.verdict
    if row.verdict == "behind" and row.difference is not None:
        scale = ScoreScale(comparison.metric, comparison.greater_is_better)
        words = f"behind by {scale.difference_text(row.difference, row.difference_interval)}"
    return f"{words}; the reference" if row.label == comparison.reference else words


def steps_text(row: ComparedMethod, comparison: Comparison) -> str:
    """Return when a method reached the reference's score; empty where no evaluation while training could show it."""
    if row.steps_to_reference is not None:
        return count(row.steps_to_reference)
    reference = comparison.reference_method
    if row.label == comparison.reference or reference is None or reference.score is None or row.score is None:
        return ""
    return "never" if any(curve.steps for curve in row.curves) else ""


def _forgotten(row: ComparedMethod) -> str:
    if row.forgotten is None:
        return ""
    return ScoreScale("loss", False).difference_text(row.forgotten, row.forgotten_interval)


def measured(comparison: Comparison) -> list[str]:
    """Return how the comparison was made, a sentence each."""
    seeds = ", ".join(map(str, comparison.seeds))
    found = [
        f"Task {comparison.task}, model {comparison.model}, data {comparison.data}.",
        f"{count(comparison.rows)} held-out rows, the same for every method; scores are means over the seeds {seeds}.",
        "Each learning rate was searched for each method." if comparison.searched else "No learning rate was searched.",
    ]
    if comparison.steps is not None:
        asked = comparison.full_steps
        short = f" of the {count(asked)} that the recipes ask for" if asked and asked > comparison.steps else ""
        found.append(f"{count(comparison.steps)} optimizer steps a run{short}, the same for every method.")
    found += [
        "Intervals are 95% intervals over held-out rows (2,000 bootstrap draws, the same for all methods)"
        + (" and over seeds (a t distribution)." if len(comparison.seeds) > 1 else "; seeds are not covered."),
        "Verdicts are corrected for the number of comparisons (Holm, over all pairs, since the best is chosen by these "
        "scores); the intervals of differences are not. Details: docs/choosing.md, What the verdicts mean.",
    ]
    if any(row.forgotten is not None for row in comparison.methods):
        found.append("Forgotten: by how much the loss rose on general text, which the training data do not resemble.")
    where = [part for part in (comparison.machine, comparison.date) if part]
    where += [f"{name} {version}" for name, version in comparison.versions.items()]
    time = f"{duration(comparison.seconds)} of training" if comparison.seconds else ""
    return [*found, *([", ".join(part for part in [time, *where] if part) + "."] if time or where else [])]
