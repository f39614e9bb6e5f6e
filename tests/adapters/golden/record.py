"""Record the stored adapters of the current format version: `python -m tests.adapters.golden.record`.

Run it once, when the format's version is raised, and commit what it wrote: a later version must read those files as
they are. It never touches a directory that exists.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.adapters.format import FORMAT_VERSION, describe
from peftcli.adapters.saving import save_adapter
from peftcli.models.load.identity import BaseIdentity
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.registry import registry
from tests.tiny import tiny_model

HERE = Path(__file__).parent
CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "lora": (
        "lora",
        "llama",
        "causal_lm",
        {"r": 2, "target_modules": ["attn.q"], "rank_pattern": {"1.self_attn.q_proj": 1}},
    ),
    "lora-slices": ("lora", "gpt2", "causal_lm", {"r": 1, "target_modules": ["attn.q", "attn.v"]}),
    "pissa-head": (
        "lora",
        "bert",
        "sequence_classification",
        {"r": 1, "init_lora_weights": "pissa", "target_modules": ["attn.v"]},
    ),
    "adalora": ("adalora", "llama", "causal_lm", {"init_r": 2, "target_r": 1, "target_modules": ["attn.v"]}),
    "vera": ("vera", "llama", "causal_lm", {"r": 4}),
    "ia3": ("ia3", "llama", "causal_lm", {}),
    "prefix": ("prefix_tuning", "llama", "causal_lm", {"num_virtual_tokens": 2, "encoder_hidden_size": 4}),
    "prompt": ("prompt_tuning", "bert", "sequence_classification", {"num_virtual_tokens": 2}),
    "bitfit": ("bitfit", "bert", "sequence_classification", {"terms": ["attn.q"]}),
    "adapter": ("adapter", "bert", "sequence_classification", {"placement": "pfeiffer", "bottleneck_size": 2}),
    "compacter": ("compacter", "llama", "causal_lm", {"bottleneck_size": 4, "train_layer_norm": False}),
}


def digest(state: dict[str, Tensor]) -> str:
    """Return a hash over keys, shapes and values, whatever the order."""
    found = hashlib.sha256()
    for key in sorted(state):
        found.update(f"{key} {tuple(state[key].shape)} {state[key].dtype}".encode())
        found.update(state[key].contiguous().numpy().tobytes())
    return found.hexdigest()[:32]


def record() -> None:
    """Write a directory for each case, and what must be read from it."""
    expected = {}
    for case, (name, family, task, options) in CASES.items():
        torch.manual_seed(0)
        model, params = tiny_model(family, task), registry.info(name).params(**options)
        anatomy = read_anatomy(model)
        attachment = apply_method(model, anatomy, params)
        attachment.initialise(model)
        with torch.no_grad():
            for parameter in attachment.trainable_parameters().values():
                parameter.add_(0.1 * torch.randn_like(parameter))
        state = {key: tensor.clone() for key, tensor in attachment.state_dict().items()}
        labels = {"problem": "single_label", "names": ["no", "maybe", "yes"]} if "class" in task else None
        base = BaseIdentity("tiny", None, "sha256:0", None, "float32", family, {})
        meta = describe(attachment, anatomy, task=task, base=base, labels=labels)
        save_adapter(HERE / f"v{FORMAT_VERSION}" / case, attachment_state=state, params=params, meta=meta)
        expected[case] = {
            "family": family,
            "task": task,
            "method": params.model_dump(mode="json"),
            "state": digest(state),
        }
    text = json.dumps(expected, indent=1, sort_keys=True)
    (HERE / f"v{FORMAT_VERSION}" / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if (HERE / f"v{FORMAT_VERSION}").exists():
        raise SystemExit(f"format version {FORMAT_VERSION} is recorded already; its files must not change")
    record()
