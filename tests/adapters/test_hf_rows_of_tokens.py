"""Rows of tokens in HF peft's LoRA files, both ways: its logits are ours to 1e-5, with tied and untied heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.adapters.adapter_files import CONFIG, WEIGHTS, read_tensors, write_tensors
from peftcli.adapters.format import describe
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.saving import save_adapter
from peftcli.adapters.servers import servers_of
from peftcli.adapters.transfer import export_run
from peftcli.errors import UserError
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.registry import registry
from peftcli.serving.lora_pairs import lora_files
from tests.adapters.test_hf_peft import IDENTITY
from tests.tiny import tiny_model

pytest.importorskip("peft")
IDS = torch.tensor([[5, 9, 17, 120, 121, 40]])
LORA = {"r": 2, "target_modules": ["q_proj"]}
BOTH = {"embed_tokens": [120, 9], "lm_head": [9, 120, 121]}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def move(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def saved(directory: Path, method: str, indices: Any, tied: bool, **params: Any) -> nn.Module:
    """Write our adapter; return its model."""
    model = tiny_model("llama", "causal_lm", tie_word_embeddings=tied)
    typed = registry.info(method).params(**params, trainable_token_indices=indices)
    anatomy = read_anatomy(model)
    attachment = apply_method(model, anatomy, typed, masters=False)
    attachment.initialise(model)
    move(model)
    meta = describe(attachment, anatomy, task="causal_lm", base=IDENTITY)
    save_adapter(directory, attachment_state=attachment.state_dict(), params=typed, meta=meta)
    return model


def opened(directory: Path, tied: bool) -> nn.Module:
    """Return a base with the adapter of a directory, as `peft predict` attaches it."""
    adapter, model = load_adapter(directory), tiny_model("llama", "causal_lm", tie_word_embeddings=tied)
    apply_method(model, read_anatomy(model), adapter.params, masters=False).load_state_dict(adapter.state)
    return model.eval()


@pytest.mark.parametrize(
    ("indices", "tied"), [([121, 9], True), ([121, 9], False), ({"head": [7], "embeddings": [9, 120]}, False)]
)
def test_hf_peft_gives_our_logits(indices: Any, tied: bool, tmp_path: Path) -> None:
    from peft import PeftModel

    ours = logits(saved(tmp_path / "adapter", "lora", indices, tied, **LORA))
    plain = tiny_model("llama", "causal_lm", tie_word_embeddings=tied)
    assert (ours - logits(plain)).abs().max() > 1e-3
    theirs = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(theirs), ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(opened(tmp_path / "adapter", tied)), ours, atol=1e-6, rtol=1e-6)
    assert servers_of(tmp_path) == ["hf peft"]


@pytest.mark.parametrize(("indices", "tied"), [([121, 9], True), ([121, 9], False), (BOTH, False)])
def test_we_give_the_logits_of_what_hf_peft_saved(indices: Any, tied: bool, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama", "causal_lm", tie_word_embeddings=tied)
    config = LoraConfig(task_type="CAUSAL_LM", trainable_token_indices=indices, **LORA)
    theirs = move(get_peft_model(base, config))
    theirs.save_pretrained(str(tmp_path))
    torch.testing.assert_close(logits(opened(tmp_path, tied)), logits(theirs), atol=1e-5, rtol=1e-5)


def test_other_methods_keep_rows_in_our_format_and_say_so_on_export(tmp_path: Path) -> None:
    ours = logits(saved(tmp_path / "adapter", "ia3", [9, 121], True))
    assert json.loads((tmp_path / "adapter" / CONFIG).read_text())["peft_type"] == "PEFTCLI"
    torch.testing.assert_close(logits(opened(tmp_path / "adapter", True)), ours, atol=1e-6, rtol=1e-6)
    with pytest.raises(UserError, match="HF peft supports with LoRA only, not IA3"):
        export_run(tmp_path / "adapter", tmp_path / "out", to="hf-peft")


def test_an_adalora_as_plain_lora_brings_its_rows(tmp_path: Path) -> None:
    from peft import PeftModel

    model = saved(tmp_path / "adapter", "adalora", [9, 121], True, init_r=3, target_r=2)
    export_run(tmp_path / "adapter", tmp_path / "out", to="hf-peft", instead="lora")
    theirs = PeftModel.from_pretrained(tiny_model("llama", tie_word_embeddings=True), str(tmp_path / "out")).eval()
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("server", ["vllm", "llama.cpp"])
def test_servers_of_plain_lora_are_refused(server: str, tmp_path: Path) -> None:
    saved(tmp_path / "adapter", "lora", [9, 121], True, **LORA)
    with pytest.raises(UserError, match=r"has trainable_token_indices\n.*fold it into the base"):
        lora_files(load_adapter(tmp_path / "adapter"), tmp_path / "adapter", server)


def test_a_file_that_lacks_rows_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", trainable_token_indices=[9, 121], **LORA)
    get_peft_model(tiny_model("llama"), config).save_pretrained(str(tmp_path))
    tensors = read_tensors(tmp_path / WEIGHTS)
    rows = next(key for key in tensors if key.endswith("trainable_tokens_delta"))
    for changed in ({**tensors, rows: tensors[rows][:1]}, {k: v for k, v in tensors.items() if k != rows}):
        write_tensors(tmp_path / WEIGHTS, changed)
        with pytest.raises(UserError, match="trainable_token_indices"):
            load_adapter(tmp_path)
