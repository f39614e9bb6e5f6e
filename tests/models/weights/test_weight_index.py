"""An index of weights leads to safetensors files of its own directory, or is named with what is wrong in it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from peftcli.errors import UserError
from peftcli.models.load.model_files import find_source
from peftcli.models.weights.base_files import stored_tensors
from peftcli.models.weights.weight_damage import check_weight_files
from peftcli.models.weights.weight_index import INDEX, SINGLE, weight_files


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, directory / "part.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    return directory


def refused(directory: Path) -> str:
    """Return the message of every way to the files, which must be the same."""
    messages = set()
    ways: list[Callable[[], Any]] = [
        lambda: stored_tensors(directory),
        lambda: check_weight_files(find_source(str(directory))),
    ]
    for way in ways:
        with pytest.raises(UserError) as caught:
            way()
        messages.add(str(caught.value))
    (message,) = messages
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not JSON"),
        ("[]", "expected an object"),
        ("{}", "weight_map"),
        ('{"metadata": {}, "weight_map": 5}', "weight_map"),
        ('{"metadata": {}, "weight_map": {}}', "weight_map"),
        ('{"metadata": {}, "weight_map": {"a": 5}}', "weight_map.a"),
        ('{"metadata": 1, "weight_map": {"a": "part.safetensors"}}', "metadata"),
        ("[" * 100_000, "nested too deeply"),
        ("\x00\xff", "is not JSON"),
    ],
)
def test_a_damaged_index_is_named_with_its_key(base: Path, text: str, expected: str) -> None:
    (base / INDEX).write_text(text)
    message = refused(base)
    assert INDEX in message and expected in message


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "x/../../outside.safetensors", "ABSOLUTE", "C:\\w.safetensors", "..\\w.safetensors"],
)
def test_an_index_does_not_lead_out_of_its_directory(base: Path, name: str) -> None:
    name = name.replace("ABSOLUTE", str(base.parent / "outside.safetensors"))
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    message = refused(base)
    assert "outside the model's directory" in message and "weight_map.a" in message


@pytest.mark.parametrize("name", ["part.bin", "part.safetensors.bin", "pytorch_model-00001.pt", "part.safetensors/"])
def test_an_index_does_not_lead_to_a_pickle(base: Path, name: str) -> None:
    torch.save({"a": torch.zeros(1)}, base / name.rstrip("/").replace("part.safetensors", "other"))
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    assert "pickle" in refused(base)


def test_a_link_does_not_make_another_file_a_weight_file(base: Path) -> None:
    torch.save({"a": torch.zeros(1)}, base.parent / "outside.bin")
    os.symlink(base.parent / "outside.bin", base / "linked.safetensors")
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"a": "linked.safetensors"}}))
    assert "is a link to" in refused(base)
    os.symlink(base.parent / "outside.bin", base / SINGLE)
    assert "is a link to" in refused(base)


def test_shared_files_and_the_cache_of_the_hub_are_followed(base: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared" / SINGLE
    shared.parent.mkdir()
    save_file({"a": torch.zeros(1)}, shared)
    os.symlink(shared, base / SINGLE)
    assert list(stored_tensors(base)) == ["a"]
    snapshot, blob = tmp_path / "models--x/snapshots/1234", tmp_path / "models--x/blobs/abcd"
    blob.parent.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    shared.rename(blob)
    os.symlink(Path("../../blobs/abcd"), snapshot / SINGLE)
    assert weight_files(snapshot) == [snapshot / SINGLE]


def test_a_file_that_the_index_names_and_that_is_missing_is_said(base: Path) -> None:
    names = {"a": "part.safetensors", "b": "gone.safetensors"}
    (base / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(UserError, match=r"gone\.safetensors is missing"):
        check_weight_files(find_source(str(base)))
    with pytest.raises(UserError, match=r"lacks 1 .* gone\.safetensors"):
        stored_tensors(base)
