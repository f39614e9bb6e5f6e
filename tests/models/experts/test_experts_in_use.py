"""Experts the whole way by the command line: trained, resumed, evaluated, merged, several at once; read by HF peft."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.command_line import Cli, write_jsonl
from tests.models.experts.tiny_experts import tiny_experts
from tests.recipes import chat_rows
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.timeout(600)  # most of it is in fresh processes that check what a merge left
FAMILIES = ["mixtral", "qwen3_moe", "gpt_oss"]
IDS = torch.tensor([[5, 6, 7, 8, 9, 2, 17, 33], [11, 12, 13, 14, 2, 2, 90, 91]])
LORA = {"name": "lora", "r": 2, "target_modules": ["experts.up", "experts.gate", "experts.down", "attn.v"]}
OTHER = {"name": "lora", "r": 3, "target_modules": ["experts.down", "attn.q"], "experts_to_transform": [0, 3]}
ANSWERS = ("--max-new-tokens", 4)


@dataclass(frozen=True)
class Place:
    """A base, and where runs on it go."""

    home: Path
    cli: Cli

    @property
    def base(self) -> Path:
        return self.home / "base"

    def recipe(self, name: str, method: dict[str, Any]) -> Path:
        """Write a recipe of one step; return its file."""
        tree = {
            "model": {"name_or_path": str(self.base)},
            "task": "causal_lm",
            "data": {"path": str(write_jsonl(self.home / "rows.jsonl", chat_rows(12))), "val_set_size": 4},
            "method": method,
            "training": {"learning_rate": 0.03, "max_steps": 1, "per_device_train_batch_size": 4, "device": "cpu"},
            "output_dir": str(self.home / name),
        }
        file = self.home / f"{name}.yaml"
        file.write_text(json.dumps(tree))
        return file

    def said(self, *words: object) -> str:
        """Run a command that must do what it is asked; return what it printed."""
        done = self.cli(*words)
        assert done.code == 0, done.err
        return done.out

    def trained(self, name: str, method: dict[str, Any]) -> Path:
        """Train two steps, the second in a run that goes on."""
        recipe = self.recipe(name, method)
        self.said("train", recipe, "--quiet")
        self.said("train", recipe, "training.max_steps=2", "--resume", "--quiet")
        return self.home / name

    def predictions(self, model: Path) -> list[str]:
        lines = self.said("predict", model, "--input", self.home / "rows.jsonl", *ANSWERS).splitlines()
        return [json.loads(line)["prediction"] for line in lines]


@pytest.fixture(params=FAMILIES)
def place(request: pytest.FixtureRequest, tmp_path: Path, cli: Cli) -> Place:
    made = Place(tmp_path, cli)
    model: Any = tiny_experts(request.param)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that answers differ
    model.save_pretrained(made.base)
    tiny_tokenizer().save_pretrained(made.base)
    return made


def _plain(directory: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=IDS).logits
    return logits


def test_lora_the_whole_way(place: Place) -> None:
    peft = pytest.importorskip("peft")
    run, merged, hf = place.trained("run", LORA), place.home / "merged", place.home / "hf"
    evaluated = json.loads(place.said("eval", run, "--json"))
    summary = json.loads((run / "summary.json").read_text())
    assert evaluated["eval_loss"] == pytest.approx(summary["eval"]["eval_loss"], rel=1e-4)
    report = json.loads(place.said("merge", run, "-o", merged, "--json"))
    assert report["verified"] and report["agreement"] == 1.0
    answers = place.predictions(merged)
    assert answers == place.predictions(run) and len(set(answers)) > 1
    place.said("export", run, "-o", hf, "--to", "hf-peft")
    before = _logits(_plain(place.base))
    theirs = _logits(peft.PeftModel.from_pretrained(_plain(place.base), str(hf)))
    ours = _logits(_plain(merged))
    assert (ours - before).abs().max() > 1e-3
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    place.said("import", hf, "--base", place.base, "-o", place.home / "back")
    assert place.predictions(place.home / "back") == answers


@pytest.mark.parametrize("place", FAMILIES[:1], indirect=True)
def test_runs_are_merged_together(place: Place) -> None:
    runs = [place.trained(name, method) for name, method in (("one", LORA), ("two", OTHER))]
    base, states = _plain(place.base).state_dict(), []
    for number, given in enumerate([runs[:1], runs[1:], runs]):
        merged = place.home / f"merged-{number}"
        weights = ("--weights", "0.7,-0.3") if len(given) > 1 else ()
        report = json.loads(place.said("merge", *given, "-o", merged, *weights, "--json"))
        assert report["verified"]
        states.append(_plain(merged).state_dict())
    one, two, both = states
    for name, tensor in base.items():
        wanted = tensor + 0.7 * (one[name] - tensor) - 0.3 * (two[name] - tensor)
        torch.testing.assert_close(both[name], wanted, atol=5e-6, rtol=1e-4)
