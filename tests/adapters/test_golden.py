"""Adapters of every released format version, stored in golden/, load as they were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftcli.adapters.format import FORMAT_VERSION
from peftcli.adapters.loading import load_adapter
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from tests.adapters.golden.record import HERE, digest
from tests.tiny import tiny_model

STORED = [
    (file.parent / case, expected)
    for file in sorted(HERE.glob("v*/expected.json"))
    for case, expected in json.loads(file.read_text()).items()
]


def test_the_current_version_is_recorded() -> None:
    """Whoever raises FORMAT_VERSION records it: python -m tests.adapters.golden.record."""
    assert sorted(path.name for path in HERE.glob("v*")) == [f"v{n + 1}" for n in range(FORMAT_VERSION)]
    size = sum(file.stat().st_size for file in HERE.glob("v*/*/*"))
    assert size < 120_000 * FORMAT_VERSION, "keep them tiny"


@pytest.mark.parametrize(("directory", "expected"), STORED, ids=lambda value: getattr(value, "name", ""))
def test_a_stored_adapter_loads(directory: Path, expected: dict[str, Any]) -> None:
    saved = load_adapter(directory)
    assert saved.notes == ()
    # parameters that are younger than the file take their defaults
    assert expected["method"].items() <= saved.params.model_dump(mode="json").items()
    assert (saved.meta.task, saved.meta.family) == (expected["task"], expected["family"])
    assert digest(saved.state) == expected["state"]
    model = tiny_model(expected["family"], expected["task"])
    attachment = apply_method(model, read_anatomy(model), saved.params, masters=False)
    attachment.load_state_dict(saved.state)
    assert attachment.state_dict().keys() == saved.state.keys()


def test_a_sidecar_from_before_these_keys_loads(tmp_path: Path) -> None:
    """The first files of version 1 lack these keys; methods of that time did not need them."""
    import shutil

    shutil.copytree(HERE / "v1/lora", tmp_path / "lora")
    sidecar = tmp_path / "lora/peftcli.json"
    data = json.loads(sidecar.read_text())
    for key in ("places", "stacks", "prefix_route"):
        del data["meta"][key]
    sidecar.write_text(json.dumps(data))
    assert load_adapter(tmp_path / "lora").state.keys() == load_adapter(HERE / "v1/lora").state.keys()
