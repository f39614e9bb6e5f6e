"""Methods on a real 4-bit base through the training loop: what trains, what stays packed, and who refuses.

The setting is the hardest one: checkpointed blocks, packed documents, bfloat16 computation. Runs on 4 bits that were
stopped and resumed are in test_every_method_in_use.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftcli.errors import UserError
from peftcli.layers.quantised.quantised_weights import is_quantised
from peftcli.protocol.registry import registry
from tests.matrix.runs import SMALL, Workshop, watched_training

pytest.importorskip("bitsandbytes")

FOUR_BITS = {"model__load_in_4bit": True}
HARDEST = {
    "data__packing": True,
    "training__per_device_train_batch_size": 2,
    "training__gradient_checkpointing": True,
    "training__bf16": True,
}
WHOLE_MODELS = [name for name in registry.names() if not registry.info(name).quantised_base]
METHODS: list[dict[str, Any]] = [
    *({"name": name, **SMALL.get(name, {})} for name in registry.names() if name not in WHOLE_MODELS),
    {"name": "qlora", "r": 4, "use_dora": True},
    {"name": "qlora", "r": 4, "init_lora_weights": "pissa"},
    {"name": "qlora", "r": 4, "init_lora_weights": "olora"},
    {"name": "qlora", "r": 4, "init_lora_weights": "loftq"},
    {"name": "qlora", "r": 4, "init_lora_weights": "eva", "freeze_a": True},
]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("four"))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values()))[:40])
def test_it_trains_and_the_packed_weights_stay(workshop: Workshop, method: dict[str, Any]) -> None:
    seen = watched_training(workshop.recipe("run", "gpt2", method["name"], method=method, **FOUR_BITS, **HARDEST))
    seen.check()
    assert seen.session is not None
    packed = [module for module in seen.session.model.modules() if is_quantised(module)]
    assert len(packed) == 8  # of 2 blocks: qkv, o, up, down
    assert all(weight_of(module).dtype == torch.uint8 for module in packed)


def weight_of(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_what_trains_the_base_itself_refuses_when_the_recipe_is_read(workshop: Workshop, name: str) -> None:
    with pytest.raises(UserError, match="cannot train on a quantised base"):
        workshop.recipe("refused", "gpt2", name, **FOUR_BITS)


def test_whole_models_are_the_only_ones_that_refuse() -> None:
    assert WHOLE_MODELS == ["full", "freeze"]
