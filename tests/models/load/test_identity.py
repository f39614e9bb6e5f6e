"""The fingerprint of a base, and which bases an adapter fits."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from peftcli.models.load.identity import BaseIdentity, fingerprint, tensors_fingerprint
from peftcli.models.load.load_model import load_model
from peftcli.recipe.schema import ModelSpec
from tests.tiny import save_tiny


def test_copies_agree_and_changes_are_seen(tmp_path: Path) -> None:
    first = save_tiny(tmp_path / "a", "llama")
    copy = Path(shutil.copytree(first, tmp_path / "b"))
    assert fingerprint(first) == fingerprint(copy)
    config = copy / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "transformers_version": "9.9", "dtype": "bfloat16"}, indent=1))
    assert fingerprint(first) == fingerprint(copy)  # what saving rewrites does not count
    config.write_text(json.dumps({**values, "rope_theta": 5.0}))
    assert fingerprint(first) != fingerprint(copy)
    config.write_text(json.dumps(values))
    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert fingerprint(first) != fingerprint(copy)


def test_a_change_of_any_one_tensor_is_seen(tmp_path: Path) -> None:
    file = save_tiny(tmp_path, "llama") / "model.safetensors"
    tensors = load_file(file)
    one = load_model(ModelSpec(name_or_path=str(tmp_path)), "causal_lm").identity
    for name, value in tensors.items():
        save_file({**tensors, name: value * 1.5 + 0.5}, file, metadata={"format": "pt"})
        assert tensors_fingerprint(tmp_path) != one.tensors, name
        assert not one.same_files(replace(one, tensors=tensors_fingerprint(tmp_path)))
    save_file(tensors, file, metadata={"format": "pt"})
    assert tensors_fingerprint(tmp_path) == one.tensors
    assert one.same_files(replace(one, tensors=None))  # the record of an earlier version


def test_a_file_is_its_own_identity(tmp_path: Path) -> None:
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    one.write_bytes(b"GGUF" + bytes(100_000))
    two.write_bytes(b"GGUF" + bytes(100_000))
    assert fingerprint(one) == fingerprint(two)
    two.write_bytes(b"GGUF" + bytes(99_999) + b"x")
    assert fingerprint(one) != fingerprint(two)


def test_a_loaded_model_knows_its_base(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    identity = load_model(ModelSpec(name_or_path=str(tmp_path)), "causal_lm").identity
    assert identity.fingerprint == fingerprint(tmp_path)
    assert (identity.model_type, identity.dtype, identity.quantization) == ("llama", "float32", None)
    assert identity.shape == {"hidden_size": 32, "layers": 2, "vocab_size": 128}
    assert set(identity.versions) >= {"torch", "transformers"}
    assert BaseIdentity.from_dict(json.loads(json.dumps(identity.as_dict()))) == identity
    assert BaseIdentity.from_dict({**identity.as_dict(), "of_a_later_version": 1}) == identity


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gpt2"}, "architecture gpt2 instead of llama"),
        ({"shape": {"hidden_size": 64, "vocab_size": 128}}, "hidden_size 64 instead of 32"),
        ({"shape": {"hidden_size": 32, "vocab_size": 5}}, "vocab_size 5 instead of 128"),
    ],
)
def test_a_base_that_an_adapter_does_not_fit(change: dict[str, object], reason: str) -> None:
    own = BaseIdentity("a", None, "x", None, "float32", "llama", {}, {"hidden_size": 32, "vocab_size": 128})
    assert own.misfits(replace(own, name="b", fingerprint="y")) == []
    assert own.misfits(replace(own, **change)) == [reason]  # type: ignore[arg-type]  # of the cases above


def test_it_needs_no_torch() -> None:
    names = ("load.identity", "load.model_files", "families.family_table", "anatomy", "model_tasks")
    modules = ", ".join(f"peftcli.models.{name}" for name in names)
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
