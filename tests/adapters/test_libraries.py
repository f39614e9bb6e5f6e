"""The table of libraries: every folder has its library, names do not clash, and unknown ones are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftcli.adapters.hf.hf_table import FORMATS
from peftcli.adapters.library_table import LIBRARIES, library_named, library_of
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.transfer import import_adapter
from peftcli.errors import UserError
from peftcli.protocol.registry import registry

ROOM = Path(__file__).resolve().parents[2] / "peftcli" / "adapters"


def test_every_folder_is_a_library_of_the_table() -> None:
    folders = {path.parent.name for path in ROOM.glob("*/__init__.py")}
    assert len(folders) > 1
    assert {type(library).__module__.split(".")[-2] for library in LIBRARIES.values()} == folders


def test_libraries_hold_methods_that_exist_and_say_what_they_are() -> None:
    layouts = [library.run_layout.name for library in LIBRARIES.values() if library.run_layout]
    assert len(set(layouts)) == len(layouts)
    for library in LIBRARIES.values():
        assert library.methods() and set(library.methods()) <= set(registry.names())
        assert set(library.instead) <= set(registry.names())
        assert library.title and library.files and library.lacks


def test_one_hf_format_a_type() -> None:
    kinds: dict[str, set[type]] = {}
    for known in FORMATS.values():
        kinds.setdefault(known.peft_type, set()).add(type(known))
    assert all(len(classes) == 1 for classes in kinds.values())


def test_the_room_names_no_library_outside_its_folder() -> None:
    """Exporting, importing, loading and saving go through the table."""
    files = [ROOM / f"{name}.py" for name in ("transfer", "loading", "saving", "library", "base_shape")]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "adapters.hf" not in text and "adapterhub" not in text.lower(), file.name


def test_an_unknown_library_is_told() -> None:
    with pytest.raises(UserError, match=r"--to hf_peft: there is no such library\n +did you mean hf-peft\?"):
        library_named("hf_peft")


def test_files_of_no_library_are_told(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"library": "another"}))
    for attempt in (library_of, load_adapter):
        with pytest.raises(UserError, match=r"is not from a known library\n +known are: HF peft, AdapterHub"):
            attempt(tmp_path)
    with pytest.raises(UserError, match="is not from a known library"):
        import_adapter(tmp_path, tmp_path / "run")


def test_adapterhubs_files_are_not_loaded_without_a_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"config": {}, "model_type": "bert"}))
    with pytest.raises(UserError, match=r"which cannot be read without its base model\n +first turn it into ours"):
        load_adapter(tmp_path)
