"""MAM, UniPELT and compose: formulas, gates, caches, counts, saving, merging, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.errors import UserError
from peftcli.methods import compose, mam, unipelt
from peftcli.methods.adapter import AdapterParams
from peftcli.methods.bitfit import BitFitParams
from peftcli.methods.full import FullParams
from peftcli.methods.ia3 import IA3Params
from peftcli.methods.lora import LoraParams
from peftcli.methods.oft import OftParams
from peftcli.methods.parallel_adapter import ParallelAdapterParams
from peftcli.methods.prefix_tuning import PrefixTuningParams
from peftcli.methods.prompt_tuning import PromptTuningParams
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.composite_attachment import CompositeAttachment
from peftcli.protocol.registry import registry
from tests.methods import harness
from tests.methods.additive.test_prefix_tuning import loud
from tests.tiny import DECODERS, ENCODERS, SEQ2SEQ, tiny_model

TEXT = [*ENCODERS, *DECODERS, *SEQ2SEQ]
SMALL: dict[str, dict[str, Any]] = {
    "mam": {"num_virtual_tokens": 3, "encoder_hidden_size": 8, "bottleneck_size": 4},
    "unipelt": {"prefix": {"num_virtual_tokens": 3, "encoder_hidden_size": 8}},
    "compose": {
        "parts": [
            LoraParams(r=2, target_modules=["attn.q", "attn.o"]),
            AdapterParams(bottleneck_size=4),
            PromptTuningParams(num_virtual_tokens=2),
        ]
    },
}


def composed(method: str, family: str, *, loudly: bool = True, **params: Any) -> CompositeAttachment:
    model, anatomy = harness.frozen(family)
    if loudly:
        loud(model)
    attachment = harness.attach(method, model, anatomy, **(params or SMALL[method]))
    assert isinstance(attachment, CompositeAttachment)
    return attachment


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize("method", ["mam", "unipelt", "compose"])
def test_everything_trains_and_nothing_else(method: str, family: str) -> None:
    attachment = composed(method, family, loudly=False)
    if family != "albert":  # the library refuses checkpointing for albert
        harness.checkpointing(attachment.model)
    batch = harness.batch_for(attachment.model)
    assert harness.train_steps(attachment, batch) == set(attachment.trainable_parameters())
    assert harness.frozen_without_gradient(attachment)


# ---- MAM


@pytest.mark.parametrize("family", ["bart", "llama", "bert"])
def test_mam_is_its_two_parts(family: str) -> None:
    whole = composed("mam", family)
    harness.disturb(whole)
    model, anatomy = harness.frozen(family)
    loud(model)
    prefix = harness.attach("prefix_tuning", model, anatomy, num_virtual_tokens=3, encoder_hidden_size=8)
    scaling = 4.0 if "decoder" in anatomy.layers else 2.0  # the official runs', of BART and of RoBERTa
    adapter = harness.attach("parallel_adapter", model, anatomy, bottleneck_size=4, scaling=scaling)
    prefix.load_state_dict(whole.parts["prefix"].state_dict())
    adapter.load_state_dict(whole.parts["parallel_adapter"].state_dict())
    batch = harness.batch_for(model)
    torch.testing.assert_close(harness.logits_of(whole, batch), harness.logits_of(prefix, batch), atol=1e-5, rtol=1e-5)


def test_mam_counts_at_the_paper_s_size() -> None:
    """BART-large's width: l = 30 on three attentions, r = 512 beside every feed-forward."""
    with torch.device("meta"):
        model = tiny_model("bart", "seq2seq_lm", d_model=1024, encoder_layers=12, decoder_layers=12)
    model.requires_grad_(False)
    attachment = harness.attach("mam", model, read_anatomy(model))
    prefixes = 3 * 30 * 2 * 12 * 1024
    assert attachment.saved_size() == prefixes + 24 * (2 * 512 * 1024 + 1024 + 512)


# ---- UniPELT


def _gate(gate: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return sigmoid(w^T x + b), averaged over the tokens of `mask` where one is given."""
    value = torch.sigmoid((x * gate.weight).sum(-1, keepdim=True) + gate.bias)
    if mask is None:
        return value
    shown = mask.unsqueeze(-1).float()
    return (value * shown).sum(1, keepdim=True) / shown.sum(1, keepdim=True)


def _placed(attachment: CompositeAttachment, label: str, key: str) -> Any:
    return next(placed.part for placed in attachment.parts[label].placed if placed.key == key)


def test_unipelt_lora_in_bert_has_a_gate_in_place_of_alpha_over_r() -> None:
    attachment = composed("unipelt", "bert")
    harness.disturb(attachment)
    batch = harness.batch_for(attachment.model)
    query = attachment.model.bert.encoder.layer[0].attention.self.query
    seen: list[tuple[Tensor, Tensor]] = []
    query.register_forward_hook(lambda _m, args, out: seen.append((args[0], out)))
    harness.logits_of(attachment, batch)
    x, y = seen[0]
    part = _placed(attachment, "lora", "bert.encoder.layer.0.attention.self.query")
    with torch.no_grad():
        change = x @ part.lora_A.weight.T @ part.lora_B.weight.T
        expected = (
            nn.functional.linear(x, query.weight, query.bias) + _gate(part.scale, x, batch["attention_mask"]) * change
        )
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


def test_unipelt_adapter_in_bert_is_gated_by_what_it_sees() -> None:
    attachment = composed("unipelt", "bert")
    harness.disturb(attachment, 0.1)
    batch = harness.batch_for(attachment.model)
    block = attachment.model.bert.encoder.layer[0]
    seen: dict[str, Any] = {}
    block.output.register_forward_hook(lambda _m, args, out: seen.update(args=args, out=out))
    harness.logits_of(attachment, batch)
    part = _placed(attachment, "adapter", "bert.encoder.layer.0.output.dense.adapter")
    norm = block.output.LayerNorm
    with torch.no_grad():
        z = nn.functional.linear(seen["args"][0], block.output.dense.weight, block.output.dense.bias) + seen["args"][1]
        normed = nn.functional.layer_norm(z, (32,), norm.weight, norm.bias, norm.eps)
        hidden = torch.relu(normed @ part.down.weight.T + part.down.bias)
        change = hidden @ part.up.weight.T + part.up.bias
        z = z + _gate(part.scale, normed, batch["attention_mask"]) * change
        expected = nn.functional.layer_norm(z, (32,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(seen["out"], expected, atol=1e-5, rtol=1e-5)


def test_unipelt_prefix_in_llama_scales_keys_and_values_per_query() -> None:
    attachment = composed("unipelt", "llama", adapter=None, lora=None, prefix={"num_virtual_tokens": 3})
    harness.disturb(attachment)
    layer = attachment.model.model.layers[0].self_attn
    part = _placed(attachment, "prefix", "model.layers.0.self_attn.prefix")
    h = torch.randn(2, 5, 32)
    cos, sin = torch.ones(1, 5, 8), torch.zeros(1, 5, 8)  # no rotation
    with torch.no_grad():
        out = layer(h, position_embeddings=(cos, sin), attention_mask=None)[0]
        q = layer.q_proj(h).view(2, 5, 4, 8)
        k, v = (f(h).view(2, 5, 2, 8).repeat_interleave(2, dim=2) for f in (layer.k_proj, layer.v_proj))
        pk, pv = (t[0].repeat_interleave(2, dim=0) for t in part.states())
        gate = _gate(part.scale, h)
        rows = torch.zeros(2, 5, 4, 8)
        for b in range(2):
            for t in range(5):
                for head in range(4):
                    keys = torch.cat([gate[b, t] * pk[head], k[b, : t + 1, head]])
                    values = torch.cat([gate[b, t] * pv[head], v[b, : t + 1, head]])
                    rows[b, t, head] = torch.softmax(keys @ q[b, t, head] / 8**0.5, 0) @ values
    torch.testing.assert_close(out, layer.o_proj(rows.flatten(2)).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "albert", "t5", "bart"]
)
def test_gates_do_not_see_padding(family: str) -> None:
    attachment = composed("unipelt", family)
    harness.disturb(attachment, 0.1)
    batch = harness.batch_for(attachment.model)
    keep = {"input_ids", "attention_mask"}
    alone = {key: value[2:3, :7] if key in keep else value[2:3] for key, value in batch.items()}
    together = harness.logits_of(attachment, batch)[2:3]
    torch.testing.assert_close(together, harness.logits_of(attachment, alone), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("family", [*DECODERS, "t5", "bart"])
@pytest.mark.parametrize("method", ["mam", "unipelt"])
def test_generation_with_a_cache_is_generation_without(method: str, family: str) -> None:
    attachment = composed(method, family)
    harness.disturb(attachment, 0.1)
    batch = harness.batch_for(attachment.model, padding="left" if family in DECODERS else "right")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    texts = [
        attachment.model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert torch.equal(*texts)


def test_unipelt_counts_are_those_of_its_parts_and_gates() -> None:
    """BERT-base's shape: 12 adapters of 48, 12 prefixes of 10, 24 LoRA pairs of 8, one gate of d + 1 for each."""
    with torch.device("meta"):
        model = tiny_model(
            "bert", "sequence_classification", hidden_size=768, num_hidden_layers=12, num_attention_heads=12
        )
    model.requires_grad_(False)
    attachment = harness.attach("unipelt", model, read_anatomy(model))
    adapters, prefixes, lora = 12 * (2 * 48 * 768 + 768 + 48), 12 * 2 * 10 * 768, 24 * 2 * 8 * 768
    assert attachment.saved_size() == adapters + prefixes + lora + (12 + 12 + 24) * 769


def test_parts_of_unipelt_can_be_left_out_and_keep_its_defaults() -> None:
    params = unipelt.UniPeltParams.model_validate({"prefix": None, "adapter": {"bottleneck_size": 4}})
    assert [spec.label for spec in params.specs] == ["adapter", "lora"]
    assert params.adapter is not None
    assert params.adapter.placement == "pfeiffer"
    assert unipelt.UniPeltParams().prefix.num_virtual_tokens == 10  # type: ignore[union-attr]  # its default
    with pytest.raises(ValueError, match="keep at least one"):
        unipelt.UniPeltParams(adapter=None, prefix=None, lora=None)
    with pytest.raises(ValueError, match="belong to the whole composition"):
        unipelt.UniPeltParams.model_validate({"lora": {"modules_to_save": ["x"]}})


# ---- saving and resuming


@pytest.mark.parametrize("method", ["mam", "unipelt", "compose"])
def test_save_and_load_give_the_same_logits(method: str) -> None:
    trained, fresh = composed(method, "bert"), composed(method, "bert")
    batch = harness.batch_for(trained.model)
    harness.train_steps(trained, batch)
    state = {key: tensor.clone() for key, tensor in trained.state_dict().items()}
    assert sum(tensor.numel() for tensor in state.values()) == trained.saved_size()
    fresh.load_state_dict(state)
    torch.testing.assert_close(harness.logits_of(fresh, batch), harness.logits_of(trained, batch), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="missing"):
        fresh.load_state_dict({key: state[key] for key in list(state)[1:]})
    with pytest.raises(UserError, match="unexpected"):
        fresh.load_state_dict({**state, "lora_9:x": torch.zeros(1)})


def test_a_head_and_trained_norms_are_saved_once_under_their_own_names() -> None:
    attachment = composed("compose", "bert")
    attachment.head = ["classifier.weight", "classifier.bias"]
    state = {key: tensor.clone() for key, tensor in attachment.state_dict().items()}
    assert {
        "classifier.weight",
        "bert.embeddings.LayerNorm.weight",
        "adapter:bert.encoder.layer.0.output.dense.adapter.up.bias",
    } <= set(state)
    attachment.load_state_dict(state)


def test_resume_goes_on_as_if_nothing_had_happened() -> None:
    trained, fresh = composed("unipelt", "llama"), composed("unipelt", "llama")
    batch = harness.batch_for(trained.model)
    harness.train_steps(trained, batch)
    fresh.load_state_dict({key: tensor.clone() for key, tensor in trained.state_dict().items()})
    fresh.load_training_state(trained.training_state())
    assert list(fresh.trainable_parameters()) == list(trained.trainable_parameters())
    for attachment in (trained, fresh):
        harness.train_steps(attachment, batch)
    assert torch.equal(harness.logits_of(fresh, batch), harness.logits_of(trained, batch))


@pytest.mark.parametrize("method", ["mam", "unipelt", "compose"])
def test_off_and_detached_leave_the_base(method: str) -> None:
    model, anatomy = harness.frozen("llama")
    batch = harness.batch_for(model)
    base = model(**batch).logits
    attachment = harness.attach(method, model, anatomy, **SMALL[method])
    harness.disturb(attachment, 0.1)
    norms = {name for part in attachment.parts.values() for name in part.unfrozen}  # type: ignore[attr-defined]  # composite
    with torch.no_grad():
        for name in norms:
            model.get_parameter(name).copy_(dict(tiny_model("llama").named_parameters())[name])
    attachment.enable(False)
    torch.testing.assert_close(harness.logits_of(attachment, batch), base)
    attachment.enable()
    attachment.detach()
    torch.testing.assert_close(harness.logits_of(attachment, batch), base)


# ---- compose


def test_order_at_one_projection_is_low_rank_first_whatever_the_list_says() -> None:
    parts = [AdapterParams(bottleneck_size=4), LoraParams(r=2, target_modules=["ffn.down"])]
    logits = []
    for order in (parts, parts[::-1]):
        attachment = composed("compose", "bert", parts=order)
        state = {
            name: torch.sin(torch.arange(t.numel()).float()).view(t.shape)
            for name, t in attachment.state_dict().items()
        }
        attachment.load_state_dict(state)
        logits.append(harness.logits_of(attachment, harness.batch_for(attachment.model)))
    torch.testing.assert_close(*logits)


def test_gated_compose_replaces_every_scale() -> None:
    parts = [LoraParams(r=2), ParallelAdapterParams(bottleneck_size=4), PrefixTuningParams(num_virtual_tokens=2)]
    attachment = composed("compose", "llama", parts=parts, gates=True)
    assert all(isinstance(placed.part.scale, nn.Module) for placed in attachment.placed)
    batch = harness.batch_for(attachment.model)
    assert harness.train_steps(attachment, batch) == set(attachment.trainable_parameters())


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([LoraParams(), LoraParams(r=4)], "lora and lora_2 cannot share a place"),
        (
            [LoraParams(use_dora=True, target_modules=["embed_tokens"]), OftParams(target_modules=["embed_tokens"])],
            "lora and oft cannot share a place",
        ),
        ([LoraParams(use_dora=True), {"name": "ia3", "target_modules": ["attn.q"]}], "depends on the whole weight of"),
        ([PrefixTuningParams(), PrefixTuningParams()], "prefix_tuning and prefix_tuning_2 cannot share a place"),
        ([AdapterParams(), AdapterParams(placement="pfeiffer")], "adapter and adapter_2 cannot share a place"),
    ],
)
def test_two_parts_that_cannot_share_a_place(parts: list[Any], reason: str) -> None:
    typed = [IA3Params(**part) if isinstance(part, dict) else part for part in parts]
    model, anatomy = harness.frozen("llama")
    with pytest.raises(UserError, match=reason):
        compose.METHOD.attach(model, anatomy, compose.ComposeParams(parts=typed))


def test_a_part_without_a_scale_takes_no_gate() -> None:
    model, anatomy = harness.frozen("llama")
    params = compose.ComposeParams(parts=[PromptTuningParams()], gates=True)
    with pytest.raises(UserError, match="prompt_tuning takes no gate"):
        compose.METHOD.attach(model, anatomy, params)


def test_what_is_no_part_is_refused_by_the_parameters() -> None:
    with pytest.raises(ValueError, match="trains base weights themselves"):
        compose.ComposeParams(parts=[FullParams()])
    with pytest.raises(ValueError, match="list its parts here"):
        compose.ComposeParams(parts=[compose.ComposeParams(parts=[LoraParams()])])
    assert compose.ComposeParams(parts=[mam.MamParams(), LoraParams()]).specs[0].label == "mam"


def test_a_part_s_own_limits_are_reported_with_its_label() -> None:
    _, anatomy = harness.frozen("gpt2")
    params = compose.ComposeParams(parts=[LoraParams(), PromptTuningParams(num_virtual_tokens=64)])
    assert compose.METHOD.check(anatomy, params)[0].startswith("prompt_tuning: num_virtual_tokens = 64")
    taken = compose.ComposeParams(parts=[PrefixTuningParams(), PromptTuningParams()])
    assert compose.METHOD.positions_taken(anatomy, taken) == 40


# ---- merging


def test_mergeable_parts_merge_and_others_say_why() -> None:
    both = compose.ComposeParams(parts=[LoraParams(), BitFitParams()])
    assert compose.METHOD.why_not_mergeable(both) is None
    assert "prefix_tuning" in str(
        compose.METHOD.why_not_mergeable(compose.ComposeParams(parts=[LoraParams(), PrefixTuningParams()]))
    )
    gated = compose.ComposeParams(parts=[LoraParams()], gates=True)
    assert "gated" in str(compose.METHOD.why_not_mergeable(gated))
    assert unipelt.METHOD.why_not_mergeable(unipelt.UniPeltParams(adapter=None, prefix=None, gates=False)) is None
    assert mam.METHOD.why_not_mergeable(mam.MamParams()) is not None


def test_merged_parts_give_the_same_logits() -> None:
    parts = [LoraParams(r=2), LoraParams(r=3, target_modules=["ffn.up"], lora_alpha=5), BitFitParams()]
    attachment: Attachment = composed("compose", "bert", parts=parts)
    harness.disturb(attachment, 0.1)
    batch = harness.batch_for(attachment.model)
    expected = harness.logits_of(attachment, batch)
    plain = tiny_model("bert", "sequence_classification")
    loud(plain)
    rules = compose.METHOD.merge_rules(read_anatomy(plain), compose.ComposeParams(parts=parts), attachment.state_dict())
    with torch.no_grad():
        for name, rule in rules.items():
            parameter = plain.get_parameter(name)
            parameter.copy_(rule.apply(parameter.clone()))
        torch.testing.assert_close(plain(**batch).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["mam", "unipelt", "compose"])
def test_parameters_survive_json(method: str) -> None:
    model = registry.info(method).params
    params = model(**SMALL[method])
    assert model.model_validate_json(params.model_dump_json()) == params
    assert json.loads(params.model_dump_json())["name"] == method
