"""A run whose ranks moved (EVA) is saved, resumed, evaluated, merged, counted and gone on from with its own ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from peftcli.adapters.loading import load_adapter
from peftcli.cli.app import build_app
from peftcli.errors import Stopped
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.open_run import Opening
from peftcli.merging.merge_run import merge_run
from peftcli.methods.lora import LoraParams
from peftcli.training.run import train
from tests.matrix.several_worlds import in_worlds
from tests.recipes import CtrlC, Recorder
from tests.training.test_train import adapter

METHOD = {"name": "lora", "r": 1, "rho": 6.0, "init_lora_weights": "eva", "target_modules": "all-linear"}
STEPS = {"data__val_set_size": 4, "training__max_steps": 4, "training__save_steps": 1, "training__learning_rate": 1e-3}


def moved(run: str | Path) -> dict[str, int]:
    return {key: len(each) for key, each in adapter(run).items() if key.endswith("lora_A.weight")}


def test_a_run_keeps_the_ranks_that_its_rows_gave(recipe) -> None:
    whole, first, second = Recorder(), CtrlC(2), Recorder()
    one, parts = (recipe("llama", name=name, **STEPS, method=METHOD) for name in ("whole", "parts"))
    train(one, reporter=whole)
    with pytest.raises(Stopped):
        train(parts, reporter=first)
    run = Path(str(parts.recipe.output_dir))
    half = evaluate_run(run, opening=Opening(checkpoint="last"))
    train(parts, resume=True, reporter=second)
    assert first.losses + second.losses == whole.losses
    assert {**adapter(run)}.keys() == adapter(one.recipe.output_dir).keys()
    assert all(torch.equal(each, adapter(one.recipe.output_dir)[key]) for key, each in adapter(run).items())
    for facts in (first.facts, second.facts):
        assert facts["ranks"] == whole.facts["ranks"] and "attn.q" in facts["ranks"]
        assert facts["trainable"] == sum(each.numel() for each in adapter(run).values())

    ranks = moved(run)
    assert sum(ranks.values()) == 14 and len(ranks) < 14 and len(set(ranks.values())) > 1
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert set(config["rank_pattern"].values()) == set(ranks.values()) - {1} and config["r"] == 1
    assert all(config["alpha_pattern"][path] == 16 * rank for path, rank in config["rank_pattern"].items())

    summary = json.loads((run / "summary.json").read_text())
    assert half["eval_loss"] != summary["eval"]["eval_loss"] == pytest.approx(evaluate_run(run)["eval_loss"])
    merge_run(run, run / "merged", use_alone=False)  # compares its outputs with those of the live adapter
    counted = json.loads(CliRunner().invoke(build_app(), ["count-params", str(run), "--json"]).output)
    assert counted[0]["trainable"] == summary["trainable"]
    before = CliRunner().invoke(build_app(), ["count-params", str(parts.path)])
    assert "ranks move when training starts" in " ".join(before.output.split())

    later, recorder = recipe("llama", name="later", **STEPS, method={**METHOD, "init_from": str(run)}), Recorder()
    train(later, reporter=recorder)
    assert moved(later.recipe.output_dir) == ranks and recorder.facts["ranks"] == whole.facts["ranks"]
    params = load_adapter(Path(str(later.recipe.output_dir)) / "adapter").params
    assert isinstance(params, LoraParams) and 0 in params.rank_pattern.values()


def test_two_processes_give_the_ranks_and_vectors_of_one(recipe, tmp_path: Path) -> None:
    """A stays as it started (`freeze_a`), so that the adapter shows it; the rows of a step are the same."""
    size = "training__per_device_train_batch_size"
    options = {**STEPS, "training__adam_epsilon": 1e-3, "method": {**METHOD, "freeze_a": True}}
    alone = recipe("llama", name="alone", **options, **{size: 4})
    train(alone, reporter=Recorder())
    both = [
        recipe("llama", name=strategy, **options, **{size: 2}, distributed__strategy=strategy)
        for strategy in ("ddp", "fsdp")
    ]
    in_worlds(tmp_path, [(2, [{"kind": "train", "recipe": str(each.path)}]) for each in both])
    one, ranks = adapter(alone.recipe.output_dir), moved(alone.recipe.output_dir)
    assert len(set(ranks.values())) > 1
    for each in both:
        found = adapter(each.recipe.output_dir)
        assert moved(each.recipe.output_dir) == ranks
        for key, tensor in one.items():
            close = 1e-6 if "lora_A" in key else 1e-4
            torch.testing.assert_close(found[key], tensor, rtol=close, atol=close)
