"""What a comparison was asked: what must stay the same for its study to go on, and what may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftcli.errors import Problem, UserError
from peftcli.inference.metrics import greater_is_better
from peftcli.recipe.schema import Recipe
from peftcli.studies.compare.candidate import Candidate

HEAD = "head alone"
"""Label of the reference that trains a new task head on a frozen body."""

BASE = "base"
"""Label of the reference that is the model before training."""

FULL = "full"


@dataclass(frozen=True)
class Asked:
    """One comparison.

    Args:
        candidates: what is compared, the reference among them where it is trained.
        reference: label that the others are measured against; `BASE` is not trained; None for none.
        metric: such as `eval_loss`, of every recipe.
        rates: tried for each method; 0 searches none.
        seeds: scoring runs of each method.
        budget: seconds; None does not shorten.
        jobs: trials at once.
        directory: of the study.
        storage: URL of Optuna's storage; None keeps it in the directory.
        command: as it was typed, for the report.
    """

    candidates: Sequence[Candidate]
    reference: str | None
    metric: str
    rates: int
    seeds: int
    budget: float | None
    jobs: int
    directory: Path
    storage: str | None
    command: str

    @property
    def recipe(self) -> Recipe:
        """The first recipe; all agree in everything but the method."""
        return self.candidates[0].loaded.recipe

    @property
    def greater_is_better(self) -> bool:
        """Whether a larger value of the metric is better."""
        given = self.recipe.training.greater_is_better
        return greater_is_better(self.metric) if given is None else given

    @property
    def score_seeds(self) -> list[int]:
        """Seeds of the scoring runs: fresh ones, since the rates were chosen with the recipe's own."""
        first = self.recipe.seed + 1 if self.rates else self.recipe.seed
        return [(first + number) % 2**32 for number in range(self.seeds)]

    def question(self) -> Mapping[str, Any]:
        """Return what makes it the same study: not the budget, the number of seeds or rates, nor who works on it."""
        return {
            "kind": "compare",
            "methods": {each.name: _without_place(each.loaded.recipe.as_dict()) for each in self.candidates},
            "metric": self.metric,
            "reference": self.reference,
            "searched": self.rates > 0,
        }


def check_comparable(asked: Asked) -> None:
    """Refuse what no report could be made of.

    Raises:
        UserError: there are no validation rows, rows are streamed without an end, or a single method is compared with
            nothing.
    """
    loaded, problems = asked.candidates[0].loaded, []
    data = loaded.recipe.data
    if data is not None and data.validation is None and data.val_set_size == 0:
        problems.append(
            loaded.problem(
                "data.val_set_size",
                "there are no validation rows, and methods are compared on rows that none was trained on",
                "hold some out: data.val_set_size=0.1, or name them in data.validation",
            )
        )
    if len(asked.candidates) == 1 and asked.reference in (None, asked.candidates[0].label):
        only = asked.candidates[0].label
        problems.append(
            Problem(f"{only} alone is nothing to compare", suggestion="name a second recipe, or --methods A,B")
        )
    if problems:
        raise UserError(problems)


def _without_place(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key != "output_dir"}
