"""What a comparison says, in words for someone who has never heard of these methods: which to choose, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from peftcli.protocol.registry import registry
from peftcli.record.shown_numbers import byte_size, count, duration
from peftcli.studies.compare.asked import BASE
from peftcli.studies.compare.comparison import ComparedMethod, Comparison
from peftcli.studies.evidence.judgement import LEVEL, better_than_reference
from peftcli.studies.evidence.steps_to_reference import fill_steps_to_reference
from peftcli.studies.evidence.undecided import FEW_ROWS, undecided
from peftcli.studies.report.shell.report_numbers import ScoreScale, share_text

Cost = Callable[[ComparedMethod], float | None]


def explain(comparison: Comparison) -> None:
    """Fill in `choice`, `summary`, `undecided` and `steps_to_reference`, from the rest of the record."""
    fill_steps_to_reference(comparison)
    scored = any(row.verdict == "best" for row in comparison.methods)
    comparison.choice = choose(comparison).label if scored else None
    comparison.summary = summary(comparison)
    comparison.undecided = undecided(comparison)


def summary(comparison: Comparison) -> list[str]:
    """Return sentences: which method to choose and why, what it costs, and whether it was worth training."""
    judged = [row for row in comparison.methods if row.verdict is not None]
    best = next((row for row in judged if row.verdict == "best"), None)
    if best is None:
        return ["No method has a score, so there is nothing to choose from. The table says why each has none."]
    if len(judged) == 1:
        return [f"Only {best.label} has a score, so nothing can be compared.", *_costs(best)]
    chosen = choose(comparison)
    return [
        _choice(comparison, chosen, best),
        *_costs(chosen),
        *_others(comparison, chosen),
        *_worth(comparison, chosen),
    ]


def choose(comparison: Comparison) -> ComparedMethod:
    """Return the best method, or of those that are tied with it the one that trains the fewest numbers.

    Where the best is shown to be better than the reference, a tied one must be, too: being cheap is no reason to take
    what may be no better than no training.
    """
    return min(_candidates(comparison), key=lambda row: _order(row.trainable))


def _candidates(comparison: Comparison) -> list[ComparedMethod]:
    tied = [row for row in comparison.methods if row.verdict in ("best", "tied with the best")]
    best = next(row for row in tied if row.verdict == "best")
    return [row for row in tied if better_than_reference(row)] if better_than_reference(best) else tied


def _order(value: float | None) -> float:
    return float("inf") if value is None else float(value)


def _choice(comparison: Comparison, chosen: ComparedMethod, best: ComparedMethod) -> str:
    scale = ScoreScale(comparison.metric, comparison.greater_is_better)
    score = f"{scale.name} {scale.score(chosen.score, chosen.interval)}"
    between = scale.range(chosen.interval)
    score += f" (95% interval {between})" if between else ""
    choice = "Train nothing" if chosen.trainable == 0 else f"Choose {chosen.label}"
    tied = [row for row in comparison.methods if row.verdict == "tied with the best"]
    if not tied:
        few = f"as far as {count(comparison.rows)} held-out rows can show" if comparison.rows < FEW_ROWS else None
        return f"{choice}: {score}, better than each of the others {few or 'by more than chance explains'}."
    if chosen is best and len(tied) == 1 and tied[0].label == comparison.reference:
        return f"{choice}: {score}. Only the reference, {comparison.reference}, is tied with it."
    if len(_candidates(comparison)) == 1:
        return (
            f"Choose {chosen.label}: {score}. Of the methods that are tied with it, no other is shown to be better "
            f"than the reference, {comparison.reference}."
        )
    why = "trains the fewest numbers" if chosen.trainable is not None else "is the first"
    if chosen is best:
        names = listed([row.label for row in tied])
        return f"{choice}: {score}. Tied with it: {names}. Of all these it {why}."
    top = f"{best.label}, {scale.score(best.score, best.interval)}"
    return (
        f"{choice}: {score}. It is tied with the best ({top}): of the {len(tied) + 1} methods that these data do not "
        f"tell apart, it {why}."
    )


def _costs(row: ComparedMethod) -> list[str]:
    """Return what a method is, and what it costs, of what was measured."""
    info = registry.info(row.method) if row.method in registry.names() else None
    what = [] if info is None else [f"What {row.label} is: {info.summary[0].lower()}{info.summary[1:]}"]
    parts = []
    if row.trainable is not None:
        share = "" if row.percent is None else f" ({share_text(row.percent)}% of the model)"
        parts.append(f"trains {count(row.trainable)} numbers{share}")
    if row.adapter_bytes is not None:
        parts.append(f"is saved in {byte_size(row.adapter_bytes)}")
    if row.peak_memory_bytes is not None:
        parts.append(f"took {byte_size(row.peak_memory_bytes)} of memory at its peak")
    if row.seconds is not None:
        parts.append(f"took {duration(row.seconds)} a run")
    if row.rate is not None:
        parts.append(f"ran at the learning rate {row.rate:g}")
    return [*what, f"It {listed(parts)}."] if parts else what


def _others(comparison: Comparison, chosen: ComparedMethod) -> list[str]:
    """Return which of the methods to choose from takes the least memory or time, where that is another one."""
    found = []
    wanted: Sequence[tuple[str, Cost, Callable[[float], str]]] = (
        ("the least memory", lambda row: row.peak_memory_bytes, byte_size),
        ("the least time", lambda row: row.seconds, duration),
    )
    for words, cost, written in wanted:
        known = [row for row in _candidates(comparison) if cost(row) is not None]
        least = min(known, key=lambda row: _order(cost(row)), default=chosen)
        value, own = cost(least), cost(chosen)
        if least is not chosen and value is not None and own is not None and value < 0.95 * own:
            found.append(f"{least.label} takes {words} ({written(value)})")
    return [f"If memory or time matters more: of the same methods, {listed(found)}."] if found else []


def _worth(comparison: Comparison, chosen: ComparedMethod) -> list[str]:
    """Return whether the choice is better than the reference."""
    name, reference = comparison.reference, comparison.reference_method
    if reference is None or reference.score is None:
        return []
    scale = ScoreScale(comparison.metric, comparison.greater_is_better)
    if chosen is reference:
        return [f"That is the reference itself: no other method is shown to be better than {name}."]
    if chosen.difference_to_reference is None:
        return []
    shown, between = scale.difference(-chosen.difference_to_reference, _turned(chosen.reference_interval))
    between = f" ({between})" if between else ""
    if better_than_reference(chosen):
        few = f"On these {count(comparison.rows)} rows it" if comparison.rows < FEW_ROWS else "It"
        sentence = f"{few} is better than the reference, {name}, by {shown}{between}"
        steps = chosen.steps_to_reference if name != BASE else None  # it started with that score
        return [f"{sentence}, whose score it reached after {count(steps)} steps." if steps else f"{sentence}."]
    if chosen.p_reference is not None and chosen.p_reference < LEVEL:
        worse, around = scale.difference(chosen.difference_to_reference, chosen.reference_interval)
        return [f"It is worse than the reference, {name}, by {worse}{f' ({around})' if around else ''}."]
    return [f"It is not shown to be better than the reference, {name}: the difference is {shown}{between}."]


def _turned(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (-interval[1], -interval[0])


def listed(items: Sequence[str]) -> str:
    """Return items as people write them: a; a and b; a, b and c."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else list(items))
