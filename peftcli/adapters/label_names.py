"""The names of a classifier's labels beside an adapter for another library, whose own files have no place for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftcli.adapters.adapter_files import read_json, write_json
from peftcli.adapters.format import SavedAdapter
from peftcli.data.store.labels import LabelSpec
from peftcli.models.load.head_rows import has_names, unnamed_labels
from peftcli.tasks.task_table import task_info
from peftcli.typed_record import record_of

LABELS = "labels.json"
"""The kind of problem, and the names in the order of the head's rows."""


def write_label_names(directory: Path, labels: Mapping[str, Any] | None) -> None:
    """Write `LABELS` beside an exported adapter; nothing where the task has no labels."""
    if labels is not None:
        write_json(directory / LABELS, labels)


def with_label_names(saved: SavedAdapter, directory: Path) -> SavedAdapter:
    """Return an adapter with the labels that lie beside it, if its own record has none.

    Raises:
        UserError: the file does not hold labels.
    """
    file = directory / LABELS
    if saved.meta.labels is not None or not file.is_file():
        return saved
    labels = record_of(LabelSpec, read_json(file), file, suggestion="copy it again, or remove it")
    return replace(saved, meta=replace(saved.meta, labels=labels.as_dict()))


def names_of_base(config: Mapping[str, Any], size: int) -> list[str] | None:
    """Return the names that a base's config has for as many labels; None where they are placeholders or others."""
    names = [str(name) for _, name in sorted((config.get("id2label") or {}).items(), key=lambda item: int(item[0]))]
    return names if len(names) == size and has_names(names) else None


def labels_or_placeholders(task: str, size: int, names: list[str] | None) -> tuple[dict[str, Any] | None, str | None]:
    """Return the labels of a head whose files name none, and a note.

    Args:
        task: as in a recipe.
        size: outputs of the head.
        names: those of the base's config, if it has some.
    """
    kind = task_info(task).label_kind
    if kind is None:
        return None, None
    if size == 1:
        return {"problem": "regression", "names": []}, None
    if names is not None:
        note = f"the adapter's files name no labels: those of the base's config are used, {', '.join(names[:6])}"
        return {"problem": kind, "names": names}, note
    note = (
        f"the names of the labels are unknown: predictions say LABEL_0 to LABEL_{size - 1}, in the order of the head's "
        f"rows; a file {LABELS} beside the adapter, such as "
        '{"problem": "' + kind + '", "names": [...]}, would name them'
    )
    return {"problem": kind, "names": list(unnamed_labels(size))}, note
