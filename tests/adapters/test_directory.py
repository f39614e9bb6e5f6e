"""The adapter directory: whole or not at all, strict to read, and refused on another base."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftcli.adapters.format import AdapterMeta, check_base, describe, shortest_names
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.saving import save_adapter
from peftcli.errors import UserError
from peftcli.models.load.identity import BaseIdentity
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.recipe.aliases import renamed_keys
from peftcli.recipe.method_params import MethodParams
from tests.tiny import tiny_model

BASE = BaseIdentity(
    "models/tiny", None, "sha256:0", None, "float32", "llama", {}, {"hidden_size": 32, "layers": 2, "vocab_size": 128}
)


def attached(
    family: str, name: str = "lora", **options: Any
) -> tuple[nn.Module, Attachment, MethodParams, AdapterMeta]:
    task = "causal_lm" if family in ("gpt2", "llama") else "sequence_classification"
    model = tiny_model(family, task)
    anatomy = read_anatomy(model)
    params = registry.info(name).params(**options)
    attachment = apply_method(model, anatomy, params)
    labels = {"problem": "single_label", "names": ["no", "maybe", "yes"]} if "class" in task else None
    return model, attachment, params, describe(attachment, anatomy, task=task, base=BASE, labels=labels)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    _, attachment, params, meta = attached("llama")
    save_adapter(tmp_path / "adapter", attachment_state=attachment.state_dict(), params=params, meta=meta)
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("family", "name", "options"),
    [
        ("bert", "lora", {"modules_to_save": ["pooler"], "rank_pattern": {"attn.q": 2}}),
        ("gpt2", "lora", {}),
        ("bert", "bitfit", {}),
        ("llama", "ia3", {}),
    ],
)
def test_every_method_comes_back_as_it_was(family: str, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    _, attachment, params, meta = attached(family, name, **options)
    save_adapter(tmp_path / "a", attachment_state=attachment.state_dict(), params=params, meta=meta)
    found = load_adapter(tmp_path / "a")
    assert (found.params, found.meta, found.notes) == (params, meta, ())
    torch.testing.assert_close(found.state, attachment.state_dict(), atol=0, rtol=0)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "peftcli.json",
    ]


def test_the_directory_is_replaced_whole_or_not_at_all(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    _, attachment, params, meta = attached("llama", r=2)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("peftcli.adapters.saving.write_json", fail)
        with pytest.raises(OSError, match="No space"):
            save_adapter(saved, attachment_state=attachment.state_dict(), params=params, meta=meta)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]
    save_adapter(saved, attachment_state=attachment.state_dict(), params=params, meta=meta)
    assert load_adapter(saved).params == params
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


def test_the_card_and_the_config_say_what_it_is(tmp_path: Path) -> None:
    _, attachment, params, meta = attached("bert")
    state = attachment.state_dict()
    save_adapter(tmp_path / "a", attachment_state=state, params=params, meta=meta, metrics={"eval_accuracy": "95.0%"})
    card = (tmp_path / "a/README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")  # models/tiny is no model of the hub
    assert "`maybe`" in card and "| eval_accuracy | 95.0% |" in card and "PeftModel.from_pretrained" in card
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["target_modules"] == ["query", "value"] and config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == ["classifier"] and config["base_model_name_or_path"] == "models/tiny"


def _rewrite(path: Path, **changes: Any) -> None:
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | changes))


def test_what_is_missing_or_damaged_is_told(saved: Path) -> None:
    with pytest.raises(UserError, match="no adapter directory"):
        load_adapter(saved.parent / "none")
    with pytest.raises(UserError, match=r"adapter_config\.json is missing"):
        load_adapter(saved.parent)
    weights = saved / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is damaged"):
        load_adapter(saved)
    weights.unlink()
    with pytest.raises(UserError, match="it is missing"):
        load_adapter(saved)
    (saved / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickle"):
        load_adapter(saved)


def test_a_sidecar_that_cannot_be_read_is_told(saved: Path) -> None:
    sidecar = saved / "peftcli.json"
    _rewrite(sidecar, digests={})
    original = sidecar.read_text()
    _rewrite(sidecar, format_version=99)
    with pytest.raises(UserError, match="format version 99"):
        load_adapter(saved)
    sidecar.write_text(original)
    method = json.loads(original)["method"]
    _rewrite(sidecar, method={**method, "r": 0})
    with pytest.raises(UserError, match=r"method\.r: the parameters of lora are not valid"):
        load_adapter(saved)
    _rewrite(sidecar, method={**method, "name": "lorra"})
    with pytest.raises(UserError, match="no method 'lorra'"):
        load_adapter(saved)
    _rewrite(sidecar, method=method, meta={"task": "causal_lm", "base": 1})
    with pytest.raises(UserError, match=r"peftcli\.json: meta\.base: input should be an object"):
        load_adapter(saved)
    sidecar.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_adapter(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.popitem(), "missing model.layers.1"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected extra"),
        (
            lambda state: state.update({next(iter(state)): torch.zeros(2, 2)}),
            r"has shape \(2, 2\), expected \(8, 32\)",
        ),
    ],
)
def test_the_state_must_fit_exactly(change: Any, message: str, saved: Path) -> None:
    found = load_adapter(saved)
    change(found.state)
    _, attachment, _, _ = attached("llama")
    with pytest.raises(UserError, match=message):
        attachment.load_state_dict(found.state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "architecture qwen2 instead of llama"),
        ({"shape": {"hidden_size": 64, "layers": 2, "vocab_size": 128}}, "hidden_size 64 instead of 32"),
        ({"shape": {"hidden_size": 32, "layers": 2, "vocab_size": 130}}, "vocab_size 130 instead of 128"),
        ({"shape": {"hidden_size": 32, "layers": 3, "vocab_size": 128}}, "layers 3 instead of 2"),
    ],
)
def test_another_base_is_refused(changes: dict[str, Any], message: str, saved: Path) -> None:
    meta = load_adapter(saved).meta
    check_base(meta, replace(BASE, name="elsewhere", fingerprint="sha256:1"), saved)
    with pytest.raises(UserError, match=message):
        check_base(meta, replace(BASE, **changes), saved)


def test_shortest_names_match_exactly_the_targets() -> None:
    every = ["a.0.q", "a.1.q", "a.0.v", "a.1.v", "b.q"]
    assert shortest_names({"a.0.v", "a.1.v"}, every) == ["v"]
    assert shortest_names({"a.0.q", "a.1.q"}, every) == ["0.q", "1.q"]
    assert shortest_names({"a.0.q"}, [*every, "c.0.q"]) == ["a.0.q"]


def test_a_link_is_not_followed_out_of_the_directory(saved: Path, tmp_path: Path) -> None:
    """Replacing an adapter that is a link replaces the link, not what it points at."""
    link = tmp_path / "link"
    os.symlink(saved, link)
    _, attachment, params, meta = attached("llama", r=2)
    save_adapter(link, attachment_state=attachment.state_dict(), params=params, meta=meta)
    assert load_adapter(link).params == params
    assert load_adapter(saved).params != params
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "link"]


def test_an_adapter_of_an_earlier_version_is_read_by_its_old_names(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    method = json.loads((saved / "peftcli.json").read_text())["method"]
    rank = method.pop("r")
    gone = renamed_keys.Change("9.0", "turbo", None, method="lora", harmless=(False,), remedy="train again")
    monkeypatch.setattr(renamed_keys, "CHANGES", (renamed_keys.Change("9.0", "rank", "r", method="lora"), gone))
    _rewrite(saved / "peftcli.json", method={**method, "rank": rank, "turbo": False}, digests={})
    assert load_adapter(saved).params.model_dump()["r"] == rank
    _rewrite(saved / "peftcli.json", method={**method, "rank": rank, "turbo": True})
    with pytest.raises(UserError, match=r"method\.turbo = True: this key was removed in peftcli 9\.0\n +train again"):
        load_adapter(saved)


def test_an_adapter_of_nan_is_refused_with_the_tensor(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = saved / "adapter_model.safetensors"
    tensors = load_file(file)
    name = list(tensors)[1]
    tensors[name][0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(UserError, match=f"not finite .* first in {name}"):
        load_adapter(saved)
