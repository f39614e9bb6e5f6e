"""Files that are no weights, and weights that are no numbers, are named before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftcli.errors import UserError
from peftcli.models.load.load_model import load_model
from peftcli.models.load.model_files import find_source
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.models.weights.weight_damage import check_weight_files, wrong_start
from peftcli.recipe.schema import ModelSpec
from tests.tiny import save_tiny

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 2200119864\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "pointer of git-lfs"),
        (b"<!DOCTYPE html>\n<html><title>Sign in</title>", "web page"),
        (b"\n  <html lang=en>", "web page"),
        (b"", "is empty"),
        (b"\0" * 4096, "zero bytes"),
        (b"PK\x03\x04" + b"x" * 50, "pickle or archive"),
        (b"GGUF\x03\0\0\0" + b"x" * 50, "GGUF file under another name"),
        (b"\xff\xff\xff\0\0\0\0\0{" + b"x" * 50, "no complete safetensors file"),
    ],
)
def test_a_file_that_holds_no_weights_is_named_with_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    save_tiny(tmp_path, "llama")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        load_model(ModelSpec(name_or_path=str(tmp_path)), "causal_lm")
    problem = error.value.problems[0]
    assert "model.safetensors" in problem.message
    assert problem.suggestion


def test_a_file_cut_short_and_a_pointer_among_shards_are_named(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(UserError, match="no complete safetensors file"):
        check_weight_files(find_source(str(tmp_path)))
    file.rename(tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(whole)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(POINTER)
    (tmp_path / "unused.safetensors").write_bytes(POINTER)
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(UserError) as error:
        check_weight_files(find_source(str(tmp_path)))
    assert [problem.message for problem in error.value.problems] == [
        f"{tmp_path / 'model-00002-of-00002.safetensors'} is a pointer of git-lfs, not the file itself"
    ]


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((640).to_bytes(8, "little") + b"{" + b" " * 639)  # 0x280: the first bytes of a pickle
    assert wrong_start(file) is None


def test_a_tokenizer_that_is_a_pointer_is_named(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    (tmp_path / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(UserError, match=r"tokenizer\.json is a pointer of git-lfs"):
        load_tokenizer(ModelSpec(name_or_path=str(tmp_path)))


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_no_number_is_named_with_its_tensor(tmp_path: Path, value, word, dtype) -> None:
    save_tiny(tmp_path, "llama")
    weights = {name: tensor.to(dtype) for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"not all numbers: model\.layers\.1\.mlp\.up_proj\.weight \({word}\)"):
        load_model(ModelSpec(name_or_path=str(tmp_path)), "causal_lm")


def test_large_finite_weights_are_no_infinity(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"].fill_(3e38)  # their sum is infinite in float32
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_model(ModelSpec(name_or_path=str(tmp_path)), "causal_lm")


def test_an_adapter_beside_a_model_is_refused(tmp_path: Path) -> None:
    """With HF peft installed transformers loads it in silence, from a pickle too."""
    save_tiny(tmp_path, "llama")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match="a model and an adapter"):
        check_weight_files(find_source(str(tmp_path)))
