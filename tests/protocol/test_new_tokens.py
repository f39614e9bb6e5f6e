"""New tokens in a run: just their rows train, a resumed run is the same, and what is saved is what was evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftcli.errors import Stopped, UserError
from peftcli.inference.evaluate_run import evaluate_run
from peftcli.inference.open_run import Opening, open_run
from peftcli.training.run import train
from tests.recipes import CtrlC, Recorder
from tests.training.test_every_method import SMALL

TOKENS = ["<call>", "<done>"]
ROWS = [{"prompt": "<call> good cat", "completion": "<done> red"}, {"prompt": "bad <call>", "completion": "mat <done>"}]
OPTIONS: dict[str, Any] = {
    "model__new_special_tokens": TOKENS,
    "data__val_set_size": 4,
    "training__max_steps": 6,
    "training__learning_rate": 0.01,
    "training__eval_steps": 3,
    "training__save_steps": 2,
}
LORA = {"name": "lora", "r": 2, "target_modules": ["attn.q"]}
KEY = "transformer.wte.token_adapter.trainable_tokens_delta"


def tensors(run: Any, folder: str = "adapter") -> dict[str, torch.Tensor]:
    file = {"adapter": "adapter_model.safetensors", "model": "model.safetensors"}[folder]
    return load_file(f"{run}/{folder}/{file}")


@pytest.mark.parametrize("name", ["lora", "compose", "freeze", "full"])
def test_rows_are_trained_and_a_resumed_run_is_the_same(recipe, models, name) -> None:
    method = {"name": name, **SMALL.get(name, {})}
    whole, recorder = recipe("gpt2", "causal_lm", ROWS * 8, name="whole", method=method, **OPTIONS), Recorder()
    summary = train(whole, reporter=recorder)
    run = Path(str(whole.recipe.output_dir))
    told = [note for note in recorder.notes if "<call>, <done>" in note]
    expected = "the whole of transformer.wte is trained" if name == "full" else "are trained in wte, and no other row"
    assert len(told) == 1 and expected in told[0]
    assert evaluate_run(run)["eval_loss"] == pytest.approx(summary.eval["eval_loss"], rel=1e-5)
    parts, first, second = (
        recipe("gpt2", "causal_lm", ROWS * 8, name="parts", method=method, **OPTIONS),
        CtrlC(5),
        Recorder(),
    )
    with pytest.raises(Stopped):
        train(parts, reporter=first)
    at_stop = evaluate_run(parts.recipe.output_dir, opening=Opening(checkpoint="last"))
    train(parts, resume=True, reporter=second)
    assert first.losses + second.losses == recorder.losses and at_stop["eval_loss"] > 0
    if name in ("freeze", "full"):
        before = load_file(f"{models('gpt2', 'causal_lm')}/model.safetensors")["transformer.wte.weight"]
        table = tensors(run, "model")["transformer.wte.weight"]
        assert len(table) == len(before) + 2 and not torch.equal(table[-1], table[-2])
        assert torch.equal(table[:-2], before) is (name == "freeze")
        assert torch.equal(table, tensors(parts.recipe.output_dir, "model")["transformer.wte.weight"])
    else:
        one, other = tensors(run), tensors(parts.recipe.output_dir)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        rows = next(tensor for key, tensor in one.items() if key.endswith(KEY))
        assert rows.shape == (2, 32) and not torch.equal(rows[0], rows[1])


def test_an_untrained_row_stays_the_mean(recipe, recorder) -> None:
    tokens = {"tokens": TOKENS, "train": False}
    loaded = recipe("llama", "causal_lm", ROWS * 8, method=LORA, **{**OPTIONS, "model__new_special_tokens": tokens})
    train(loaded, reporter=recorder)
    told = [note for note in recorder.notes if "not trained" in note]
    assert len(told) == 1 and "stay frozen and alike in embed_tokens and lm_head" in told[0]
    assert not any("token_adapter" in key for key in tensors(loaded.recipe.output_dir))


def test_named_tokens_are_trained_by_their_number(recipe, recorder) -> None:
    loaded = recipe("llama", "causal_lm", ROWS * 8, method={**LORA, "trainable_token_indices": ["cat"]})
    train(loaded, reporter=recorder)
    opened = open_run(loaded.recipe.output_dir)
    number = opened.tokenizer.convert_tokens_to_ids("cat")
    assert opened.attachment.row_numbers() == {"model.embed_tokens": [number]}
    rows = tensors(loaded.recipe.output_dir)["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    frozen = opened.attachment.model.get_input_embeddings().weight[number]
    assert rows.shape == (1, 32) and not torch.equal(rows[0], frozen)


@pytest.mark.parametrize(
    ("changes", "message", "remedy"),
    [
        (
            {"model__new_special_tokens": ["cat"]},
            "in the vocabulary already: 'cat'",
            "trainable_token_indices: ['cat']",
        ),
        (
            {"method__trainable_token_indices": ["cat dog"]},
            "'cat dog' is no token",
            "model.new_special_tokens: ['cat dog']",
        ),
        ({"method__trainable_token_indices": [4000]}, "row 4000 is beyond model.embed_tokens", "rows 0 to 127"),
    ],
)
def test_bad_tokens_are_refused_before_the_weights(recipe, changes, message, remedy) -> None:
    with pytest.raises(UserError) as caught:
        train(recipe("llama", "causal_lm", ROWS * 8, **changes))
    assert message in str(caught.value) and remedy in str(caught.value) and ".yaml:" in str(caught.value)
