"""Each hyper-parameter of each method does something: two values of it differ in what is attached or learnt.

A parameter that comes later fails here until it has two values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.registry import registry
from peftcli.tasks.training_rows import TrainingRows
from tests.methods.harness import batch_for, frozen, loss_of
from tests.tiny import tiny_tokenizer

Example = tuple[dict[str, Any], Any, Any]
"""Other keys of the method, and two values of the key."""

EVERY: dict[str, Example] = {
    "modules_to_save": ({}, None, ["embed_tokens"]),
    "trainable_token_indices": ({}, None, [3, 5]),
}
"""Keys of all methods; `init_from` is the session's (training/test_train.py)."""
TARGETED: dict[str, Example] = {
    "target_modules": ({}, ["attn.q"], ["attn.v"]),
    "exclude_modules": ({"target_modules": ["attn.q", "attn.v"]}, None, ["v_proj"]),
    "layers_to_transform": ({}, None, [1]),
}
LORA: dict[str, Example] = {
    **TARGETED,
    "r": ({}, 4, 2),
    "lora_alpha": ({}, 8, 16),
    "lora_dropout": ({}, 0.0, 0.5),
    "bias": ({"target_modules": ["attn.q"]}, "none", "all"),
    "use_rslora": ({}, False, True),
    "use_dora": ({}, False, True),
    "init_lora_weights": ({}, True, "pissa"),
    "rank_pattern": ({}, {}, {"q_proj": 2}),
    "alpha_pattern": ({}, {}, {"q_proj": 2}),
    "loraplus_lr_ratio": ({}, None, 16.0),
    "rho": ({"init_lora_weights": "eva", "target_modules": "all-linear"}, 1.0, 3.0),
    "freeze_a": ({}, False, True),
    "target_parameters": ({"target_modules": ["attn.q"]}, None, ["experts.down_proj"]),
    "experts_to_transform": ({"target_modules": ["experts"]}, None, [1, 2]),
}
PREFIX: dict[str, Example] = {
    "num_virtual_tokens": ({}, 4, 5),
    "prefix_projection": ({}, True, False),
    "encoder_hidden_size": ({}, 16, 24),
    "projection_lr_ratio": ({}, 0.1, 0.5),
    "prefix_dropout": ({}, 0.0, 0.5),
    "prefix_init": ({}, None, "random"),
}
BOTTLENECK: dict[str, Example] = {
    "bottleneck_size": ({}, 4, 6),
    "reduction_factor": ({}, 4.0, 8.0),
    "non_linearity": ({"bottleneck_size": 8}, "relu", "tanh"),
    "dropout": ({}, 0.0, 0.5),
}
EXAMPLES: dict[str, dict[str, Example]] = {
    "lora": LORA,
    "qlora": LORA,
    "adalora": {
        **TARGETED,
        "init_r": ({"target_r": 2}, 6, 4),
        "target_r": ({"init_r": 6, "tinit": 0, "tfinal": 0, "deltaT": 1}, 4, 2),
        "lora_alpha": ({}, 8.0, 16.0),
        "lora_dropout": ({}, 0.0, 0.5),
        "tinit": ({"init_r": 6, "target_r": 2, "tfinal": 2, "deltaT": 1}, 0, 5),
        "tfinal": ({"init_r": 6, "target_r": 2, "tinit": 1, "deltaT": 1}, 1, 6),
        "deltaT": ({"init_r": 6, "target_r": 2, "tinit": 0, "tfinal": 1}, 1, 4),
        "beta1": ({"init_r": 6, "target_r": 2, "tinit": 0, "tfinal": 0, "deltaT": 1}, 0.05, 0.99),
        "beta2": ({"init_r": 6, "target_r": 2, "tinit": 0, "tfinal": 0, "deltaT": 1}, 0.05, 0.99),
        "orth_reg_weight": ({}, 0.1, 0.5),
    },
    "vera": {
        **TARGETED,
        "r": ({}, 8, 4),
        "projection_prng_key": ({}, 0, 1),
        "d_initial": ({}, 0.1, 0.2),
        "vera_dropout": ({}, 0.0, 0.5),
    },
    "ia3": {
        "target_modules": ({}, ["attn.k"], ["attn.v"]),
        "exclude_modules": ({"target_modules": ["attn.k", "attn.v"]}, None, ["v_proj"]),
        "layers_to_transform": ({}, None, [1]),
        "experts_to_transform": ({"target_modules": ["experts"]}, None, [1, 2]),
        "feedforward_modules": ({"target_modules": ["attn.k", "ffn.down"]}, ["ffn.down"], ["attn.k"]),
    },
    "oft": {
        **TARGETED,
        "oft_block_size": ({}, 8, 4),
        "r": ({"oft_block_size": 0}, 2, 4),
        "module_dropout": ({}, 0.0, 0.5),
        "coft": ({"eps": 1e-3}, False, True),
        "eps": ({"coft": True}, 1e-3, 1e-2),
        "block_share": ({}, False, True),
        "use_cayley_neumann": ({}, True, False),
        "num_cayley_neumann_terms": ({}, 2, 5),
        "init_weights": ({}, True, False),
    },
    "miss": {
        **TARGETED,
        "r": ({}, 8, 4),
        "miss_dropout": ({}, 0.0, 0.5),
        "mini_r": ({"init_weights": "mini"}, 4, 8),
        "init_weights": ({}, True, "bat"),
    },
    "hira": {
        **TARGETED,
        "r": ({}, 4, 2),
        "hira_dropout": ({}, 0.0, 0.5),
        "init_weights": ({}, True, "gaussian"),
        "rank_pattern": ({}, {}, {"q_proj": 2}),
    },
    "lokr": {
        **TARGETED,
        "r": ({}, 2, 1),
        "alpha": ({}, 8, 16),
        "rank_dropout": ({}, 0.0, 0.5),
        "rank_dropout_scale": ({"rank_dropout": 0.5}, False, True),
        "module_dropout": ({}, 0.0, 0.5),
        "decompose_both": ({"r": 1}, False, True),
        "decompose_factor": ({}, -1, 2),
        "init_weights": ({}, True, "lycoris"),
        "rank_pattern": ({}, {}, {"q_proj": 1}),
        "alpha_pattern": ({}, {}, {"q_proj": 2}),
    },
    "shira": {
        **TARGETED,
        "r": ({}, 4, 2),
        "mask_type": ({}, "random", "magnitude"),
        "random_seed": ({}, None, 3),
        "init_weights": ({}, True, False),
    },
    "prefix_tuning": {**PREFIX, "prefix_init_text": ({}, None, "the movie"), "shift_positions": ({}, True, False)},
    "prompt_tuning": {
        "num_virtual_tokens": ({}, 4, 5),
        "prompt_tuning_init": ({}, "random", "sample_vocab"),
        "prompt_tuning_init_text": ({"prompt_tuning_init": "text"}, "the movie", "a bad film"),
        "sample_vocab_size": ({}, 20, 100),
        "prompt_position": ({}, "front", "after_first"),
    },
    "adapter": {
        **BOTTLENECK,
        "placement": ({}, "houlsby", "pfeiffer"),
        "train_layer_norm": ({}, True, False),
        "norm_before": ({"placement": "pfeiffer"}, True, False),
        "init": ({}, "houlsby", "pfeiffer"),
    },
    "parallel_adapter": {**BOTTLENECK, "placement": ({}, "ffn", "attn"), "scaling": ({}, 1.0, 4.0)},
    "compacter": {
        **BOTTLENECK,
        "bottleneck_size": ({}, 4, 8),
        "reduction_factor": ({}, 4.0, 8.0),
        "phm_dim": ({}, 4, 2),
        "phm_rank": ({}, 1, 2),
        "placement": ({}, "both", "ffn"),
        "train_layer_norm": ({}, True, False),
    },
    "loreft": {
        "r": ({}, 4, 2),
        "layers": ({}, "all", [1]),
        "positions": ({}, "f2", "f3"),  # texts have no last tokens
        "share_weights": ({"positions": "f2+l2"}, True, False),
        "dropout": ({}, 0.0, 0.5),
    },
    "ln_tuning": {
        "target_modules": ({}, ["input_layernorm"], ["norm"]),
        "exclude_modules": ({}, None, ["norm"]),
    },
    "bitfit": {"terms": ({}, "all", ["attn.q"])},
    "mam": {**PREFIX, "bottleneck_size": ({}, 4, 6), "scaling": ({}, 1.0, 4.0), "dropout": ({}, 0.0, 0.5)},
    "unipelt": {
        "adapter": ({}, {"reduction_factor": 4.0}, None),
        "prefix": ({}, {"num_virtual_tokens": 4}, None),
        "lora": ({}, {"r": 4}, None),
        "gates": ({}, True, False),
    },
    "compose": {
        "parts": ({}, [{"name": "lora", "r": 4}], [{"name": "bitfit"}]),
        "gates": ({"parts": [{"name": "lora", "r": 4}]}, False, True),
    },
    "full": {"modules_to_save": ({}, None, ["embed_positions"])},  # which the family holds fixed
    "freeze": {"trainable": ({}, "last_layers", "norms"), "num_layers": ({}, 1, 2)},
}
BESIDE = {
    "lora": {"r": 4},
    "qlora": {"r": 4},
    "adalora": {"target_modules": ["attn.q"], "tinit": 0, "tfinal": 0, "deltaT": 1, "init_r": 6, "target_r": 4},
    "vera": {"r": 8},
    "oft": {"oft_block_size": 8},
    "miss": {"r": 8},
    "hira": {"r": 4},
    "lokr": {"r": 2},
    "shira": {"r": 4},
    "prefix_tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "mam": {"num_virtual_tokens": 4, "encoder_hidden_size": 16, "bottleneck_size": 4},
    "unipelt": {"prefix": {"encoder_hidden_size": 16}, "adapter": {"reduction_factor": 4.0}},
    "compose": {"parts": [{"name": "bitfit"}]},
}
"""Keys that keep a method small, where an example does not set them."""
FAMILY = {
    "modules_to_save": "qwen2",
    "bias": "qwen2",
    "target_parameters": "mixtral",
    "experts_to_transform": "mixtral",
    "bitfit": "qwen2",
    "compose": "qwen2",
    "adapter": "bert",
    "compacter": "bert",
    "full": "pegasus",
}
"""By method or key: a model that has what is changed (biases, norms, fixed tables); `llama` otherwise."""
STEPS = 8
SESSIONS = {"name", "init_from"}
REFUSED = {("full", "trainable_token_indices"): "it trains every row (protocol/test_token_rows.py)"}
CASES = [
    (method, key)
    for method in registry.names()
    for key in {**EVERY, **EXAMPLES[method]}
    if (method, key) not in REFUSED
]


def _seen(method: str, given: Mapping[str, Any], family: str) -> dict[str, str]:
    """Return what a method makes of its parameters: tensors, rates, and what six steps with dropout lead to."""
    model, anatomy = frozen(family)
    torch.manual_seed(7)
    attachment = apply_method(model, anatomy, registry.info(method).params(**given))
    attachment.initialise(model, tokenizer=tiny_tokenizer(), labels=["good", "bad"])
    with torch.no_grad():
        attachment.enable(False)
        attachment.start_from_rows(model.eval(), TrainingRows(lambda: iter([batch_for(model)])))
        attachment.enable()
    found = {
        "shapes": {key: tuple(tensor.shape) for key, tensor in attachment.state_dict().items()},
        "trainable": sorted(attachment.trainable_parameters()),
        "rates": sorted(attachment.learning_rate_ratios().items()),
        "start": _digest(attachment.state_dict()),
    }
    batch, losses = batch_for(model), []
    optimizer = torch.optim.AdamW(attachment.trainable_parameters().values(), lr=1e-2, weight_decay=0.0)
    torch.manual_seed(11)
    model.train()
    for step in range(1, STEPS + 1):
        loss, extra = loss_of(attachment, batch), attachment.extra_loss()
        losses.append((loss.item(), 0.0 if extra is None else extra.item()))
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        attachment.after_optimizer_step(step, STEPS)
        optimizer.zero_grad(set_to_none=True)
    return {name: str(value) for name, value in {**found, "losses": losses}.items()}


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_each_parameter_has_an_example() -> None:
    for method in registry.names():
        fields = set(registry.info(method).params.model_fields) - SESSIONS
        assert fields == {*EVERY, *EXAMPLES[method]}, method


@pytest.mark.parametrize(("method", "key"), CASES)
def test_two_values_differ(method: str, key: str) -> None:
    others, *values = {**EVERY, **EXAMPLES[method]}[key]
    family = FAMILY["full"] if method == "full" else FAMILY.get(key, FAMILY.get(method, "llama"))
    found = []
    for value in values:
        given = {**BESIDE.get(method, {}), **others, key: value}
        found.append(_seen(method, given, family))
    assert found[0] != found[1]
