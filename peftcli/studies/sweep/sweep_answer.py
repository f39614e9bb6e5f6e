"""The answer of a sweep in one line: the smallest value that ties with the best, or the best values."""

from __future__ import annotations

from collections.abc import Sequence

from peftcli.shown_text import all_of
from peftcli.studies.report.shell.report_numbers import ScoreScale
from peftcli.studies.sweep.space.point_overrides import point_text
from peftcli.studies.sweep.space.search_space import Point, SearchSpace
from peftcli.studies.sweep.sweep_record import SweepWinner

TIES = ("best", "tied with the best")


def ordered_answer(key: str, winners: Sequence[SweepWinner], scale: ScoreScale) -> str:
    """Return which is the smallest value of a key that ties with the best.

    Args:
        key: dotted path in the recipe.
        winners: every value that was trained on fresh seeds.
        scale: how scores are written.
    """
    judged = [one for one in winners if one.verdict is not None]
    if not judged:
        return f"no value of {key} finished on fresh seeds"
    best = next(one for one in judged if one.verdict == "best")
    ties = sorted((one for one in judged if one.verdict in TIES), key=lambda one: float(one.values[key]))
    behind = sorted((one for one in judged if one.verdict == "behind"), key=lambda one: float(one.values[key]))
    least = ties[0]
    head = f"the smallest {key} that ties with the best is {_value(least, key)}"
    facts = [_score(least, scale)]
    if least is not best:
        gap = scale.difference_text(least.difference or 0.0, least.difference_interval)
        facts.append(f"the best is {_value(best, key)} with {_score(best, scale)}, better by {gap}")
    others = [_value(one, key) for one in ties if one is not least and one is not best]
    if others:
        facts.append(f"{all_of(others)} {'tie' if len(others) > 1 else 'ties'}, too")
    if behind:
        facts.append(f"{all_of([_value(one, key) for one in behind])} {'are' if len(behind) > 1 else 'is'} behind")
    if len(judged) > 1 and not behind:
        facts.append("none can be told apart from the best on these rows and seeds")
    return f"{head} ({'; '.join(facts)})"


def best_answer(winners: Sequence[SweepWinner], scale: ScoreScale) -> str:
    """Return the best values, and which of the others that were trained again tie with them."""
    judged = [one for one in winners if one.verdict is not None]
    if not judged:
        return "no trial finished on fresh seeds"
    best = next(one for one in judged if one.verdict == "best")
    ties = [point_text(one.values) for one in judged if one.verdict == "tied with the best"]
    text = f"the best is {point_text(best.values)} ({_score(best, scale)} on fresh seeds"
    return f"{text}; tied with it: {'; '.join(ties)})" if ties else f"{text})"


def edges(space: SearchSpace, point: Point) -> list[str]:
    """Return a sentence for each key whose best value is at the edge of what was searched."""
    found = []
    for key, value in point.items():
        one = space.dimension(key, point)
        if one is not None and not isinstance(value, str | bool) and one.domain.at_edge(value):
            found.append(
                f"the best {key} = {value} is at the edge of {one.text}: a wider search could find a better one"
            )
    return found


def alpha_note(space: SearchSpace, written_alpha: float | None, alpha: float | None) -> str | None:
    """Return what a varied rank does beside a fixed or a derived `lora_alpha`, None where no rank is searched.

    Args:
        written_alpha: `method.lora_alpha` as the recipe writes it; None if it leaves it out or has none.
        alpha: its value with the defaults filled in; None if the method has none.
    """
    keys = {one.key for one in space.dimensions}
    if "method.r" not in keys or alpha is None or "method.lora_alpha" in keys:
        return None
    fixed = f"method.lora_alpha stays {alpha:g}" + ("" if written_alpha is not None else ", the default,")
    return (
        f"{fixed} while method.r changes: the update is scaled by alpha / r (alpha / sqrt(r) with use_rslora), so that "
        "each rank also has its own scale"
    )


def _value(one: SweepWinner, key: str) -> str:
    value = one.values[key]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _score(one: SweepWinner, scale: ScoreScale) -> str:
    return f"{scale.metric} {scale.score_text(one.score, one.interval)}"
