"""The records beside an adapter: any key missing or of another kind is named with its file, or the adapter loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftcli.adapters.adapter_files import CONFIG, SIDECAR, WEIGHTS
from peftcli.adapters.adapterhub.hub_config import HEAD_CONFIG, read_hub_config, read_labels
from peftcli.adapters.label_names import LABELS
from peftcli.adapters.library_table import library_of
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.saving import save_adapter
from peftcli.adapters.transfer import export_run
from peftcli.errors import UserError
from tests.adapters.test_directory import attached
from tests.damage import changed
from tests.tiny import save_tiny

METHODS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lora": ("bert", "lora", {"rank_pattern": {"attn.q": 2}, "alpha_pattern": {"attn.v": 3.0}}),
    "plain-lora": ("bert", "lora", {}),
    "adalora": ("llama", "adalora", {"tinit": 1, "tfinal": 1}),
    "prefix": ("llama", "prefix_tuning", {"num_virtual_tokens": 2}),
    "vera": ("llama", "vera", {"r": 4}),
    "ia3": ("llama", "ia3", {}),
    "oft": ("llama", "oft", {"oft_block_size": 8, "coft": True}),
    "miss": ("llama", "miss", {"r": 8}),
    "hira": ("llama", "hira", {"r": 4}),
    "lokr": ("llama", "lokr", {"r": 2, "rank_pattern": {"attn.q": 1}, "alpha_pattern": {"attn.v": 3.0}}),
    "shira": ("llama", "shira", {"r": 4}),
    "adapter": ("bert", "adapter", {"bottleneck_size": 4, "train_layer_norm": False}),
}


_WITHOUT_A_KEY = (
    "nested too deeply",
    "not from a known library",
    "is not what peftcli.json",
    "non_linearity",
    "by r and rank_pattern",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    home = tmp_path_factory.mktemp("adapters")

    def directory(kind: str) -> Path:
        if not (home / kind).exists():
            family, name, options = METHODS[kind]
            _, attachment, params, meta = attached(family, name, **options)
            meta = replace(meta, base={**meta.base, "model_type": family})
            save_adapter(home / kind, attachment_state=attachment.state_dict(), params=params, meta=meta)
        return home / kind

    return directory


def whole(file: Path, read: Callable[[], Any], *, without: tuple[str, ...] = ()) -> list[str]:
    """Change every value of a JSON file in every way; return the refusals that do not name the file and the key."""
    original = file.read_text(encoding="utf-8")
    data = {key: value for key, value in json.loads(original).items() if key not in without}
    unnamed = []
    try:
        for key, text in changed(data):
            file.write_text(text, encoding="utf-8")
            try:
                read()
            except UserError as error:  # any other exception fails the test
                said = str(error)
                if file.name not in said or not any(words in said for words in (key, *_WITHOUT_A_KEY)):
                    unnamed.append(f"{key}: {said}")
    finally:
        file.write_text(original, encoding="utf-8")
    return unnamed


def load(directory: Path) -> Callable[[], Any]:
    return lambda: load_adapter(directory)


@pytest.mark.parametrize("kind", ["lora", "prefix", "adapter"])
def test_every_key_of_peftcli_json(kind: str, written: Callable[[str], Path]) -> None:
    directory = written(kind)
    # without its hashes, as an earlier version wrote it
    assert whole(directory / SIDECAR, load(directory), without=("digests",)) == []


def test_every_key_of_peftcli_json_that_changed_is_noticed_by_its_hash(written: Callable[[str], Path]) -> None:
    file = written("lora") / SIDECAR
    original, unnoticed = file.read_text(), []
    data = json.loads(original)
    try:
        for key, text in changed({part: data[part] for part in ("method", "meta", "layout")}, ("0", '"x"', "null")):
            parts = json.loads(text)
            if parts == {part: data[part] for part in parts}:
                continue
            file.write_text(
                json.dumps({**{k: v for k, v in data.items() if k in ("format_version", "digests")}, **parts})
            )
            try:
                load_adapter(file.parent)
                unnoticed.append(key)
            except UserError as error:
                assert file.name in str(error)
    finally:
        file.write_text(original)
    assert unnoticed == []


@pytest.mark.parametrize("kind", ["lora", "adalora", "prefix", "vera", "ia3", "oft", "miss", "hira", "lokr", "shira"])
def test_every_key_of_adapter_config_json(kind: str, written: Callable[[str], Path], tmp_path: Path) -> None:
    directory = written(kind)
    assert whole(directory / CONFIG, load(directory)) == []  # in a run
    export_run(directory, tmp_path / "foreign", to="hf-peft")
    foreign = tmp_path / "foreign"
    assert whole(foreign / CONFIG, lambda: library_of(foreign).base_of(foreign)) == []
    if kind != "prefix":  # whose file cannot be read without the base
        assert whole(foreign / CONFIG, load(foreign)) == []
    if (foreign / LABELS).is_file():
        assert whole(foreign / LABELS, load(foreign)) == []


def test_every_key_of_adapterhubs_files(written: Callable[[str], Path], tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "bert", "base")
    for kind in ("adapter", "plain-lora"):
        hub = tmp_path / kind
        export_run(written(kind), hub, to="adapterhub", base=str(base))
        assert whole(hub / CONFIG, partial(read_hub_config, hub)) == []
        assert whole(hub / HEAD_CONFIG, partial(read_labels, hub)) == []
        assert whole(hub / CONFIG, partial(library_of(hub).base_of, hub)) == []


def flip(file: Path, where: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[where] ^= 1 << bit
    file.write_bytes(data)


@pytest.mark.parametrize("bit", range(8))
def test_one_flipped_bit_of_the_weights_is_noticed(bit: int, written: Callable[[str], Path]) -> None:
    file = written("lora") / WEIGHTS
    original = file.read_bytes()
    header = int.from_bytes(original[:8], "little")
    try:
        for where in (0, 9, 8 + header // 2, 8 + header, 8 + header + 5, len(original) - 1):
            flip(file, where, bit)
            with pytest.raises(UserError, match=WEIGHTS):
                load_adapter(file.parent)
            file.write_bytes(original)
    finally:
        file.write_bytes(original)


def test_weights_that_no_training_gives_are_refused_where_no_hash_tells(
    written: Callable[[str], Path], tmp_path: Path
) -> None:
    export_run(written("lora"), tmp_path / "foreign", to="hf-peft")
    file = tmp_path / "foreign" / WEIGHTS
    tensors = load_file(file)
    name = next(key for key in tensors if "lora_B" in key)
    tensors[name][0, 0] = 1e35
    save_file(tensors, file)
    with pytest.raises(UserError, match=f"beyond 1,000,000, first in {name}"):
        load_adapter(file.parent)


def test_a_change_that_was_meant_can_be_kept(written: Callable[[str], Path], tmp_path: Path) -> None:
    source = written("ia3")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = {name: 2 * tensor for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=f"if you changed it on purpose, remove '{WEIGHTS}' from digests"):
        load_adapter(tmp_path)
    record = json.loads((tmp_path / SIDECAR).read_text())
    del record["digests"][WEIGHTS]
    (tmp_path / SIDECAR).write_text(json.dumps(record))
    saved = load_adapter(tmp_path)
    assert not saved.recorded and torch.equal(next(iter(saved.state.values())), next(iter(tensors.values())))


def test_keys_of_a_later_version_are_passed_over(written: Callable[[str], Path], tmp_path: Path) -> None:
    source = written("lora")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    record = json.loads((tmp_path / SIDECAR).read_text())
    record["colour"] = record["meta"]["colour"] = record["meta"]["targets"][0]["colour"] = "green"
    record["digests"] |= {"colour.json": "sha256:0", "later": "sha256:0"}
    del record["digests"]["meta.targets"]
    (tmp_path / SIDECAR).write_text(json.dumps(record))
    assert load_adapter(tmp_path).meta == load_adapter(source).meta
