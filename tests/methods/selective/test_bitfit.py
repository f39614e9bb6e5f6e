"""BitFit: which biases move, what is refused, and slices of fused projections."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import RobertaConfig

from peftcli.errors import UserError
from peftcli.methods.bitfit import METHOD, BitFitParams
from peftcli.models.load.meta_model import build_meta
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from tests.methods.harness import (
    attached,
    batch_for,
    disturb,
    frozen,
    frozen_without_gradient,
    logits_of,
    numbers,
    round_trip,
    train_steps,
)
from tests.models.experts.tiny_experts import tiny_experts
from tests.tiny import save_tiny, tiny_model


def test_it_merges() -> None:
    assert METHOD.why_not_mergeable(BitFitParams()) is None


def test_all_biases_of_roberta_base_are_102144() -> None:
    # each of 12 layers: q, k, v, o and two norms (6 x 768), up 3072, down 768; the embeddings' norm; no pooler here
    model = build_meta(
        RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1), "token_classification"
    )
    attachment = apply_method(model, read_anatomy(model), BitFitParams())
    own = {name: p for name, p in attachment.trainable_parameters().items() if name not in attachment.head}
    assert numbers(own) == 12 * (6 * 768 + 3072 + 768) + 768 == attachment.saved_size()


def test_all_means_norms_embeddings_and_pooler_but_not_the_head() -> None:
    names = attached("bitfit", "bert").unfrozen
    assert "bert.embeddings.LayerNorm.bias" in names and "bert.pooler.dense.bias" in names
    assert "classifier.bias" not in names and all(name.endswith("bias") for name in names)
    assert len(names) == 18


def test_terms_choose_roles_branches_and_norms() -> None:
    assert attached("bitfit", "bert", terms=["attn.q", "ffn.up"]).unfrozen == [
        *(f"bert.encoder.layer.{i}.attention.self.query.bias" for i in range(2)),
        *(f"bert.encoder.layer.{i}.intermediate.dense.bias" for i in range(2)),
    ]
    assert len(attached("bitfit", "bert", terms=["attn"]).unfrozen) == 8
    assert all("LayerNorm" in name for name in attached("bitfit", "bert", terms=["norms"]).unfrozen)
    assert len(attached("bitfit", "bert", terms=["attn", "attn.q"]).unfrozen) == 8


@pytest.mark.parametrize("family", ["llama", "t5", "mixtral"])
def test_a_model_without_biases_is_refused_with_what_to_use(family: str) -> None:
    _, anatomy = frozen(family)
    (reason,) = METHOD.check(anatomy, BitFitParams())
    assert f"this {family} model has no bias terms" in reason and "use lora" in reason
    with pytest.raises(UserError, match="no bias terms"):
        apply_method(*frozen(family), BitFitParams())


def test_a_role_without_a_bias_is_refused_and_the_others_named() -> None:
    _, anatomy = frozen("qwen2")  # biases on q, k and v only
    assert METHOD.check(anatomy, BitFitParams(terms=["attn.q", "attn.v"])) == []
    (reason,) = METHOD.check(anatomy, BitFitParams(terms=["attn.q", "ffn.up"]))
    assert reason == "ffn.up has no bias in this qwen2 model; terms with one: attn.q, attn.k, attn.v, attn"


def test_biases_of_experts_by_role_and_all_of_them() -> None:
    model = tiny_experts("gpt_oss")
    anatomy = read_anatomy(model)
    attachment = apply_method(model, anatomy, BitFitParams(terms=["experts"]))
    inside = [f"model.layers.{i}.mlp.experts" for i in range(2)]
    assert attachment.unfrozen == [f"{path}.{name}_proj_bias" for path in inside for name in ("gate_up", "down")]
    model(input_ids=torch.arange(40).view(2, 20)).logits.square().mean().backward()
    assert all(each.grad is not None and each.grad.any() for each in attachment.trainable_parameters().values())
    assert METHOD.check(anatomy, BitFitParams(terms=["experts.down"])) == []
    (reason,) = METHOD.check(anatomy, BitFitParams(terms=["experts.up"]))
    assert (
        reason == "experts.up has its biases in one parameter with other roles: name experts, which trains all of them"
    )


@pytest.mark.parametrize("terms", [["attn.w"], [], ["all"], "attn.q"])
def test_unknown_terms_are_refused(terms: object) -> None:
    with pytest.raises(ValidationError):
        BitFitParams(terms=terms)


@pytest.mark.parametrize("family", ["bert", "gpt2", "bart", "qwen2"])
def test_gradients_and_round_trip(family: str) -> None:
    attachment = attached("bitfit", family)
    batch = batch_for(attachment.model)
    before = logits_of(attachment, batch)
    assert train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert frozen_without_gradient(attachment)
    after = logits_of(attachment, batch)
    assert not torch.allclose(before, after, atol=1e-4)
    fresh = attached("bitfit", family)
    round_trip(attachment, fresh)
    assert torch.equal(logits_of(fresh, batch), after)


def test_a_slice_of_a_fused_bias_moves_alone() -> None:
    attachment = attached("bitfit", "gpt2", terms=["attn.q"])
    assert attachment.unfrozen == [] and set(attachment.state_dict()) == {
        f"transformer.h.{i}.attn.c_attn.q.bias_delta" for i in range(2)
    }
    batch = batch_for(attachment.model)
    disturb(attachment)
    expected = tiny_model("gpt2")
    with torch.no_grad():
        for i in range(2):
            bias = expected.get_parameter(f"transformer.h.{i}.attn.c_attn.bias")
            bias[:32] += attachment.state_dict()[f"transformer.h.{i}.attn.c_attn.q.bias_delta"]  # q of q, k, v
        torch.testing.assert_close(logits_of(attachment, batch), expected(**batch).logits)
    assert numbers(attachment.trainable_parameters()) == 2 * 32
    assert train_steps(attachment, batch) == set(attachment.trainable_parameters())


def test_trains_on_a_base_in_half_precision_with_float32_biases() -> None:
    model = tiny_model("bert", "sequence_classification").to(torch.bfloat16)
    attachment = apply_method(model, read_anatomy(model), BitFitParams())
    assert {p.dtype for p in attachment.trainable_parameters().values()} == {torch.float32}
    batch = batch_for(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert train_steps(attachment, batch) == set(attachment.trainable_parameters())


@pytest.mark.parametrize("method", ["bitfit", "lora"])
def test_biases_of_a_4bit_base_train_in_float32_and_save_under_their_own_names(method: str, tmp_path: Path) -> None:
    from peftcli.models.load.load_model import load_model
    from peftcli.protocol.registry import registry
    from peftcli.recipe.schema import ModelSpec

    base = save_tiny(tmp_path, "bert", "sequence_classification", hidden_size=64, intermediate_size=64)
    options = {} if method == "bitfit" else {"bias": "all"}
    params = registry.info(method).params(**options)

    def opened(four_bit: bool) -> Attachment:
        model = load_model(ModelSpec(name_or_path=str(base), load_in_4bit=four_bit), "sequence_classification").model
        attachment = apply_method(model, read_anatomy(model), params)
        attachment.initialise(model)
        return attachment

    quantised, plain = opened(True), opened(False)
    own = {key: value for key, value in plain.state_dict().items() if key.endswith("bias")}
    assert all(torch.equal(quantised.state_dict()[key], value) for key, value in own.items())
    batch = batch_for(quantised.model)
    moved = train_steps(quantised, batch)
    assert moved == set(quantised.trainable_parameters())
    assert {p.dtype for p in quantised.trainable_parameters().values()} == {torch.float32}
    assert frozen_without_gradient(quantised)
    plain.load_state_dict(quantised.state_dict())  # and so they merge into the unquantised base
