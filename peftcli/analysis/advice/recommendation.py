"""A recommendation: for each key a value, why, on what it was found, and the command that could contradict it."""

from __future__ import annotations

import shlex
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from peftcli.analysis.advice.advice_rules import COMPUTED, Rule, rules_that_hold
from peftcli.analysis.advice.computed_values import VALUES, rate_of
from peftcli.analysis.advice.memory_bound import LARGEST_MICRO_BATCH
from peftcli.analysis.advice.own_studies import OwnFinding, own_studies
from peftcli.analysis.advice.situation import Situation, look_at
from peftcli.protocol.rates.default_rate import DefaultRate, two_digits
from peftcli.protocol.registry import registry
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import Recipe

BATCH, ACCUMULATION = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"
RATE = "training.learning_rate"


@dataclass(frozen=True)
class Advice:
    """One line of a recommendation.

    Args:
        key, value: of the recipe.
        reason: why.
        source: ids of `protocol/rates/sources.yaml` joined by commas, or the file of the user's own study.
        scope: on what it was found.
        limit: what it does not say.
        date: when the source was read, or the study made.
        against: the command that could contradict it.
        window: least and greatest value worth trying; None where that is not known.
    """

    key: str
    value: Any
    reason: str
    source: str
    scope: str
    limit: str
    date: str
    against: str
    window: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return an object of `recommend --json`."""
        return asdict(self)


@dataclass(frozen=True)
class Recommendation:
    """What is recommended for a recipe: the situation that it is for, the lines in order, and remarks."""

    now: Situation
    lines: list[Advice]
    notes: list[str] = field(default_factory=list)


def recommend(loaded: LoadedRecipe, memory: int | None = None) -> Recommendation:
    """Return what is recommended for a recipe's model, task, rows and memory, whatever its method.

    Args:
        memory: bytes of one device; None if nobody said.

    Raises:
        UserError: there is no such model, or it cannot do the task.
    """
    now = look_at(loaded, memory)
    studies = own_studies(loaded.recipe)
    found: dict[str, Advice] = {}
    for rule in rules_that_hold(now):
        if rule.key != RATE:
            found[rule.key] = _by_rule(rule, now, loaded.path)
    findings = _of_the_last_method(studies.findings)
    searched = {key for finding in findings for key in finding.values.keys() - finding.held}
    for finding in findings:
        _prefer_(found, finding, loaded.path, searched)
    if not any(_is_own(found.get(key), findings) for key in (BATCH, ACCUMULATION)):
        _share_batch_(found, now)
    _only_fitting_(found)
    for rule in rules_that_hold(now):
        if rule.key == RATE and not _is_own(found.get(RATE), findings):
            found[RATE] = _rate(rule, now, found, loaded.path)
    order = ("method", "training", "model")  # a sweep can have found keys of other blocks
    lines = sorted(found.values(), key=lambda line: [line.key.split(".")[0] != block for block in order])
    return Recommendation(now, lines, [*studies.notes, *_remarks(now), *_idle(loaded.recipe)])


def _by_rule(rule: Rule, now: Situation, recipe: str) -> Advice:
    against = f"peft {rule.against.format(recipe=shlex.quote(recipe), low='', high='')}"
    return Advice(rule.key, _value(rule, now), rule.reason, rule.source, rule.scope, rule.limit, rule.date, against)


def _value(rule: Rule, now: Situation) -> Any:
    value = rule.value
    if isinstance(value, str) and value.startswith(COMPUTED):
        return VALUES[value.removeprefix(COMPUTED)](now)
    return value


def _rate(rule: Rule, now: Situation, found: Mapping[str, Advice], recipe: str) -> Advice:
    """Return the learning rate for what is recommended so far, with the window to search."""
    rate: DefaultRate = rate_of(now, {key: line.value for key, line in found.items()})
    low, high = two_digits(rate.value / 3), two_digits(rate.value * 3)
    against = f"peft {rule.against.format(recipe=shlex.quote(recipe), low=f'{low:g}', high=f'{high:g}')}"
    sure = "; extrapolated: it was not measured for such a model" if rate.extrapolated else ""
    reason = f"{rule.reason} ({low:g} to {high:g}){sure}"
    scope = "; ".join(rate.scopes)
    return Advice(RATE, rate.value, reason, ", ".join(rate.sources), scope, rule.limit, rule.date, against, (low, high))


def _share_batch_(found: dict[str, Advice], now: Situation) -> None:
    """Take more passes a step where fewer rows fit into memory than the step should have."""
    line, roomy = found[BATCH], replace(now, micro_rows=LARGEST_MICRO_BATCH)
    wanted = next(_value(rule, roomy) for rule in rules_that_hold(now) if rule.key == BATCH)
    if line.value < wanted:
        reason = f"{wanted} rows per step, {line.value} at a time for the memory: {line.reason}"
        found[ACCUMULATION] = replace(line, key=ACCUMULATION, value=wanted // line.value, reason=reason)


def _of_the_last_method(findings: Sequence[OwnFinding]) -> list[OwnFinding]:
    """Return the findings on the method that the last study chose: a rate of another method says nothing of it."""
    return [one for one in findings if one.values["method.name"] == findings[-1].values["method.name"]]


def _prefer_(found: dict[str, Advice], finding: OwnFinding, recipe: str, searched: Container[str]) -> None:
    """Put what a study of the user found in place of what the rules say, and the settings that it was found with.

    Args:
        searched: keys that some study searched: no other one's setting takes their place.
    """
    for key, value in finding.values.items():
        if key in finding.held and key in searched:
            continue
        before = found.get(key)
        against = before.against if before is not None else f"peft compare {shlex.quote(recipe)} --rates 3"
        said = "" if before is None or before.value == value else f"; literature says {before.value} ({before.source})"
        how = "your sweep was made with it" if key in finding.held else "you measured it"
        reason = f"{how} on this model and task{said}"
        line = Advice(key, value, reason, str(finding.file), finding.words, finding.limit, finding.date, against)
        found[key] = line


def _only_fitting_(found: dict[str, Advice]) -> None:
    """Leave out hyper-parameters that the recommended method does not have."""
    fields = registry.info(str(found["method.name"].value)).params.model_fields
    for key in [key for key in found if key.startswith("method.") and key.split(".")[1] not in fields]:
        del found[key]


def _is_own(line: Advice | None, findings: Iterable[OwnFinding]) -> bool:
    return line is not None and line.source in {str(finding.file) for finding in findings}


def _idle(recipe: Recipe) -> list[str]:
    """Return what of the recommendation would have no effect in this recipe."""
    if recipe.training.max_steps is None:
        return []
    reason = f"the recipe's training.max_steps: {recipe.training.max_steps} says how long it trains"
    remedy = "" if recipe.data is not None and recipe.data.streaming else "; remove it to train so many epochs"
    return [f"training.num_train_epochs has no effect: {reason}{remedy}"]


def _remarks(now: Situation) -> list[str]:
    remarks = []
    if now.why_no_rows is not None:
        remarks.append(f"the rows are not known ({now.why_no_rows}): rules that depend on them are left out")
    if now.memory is not None:
        remarks.append("what fits into the memory is judged by an upper bound from shapes; nothing was measured")
    if now.memory is not None and now.micro_rows is None:
        remarks.append(
            "by an upper bound, not even one row on a 4-bit base with gradient checkpointing fits into the memory; "
            "lower data.max_length, use a smaller model, or shard the base (distributed.strategy: fsdp)"
        )
    return remarks
