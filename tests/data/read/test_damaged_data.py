"""Files that are damaged, made to fill the memory, or odd: refused with their name, or a bad row with its number."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from peftcli.data.read import arrow_files, compressed, json_files, text_files
from peftcli.data.read.nested_values import DEEPEST, structure, value_at
from peftcli.data.read.records import BadRow, Record
from peftcli.data.read.source_files import READERS
from peftcli.errors import UserError
from tests.data.read.reading import rows, values
from tests.data.tools import ready

PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
LINES = b"".join(b'{"a": "%d"}\n' % (n * 7919) for n in range(3000))


def written(path: Path, raw: bytes | str) -> Path:
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return path


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.arrow", "x/a.txt"])
@pytest.mark.parametrize("damage", ["cut", "not compressed"])
def test_damaged_compressed_files_are_named(tmp_path: Path, name: str, suffix: str, damage: str) -> None:
    path = tmp_path / "d" / f"{name}{suffix}"
    path.parent.mkdir(parents=True)
    packed = PACKERS[suffix](LINES)
    written(path, packed[: len(packed) // 2] if damage == "cut" else LINES)
    with pytest.raises(UserError, match=r"compressed data is damaged") as caught:
        rows(tmp_path / "d" if name.startswith("x/") else path)
    assert str(path) in str(caught.value)


def test_damage_behind_some_rows_is_told_with_its_line(tmp_path: Path) -> None:
    packed = gzip.compress(LINES)
    path = written(tmp_path / "a.jsonl.gz", packed[: len(packed) * 3 // 4])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz:\d\d\d+: "):
        rows(path)


def test_zstandard_needs_no_other_package(tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(LINES)
    whole = bytes(sink.getvalue())
    assert len(values(written(tmp_path / "a.jsonl.zst", whole))) == 3000
    with pytest.raises(UserError, match="damaged"):
        rows(written(tmp_path / "b.jsonl.zst", whole[:-9]))


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (gzip.compress(LINES), "gzip"),
        (bz2.compress(LINES), "bzip2"),
        (lzma.compress(LINES), "xz"),
        (b"PK\x03\x04\0", "zip"),
        (b"PAR1\x15\0", "parquet"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_of_another_kind_is_told_by_its_first_bytes(tmp_path: Path, raw: bytes, kind: str) -> None:
    with pytest.raises(UserError, match=kind):
        rows(written(tmp_path / "a.jsonl", raw))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_row_that_fills_the_memory_is_refused(
    tmp_path: Path, name: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (compressed, json_files, text_files):
        monkeypatch.setattr(module, "LONGEST_LINE", 100_000)
    monkeypatch.setattr(json_files, "BLOCK", 1000)
    begin = {"a.json": '[{"a": "b"},\n{"a": "', "a.jsonl": '{"a": "b"}\n{"a": "', "a.csv": 'a\n"'}.get(name, "a\nb\n")
    raw = (begin + "x" * 10**6).encode()
    with pytest.raises(UserError, match="more than 100,000 bytes"):
        rows(written(tmp_path / f"{name}{suffix}", gzip.compress(raw) if suffix else raw))


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.json", '[{"a": [' + "[]," * 10**5),  # a row of small values
        ("a.csv", 'a\n"' + "x\n" * 10**5),  # a quote that stays open
    ],
)
def test_a_row_of_many_pieces_has_the_same_limit(
    tmp_path: Path, name: str, raw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (json_files, text_files):
        monkeypatch.setattr(module, "LONGEST_LINE", 100_000)
    with pytest.raises(UserError, match="more than 100,000 bytes"):
        rows(written(tmp_path / name, raw))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.arrow", "x/a.txt"])
def test_what_expands_as_no_data_does_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "UNQUESTIONED", 10**5)
    path = tmp_path / "d" / f"{name}.gz"
    path.parent.mkdir(parents=True)
    written(path, gzip.compress(b"\n" * (4 * 10**5)))
    with pytest.raises(UserError, match="expands to more than 200 times"):
        rows(tmp_path / "d" if name.startswith("x/") else path)


def test_a_list_on_one_long_line_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (compressed, json_files):
        monkeypatch.setattr(module, "LONGEST_LINE", 1000)
    monkeypatch.setattr(json_files, "BLOCK", 100)
    many = [{"a": str(n)} for n in range(1000)]
    assert len(values(written(tmp_path / "a.json", json.dumps(many)))) == 1000
    assert len(values(written(tmp_path / "b.json", json.dumps({"data": many})))) == 1000


def test_half_a_character_is_a_bad_row_of_a_json_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = (
        r'[{"a": "x \ud83d y"}, {"a": "\ud83d\ude00"}, {"a": "\\ud83d"}, {"\udc00": 1}, {"a": "\ude00\ud83d"},'
        r' {"a": "\\\\\ud83d\ude00\\"}, {"a": "\ud83dA"}]'
    )
    kinds = [BadRow, Record, Record, BadRow, BadRow, Record, BadRow]
    for block in (*range(5, 40), 1000):
        monkeypatch.setattr(json_files, "BLOCK", block)
        found = rows(written(tmp_path / "a.json", raw))
        assert [type(row) for row in found] == kinds, block
        assert [row.values["a"] for row in found if isinstance(row, Record)] == [
            "\U0001f600",
            r"\ud83d",
            "\\\\\U0001f600\\",
        ]


@pytest.mark.parametrize("depth", [DEEPEST + 1, 900, 990, 100_000])
@pytest.mark.parametrize("pair", ['{"a":}', "[]"])
def test_deeply_nested_rows_are_bad_rows(tmp_path: Path, depth: int, pair: str) -> None:
    deep = pair[:-1] * depth + "1" + pair[-1] * depth
    line = f'{{"a": {deep}}}'
    first, second = rows(written(tmp_path / "a.jsonl", f'{line}\n{{"a": "x"}}\n'))
    assert isinstance(first, BadRow) and first.row == 1 and isinstance(second, Record)
    with pytest.raises(UserError, match=r"a\.json.* levels deep"):
        rows(written(tmp_path / "a.json", f"[{line}]"))
    assert structure(deep) == deep and value_at({"a": deep}, "a.0.0") != 1


def test_an_error_at_the_beginning_of_a_list_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.json", '[{"a": "b"}, {"a": }' + ', {"a": "b"}\n' * 10**5)
    read = list[int]()
    lines = json_files.text_lines

    def counted(*arguments: object) -> object:
        for line in lines(*arguments):  # type: ignore[arg-type]
            read.append(1)
            yield line

    monkeypatch.setattr(json_files, "text_lines", counted)
    with pytest.raises(UserError, match=r"a\.json:1: broken JSON"):
        rows(path)
    assert len(read) < 10


@pytest.mark.parametrize("number", ["1" + "0" * 400, "9" * 5000, "1e999", "-1e999"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_huge_numbers_are_rows_or_named(tmp_path: Path, name: str, number: str) -> None:
    text = f'{{"a": {number}}}'
    path = written(tmp_path / name, f"[{text}]" if name == "a.json" else text)
    try:
        assert len(rows(path)) == 1
    except UserError as error:
        assert str(path) in str(error)


def test_a_label_of_hundreds_of_digits_is_a_bad_row(tokenizer: Any, tmp_path: Path) -> None:
    labels = ["0.5", "1.5", "2.5"] * 4 + ["1" + "0" * 400]
    lines = "".join(f'{{"text": "a", "label": {label}}}\n' for label in labels)
    with pytest.raises(UserError, match=r"a\.jsonl:13: the label 1000.* is not a number"):
        ready(tokenizer, written(tmp_path / "a.jsonl", lines), "sequence_classification")


def test_a_template_in_the_home_of_nobody_is_no_file(tokenizer: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(UserError, match="no such file"):
        ready(tokenizer, path, chat_template="~no-such-user-here/t.jinja")


def test_very_many_columns_are_read_in_time(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(50_000)]
    path = written(tmp_path / "a.csv", ",".join(names) + "\n" + ",".join(names) + "\n")
    assert len(values(path)[0][1]) == 50_000
    twice = written(tmp_path / "b.tsv", "\t".join([*names, "c1"]) + "\n")
    with pytest.raises(UserError, match="names c1 twice"):
        rows(twice)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_file_is_named_and_never_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    written(tmp_path / "c.jsonl", '{"text": "a"}\n')
    with pytest.raises(UserError, match="holds no data"):
        rows(tmp_path / "a.jsonl")
    os.mkfifo(tmp_path / "b.jsonl")
    for name in ("b.jsonl", "*.jsonl", "."):  # beside a file, too: rows would be missing without a word
        with pytest.raises(UserError, match=r"b\.jsonl is a pipe, not a file"):
            rows(tmp_path / name)
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.jsonl").symlink_to("/dev/zero")
    for name in ("b.jsonl", "*.jsonl", "."):
        with pytest.raises(UserError, match=r"b\.jsonl is a device, not a file"):
            rows(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(UserError, match="is a socket, not a file"):
            rows(tmp_path / "s")


def test_a_link_to_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl", '{"text": "a"}\n')
    (tmp_path / "b.jsonl").symlink_to("blobs/1234")
    for name in ("*.jsonl", "."):
        with pytest.raises(UserError, match=r"b\.jsonl is a link to blobs/1234, which does not exist"):
            rows(tmp_path / name)
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "README.md").symlink_to("blobs/5678")  # is read by nobody
    assert len(rows(tmp_path)) == 1


def test_a_directory_that_may_not_be_listed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match="cannot be listed: Permission denied") as error:
        rows(tmp_path)
    assert error.value.problems[0].key == "data.path"


def test_damaged_arrow_offsets_and_texts_are_found_before_they_are_used(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"\0\0\0\0\xff\xff\xff\x7f\x05\0\0\0")
    strings = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"hello"))
    no_text = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\x02\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    codes = pa.py_buffer(b"\x09\0\0\0")
    outside = pa.DictionaryArray.from_buffers(pa.dictionary(pa.int32(), pa.string()), 1, [None, codes], pa.array(["a"]))
    for number, array in enumerate((strings, no_text, outside)):
        table = pa.Table.from_arrays([array], names=["a"])
        path = tmp_path / f"{number}.arrow"
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(UserError, match=rf"{number}\.arrow: cannot be read"):
            rows(path)


def test_a_value_that_python_lacks_is_a_bad_row(tmp_path: Path) -> None:
    table = pa.table({"a": ["x", "y", "z"], "day": pa.array([0, 2**31 - 1, 1], pa.date32())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = rows(tmp_path / "a.parquet")
    assert [(type(row), row.row) for row in found] == [(Record, 1), (BadRow, 2), (Record, 3)]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_value_that_a_file_holds_once_for_many_rows_is_not_in_memory_as_often(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrow_files, "IN_MEMORY", 10**6)
    codes = pa.array([0] * 200, pa.int32())
    table = pa.table({"a": pa.DictionaryArray.from_arrays(codes, pa.array(["x" * 10**6]))})
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(table.cast(pa.schema({"a": pa.string()})), path)
    else:
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    tracemalloc.start()
    lengths = [len(row.values["a"]) for row in READERS[f".{suffix}"](path, "a") if isinstance(row, Record)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lengths == [10**6] * 200 and peak < 2 * 10**7


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dataset_info.json", "[]"),
        ("dataset_info.json", '{"features": [1]}'),
        ("dataset_info.json", "[" * 100_000),
        ("state.json", '{"_data_files": [{"filename": "../secret.arrow"}]}'),
        ("state.json", '{"_data_files": [{"filename": 5}]}'),
        ("state.json", '{"_data_files": 5}'),
        ("state.json", "{"),
    ],
)
def test_damaged_records_of_a_saved_data_set_are_named(tmp_path: Path, name: str, text: str) -> None:
    table = pa.table({"a": ["x"]})
    saved = tmp_path / "saved"
    saved.mkdir()
    for path in (saved / "data.arrow", tmp_path / "secret.arrow"):
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    written(saved / "dataset_info.json", '{"features": {}}')
    written(saved / "state.json", '{"_data_files": [{"filename": "data.arrow"}]}')
    assert len(rows(saved)) == 1
    written(saved / name, text)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        rows(saved)
