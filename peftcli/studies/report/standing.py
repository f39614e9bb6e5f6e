"""Where each method of a comparison stands: its place, its mark, its verdict in words."""

from __future__ import annotations

from dataclasses import dataclass

from peftcli.record.charts.scatter_chart import shape
from peftcli.studies.compare.comparison import ComparedMethod, Comparison, Interval
from peftcli.studies.report.shell.report_numbers import ScoreScale, known

MEANINGS = {
    "best": "best",
    "tied": "tied with the best",
    "behind": "behind",
    "worse": "not better than the reference",
    "reference": "the reference",
    "plain": "no verdict",
}
"""Kind of a mark -> what it stands for."""

_KINDS = {"best": "best", "tied with the best": "tied", "behind": "behind", "not better than the reference": "worse"}
_SIGN_ORDER = tuple(MEANINGS)


@dataclass(frozen=True)
class Standing:
    """A method with its number in the table, from 1, and the kind of its mark."""

    method: ComparedMethod
    number: int
    kind: str

    @property
    def order(self) -> int:
        """Return by what verdicts are sorted."""
        return _SIGN_ORDER.index(self.kind) if self.method.score is not None else len(_SIGN_ORDER)


def standings(comparison: Comparison) -> list[Standing]:
    """Return the methods from the best score to the worst, then those without one."""
    sign = -1 if comparison.greater_is_better else 1

    def place(method: ComparedMethod) -> tuple[bool, float]:
        return (False, sign * method.score) if known(method.score) else (True, 0.0)

    ordered = sorted(comparison.methods, key=place)
    return [Standing(method, number, _kind(method, comparison)) for number, method in enumerate(ordered, start=1)]


def _kind(method: ComparedMethod, comparison: Comparison) -> str:
    if method.label == comparison.reference and method.verdict != "best":
        return "reference"
    return _KINDS.get(method.verdict or "", "plain")


def verdict_words(standing: Standing, scale: ScoreScale) -> tuple[str, str]:
    """Return a verdict, and what stands below it: a difference with its interval, or why there is no verdict."""
    method = standing.method
    if not known(method.score):
        return "no score" if method.status == "finished" else method.status, method.reason or ""
    words = method.verdict or ("the reference" if standing.kind == "reference" else "")
    if method.verdict == "behind" and known(method.difference):
        shown, between = scale.difference(method.difference, method.difference_interval)
        p = "the reference" if standing.kind == "reference" else _p(method.p_best)
        return f"behind by {shown}", ", ".join(part for part in (between, p) if part)
    if standing.kind == "reference" and method.verdict:
        return words, "the reference"
    if method.verdict == "not better than the reference":
        parts = [_p(method.p_reference)]
        if known(method.difference_to_reference) and method.reference_interval is not None:
            shown, between = scale.difference(-method.difference_to_reference, _turned(method.reference_interval))
            parts.insert(0, f"gains {shown} ({between})")
        return words, ", ".join(part for part in parts if part)
    return words, ""


def _turned(interval: Interval) -> Interval:
    """Return the interval of a difference the other way round: positive is better."""
    return -interval[1], -interval[0]


def _p(value: float | None) -> str:
    """Return a p-value in words; Holm's correction is explained on the page."""
    if not known(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def sign(kind: str) -> str:
    """Return a mark as a small picture, for a legend or a cell."""
    return f'<svg class="chart" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{shape(kind, 7, 7)}</svg>'
