"""What the data of a comparison cannot decide, in words."""

from __future__ import annotations

from statistics import median

from peftcli.record.shown_numbers import count
from peftcli.studies.compare.comparison import ComparedMethod, Comparison
from peftcli.studies.report.shell.report_numbers import ScoreScale

FEW_SEEDS = 5
"""With fewer, what is known of how much results vary with the seed is little."""
FEW_ROWS = 20
"""With fewer held-out rows, a bootstrap is said to make intervals too narrow."""
NAMED = 6
"""So many labels are named; of more, the number."""


def undecided(comparison: Comparison) -> list[str]:
    """Return a sentence for each question that stays open."""
    scored = [row for row in comparison.methods if row.verdict is not None]
    if not scored:
        return []
    found = [*_ties(comparison), *_resolution(comparison, scored), *_rows(comparison, scored)]
    found += _seeds(comparison, scored)
    return [*found, *_rates(comparison, scored), *_steps(comparison), *_missing(comparison), *_new_data(comparison)]


def _ties(comparison: Comparison) -> list[str]:
    tied = [row for row in comparison.methods if row.verdict == "tied with the best"]
    best = next((row.label for row in comparison.methods if row.verdict == "best"), "")
    if not tied:
        return []
    scale = ScoreScale(comparison.metric, comparison.greater_is_better)
    widest = max((row for row in tied if row.difference_interval), key=_upper, default=None)
    reach = ""
    if widest is not None:
        most, _ = scale.difference(_upper(widest), widest.difference_interval)
        reach = f" Tied does not mean equal: {widest.label} may be behind by as much as {most}."
    return [f"Which is best of {_names([best, *(row.label for row in tied)])}.{reach}"]


def _upper(row: ComparedMethod) -> float:
    return row.difference_interval[1] if row.difference_interval else 0.0


def _resolution(comparison: Comparison, scored: list[ComparedMethod]) -> list[str]:
    """Say how small a difference shows with so many rows and seeds."""
    widths = [(row.difference_interval[1] - row.difference_interval[0]) / 2
              for row in scored if row.difference_interval and row.verdict != "best"]  # fmt: skip
    if not widths:
        return []
    scale, half = ScoreScale(comparison.metric, comparison.greater_is_better), median(widths)
    shown, _ = scale.difference(half, (-half, half))
    return [
        f"Whether a method is behind the best by less than about {shown}: {count(comparison.rows)} held-out rows and "
        f"{_seed_words(len(comparison.seeds))} do not show smaller differences."
    ]


def _rows(comparison: Comparison, scored: list[ComparedMethod]) -> list[str]:
    if comparison.rows >= FEW_ROWS or all(row.interval is None for row in scored):
        return []
    return [
        f"How wide the intervals are: {count(comparison.rows)} held-out rows are few for a bootstrap, which makes "
        "intervals too narrow then and differences too certain; hold out more rows."
    ]


def _seeds(comparison: Comparison, scored: list[ComparedMethod]) -> list[str]:
    seeds = len(comparison.seeds)
    found = []
    if all(row.interval is None for row in scored):
        found.append(
            f"What the scores are on other rows: too few are held out ({count(comparison.rows)}) for an interval."
        )
    elif seeds < 2:
        found.append(
            "Whether another seed would change the order: with one seed, the intervals cover the choice of rows only."
        )
    elif seeds < FEW_SEEDS:
        found.append(
            f"How much results vary with the seed: {seeds} seeds say little about this, so the intervals are wide."
        )
    fewer = [row.label for row in scored if len(row.scores) < seeds and row.label != comparison.reference]
    if fewer:
        found.append(f"How often {_names(fewer)} fail: some of their runs have no score, and only the others count.")
    return found


def _rates(comparison: Comparison, scored: list[ComparedMethod]) -> list[str]:
    if not comparison.searched:
        return ["Whether another learning rate would change the order: each method ran at one rate only."]
    found = []
    for end, words in ((max, "higher"), (min, "lower")):
        at_edge = [row.label for row in scored if row.rate is not None and len(row.rates) > 1
                   and row.rate == end(point.rate for point in row.rates)]  # fmt: skip
        if at_edge:
            found.append(
                f"Whether a {words} learning rate would be better for {_names(at_edge)}: the chosen one is the "
                f"{'greatest' if words == 'higher' else 'least'} of those tried."
            )
    return found


def _steps(comparison: Comparison) -> list[str]:
    steps, full = comparison.steps, comparison.full_steps
    if steps is None or full is None or steps >= full:
        return []
    return [
        f"Whether the order holds after the {count(full)} steps that the recipes ask for: these runs had "
        f"{count(steps)}, and methods that start slowly are behind in short runs."
    ]


def _missing(comparison: Comparison) -> list[str]:
    missing = [row for row in comparison.methods if row.verdict is None]
    return [f"How {row.label} compares: it {_ended(row)}." for row in missing]


def _ended(row: ComparedMethod) -> str:
    words = {"finished": "has no score", "refused": "was refused"}.get(row.status, row.status)
    return f"{words} ({row.reason.rstrip('.')})" if row.reason else words


def _new_data(comparison: Comparison) -> list[str]:
    chosen = (
        "the learning rates and the best moment of each run were"
        if comparison.searched
        else ("the best moment of each run was")
    )
    return [
        f"What the scores are on new data: {chosen} chosen on the rows that give the score, which makes all "
        "scores a little too good; differences are less affected."
    ]


def _seed_words(seeds: int) -> str:
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def _names(labels: list[str]) -> str:
    if len(labels) > NAMED:
        return f"{', '.join(labels[: NAMED - 1])} and {len(labels) - NAMED + 1} more"
    return " and ".join([", ".join(labels[:-1]), labels[-1]] if len(labels) > 1 else labels)
