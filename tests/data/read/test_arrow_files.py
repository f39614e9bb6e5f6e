"""Columnar files give the rows that were written: no keys of other rows, and the names of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from peftcli.data.read.records import Record
from peftcli.data.read.sources import resolve_source
from peftcli.recipe.schema import DataSource

NESTED: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "calls": [{"name": "x", "with": {"city": 1}}]},
        ]
    },
    {"messages": [{"role": "user", "content": "b", "name": "Ada"}], "tools": [{"of": {"amount": {"type": "int"}}}]},
    {"messages": [{"role": "tool", "content": "c"}], "tools": [{"of": {"city": {"type": "str"}}}]},
]


def values(path: Path) -> list[dict[str, Any]]:
    return [row.values for row in resolve_source(DataSource(path=str(path))).rows() if isinstance(row, Record)]


def test_objects_have_their_own_keys_only(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"tools": None, **row} for row in NESTED])
    pq.write_table(table, tmp_path / "a.parquet")
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        assert values(tmp_path / name) == [{"tools": None, **row} for row in NESTED]


def test_maps_are_objects(tmp_path: Path) -> None:
    kind = pa.map_(pa.string(), pa.int64())
    pq.write_table(pa.table({"m": pa.array([[("a", 1)], [("b", 2)]], type=kind)}), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [{"m": {"a": 1}}, {"m": {"b": 2}}]


@pytest.mark.parametrize("write", ["parquet", "arrow", "saved"])
def test_names_of_classes_come_with_the_file(tmp_path: Path, write: str) -> None:
    import datasets

    label = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features(
        {"label": label, "tags": datasets.Sequence(label), "inside": {"grade": label, "text": datasets.Value("string")}}
    )
    rows = {"label": [1, 0, -1], "tags": [[0, 1], [], [1]], "inside": [{"grade": n, "text": "t"} for n in (1, 0, 1)]}
    made = datasets.Dataset.from_dict(rows, features=features)
    path = tmp_path / f"a.{write}"
    if write == "parquet":
        made.to_parquet(path)
    elif write == "saved":
        made.save_to_disk(path)
    else:
        with pyarrow.ipc.new_stream(path, made.data.table.schema) as writer:
            writer.write_table(made.data.table)
    found = values(path)
    assert [row["label"] for row in found] == ["pos", "neg", None]
    assert [row["tags"] for row in found] == [["neg", "pos"], [], ["pos"]]
    assert [row["inside"]["grade"] for row in found] == ["pos", "neg", "pos"]
