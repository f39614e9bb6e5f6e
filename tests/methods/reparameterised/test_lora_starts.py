"""What LoRA starts from (OLoRA) and what of it stays (LoRA-FA): the definitions, and HF peft's ten steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftcli.errors import UserError
from peftcli.layers.base_linear import BaseLinear
from peftcli.methods.lora import LoraParams
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from tests.methods.harness import batch_for, frozen, logits_of, losses_of_steps, numbers, train_steps

TARGETS = ["q_proj", "v_proj", "up_proj"]


def started(family: str = "llama", **options: Any) -> Attachment:
    """Return LoRA on a fresh tiny model, started from it."""
    model, anatomy = frozen(family)
    torch.manual_seed(7)
    attachment = apply_method(model, anatomy, LoraParams(**options))
    attachment.initialise(model)
    return attachment


def hf_steps(attachment: Attachment, batch: dict[str, Any], **options: Any) -> list[float]:
    """Return the losses of HF peft's LoRA with the same first factors; with `freeze_a`, A stays there, too."""
    from peft import LoraConfig, get_peft_model

    freeze_a = options.pop("freeze_a", False)
    theirs = get_peft_model(frozen("llama")[0], LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, **options))
    own = attachment.state_dict()
    with torch.no_grad():
        for key, value in own.items():
            if ".lora_" in key:
                parameter = theirs.get_parameter(f"base_model.model.{key.replace('.weight', '.default.weight')}")
                if options:  # HF peft has started from the base itself: to the same values
                    torch.testing.assert_close(parameter, value, atol=1e-5, rtol=1e-5)
                parameter.copy_(value)
    if freeze_a:
        for name, parameter in theirs.named_parameters():
            parameter.requires_grad_("lora_B" in name)
    return losses_of_steps(theirs, [p for p in theirs.parameters() if p.requires_grad], batch)


@pytest.mark.parametrize("change", [{"init_lora_weights": "olora"}, {"freeze_a": True}], ids=["olora", "freeze_a"])
def test_ten_steps_are_hf_pefts(change: dict[str, Any]) -> None:
    attachment = started(r=4, lora_alpha=8, target_modules=TARGETS, **change)
    batch = batch_for(attachment.model)
    theirs = hf_steps(attachment, batch, **change)
    ours = losses_of_steps(attachment.model, attachment.trainable_parameters().values(), batch)
    assert ours == pytest.approx(theirs, abs=1e-5) and ours[-1] < ours[0] - 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_olora_starts_as_the_identity_from_the_qr_decomposition(family: str) -> None:
    attachment = started(family, r=4, init_lora_weights="olora", target_modules=["attn.q", "ffn.up"])
    batch = batch_for(attachment.model)
    plain = frozen(family)[0].eval()
    attachment.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(logits_of(attachment, batch), plain(**batch).logits, atol=1e-5, rtol=1e-5)
    state = attachment.state_dict()
    for target in attachment.targets:
        left, right = torch.linalg.qr(BaseLinear(plain.get_submodule(target.module), target.slice).weight())
        torch.testing.assert_close(state[f"{target.key}.lora_B.weight"], left[:, :4])
        torch.testing.assert_close(state[f"{target.key}.lora_A.weight"], right[:4])


def test_a_frozen_a_stays_is_saved_and_is_not_counted_as_trained() -> None:
    attachment = started(r=4, freeze_a=True)
    first = {key: value.clone() for key, value in attachment.state_dict().items()}
    moved = train_steps(attachment, batch_for(attachment.model))
    assert moved == set(attachment.trainable_parameters()) == {key for key in first if "lora_B" in key}
    assert numbers(attachment.trainable_parameters()) == 2 * 4 * (32 + 16)  # r for each output of q and v, no input
    for key, value in attachment.state_dict().items():
        assert torch.equal(value, first[key]) == ("lora_A" in key)


def test_a_frozen_a_keeps_no_input_for_the_backward_pass() -> None:
    kept = {}
    for freeze_a in (False, True):
        attachment = started(r=4, freeze_a=freeze_a, target_modules=["ffn.down"])
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, into=sizes: into.append(t.numel()) or t, lambda t: t):
            attachment.model(**batch_for(attachment.model))
        kept[freeze_a] = sum(sizes)
    assert kept[True] <= kept[False] - 2 * 3 * 9 * 48  # of two blocks, three rows of nine tokens, the inner width


def test_a_frozen_a_that_starts_at_zero_is_refused() -> None:
    model, anatomy = frozen("llama")
    with pytest.raises(UserError, match="freeze_a leaves the embedding"):
        apply_method(model, anatomy, LoraParams(freeze_a=True, target_modules=["embeddings"]))
