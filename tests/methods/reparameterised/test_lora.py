"""LoRA as a method: where it goes, what it refuses, what it trains, how it merges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftcli.errors import UserError
from peftcli.layers.parts.dora import DoraDelta
from peftcli.layers.parts.lora import LoraDelta
from peftcli.methods.lora import METHOD, LoraParams
from peftcli.models.anatomy import Anatomy
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from tests.tiny import CORE_FAMILIES, kind_of, tiny_config, tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 11]])


def applied(
    family: str, task: str = "causal_lm", *, config: dict[str, Any] | None = None, **options: Any
) -> tuple[nn.Module, Attachment, Anatomy]:
    model = tiny_model(family, task, **(config or {}))
    anatomy = read_anatomy(model)
    attachment = apply_method(model, anatomy, LoraParams(**options))
    attachment.initialise(model)
    return model, attachment, anatomy


def moved(attachment: Attachment) -> None:
    with torch.no_grad():
        for parameter in attachment.trainable_parameters().values():
            parameter.add_(0.1 * torch.randn_like(parameter))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model.eval()(input_ids=IDS).logits
    return result


def task_of(family: str) -> str:
    return {"encoder": "sequence_classification", "decoder": "causal_lm", "seq2seq": "seq2seq_lm"}[kind_of(family)]


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"lora_dropout": 0.3}],
)
@pytest.mark.parametrize("family", CORE_FAMILIES)
def test_a_fresh_adapter_is_the_identity(family: str, options: dict[str, Any]) -> None:
    family = "gemma3_text" if family == "gemma3" else family
    task = task_of(family)
    model, _, _ = applied(family, task, target_modules="all-linear", **options)
    torch.testing.assert_close(logits(model), logits(tiny_model(family, task)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("init", [False, "orthogonal"])
def test_the_other_initialisations(init: bool | str) -> None:
    model, _, _ = applied("llama", init_lora_weights=init)
    same = torch.allclose(logits(model), logits(tiny_model("llama")), atol=1e-5)
    assert same is (init == "orthogonal")


def test_the_scale_is_alpha_over_r_or_over_its_root() -> None:
    _, plain, _ = applied("llama", r=4, lora_alpha=10)
    _, stabilised, _ = applied("llama", r=4, lora_alpha=10, use_rslora=True)
    assert {placed.part.scale for placed in plain.placed} == {2.5}
    assert {placed.part.scale for placed in stabilised.placed} == {10 / math.sqrt(4)}


def test_patterns_name_roles_blocks_and_path_endings_first_match_first() -> None:
    _, attachment, _ = applied(
        "llama",
        target_modules=["attn", "ffn"],
        rank_pattern={r"layers\.0\.mlp\.up_proj": 3, "ffn": 2, "attn.v": 5, "k_proj": 6},
        alpha_pattern={"attn": 32},
    )
    ranks = {placed.key: placed.part.rank for placed in attachment.placed}  # type: ignore[union-attr]
    assert ranks["model.layers.0.mlp.up_proj"] == 3 and ranks["model.layers.1.mlp.up_proj"] == 2
    assert ranks["model.layers.1.self_attn.v_proj"] == 5 and ranks["model.layers.1.self_attn.k_proj"] == 6
    assert ranks["model.layers.1.self_attn.q_proj"] == 8
    scales = {placed.key: placed.part.scale for placed in attachment.placed}
    assert scales["model.layers.0.self_attn.q_proj"] == 4.0 and scales["model.layers.0.mlp.down_proj"] == 8.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 40}, r"rank 40 is above the matrix of attn\.q \(32 x 32\); the largest useful r is 32"),
        ({"r": 20}, r"rank 20 is above the matrix of attn\.v \(16 x 32\)"),
        ({"r": 30, "target_modules": ["down_proj"], "rank_pattern": {"ffn.down": 33}}, "rank 33 is above"),
        ({"r": 40, "target_modules": ["embed_tokens"]}, r"rank 40 .*128 x 32"),
        ({"rank_pattern": {"attn.k": 4}}, "rank_pattern: 'attn.k' matches none of the 4 targets"),
        ({"target_modules": ["attn.w"]}, "attn.w"),
        ({"modules_to_save": ["nrm"]}, "'nrm' names no module with parameters"),
        ({"modules_to_save": ["weight"]}, "'weight' names no module with parameters"),
        ({"init_lora_weights": "pissa", "target_modules": ["embeddings"]}, "not defined for the embedding"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
    with pytest.raises(UserError, match=message):
        apply_method(model, read_anatomy(model), LoraParams(**options))


def test_the_checks_before_a_model_is_loaded() -> None:
    anatomy = read_anatomy(tiny_model("llama"))
    assert METHOD.check(anatomy, LoraParams(r=16)) == []
    for entries in (["attn.v"], ["v_proj", "attn.k"]):
        assert METHOD.check(anatomy, LoraParams(r=20, target_modules=entries))[0].startswith("rank 20 is above")
    assert METHOD.check(anatomy, LoraParams(r=20, target_modules="all-linear")) == []  # attn.k and attn.v are left out
    config = tiny_config("llama").to_dict()
    assert METHOD.check_config(config, LoraParams(r=32)) == []
    assert METHOD.check_config(config, LoraParams(r=33)) == [
        "r = 33 is above the model's width; the largest useful rank is 32"
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"r": 0},
        {"lora_alpha": 0},
        {"lora_dropout": 1.0},
        {"bias": "some"},
        {"init_lora_weights": "pissa_niter_0"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "olora", "use_dora": True},
        {"init_lora_weights": "orthogonal", "r": 3},
        {"init_lora_weights": "pissa", "use_dora": True},
        {"rank_pattern": {"attn.q": -1}},
        {"rank_pattern": {"(": 4}},
        {"loraplus_lr_ratio": 0.0},
        {"lora_rank": 8},
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoraParams(**options)


def _grads(model: nn.Module, attachment: Attachment, task: str) -> dict[str, Tensor | None]:
    labels = torch.tensor([1]) if "classification" in task else IDS
    model.train()
    for _ in range(2):  # B leaves zero in the first step, A moves in the second
        loss = model(input_ids=IDS, labels=labels).loss
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in attachment.trainable_parameters().values():
                parameter.sub_(0.1 * parameter.grad)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True, "lora_dropout": 0.2},
        {"init_lora_weights": "pissa"},
        {"bias": "lora_only"},
        {"freeze_a": True},
    ],
)
@pytest.mark.parametrize(("family", "task"), [("bert", "sequence_classification"), ("gpt2", "causal_lm")])
def test_all_that_is_trainable_gets_a_gradient_and_nothing_else(
    family: str, task: str, options: dict[str, Any], recompute: bool
) -> None:
    model, attachment, _ = applied(family, task, target_modules=["attn.q", "attn.v", "ffn.up"], **options)
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    grads = _grads(model, attachment, task)
    trainable = {id(parameter) for parameter in attachment.trainable_parameters().values()}
    for name, parameter in model.named_parameters():
        if id(parameter) in trainable:
            assert grads[name] is not None and grads[name].abs().sum() > 0, name
        else:
            assert grads[name] is None, name


def test_a_slice_changes_its_own_features_only() -> None:
    model, attachment, _ = applied("gpt2", target_modules=["attn.q"], bias="lora_only")
    moved(attachment)
    fused = model.transformer.h[0].attn.c_attn
    x = torch.randn(2, 32)
    difference = fused(x) - (x @ fused.weight + fused.bias)
    assert difference[:, :32].abs().min() > 0
    assert not difference[:, 32:].any()


MERGES: list[tuple[str, str, dict[str, Any]]] = [
    ("bert", "sequence_classification", {"target_modules": "all-linear", "bias": "all"}),
    ("bert", "sequence_classification", {"use_dora": True, "target_modules": ["attn", "embeddings"]}),
    ("roberta", "sequence_classification", {"bias": "lora_only", "use_rslora": True}),
    ("gpt2", "causal_lm", {"target_modules": ["attn.q", "attn.v"], "bias": "lora_only"}),
    ("gpt2", "causal_lm", {"target_modules": "all-linear", "use_dora": True}),
    ("gpt2", "causal_lm", {"target_modules": ["attn.k"], "use_dora": True, "rank_pattern": {"attn.k": 3}}),
    ("bloom", "causal_lm", {"target_modules": ["attn.k", "attn.v"]}),
    ("llama", "causal_lm", {"init_lora_weights": "pissa", "alpha_pattern": {"attn.v": 3}}),
    ("gpt2", "causal_lm", {"init_lora_weights": "olora", "freeze_a": True, "target_modules": ["attn.v", "ffn"]}),
    ("gemma3_text", "causal_lm", {"target_modules": ["embeddings", "ffn"]}),
]


@pytest.mark.parametrize(("family", "task", "options"), MERGES)
def test_merged_weights_give_the_same_outputs(family: str, task: str, options: dict[str, Any]) -> None:
    config = {"tie_word_embeddings": False} if "embeddings" in options.get("target_modules", ()) else {}
    model, attachment, anatomy = applied(family, task, config=config, **options)
    moved(attachment)
    rules = METHOD.merge_rules(anatomy, LoraParams(**options), attachment.state_dict())
    merged = tiny_model(family, task, **config)
    with torch.no_grad():
        for name, rule in rules.items():
            parameter = merged.get_parameter(name)
            parameter.copy_(rule.apply(parameter.detach().clone()))
        for name, value in attachment.head_tensors().items():
            merged.get_parameter(name).copy_(value)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-5, rtol=1e-5)
    assert (logits(model) - logits(tiny_model(family, task, **config))).abs().max() > 1e-3


def test_a_change_of_tied_embeddings_is_marked() -> None:
    _, attachment, anatomy = applied("gpt2", target_modules=["embeddings", "c_fc"])
    rules = METHOD.merge_rules(anatomy, LoraParams(target_modules=["embeddings", "c_fc"]), attachment.state_dict())
    kinds = {name: rule.kind for name, rule in rules.items()}
    assert kinds["transformer.wte.weight"] == "untie"
    assert kinds["transformer.h.0.mlp.c_fc.weight"] == "change"


def test_loraplus_speeds_up_b_and_vectors_but_not_the_head() -> None:
    _, attachment, _ = applied("bert", "sequence_classification", loraplus_lr_ratio=16.0, use_dora=True)
    ratios = attachment.learning_rate_ratios()
    assert set(ratios.values()) == {16.0}
    assert {name.split(".", 6)[-1] for name in ratios} == {
        f"{module}.{tensor}" for module in ("query", "value") for tensor in ("lora_B.weight", "lora_magnitude_vector")
    }
    assert set(ratios) <= set(attachment.trainable_parameters())
    assert applied("bert", "sequence_classification")[1].learning_rate_ratios() == {}


def test_modules_to_save_match_at_dots_and_follow_ties() -> None:
    model, attachment, _ = applied("llama", modules_to_save=["norm"])
    assert attachment.to_save == ["model.norm.weight"], "input_layernorm is another module"
    assert model.model.norm.weight.requires_grad
    model, attachment, _ = applied("gpt2", modules_to_save=["lm_head"])
    assert attachment.to_save == ["transformer.wte.weight", "lm_head.weight"]
    assert model.lm_head.weight is model.transformer.wte.weight and model.lm_head.weight.requires_grad


def test_a_bfloat16_base_gets_float32_masters() -> None:
    model = tiny_model("bert", "sequence_classification").bfloat16()
    anatomy = read_anatomy(model)
    params = LoraParams(bias="lora_only", modules_to_save=["pooler"])
    attachment = apply_method(model, anatomy, params)
    assert {parameter.dtype for parameter in attachment.trainable_parameters().values()} == {torch.float32}
    assert model.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=IDS, labels=torch.tensor([1])).loss.backward()
    evaluated = tiny_model("bert", "sequence_classification").bfloat16()
    kept = apply_method(evaluated, anatomy, params, masters=False)
    kept.load_state_dict(attachment.state_dict())
    assert logits(evaluated).dtype == torch.bfloat16


def test_an_untrained_head_is_saved_and_nothing_trainable_is_refused() -> None:
    model = tiny_model("bert", "sequence_classification")
    attachment = apply_method(model, read_anatomy(model), LoraParams(), train_head=False)
    assert not model.classifier.weight.requires_grad
    assert "classifier.weight" in attachment.state_dict()
    assert not any("classifier" in name for name in attachment.trainable_parameters())


def test_the_same_seed_gives_the_same_factors() -> None:
    def factors(seed: int) -> dict[str, Tensor]:
        model = tiny_model("llama")
        anatomy = read_anatomy(model)
        torch.manual_seed(seed)
        return apply_method(model, anatomy, LoraParams()).state_dict()

    torch.testing.assert_close(factors(3), factors(3), atol=0, rtol=0)
    assert not torch.equal(*(next(iter(factors(seed).values())) for seed in (3, 4)))


def test_attach_reads_no_values_and_initialise_follows() -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
    attachment = apply_method(model, read_anatomy(model), LoraParams(use_dora=True))
    assert all(tensor.is_meta for tensor in attachment.state_dict().values())
    live, attachment, _ = applied("llama", use_dora=True)
    part = attachment.placed[0].part
    assert isinstance(part, DoraDelta)
    weight = live.model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(part.lora_magnitude_vector.detach(), weight.norm(dim=1))


def test_pissa_holds_the_principal_part_of_conv1d_weights_too() -> None:
    model, attachment, _ = applied("gpt2", target_modules=["c_fc"], init_lora_weights="pissa_niter_8", r=4)
    part, host = attachment.placed[0].part, model.transformer.h[0].mlp.c_fc
    assert isinstance(part, LoraDelta) and isinstance(host, Conv1D)
    values = torch.linalg.svdvals(host.weight)
    product = part.scale * part.lora_B.weight @ part.lora_A.weight
    torch.testing.assert_close(torch.linalg.svdvals(product)[:4], values[:4], atol=0, rtol=0.05)


@pytest.mark.parametrize(
    ("entries", "left_out"),
    [
        ("all-linear", ["attn.k", "attn.v"]),
        (["attn"], ["attn.k", "attn.v"]),
        (r".*_proj", ["attn.k", "attn.v"]),
        (["attn.o", "all-linear"], ["attn.k", "attn.v"]),
    ],
)
def test_a_group_leaves_narrow_layers_out_and_says_so(entries: list[str] | str, left_out: list[str]) -> None:
    model = tiny_model("llama")  # keys and values are 16 x 32
    attachment = apply_method(model, read_anatomy(model), LoraParams(r=20, target_modules=entries))
    assert {target.role for target in attachment.targets}.isdisjoint(left_out) and attachment.targets
    rank = "rank 20 is above its 16 x 32"
    assert attachment.notes == [f"target_modules leaves {role} out (2 layers): {rank}" for role in left_out]


@pytest.mark.parametrize("entries", [["all-linear", "attn.v"], ["attn.k"], ["attn", "v_proj"]])
def test_a_narrow_layer_that_is_named_is_refused(entries: list[str]) -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match="rank 20 is above the matrix"):
        apply_method(model, read_anatomy(model), LoraParams(r=20, target_modules=entries))
