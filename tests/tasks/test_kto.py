"""KTO: loss, gradient and metrics are TRL's, on rows that were prepared from the same texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.data.loss_rows import as_loss_reads
from peftcli.data.prepare import prepare
from peftcli.data.rows.collation import Collator
from peftcli.data.rows.referenced_rows import ReferencedRows
from peftcli.inference.metrics import compute_metrics
from peftcli.recipe.preference_losses import preference_loss
from peftcli.recipe.schema import DataSpec, Recipe, TrainingSpec
from peftcli.tasks.preference_formulas import single_losses
from peftcli.tasks.task import TaskSettings, unprepared
from peftcli.tasks.task_table import TASKS
from tests.recipes import write_jsonl
from tests.tiny import tiny_model, tiny_tokenizer

GOLDEN = json.loads((Path(__file__).parent / "trl_kto.json").read_text(encoding="utf-8"))
KEYS = ("beta", "desirable_weight", "undesirable_weight")


def test_the_loss_equals_its_formula_and_has_its_gradient() -> None:
    loss = preference_loss(TrainingSpec(loss_type="kto", beta=0.3, desirable_weight=1.5, undesirable_weight=0.5))
    ratios, good = torch.tensor([1.2, -3.4, 0.7], dtype=torch.float64), torch.tensor([1.0, 0.0, 0.0])
    divergence = torch.tensor(0.4, dtype=torch.float64)

    def value(weight: float, x: float) -> float:
        return weight * (1 - 1 / (1 + math.exp(-0.3 * x)))

    wanted = [value(1.5, 1.2 - 0.4), value(0.5, 0.4 + 3.4), value(0.5, 0.4 - 0.7)]
    assert single_losses(ratios, good, divergence, loss).tolist() == pytest.approx(wanted, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: single_losses(x, good, divergence, loss), (ratios.requires_grad_(),))


@pytest.mark.parametrize("name", GOLDEN["losses"])
def test_loss_gradient_and_metrics_are_those_of_trl(tmp_path: Path, name: str) -> None:
    """`trl_kto.json` names the version. In the second case the estimate is below zero."""
    wanted = GOLDEN["losses"][name]
    reference, policy = tiny_model("llama"), tiny_model("llama")
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    if name == "kto clamped":
        reference, policy = policy, reference
    spec = TrainingSpec(loss_type="kto", **{key: wanted[key] for key in KEYS})
    rows, tokenizer = _rows(tmp_path, spec), tiny_tokenizer()
    for kind, own in (("", rows), ("KL_", rows.others)):
        asked = [ids[: sum(mask)] for ids, mask in zip(*_batch(kind), strict=True)]
        assert [row.input_ids.tolist() for row in own] == asked
    task, before = (TASKS["preference"](TaskSettings(tokenizer, None, spec)) for _ in range(2))
    task.bind(policy, unprepared)
    before.bind(reference, unprepared)
    known = []
    with torch.no_grad():
        for own in (rows, rows.others):
            batch = Collator(tokenizer, before)(own, range(3))
            known.append(before.log_probabilities(reference, batch))
    compared = ReferencedRows(rows, torch.cat(known, 1).numpy())
    batch = Collator(tokenizer, task)(compared, range(3))
    with torch.no_grad():
        batch.of_all = task.look_ahead(policy, Collator(tokenizer, task)(compared.others, range(3))) / 3
    terms = task.loss(policy, batch)
    (terms.loss_sum / terms.count).backward()
    assert terms.count == 3.0 and float(terms.loss_sum.detach()) / 3 == pytest.approx(wanted["loss"], rel=1e-5)
    for key, parameter in policy.named_parameters():
        assert parameter.grad is not None
        found = [float(parameter.grad.norm()), *parameter.grad.flatten()[:6].tolist()]
        assert found == pytest.approx(wanted["grads"][key], rel=1e-4, abs=1e-5)
    result = task.evaluate(policy, batch)
    assert task.metric_kind == "answers"
    scores = compute_metrics(task.default_metrics, task.metric_kind, result.predictions, result.references)
    for key, value in scores.items():
        assert value == pytest.approx(wanted["metrics"][key.replace("_", "/", 1)], rel=1e-4, abs=1e-5)


def _batch(kind: str) -> tuple[list[list[int]], list[list[int]]]:
    return GOLDEN["batch"][f"{kind}input_ids"], GOLDEN["batch"][f"{kind}attention_mask"]


def _rows(tmp_path: Path, spec: TrainingSpec) -> Any:
    file = write_jsonl(tmp_path / "rows.jsonl", GOLDEN["rows"])
    data = DataSpec(path=str(file), val_set_size=0, cache_dir=str(tmp_path / "cache"), max_length=64)
    recipe = Recipe(model={"name_or_path": "tiny"}, task="preference", method={"name": "lora"}, training=spec)
    return as_loss_reads(prepare(data, "preference", tiny_tokenizer(), seed=0), recipe, 64).train
