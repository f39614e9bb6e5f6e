"""A batch that does not fit into memory is evaluated and predicted in halves, with the result of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.halved_batches import in_halves
from peftcli.inference.predict_run import predict_run
from peftcli.training.run import train


def refusing(limit: int, asked: list[int]) -> Any:
    """Return what computes lists of at most `limit`, and finds no memory for longer ones."""

    def compute(chosen: list[int]) -> int:
        asked.append(len(chosen))
        if len(chosen) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return sum(chosen)

    return compute


def test_the_parts_come_in_order() -> None:
    asked: list[int] = []
    found = list(in_halves(list(range(7)), refusing(2, asked), allowed=True))
    assert [row for rows, _ in found for row in rows] == list(range(7))
    assert all(total == sum(rows) for rows, total in found) and max(len(rows) for rows, _ in found) == 2
    assert asked[:3] == [7, 4, 2]


@pytest.mark.parametrize(("limit", "allowed"), [(0, True), (2, False)], ids=["one row is too much", "others wait"])
def test_what_cannot_be_halved_is_an_error(limit: int, allowed: bool) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        list(in_halves(list(range(7)), refusing(limit, []), allowed=allowed))


def test_other_errors_are_errors() -> None:
    def compute(_chosen: list[int]) -> int:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        list(in_halves([1, 2], compute, allowed=True))


def test_metrics_and_predictions_are_those_of_whole_batches(recipe) -> None:
    loaded = recipe("bert", "sequence_classification", data__val_set_size=8, training__max_steps=1)
    train(loaded)
    run, data = loaded.recipe.output_dir, loaded.recipe.data.path
    whole, predicted = evaluate_run(run), list(predict_run(run, data))
    refused = []

    def no_room(module: nn.Module, args: Any) -> None:
        if isinstance(module, nn.Embedding) and len(args[0]) > 3:
            refused.append(len(args[0]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    handle = nn.modules.module.register_module_forward_pre_hook(no_room)
    try:
        halved, again = evaluate_run(run), list(predict_run(run, data))
    finally:
        handle.remove()
    assert refused
    del whole["eval_runtime"], halved["eval_runtime"]
    assert halved == pytest.approx(whole, rel=1e-5)
    assert [line["prediction"] for line in again] == [line["prediction"] for line in predicted]
