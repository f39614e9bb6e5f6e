"""HF peft as the oracle: what we save gives its logits there, and what it saves gives the same logits here."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.adapters.format import describe
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.saving import save_adapter
from peftcli.adapters.transfer import export_run
from peftcli.errors import UserError
from peftcli.methods.lora import LoraParams
from peftcli.models.load.identity import BaseIdentity
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from tests.merging.runs import make_run
from tests.tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 2], [11, 12, 13, 14, 2, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
IDENTITY = BaseIdentity("tiny", None, "sha256:0", None, "float32", "bert", {})

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "linear": ("llama", "causal_lm", {}),
    "all linear": ("qwen3", "causal_lm", {"target_modules": "all-linear", "r": 3, "lora_alpha": 7}),
    "conv1d": ("gpt2", "causal_lm", {"target_modules": ["c_attn", "c_fc"]}),
    "embedding": ("bert", "sequence_classification", {"target_modules": ["word_embeddings", "attn.q"]}),
    "tied embedding": ("gpt2", "causal_lm", {"target_modules": ["embeddings"]}),
    "scaled embedding": ("gemma3", "causal_lm", {"target_modules": ["embeddings", "attn.o"]}),
    "language-model head": ("llama", "causal_lm", {"target_modules": ["lm_head", "attn.q"]}),
    "bias all": ("bert", "sequence_classification", {"bias": "all"}),
    "bias lora_only": ("roberta", "sequence_classification", {"bias": "lora_only"}),
    "bias of conv1d": ("gpt2", "causal_lm", {"bias": "lora_only", "target_modules": ["c_attn"]}),
    "rslora": ("llama", "causal_lm", {"use_rslora": True, "r": 4}),
    "patterns": (
        "llama",
        "causal_lm",
        {
            "target_modules": ["attn.q", "attn.v", "ffn.down"],
            "rank_pattern": {"attn.v": 3, r"layers\.0\.mlp\.down_proj": 5},
            "alpha_pattern": {"ffn.down": 9, r"layers\.1\.self_attn\.q_proj": 2.5},
        },
    ),
    "patterns and rslora": (
        "bert",
        "sequence_classification",
        {"use_rslora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"value": 4}},
    ),
    "modules_to_save": ("llama", "causal_lm", {"modules_to_save": ["norm", "lm_head"]}),
    "tied modules_to_save": ("gpt2", "causal_lm", {"modules_to_save": ["lm_head"], "target_modules": ["c_fc"]}),
    "dora": ("llama", "causal_lm", {"use_dora": True}),
    "dora of conv1d": ("gpt2", "causal_lm", {"use_dora": True, "target_modules": ["c_attn"]}),
    "dora of embedding": ("bert", "sequence_classification", {"use_dora": True, "target_modules": ["embeddings"]}),
    "pissa": ("bert", "sequence_classification", {"init_lora_weights": "pissa"}),
    "olora": ("llama", "causal_lm", {"init_lora_weights": "olora", "freeze_a": True}),
    "pissa, rslora, patterns": (
        "llama",
        "causal_lm",
        {
            "init_lora_weights": "pissa",
            "use_rslora": True,
            "rank_pattern": {"attn.v": 2},
            "alpha_pattern": {"q_proj": 3},
        },
    ),
    "some layers": ("llama", "causal_lm", {"layers_to_transform": [1]}),
    "regular expression": ("llama", "causal_lm", {"target_modules": r".*layers\.0\..*(q|o)_proj"}),
    "head of a roberta": ("roberta", "sequence_classification", {}),
    "head of a distilbert": ("distilbert", "sequence_classification", {}),
    "score of a decoder": ("gpt2", "sequence_classification", {"target_modules": ["c_attn"]}),
    "tokens": ("bert", "token_classification", {}),
    "seq2seq": ("t5", "seq2seq_lm", {"target_modules": ["attn.q", "cross_attn.v"]}),
}


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        extra = {"decoder_input_ids": IDS[:, :3]} if getattr(model.config, "is_encoder_decoder", False) else {}
        logits: Tensor = model(input_ids=IDS, attention_mask=MASK, **extra).logits
    return logits


def _trained(family: str, task: str, options: dict[str, Any]) -> tuple[nn.Module, Attachment, LoraParams, Any]:
    """Return a model whose adapter has moved: every trainable tensor is shifted at random."""
    model, params = tiny_model(family, task), LoraParams(**options)
    anatomy = read_anatomy(model)
    attachment = apply_method(model, anatomy, params)
    attachment.initialise(model)
    with torch.no_grad():
        for parameter in attachment.trainable_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), attachment, params, anatomy


def _save(directory: Path, task: str, trained: tuple[nn.Module, Attachment, LoraParams, Any]) -> None:
    _, attachment, params, anatomy = trained
    meta = describe(attachment, anatomy, task=task, base=IDENTITY)
    save_adapter(directory, attachment_state=attachment.state_dict(), params=params, meta=meta)


def _hf_load(directory: Path, family: str, task: str) -> nn.Module:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # of peft's own code, whatever the adapter
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.|transformers\.")
        # about what HF peft would do with a tied base on merging; no file can answer it
        warnings.filterwarnings("ignore", message=r".*`ensure_weight_tying` is not set")
        return PeftModel.from_pretrained(tiny_model(family, task), str(directory)).eval()


@pytest.mark.parametrize("case", CASES)
def test_hf_peft_gives_our_logits(case: str, tmp_path: Path) -> None:
    family, task, options = CASES[case]
    trained = _trained(family, task, options)
    ours = _logits(trained[0])
    plain = _logits(tiny_model(family, task))
    assert (ours - plain).abs().max() > 1e-3, "the adapter does nothing: the comparison would be empty"
    _save(tmp_path / "adapter", task, trained)
    torch.testing.assert_close(_logits(_hf_load(tmp_path / "adapter", family, task)), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_we_read_back_exactly_what_we_saved(case: str, tmp_path: Path) -> None:
    family, task, options = CASES[case]
    trained = _trained(family, task, options)
    _save(tmp_path / "adapter", task, trained)
    saved = load_adapter(tmp_path / "adapter")
    assert saved.params == trained[2]
    model = tiny_model(family, task)
    attachment = apply_method(model, read_anatomy(model), saved.params, masters=False)
    attachment.load_state_dict(saved.state)
    torch.testing.assert_close(_logits(model), _logits(trained[0]), atol=0, rtol=0)


HF_CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "linear": ("llama", "causal_lm", {"target_modules": ["q_proj", "v_proj"], "r": 4}),
    "conv1d": ("gpt2", "causal_lm", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "embedding": ("bert", "sequence_classification", {"target_modules": ["word_embeddings", "query"]}),
    "bias": ("bert", "sequence_classification", {"target_modules": ["query"], "bias": "all"}),
    "bias lora_only": ("bert", "sequence_classification", {"target_modules": ["query"], "bias": "lora_only"}),
    "patterns": (
        "llama",
        "causal_lm",
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3},
            "alpha_pattern": {"self_attn.v_proj": 5},
            "use_rslora": True,
        },
    ),
    "dora": ("llama", "causal_lm", {"target_modules": ["q_proj"], "use_dora": True}),
    "modules_to_save": ("llama", "causal_lm", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "roberta": ("roberta", "sequence_classification", {"target_modules": ["query", "value"]}),
}


@pytest.mark.parametrize("case", HF_CASES)
def test_we_give_the_logits_of_what_hf_peft_saved(case: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from peftcli.tasks.task_table import task_info

    family, task, options = HF_CASES[case]
    theirs = get_peft_model(
        tiny_model(family, task), LoraConfig(task_type=task_info(task).hf_task_type, **options)
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    saved = load_adapter(tmp_path / "theirs")
    assert saved.meta.task == task
    model = tiny_model(family, task)
    attachment = apply_method(model, read_anatomy(model), saved.params, masters=False)
    attachment.load_state_dict(saved.state)
    torch.testing.assert_close(_logits(model), _logits(theirs), atol=1e-5, rtol=1e-5)
    save_adapter(tmp_path / "ours", attachment_state=saved.state, params=saved.params, meta=saved.meta)
    torch.testing.assert_close(
        _logits(_hf_load(tmp_path / "ours", family, task)), _logits(theirs), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt2", {"target_modules": ["attn.q"]}),
        ("gpt2", {"target_modules": ["attn.q", "attn.v", "ffn.up"], "alpha_pattern": {"attn.v": 5}}),
        ("gpt2", {"target_modules": ["attn.q", "attn.k"], "use_rslora": True, "rank_pattern": {"attn.k": 3}}),
        ("gpt2", {"init_lora_weights": "pissa"}),
        ("bloom", {"target_modules": ["attn.k", "attn.v"]}),
    ],
)
def test_slices_are_saved_as_ours_and_exported_padded(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    trained = _trained(family, "causal_lm", options)
    _save(tmp_path / "adapter", "causal_lm", trained)
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["peft_type"] == "PEFTCLI"
    saved = load_adapter(tmp_path / "adapter")
    assert saved.state.keys() == trained[1].state_dict().keys()
    export_run(tmp_path / "adapter", tmp_path / "hf", to="hf-peft")
    ours = _logits(trained[0])
    torch.testing.assert_close(_logits(_hf_load(tmp_path / "hf", family, "causal_lm")), ours, atol=1e-5, rtol=1e-5)


def test_a_slices_dora_is_not_exported(tmp_path: Path) -> None:
    _save(tmp_path / "adapter", "causal_lm", _trained("gpt2", "causal_lm", {"use_dora": True}))
    with pytest.raises(UserError, match="use_dora on a slice"):
        export_run(tmp_path / "adapter", tmp_path / "hf", to="hf-peft")
    assert not (tmp_path / "hf").exists()


def _edit(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(lora_bias=True), "lora_bias"),
        (lambda c: c.update(init_lora_weights="pissa"), "HF peft rewrote"),
        (lambda c: c.update(peft_type="XLORA"), "peft_type 'XLORA'"),
        (lambda c: c.update(task_type=None), "task_type is None"),
    ],
)
def test_what_has_no_equal_is_refused(change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    _save(tmp_path / "a", "causal_lm", _trained("llama", "causal_lm", {}))
    (tmp_path / "a/peftcli.json").unlink()
    _edit(tmp_path / "a", change)
    with pytest.raises(UserError, match=message):
        load_adapter(tmp_path / "a")


@pytest.mark.parametrize("entry", ["lm_head", "mlp"])
def test_what_is_trained_whole_and_changed_stays_in_our_layout(entry: str, tmp_path: Path) -> None:
    """HF peft leaves the change out, or finds no target at all."""
    method = {"name": "lora", "target_modules": ["attn.q", "lm_head", "ffn.up"], "modules_to_save": [entry]}
    run = make_run(tmp_path, "llama", "causal_lm", method, base_class="causal_lm")
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["peft_type"] == "PEFTCLI"
    with pytest.raises(UserError, match=f"{entry}.* is trained whole and has a change of its own"):
        export_run(run / "adapter", tmp_path / "out", to="hf-peft")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(use_something=True), "uses use_something, a variant of a later HF peft"),
        (lambda c: c.update(new_config={"a": 1}), "uses new_config"),
        (lambda c: c.update(r=3), "the rank 3 by r and rank_pattern, and its pair has 4: the scale is not known"),
        (lambda c: c.update(rank_pattern={"q_proj": 2}), "q_proj the rank 2 by r and rank_pattern, and its pair has 4"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    _save(tmp_path / "a", "causal_lm", _trained("llama", "causal_lm", {"r": 4}))
    (tmp_path / "a/peftcli.json").unlink()
    _edit(tmp_path / "a", change)
    with pytest.raises(UserError, match=message):
        load_adapter(tmp_path / "a")


def test_keys_that_are_not_known_are_told_and_those_of_training_are_not(tmp_path: Path) -> None:
    _save(tmp_path / "a", "causal_lm", _trained("llama", "causal_lm", {}))
    (tmp_path / "a/peftcli.json").unlink()
    _edit(tmp_path / "a", lambda c: c.update(layers_to_transform=[0, 1], exclude_modules=["k_proj"], unset=None))
    assert not [note for note in load_adapter(tmp_path / "a").notes if "not read" in note]
    _edit(tmp_path / "a", lambda c: c.update(new_gamma=16))
    (note,) = [note for note in load_adapter(tmp_path / "a").notes if "not read" in note]
    assert note.endswith("this version does not know them: new_gamma")
