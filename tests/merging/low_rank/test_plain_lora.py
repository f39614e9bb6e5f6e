"""Any adapter that merges as a plain LoRA: the nearest one, in HF peft's files, and what it cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peftcli.errors import UserError
from peftcli.merging.low_rank.export_lora import export_lora
from peftcli.merging.low_rank.plain_lora import PlainLora, Wanted, plain_lora, plan_lora
from peftcli.merging.merge_run import base_tensors
from peftcli.merging.run_to_merge import RunToMerge, open_run_to_merge
from tests.merging.runs import make_run
from tests.tiny import tiny_model

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "hira": ("llama", {"name": "hira", "r": 4}),
    "oft": ("gpt2", {"name": "oft", "target_modules": ["c_attn", "c_fc"]}),
    "dora": ("llama", {"name": "lora", "use_dora": True}),
    "slices": ("gpt2", {"name": "lora", "target_modules": ["attn.q", "attn.v"]}),
    "table": ("gpt2", {"name": "lora", "target_modules": ["embeddings", "attn.o"]}),
    "lokr": ("llama", {"name": "lokr"}),
    "composition": ("llama", {"name": "compose", "parts": [{"name": "ia3"}, {"name": "lora", "r": 2}]}),
}


def finished(run: Path) -> Path:
    """Return a run with the summary that a finished one has."""
    (run / "summary.json").write_text('{"status": "finished"}')
    return run


def opened(folder: Path, family: str, method: dict[str, Any]) -> tuple[RunToMerge, dict[str, Any], dict[str, Tensor]]:
    """Return a run, the tensors of its base, and what it adds to each weight."""
    run = open_run_to_merge(make_run(folder, family, "causal_lm", method, base_class="causal_lm"), None)
    tensors = base_tensors(run, lambda _text: None)
    live = dict(tiny_model(family).named_parameters())
    found = {name: rule.apply(live[name].detach().clone()) - live[name].detach() for name, rule in run.rules().items()}
    return run, tensors, found


def added(made: PlainLora) -> dict[str, Tensor]:
    """Return what the LoRA adds to each weight."""
    shapes = dict(made.run.model.named_parameters())
    return {name: rule.apply(torch.zeros(shapes[name].shape)) for name, rule in made.run.rules().items()}


@pytest.mark.parametrize("case", METHODS)
def test_it_is_the_nearest_of_its_rank(case: str, tmp_path: Path) -> None:
    run, tensors, change = opened(tmp_path, *METHODS[case])
    made = plain_lora(plan_lora(run, tensors, Wanted(rank=5)))
    kept = total = 0.0
    found = added(made)
    assert found.keys() == change.keys()
    for name, matrix in change.items():
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        torch.testing.assert_close(found[name], (left[:, :5] * values[:5]) @ right[:5], atol=1e-5, rtol=1e-4)
        kept, total = kept + float((values[:5] ** 2).sum()), total + float((values**2).sum())
    assert made.kept == pytest.approx(kept / total, abs=1e-4) and made.rank == 5
    assert made.run.adapter is not None
    params = made.run.adapter.params.model_dump()
    assert params["rank_pattern"] == {} and params["lora_alpha"] == params["r"] == 5  # servers read no other


def test_a_share_is_kept_at_every_matrix_by_the_smallest_rank(tmp_path: Path) -> None:
    run, tensors, change = opened(tmp_path, *METHODS["hira"])
    made = plain_lora(plan_lora(run, tensors, Wanted(keep=0.9)))
    shares = []
    for matrix in change.values():
        values = torch.linalg.svdvals(matrix) ** 2
        shares.append(int((values.cumsum(0) / values.sum() < 0.9).sum()) + 1)
    assert made.rank == max(shares) and made.least_kept >= 0.9


@pytest.mark.filterwarnings("ignore")
def test_hf_peft_loads_it_and_it_changes_the_same(tmp_path: Path) -> None:
    from peft import PeftModel

    run, _, change = opened(tmp_path, *METHODS["hira"])
    done = export_lora(finished(run.directory), tmp_path / "lora", Wanted(keep=1.0))
    theirs = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "lora"))
    found = {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight("default").detach()
        for name, module in theirs.named_modules()
        if hasattr(module, "lora_A")
    }
    assert found.keys() == change.keys()
    for name, matrix in change.items():
        torch.testing.assert_close(found[name], matrix, atol=1e-5, rtol=1e-4)
    assert done.before is not None and done.after is not None and done.kept == pytest.approx(1.0)
    assert done.after["eval_loss"] == pytest.approx(done.before["eval_loss"], abs=1e-4)


def test_what_is_lost_is_measured_on_the_validation_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path, "llama", "causal_lm", {"name": "lora", "r": 8}, base_class="causal_lm", size=0.5)
    exact, cut = (export_lora(finished(run), tmp_path / str(rank), Wanted(rank=rank)) for rank in (8, 1))
    assert exact.before == cut.before and exact.before is not None and exact.after is not None and cut.after is not None
    assert exact.after["eval_loss"] == pytest.approx(exact.before["eval_loss"], abs=1e-4)
    assert abs(cut.after["eval_loss"] - exact.before["eval_loss"]) > 1e-2 and cut.kept < 0.9


def test_what_no_lora_holds_is_refused_or_left_out(tmp_path: Path) -> None:
    run, tensors, _ = opened(tmp_path / "ia3", "gpt2", {"name": "lora", "bias": "all"})
    with pytest.raises(UserError, match=r"cannot hold the changes of .*bias") as caught:
        plan_lora(run, tensors, Wanted(rank=4))
    assert "--leave-out" in str(caught.value.problems[0].suggestion)
    plan = plan_lora(run, tensors, Wanted(rank=4, leave_out=True))
    assert plan.left_out and all(name.endswith("bias") for name in plan.left_out)
    with pytest.raises(UserError, match=r"--rank 99 is above the rank of every changed matrix"):
        plan_lora(run, tensors, Wanted(rank=99, leave_out=True))
    norms, tensors, _ = opened(tmp_path / "norms", "llama", {"name": "ln_tuning"})
    with pytest.raises(UserError, match="this run changes none, only"):
        plan_lora(norms, tensors, Wanted(rank=4, leave_out=True))


@pytest.mark.parametrize(
    ("given", "message"),
    [({}, "needs --rank or --keep"), ({"rank": 4, "keep": 0.9}, "exclude"), ({"keep": 1.5}, "--keep 1.5 is not")],
)
def test_rank_or_share_is_asked_for(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Wanted(**given)


def test_what_was_trained_whole_and_changed_is_stored_whole(tmp_path: Path) -> None:
    method = {"name": "hira", "target_modules": ["attn.q", "lm_head"], "modules_to_save": ["lm_head"]}
    run, tensors, change = opened(tmp_path, "llama", method)
    made = plain_lora(plan_lora(run, tensors, Wanted(rank=8)))
    assert made.run.adapter is not None
    base = dict(tiny_model("llama").named_parameters())["lm_head.weight"].detach()
    torch.testing.assert_close(made.run.adapter.state["lm_head.weight"], base + change["lm_head.weight"])
    assert not any(name.startswith("lm_head.lora") for name in made.run.adapter.state)


def test_one_of_two_tied_tables_is_refused(tmp_path: Path) -> None:
    method = {"name": "hira", "target_modules": ["attn.q", "embeddings"], "modules_to_save": ["lm_head"]}
    run = open_run_to_merge(make_run(tmp_path, "gpt2", "causal_lm", method, base_class="causal_lm"), None)
    with pytest.raises(UserError, match="changed apart from the table that it is tied to"):
        plan_lora(run, base_tensors(run, lambda _text: None), Wanted(rank=8))
