"""Models with towers of images: text alone trains them, and what is merged is the whole model, its towers unchanged."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from peftcli.merging.merge_run import merge_run
from peftcli.models.model_tasks import auto_name
from tests.command_line import Cli, write_jsonl
from tests.models.with_towers import PARTS, PROCESSOR_FILES, TEMPLATE, WITH_TOWERS, save_with_towers

OFTEN = ("gemma3", "gemma4", "qwen2_5_vl", "mistral3", "llama4")
TYPES = [*OFTEN, *(pytest.param(name, marks=pytest.mark.slow) for name in WITH_TOWERS if name not in OFTEN)]
IDS = torch.tensor([[1, 40, 50, 60, 70, 45]])


def rows() -> list[dict[str, Any]]:
    """Return conversations, some of whose contents are lists of parts of text."""
    parts = [{"type": "text", "text": "a good "}, {"type": "text", "text": "cat"}]
    answers = ["the red house", "the mat"]
    return [
        {
            "messages": [
                {"role": "user", "content": parts if number % 2 else "the dog"},
                {"role": "assistant", "content": answers[number % 2]},
            ]
        }
        for number in range(8)
    ]


@dataclass(frozen=True)
class Trained:
    """A run of two steps, the second after a resume, and the model that was merged of it."""

    base: Path
    run: Path
    merged: Path


@pytest.fixture(scope="module", params=TYPES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from peftcli.names import NAMES
    from peftcli.recipe.load_recipe import load_recipe
    from peftcli.training.run import train

    folder = tmp_path_factory.mktemp(request.param)
    base = save_with_towers(folder / "base", request.param)
    tree = {
        "model": {"name_or_path": str(base)},
        "task": "causal_lm",
        "data": {"path": str(write_jsonl(folder / "rows.jsonl", rows())), "val_set_size": 2, "max_length": 48},
        "method": {"name": "lora", "r": 2, "target_modules": "all-linear"},
        "training": {"learning_rate": 0.02, "max_steps": 1, "per_device_train_batch_size": 4},
        "output_dir": str(folder / "run"),
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(tree))
    train(load_recipe(recipe, [], NAMES))
    train(load_recipe(recipe, ["training.max_steps=2"], NAMES), resume=True)
    merge_run(folder / "run", folder / "merged", use_alone=False)
    return Trained(base, folder / "run", folder / "merged")


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def test_nothing_sits_in_a_tower(trained: Trained) -> None:
    names = list(load_file(trained.run / "adapter" / "adapter_model.safetensors"))
    assert names and not [name for name in names if "vision" in name or "visual" in name or "projector" in name]
    assert any(".q_proj." in name for name in names) and any("_proj.lora_B" in name for name in names)


def test_the_merged_model_is_whole(trained: Trained) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (trained.base, trained.merged))
    assert before.keys() == after.keys()
    towers = [name for name in before if not any(part in name for part in ("language_model", "text_model", "lm_head"))]
    towers = [name for name in towers if not name.startswith(("model.layers", "model.embed", "model.norm"))]
    assert towers and all(torch.equal(before[name], after[name]) for name in towers)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and not set(changed) & set(towers)
    config, own = (json.loads((folder / "config.json").read_text()) for folder in (trained.merged, trained.base))
    assert config["architectures"] == own["architectures"] and "vision_config" in config
    for name in (*PROCESSOR_FILES, "tokenizer.json", "chat_template.jinja"):
        assert (trained.merged / name).read_bytes() == (trained.base / name).read_bytes()
    names = auto_name(AutoConfig.from_pretrained(trained.merged), "causal_lm")
    assert f"import {names}" in (trained.merged / "README.md").read_text()
    model, report = AutoModelForImageTextToText.from_pretrained(trained.merged, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert type(model).__name__ == own["architectures"][0]


def test_hf_peft_finds_the_adapter_on_the_whole_model(trained: Trained, cli: Cli, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    done = cli("export", trained.run, "-o", tmp_path / "hf", "--to", "hf-peft")
    assert done.code == 0, done.err
    auto = getattr(transformers, auto_name(AutoConfig.from_pretrained(trained.base), "causal_lm"))
    plain = auto.from_pretrained(trained.base)
    before = logits(plain)
    theirs = logits(peft.PeftModel.from_pretrained(plain, str(tmp_path / "hf")))
    ours = logits(auto.from_pretrained(trained.merged))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert (theirs - before).abs().max() > 1e-4


def test_the_run_and_the_merged_model_answer_alike(
    trained: Trained, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"messages": row["messages"][:1]} for row in rows()[:3]])
    limits = ("--max-new-tokens", 4)
    answers = [cli("predict", model, "--input", asked, *limits) for model in (trained.run, trained.merged)]
    assert [done.code for done in answers] == [0, 0], answers[0].err + answers[1].err
    of_run, of_merged = ([json.loads(line)["prediction"] for line in done.out.splitlines()] for done in answers)
    assert of_run == of_merged and len(of_run) == 3
    evaluated = cli("eval", trained.run, "--json")
    assert evaluated.code == 0, evaluated.err
    summary = json.loads((trained.run / "summary.json").read_text())
    assert evaluated.json["eval_loss"] == pytest.approx(summary["eval"]["eval_loss"], rel=1e-4)
    monkeypatch.setattr("sys.stdin", io.StringIO("the dog\n"))
    said = cli("chat", trained.merged, *limits, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out) == of_run[0]


def test_a_template_in_a_processors_own_file_is_used(cli: Cli, tmp_path: Path) -> None:
    base = save_with_towers(tmp_path / "base", "qwen2_5_vl", legacy=True)
    recipe = write_recipe(tmp_path, base)
    shown = cli("inspect", recipe, "--json")
    assert shown.code == 0, shown.err
    text = "".join(token["text"] for token in shown.json["examples"][0]["tokens"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.chat_template is None
    assert text == tokenizer.apply_chat_template(rows()[0]["messages"], chat_template=TEMPLATE, tokenize=False)


def test_a_template_that_takes_parts_alone_is_given_parts(cli: Cli, tmp_path: Path) -> None:
    base = save_with_towers(tmp_path / "base", "llava", template=PARTS)
    shown = cli("inspect", write_recipe(tmp_path, base), "--json")
    assert shown.code == 0, shown.err
    text = "".join(token["text"] for token in shown.json["examples"][0]["tokens"])
    in_parts = [
        {"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in rows()[0]["messages"]
    ]
    assert text == AutoTokenizer.from_pretrained(base).apply_chat_template(in_parts, tokenize=False)
    assert "the dog" in text and "the red house" in text


def write_recipe(folder: Path, base: Path) -> Path:
    """Write a recipe of a step; return its file."""
    tree = {
        "model": {"name_or_path": str(base)},
        "task": "causal_lm",
        "data": {"path": str(write_jsonl(folder / "rows.jsonl", rows())), "val_set_size": 0, "max_length": 48},
        "method": {"name": "lora", "r": 2},
        "output_dir": str(folder / "run"),
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(tree))
    return file
