"""The methods that change weights in other ways than by a plain low-rank product, beside HF peft's code.

Logits of moved adapters, and the losses of ten steps from the same start, agree to 1e-5.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams
from tests.methods.harness import batch_for, disturb, logits_of
from tests.methods.reparameterised.hf_steps import OPTIMIZERS, WIDE, losses_of, own_losses, twin
from tests.tiny import tiny_model

Q_V, MLP = ["q_proj", "v_proj"], ["q_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[str, str, dict[str, Any], str, dict[str, Any]]] = {
    "oft": ("oft", "llama", {}, "OFTConfig", {}),
    "oft, small blocks": ("oft", "llama", {"oft_block_size": 4, "target_modules": MLP}, "OFTConfig", {}),
    "oft, number of blocks": ("oft", "llama", {"r": 4, "oft_block_size": 0}, "OFTConfig", {}),
    "oft, exact": ("oft", "llama", {"oft_block_size": 8, "use_cayley_neumann": False}, "OFTConfig", {}),
    "oft, two terms": ("oft", "llama", {"oft_block_size": 8, "num_cayley_neumann_terms": 2}, "OFTConfig", {}),
    "oft, three terms": ("oft", "llama", {"oft_block_size": 8, "num_cayley_neumann_terms": 3}, "OFTConfig", {}),
    "oft, seven terms": ("oft", "llama", {"oft_block_size": 8, "num_cayley_neumann_terms": 7}, "OFTConfig", {}),
    "oft, shared": ("oft", "llama", {"oft_block_size": 8, "block_share": True}, "OFTConfig", {}),
    "oft, coft": ("oft", "llama", {"oft_block_size": 8, "coft": True, "eps": 0.05}, "OFTConfig", {}),
    "oft, embedding": ("oft", "llama", {"oft_block_size": 8, "target_modules": ["embed_tokens"]}, "OFTConfig", {}),
    "miss": ("miss", "llama", {"r": 8}, "MissConfig", {}),
    "miss, a shard left over": ("miss", "llama", {"r": 5, "target_modules": MLP}, "MissConfig", {}),
    "miss, bat": ("miss", "llama", {"r": 8, "init_weights": "bat"}, "MissConfig", {}),
    "miss, mini": ("miss", "llama", {"r": 8, "init_weights": "mini", "mini_r": 4}, "MissConfig", {}),
    "hira": ("hira", "llama", {"r": 4}, "HiraConfig", {}),
    "hira, conv1d": ("hira", "gpt2", {"r": 4, "target_modules": ["c_attn"]}, "HiraConfig", {"fan_in_fan_out": True}),
    "hira, ranks": (
        "hira",
        "llama",
        {"r": 4, "rank_pattern": {"up_proj": 6}, "target_modules": MLP},
        "HiraConfig",
        {"r": 6},
    ),
    "hira, embedding": ("hira", "llama", {"r": 4, "target_modules": ["embed_tokens"]}, "HiraConfig", {}),
    "lokr": ("lokr", "llama", {"r": 2, "target_modules": MLP}, "LoKrConfig", {}),
    "lokr, whole": ("lokr", "llama", {"r": 32}, "LoKrConfig", {}),
    "lokr, both": ("lokr", "llama", {"r": 1, "decompose_both": True, "decompose_factor": 4}, "LoKrConfig", {}),
    "lokr, lycoris": ("lokr", "llama", {"r": 2, "alpha": 6, "init_weights": "lycoris"}, "LoKrConfig", {}),
    "lokr, patterns": (
        "lokr",
        "llama",
        {"r": 2, "rank_pattern": {"v_proj": 1}, "alpha_pattern": {"layers.0.self_attn.q_proj": 5}},
        "LoKrConfig",
        {},
    ),
    "shira": ("shira", "llama", {"r": 4}, "ShiraConfig", {}),
    "shira, seed": ("shira", "llama", {"r": 2, "random_seed": 3, "target_modules": MLP}, "ShiraConfig", {}),
}
"""Name: our method, family, hyper-parameters, HF peft's config, and what differs there."""


def pair(case: str) -> tuple[Attachment, MethodParams, Any]:
    """Return our attachment on a tiny model, and HF peft's config with the same hyper-parameters."""
    import peft

    name, family, given, kind, other = CASES[case]
    given = {"target_modules": Q_V, **given}
    params = registry.info(name).params(**given)
    model = tiny_model(family, initializer_range=WIDE)
    torch.manual_seed(5)
    attachment = apply_method(model, read_anatomy(model), params)
    attachment.initialise(model)
    return attachment, params, getattr(peft, kind)(task_type="CAUSAL_LM", **{**given, **other})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_the_same_logits(case: str) -> None:
    attachment, params, config = pair(case)
    disturb(attachment, 0.1)
    attachment.after_optimizer_step(1, 1)
    other = twin(attachment, params, CASES[case][1], config).eval()
    batch = batch_for(attachment.model)
    attachment.model.eval()
    ours = logits_of(attachment, batch)
    with torch.no_grad():
        torch.testing.assert_close(other(**batch).logits, ours, atol=1e-5, rtol=1e-5)
        assert (ours - tiny_model(CASES[case][1], initializer_range=WIDE)(**batch).logits).abs().max() > 1e-4
    if "ranks" not in case:  # HF peft has one rank for all
        count = sum(parameter.numel() for parameter in attachment.trainable_parameters().values())
        assert count == sum(parameter.numel() for parameter in other.parameters() if parameter.requires_grad)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_the_same_losses_over_ten_steps(case: str) -> None:
    for optimizer in OPTIMIZERS:
        attachment, params, config = pair(case)
        other = twin(attachment, params, CASES[case][1], config)
        batch = batch_for(attachment.model)
        theirs = losses_of(other, batch, optimizer)
        assert own_losses(attachment, batch, optimizer) == pytest.approx(theirs, abs=1e-5), optimizer
        assert theirs[0] - theirs[-1] > 1e-5, "nothing was learnt: an empty comparison"
