"""The names in `recipe.vocabulary` are those that the other packages implement."""

from __future__ import annotations

from peftcli.data.recognition.format_table import formats_for
from peftcli.recipe.schema import DataSpec
from peftcli.recipe.vocabulary import FORMATS, METRICS, OPTIMIZERS
from peftcli.tasks.task_table import TASKS


def test_formats() -> None:
    assert {name: {known.name for known in formats_for(task.info.rows)} for name, task in TASKS.items()} == FORMATS
    listed = DataSpec.model_fields["format"].annotation.__args__  # type: ignore[union-attr]  # a Literal
    assert set(listed) == set().union(*FORMATS.values()) | {"auto"}


def test_optimizers() -> None:
    from peftcli.training.optim.optimizers import OPTIMIZERS as implemented

    assert set(OPTIMIZERS) == set(implemented)


def test_metrics() -> None:
    from peftcli.inference.metrics import METRICS as IMPLEMENTED

    from_the_loss = {"perplexity", "token_accuracy"}
    assert {kind: set(names) - from_the_loss for kind, names in METRICS.items()} == {
        kind: set(names) for kind, names in IMPLEMENTED.items()
    }
