"""The names in `recipe.vocabulary` are those that the other packages implement."""

from __future__ import annotations

from peftcli.data.formats.recognition import FORMATS as IMPLEMENTED
from peftcli.recipe.schema import DataSpec
from peftcli.recipe.vocabulary import FORMATS, METRICS, OPTIMIZERS


def test_formats() -> None:
    assert {task: {known.name for known in IMPLEMENTED if task in known.tasks} for task in FORMATS} == FORMATS
    listed = DataSpec.model_fields["format"].annotation.__args__  # type: ignore[union-attr]  # a Literal
    assert set(listed) == {known.name for known in IMPLEMENTED} | {"auto"}


def test_optimizers() -> None:
    from peftcli.training.optim.optimizers import OPTIMIZERS as implemented

    assert set(OPTIMIZERS) == set(implemented)


def test_metrics() -> None:
    from peftcli.inference.metrics import METRICS as IMPLEMENTED

    from_the_loss = {"perplexity", "token_accuracy"}
    assert {kind: set(names) - from_the_loss for kind, names in METRICS.items()} == {
        kind: set(names) for kind, names in IMPLEMENTED.items()
    }
