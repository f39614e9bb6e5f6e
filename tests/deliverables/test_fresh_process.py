"""What leaves is used by a process with transformers alone: it gives the texts of `peft predict`, and stops there.

With PEFTCLI_TRANSFORMERS4_PYTHON (a Python with transformers 4.57 and AdapterHub's adapters 1.3: `python -m venv V` and
`V/bin/pip install torch==2.13.0 adapters==1.3.0`) the slow tests do the same with transformers 4.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftcli.adapters.transfer import export_run
from peftcli.deliverables import use_alone
from peftcli.inference.open_run import open_run
from peftcli.inference.predict_run import predict_run
from peftcli.merging.merge_run import merge_run
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.training.run import train
from tests.recipes import WORDS, write_jsonl
from tests.tiny import save_tiny, tiny_tokenizer

SCRIPT = Path(__file__).with_name("adapter_alone.py")
OLDER = os.environ.get("PEFTCLI_TRANSFORMERS4_PYTHON")
NEW_TOKENS = 12
QUESTIONS = [f"the {word} {other}" for word, other in zip(WORDS, WORDS[3:], strict=False)][:4]
MARKS = ["<|im_start|>", "<|im_end|>"]

Recipes = Callable[..., LoadedRecipe]


def use(python: str = sys.executable, **request: Any) -> dict[str, Any]:
    """Use a directory in a process of its own, which imports nothing of this project."""
    asked = {"new_tokens": NEW_TOKENS, **{k: str(v) if isinstance(v, Path) else v for k, v in request.items()}}
    done = subprocess.run([python, "-I", str(SCRIPT), use_alone.__file__], input=json.dumps(asked), capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def chat_base(folder: Path, family: str, *, old: bool = False) -> Path:
    """Write a base that has the marks of chatml, no template, and an end of sequence that ends no turn."""
    base = save_tiny(folder / "base", family, vocab_size=130)
    tokenizer = tiny_tokenizer(padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.save_pretrained(base)
    (base / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 2, "temperature": 0.6, "do_sample": False})
    )
    if old:
        _as_saved_by_4(base)
    return base


def _as_saved_by_4(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    if config.pop("rope_parameters", None):
        config |= {"rope_theta": 123456.0, "rope_scaling": None}
    config.pop("dtype", None)
    config |= {"torch_dtype": "float32", "transformers_version": "4.45.0"}
    (base / "config.json").write_text(json.dumps(config))
    file = base / "tokenizer_config.json"
    tokens = json.loads(file.read_text())
    tokens["additional_special_tokens"] = tokens.pop("extra_special_tokens", [])
    file.write_text(json.dumps({**tokens, "tokenizer_class": "PreTrainedTokenizerFast"}))


def trained(recipe: Recipes, base: Path, method: dict[str, Any], **changes: Any) -> tuple[Path, list[Any]]:
    """Train a chat model, and return its run and what `peft predict` answers."""
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "good"}]}
        for text in QUESTIONS
    ]
    loaded = recipe(
        "llama", "causal_lm", rows, model=base, data__chat_template="chatml", data__max_length=64, method=method,
        training__max_steps=30, training__learning_rate=2e-2, **changes,
    )  # fmt: skip
    train(loaded)
    run = Path(str(loaded.recipe.output_dir))
    asked = write_jsonl(run.parent / "asked.jsonl", [{"messages": row["messages"][:1]} for row in rows])
    return run, list(predict_run(run, str(asked)))


LORA = {"name": "lora", "r": 8, "target_modules": "all-linear"}
CONVERSATIONS = [[{"role": "user", "content": text}] for text in QUESTIONS]


def check(found: dict[str, Any], predicted: list[dict[str, Any]]) -> None:
    assert found["answers"] == [row["prediction"] for row in predicted] == ["good"] * len(QUESTIONS)
    assert found["tokens"] == [row["scores"]["tokens"] for row in predicted]
    assert max(found["tokens"]) < NEW_TOKENS  # it stopped by itself
    assert all(prompt.startswith("<|im_start|>") for prompt in found["prompts"])


@pytest.mark.parametrize(("family", "method"), [("llama", LORA), ("qwen2", {"name": "full"})])
def test_a_chat_model_answers_as_predict_does(
    family: str, method: dict[str, Any], recipe: Recipes, tmp_path: Path
) -> None:
    run, predicted = trained(recipe, chat_base(tmp_path, family), method)
    model = run / "model"
    if method is LORA:
        model = tmp_path / "merged"
        merge_run(run, model)
    check(use(auto="AutoModelForCausalLM", model=model, conversations=CONVERSATIONS), predicted)


def test_an_export_brings_what_hf_peft_needs(recipe: Recipes, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = chat_base(tmp_path, "llama")
    tiny_tokenizer().save_pretrained(base)  # without the marks: the recipe adds them
    method = {**LORA, "modules_to_save": ["embed_tokens", "lm_head"]}
    run, predicted = trained(recipe, base, method, model__new_special_tokens=MARKS)
    export_run(run, tmp_path / "exported", to="hf-peft")
    request = {"model": base, "adapter": tmp_path / "exported", "tokenizer": tmp_path / "exported"}
    found = use(auto="AutoModelForCausalLM", conversations=CONVERSATIONS, **request)
    width = min(len(answer) for answer in found["answers"])  # an adapter has no stop list
    assert [answer[:4] for answer in found["answers"]] == [row["prediction"] for row in predicted] and width >= 4


def test_a_summary_is_that_of_predict(recipe: Recipes, models: Any, tmp_path: Path) -> None:
    rows = [{"prompt": text, "completion": "good"} for text in QUESTIONS]
    loaded = recipe("t5", "seq2seq_lm", rows, training__max_steps=30, training__learning_rate=2e-2, method=LORA)
    train(loaded)
    run = Path(str(loaded.recipe.output_dir))
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"prompt": text, "completion": ""} for text in QUESTIONS])
    predicted = list(predict_run(run, str(asked)))
    merge_run(run, tmp_path / "merged")
    found = use(auto="AutoModelForSeq2SeqLM", model=tmp_path / "merged", texts=[f"{text}</s>" for text in QUESTIONS])
    assert found["answers"] == [row["prediction"] for row in predicted]


def classified(folder: Path, recipe: Recipes, method: dict[str, Any]) -> tuple[Path, Path, list[str], torch.Tensor]:
    """Train a classifier; return its run, its base, texts with their marks, and the logits of the live model."""
    base = save_tiny(folder / "base", "bert", "base")
    loaded = recipe("bert", "sequence_classification", model=base, method=method, training__learning_rate=2e-2)
    train(loaded)
    run = open_run(Path(str(loaded.recipe.output_dir)))
    texts = [f"[CLS]{text}[SEP]" for text in QUESTIONS]
    encoded = [run.tokenizer(text, return_tensors="pt", add_special_tokens=False) for text in texts]
    with torch.no_grad():
        logits = torch.cat([run.model(input_ids=one["input_ids"]).logits for one in encoded])
    return Path(str(loaded.recipe.output_dir)), base, texts, logits


CLASSIFIER = "AutoModelForSequenceClassification"


def test_a_classifier_computes_the_same(recipe: Recipes, tmp_path: Path) -> None:
    run, _base, texts, expected = classified(tmp_path, recipe, {"name": "lora", "r": 4})
    merge_run(run, tmp_path / "merged")
    found = use(auto=CLASSIFIER, model=tmp_path / "merged", texts=texts)
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, atol=1e-4, rtol=1e-4)
    assert found["labels"] == ["class0", "class1", "class2"]


@pytest.mark.slow
@pytest.mark.skipif(not OLDER, reason="PEFTCLI_TRANSFORMERS4_PYTHON names no Python with AdapterHub's library")
@pytest.mark.parametrize("method", [{"name": "lora", "r": 4}, {"name": "adapter", "placement": "pfeiffer"}])
def test_adapterhubs_library_computes_the_same(method: dict[str, Any], recipe: Recipes, tmp_path: Path) -> None:
    run, base, texts, expected = classified(tmp_path, recipe, method)
    _as_saved_by_4(base)
    export_run(run, tmp_path / "exported", to="adapterhub")
    found = use(str(OLDER), auto=CLASSIFIER, model=base, adapterhub=tmp_path / "exported", num_labels=3,
                texts=texts)  # fmt: skip
    torch.testing.assert_close(torch.tensor(found["logits"]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not OLDER, reason="PEFTCLI_TRANSFORMERS4_PYTHON names no Python with transformers 4.57")
@pytest.mark.parametrize("old", [True, False])
# not qwen2: transformers 5 reads its tokenizer with a class of its own, which differs from the tiny tokenizer.json
@pytest.mark.parametrize(("family", "method"), [("llama", LORA), ("granite", {"name": "full"}), ("phi3", LORA)])
def test_transformers_4_computes_the_same(
    family: str, method: dict[str, Any], old: bool, recipe: Recipes, tmp_path: Path
) -> None:
    run, predicted = trained(recipe, chat_base(tmp_path, family, old=old), method)
    model = run / "model"
    if method is LORA:
        model = tmp_path / "merged"
        merge_run(run, model)
    assert OLDER is not None
    here, there = (
        use(python, auto="AutoModelForCausalLM", model=model, conversations=CONVERSATIONS)
        for python in (sys.executable, OLDER)
    )
    assert there["transformers"].startswith("4.") and here["transformers"].startswith("5.")
    check(there, predicted)
    for mine, theirs in zip(here["logits"], there["logits"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4, abs=1e-4)
