"""Estimates from a recipe's own rows: their micro-batches are those that training makes of them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from peftcli.analysis.estimate import estimating
from peftcli.analysis.estimate.estimating import Basis, read_basis
from peftcli.analysis.estimate.simulated_run import WholeModel
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.recipe.schema import FastPathsSpec


@pytest.fixture(autouse=True)
def _no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "library_bytes", lambda _device, *, quantised: nullcontext(lambda: 0))


def of_rows(loaded: LoadedRecipe) -> Basis:
    """Return what an estimate of a recipe starts from, its rows read."""
    basis = read_basis(loaded)
    assert basis.tier == "data", basis.notes
    return basis


TALK = [{"prompt": "the cat", "completion": "and red " * (3 + number % 9)} for number in range(40)]


def test_packed_rows_are_computed_document_by_document_and_not_joined(recipe: Any) -> None:
    basis = of_rows(
        recipe(
            "llama",
            "causal_lm",
            TALK * 4,
            data__packing=True,
            data__max_length=256,
            training__per_device_train_batch_size=1,
        )
    )
    setting, work, _ = estimating._setting(basis, basis.recipe, 1)
    assert setting.by_document
    found = [
        WholeModel(setting).simulate(replace(setting, by_document=by), work).at("backward")["activations"]
        for by in (True, False)
    ]
    assert found[0] < found[1]


def test_a_stream_is_as_long_as_its_first_rows(recipe: Any) -> None:
    changes = {"data__streaming": True, "training__max_steps": 30, "data__max_length": 512}
    basis = of_rows(recipe("llama", "causal_lm", TALK, **changes))
    stored = of_rows(recipe("llama", "causal_lm", TALK, data__max_length=512))
    assert basis.train.lengths.max() == stored.train.lengths.max() < 100
    assert basis.rows == 30 * 4 and any("the rows are streamed" in note for note in basis.notes)
    _, work, plan = estimating._setting(basis, basis.recipe, 1)
    assert plan.total_steps == 30 and len(work.micro_batches[0]) == 4


def test_pairs_of_unequal_answers_are_cut_into_micro_batches_as_training_cuts_them(recipe: Any) -> None:
    rows = [{"prompt": "the cat", "chosen": "red " * 100, "rejected": "blue"} for _ in range(16)]
    loaded = recipe("llama", "preference", rows, data__max_length=128, training__max_tokens_per_micro_batch=512)
    loaded = loaded.with_training(fast_paths=FastPathsSpec(padding_free=False))
    basis = of_rows(loaded)
    _, work, _ = estimating._setting(basis, basis.recipe, 1)
    longest = int(basis.train.lengths.max())
    assert 512 // longest == 3 and [len(each) for each in work.micro_batches] == [2, 2]


def test_the_largest_micro_batch_counts_what_the_decoder_reads(recipe: Any) -> None:
    rows = [{"source": "the cat " * 4, "target": "red"} for _ in range(15)]
    rows.append({"source": "the cat", "target": "blue and " * 20})
    basis = of_rows(recipe("t5", "seq2seq_lm", rows))
    _, work, _ = estimating._setting(basis, basis.recipe, 1)
    targets = [len(np.asarray(basis.train[number].labels)) for number in range(16)]
    assert int(np.argmax(targets)) in work.micro_batches[0]
