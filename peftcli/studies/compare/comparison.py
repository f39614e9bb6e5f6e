"""What a comparison found: the record that `comparison.json` holds, and from which everything else is rendered.

Scores are values of `metric`. An interval is a pair of its 95% bounds. Differences are oriented so that a positive one
means worse than what it is compared with, whatever the direction of the metric.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from peftcli.studies.engine.measured_where import MeasuredWhere

Interval = tuple[float, float]
Verdict = Literal["best", "tied with the best", "behind", "not better than the reference"]


@dataclass
class RatePoint:
    """One learning rate of a method's search, and the score of its short run; None if it diverged or was stopped."""

    rate: float
    score: float | None
    state: str = "finished"
    run: str | None = None


@dataclass
class Curve:
    """Evaluations of one scoring run: `steps`, `scores` of the metric, `losses` (`eval_loss`), equally long."""

    seed: int
    steps: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


@dataclass
class ComparedMethod:
    """One row of a comparison.

    Args:
        label: unique in the comparison, as typed or the recipe's name: `lora`, `lora:r=32`.
        method, params: its name and its hyper-parameters, defaults filled in.
        status: `finished`, `diverged`, `failed` or `refused`; with `reason` unless finished.
        rate: the learning rate of the scoring runs; `rates`: those tried before.
        scores: one a seed, in the order of `Comparison.seeds`; `score`: their mean, `interval`: its 95% interval.
        score_before: the mean score before the first step, `interval_before`: its interval.
        difference: to the best, positive is worse; `difference_to_reference`: likewise.
        p_best, p_reference: Holm-corrected p-values of these two differences.
        steps_to_reference: optimizer steps until an evaluation while training reached the reference's score (of the
            same rows, if it was trained); None if none did.
        trainable, saved, percent: as `count-params` counts them.
        adapter_bytes: size of the saved weights on disk.
        merges: whether the change can be folded into the base's weights.
        servers: what loads the saved adapter or model as it is, such as `vllm`; a merged model loads everywhere.
        forgotten: loss on held-out general text after training minus before, for language models; None otherwise.
    """

    label: str
    method: str
    params: dict[str, Any] = field(default_factory=dict)
    status: str = "finished"
    reason: str | None = None
    rate: float | None = None
    rates: list[RatePoint] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    score: float | None = None
    interval: Interval | None = None
    score_before: float | None = None
    interval_before: Interval | None = None
    verdict: Verdict | None = None
    difference: float | None = None
    difference_interval: Interval | None = None
    p_best: float | None = None
    difference_to_reference: float | None = None
    reference_interval: Interval | None = None
    p_reference: float | None = None
    steps_to_reference: int | None = None
    trainable: int | None = None
    saved: int | None = None
    percent: float | None = None
    adapter_bytes: int | None = None
    peak_memory_bytes: int | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    merges: bool | None = None
    servers: list[str] = field(default_factory=list)
    forgotten: float | None = None
    forgotten_interval: Interval | None = None
    curves: list[Curve] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


@dataclass
class Comparison(MeasuredWhere):
    """A whole comparison.

    Args:
        task, model, data: what was trained on, as the recipes name them.
        metric, greater_is_better: what the scores are values of.
        rows: how many rows were held out.
        seeds: of the scoring runs.
        reference: label of the method that others are measured against; None if there is none.
        searched: whether every method's learning rate was searched (`--no-search` is False).
        steps: optimizer steps of a scoring run; `full_steps`: those that the recipes ask for.
        search_steps: optimizer steps of a run of the rate search.
        budget_seconds: `--budget`; None without.
        seconds: of all trials together.
        differs: of runs that existed: what differs between them besides the method, a sentence each.
        choice: label of the method that the summary chooses; None where there is nothing to choose from.
        summary: sentences on which to choose and why; `undecided`: what these data cannot decide.
        notes: what else a reader must know: shortened runs, rates at the edge of the search, failed trials.
    """

    task: str
    model: str
    data: str
    metric: str
    greater_is_better: bool
    rows: int
    seeds: list[int]
    methods: list[ComparedMethod]
    reference: str | None = None
    searched: bool = True
    steps: int | None = None
    full_steps: int | None = None
    search_steps: int | None = None
    budget_seconds: float | None = None
    seconds: float = 0.0
    differs: list[str] = field(default_factory=list)
    choice: str | None = None
    summary: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def reference_method(self) -> ComparedMethod | None:
        """The row of the reference; None if there is none."""
        return next((row for row in self.methods if row.label == self.reference), None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `comparison.json` and `--json`."""
        return asdict(self)
