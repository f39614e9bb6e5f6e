"""The comparison sees one bit of one tensor, one digit of one loss, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.numerics.__main__ import report
from tests.numerics.machine import other_facts, this_machine
from tests.numerics.outcome import Losses, Outcome, compare, read_outcome
from tests.numerics.runs import RunFailed
from tests.numerics.stored import Stored, read_stored, write_stored
from tests.numerics.tiny import write_recipes

LINES: Losses = [
    {"step": 0, "eval_loss": 1.6, "eval_runtime": 0.5},
    {"step": 1, "loss": 1.5992512702941895, "grad_norm": 0.6, "time": 1.0},
    {"step": 2, "loss": 1.5, "grad_norm": 0.1, "time": 2.0},
]


def tensors() -> dict[str, Tensor]:
    return {"a.lora_A": torch.linspace(0, 1, 12).reshape(3, 4), "b.lora_B": torch.zeros(4, 3)}


def outcome(
    path: Path, lines: Losses = LINES, named: dict[str, Tensor] | None = None, folder: str = "adapter"
) -> Outcome:
    """Write a run directory and read it."""
    (path / folder).mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    save_file(tensors() if named is None else named, path / folder / "adapter_model.safetensors")
    return read_outcome(path)


def changed(index: int, **values: float) -> Losses:
    return [{**line, **values} if i == index else line for i, line in enumerate(LINES)]


def test_what_the_clock_gave_does_not_count(tmp_path: Path) -> None:
    later = [{**line, "time": 9.0, "eval_runtime": 7.0} for line in LINES]
    assert compare("lora", outcome(tmp_path / "a"), outcome(tmp_path / "b", later)).equal


@pytest.mark.parametrize("name", ["a.lora_A", "b.lora_B"])
def test_one_bit_of_a_tensor(tmp_path: Path, name: str) -> None:
    flipped = tensors()
    flipped[name].view(torch.int32)[1, 1] ^= 1
    found = compare("lora", outcome(tmp_path / "a"), outcome(tmp_path / "b", named=flipped))
    gap = (flipped[name].double() - tensors()[name].double()).abs().max().item()
    assert found.losses is None
    assert found.adapter is not None and f"{name} differs, max abs difference {gap:.3g}" in found.adapter


def test_the_sign_of_a_zero(tmp_path: Path) -> None:
    flipped = tensors()
    flipped["b.lora_B"].neg_()
    found = compare("lora", outcome(tmp_path / "a"), outcome(tmp_path / "b", named=flipped))
    assert found.adapter is not None and "b.lora_B differs, max abs difference 0 (a zero's sign" in found.adapter


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"a.lora_A": tensors()["a.lora_A"]}, "only before: ['b.lora_B']"),
        ({**tensors(), "b.lora_B": torch.zeros(3, 4)}, "b.lora_B is torch.float32 (3, 4), before torch.float32 (4, 3)"),
        ({**tensors(), "b.lora_B": torch.zeros(4, 3).bfloat16()}, "b.lora_B is torch.bfloat16"),
    ],
)
def test_other_tensors(tmp_path: Path, other: dict[str, Tensor], told: str) -> None:
    found = compare("lora", outcome(tmp_path / "a"), outcome(tmp_path / "b", named=other))
    assert found.adapter is not None and told in found.adapter


def test_another_file(tmp_path: Path) -> None:
    found = compare("lora", outcome(tmp_path / "a"), outcome(tmp_path / "b", folder="model"))
    assert found.adapter is not None and "model/adapter_model.safetensors" in found.adapter


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (changed(1, loss=1.5992512702941897), "step 1: loss 1.5992512702941897, before 1.5992512702941895"),
        (changed(2, grad_norm=0.125), "step 2: grad_norm 0.125, before 0.1, max abs difference 0.025"),
        (changed(0, eval_loss=float("nan")), "step 0: eval_loss nan"),
        (changed(2, step=3), "step 3 has loss, grad_norm, before: step 2"),
        (LINES[:2], "2 lines of losses, before 3"),
    ],
)
def test_another_loss(tmp_path: Path, lines: Losses, told: str) -> None:
    found = compare("lora", outcome(tmp_path / "a"), outcome(tmp_path / "b", lines))
    assert found.adapter is None
    assert found.losses is not None and told in found.losses


def test_a_run_without_losses_or_tensors_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no losses or no tensors"):
        outcome(tmp_path / "a", LINES[:1])
    with pytest.raises(ValueError, match="no losses or no tensors"):
        outcome(tmp_path / "b", named={})


def test_what_is_stored_comes_back_with_every_digit(tmp_path: Path) -> None:
    run = outcome(tmp_path / "a")
    write_stored(Stored(this_machine(), {"lora": run}), tmp_path / "losses.json")
    stored = read_stored(tmp_path / "losses.json")
    assert not other_facts(stored.machine, this_machine())
    assert compare("lora", stored.outcomes["lora"], run).equal
    flipped = tensors()
    flipped["b.lora_B"].view(torch.int32)[1, 1] ^= 1
    found = compare("lora", stored.outcomes["lora"], outcome(tmp_path / "b", named=flipped))
    assert found.adapter == "adapter/adapter_model.safetensors: other tensors than the stored ones"


def test_another_machine_is_told(tmp_path: Path) -> None:
    (told,) = other_facts({**this_machine(), "torch": "2.0"}, this_machine())
    assert told.startswith("torch: stored with '2.0', here '")


def test_the_report_fails_for_a_difference_and_for_a_run_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = outcome(tmp_path / "a"), outcome(tmp_path / "b", changed(1, loss=2.0))
    assert report({"lora": run}, {"lora": run}) == 0
    assert report({"lora": run}, {"lora": other}) == 1
    assert "step 1: loss 2.0" in capsys.readouterr().out
    assert report({"lora": run, "ia3": run}, {"lora": run}) == 1
    assert "ia3: now: no such run" in capsys.readouterr().out
    assert report({"lora": RunFailed("exit code 2")}, {"lora": RunFailed("exit code 2")}) == 1


def test_tiny_models_and_rows_are_the_same_bits_every_time(tmp_path: Path) -> None:
    first, second = write_recipes(tmp_path / "a", rows=3), write_recipes(tmp_path / "b", rows=3)
    for task, recipe in first.items():
        for name in (f"{task}.jsonl", f"{task}/model.safetensors", f"{task}/tokenizer.json"):
            assert (recipe.parent / name).read_bytes() == (second[task].parent / name).read_bytes(), name
