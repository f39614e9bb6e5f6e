"""Data files of every format and compression, damaged by a seeded chance: `python -m tests.data.damaged_files 2000`.

The command tries so many cases in a child process, which a reader may end by a signal, and prints what became of them.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from peftcli.data.read.records import Record
from peftcli.data.read.sources import resolve_source
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSource

ROWS: list[dict[str, Any]] = [
    {"text": f"row {n} \U0001f600", "label": "abc"[n % 3], "tags": ["x"] * (n % 4), "turn": {"role": "user", "n": n}}
    for n in range(40)
]
_LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def _arrow(writer: Callable[..., Any], **options: Any) -> bytes:
    table = pa.Table.from_pylist(ROWS)
    table = table.append_column("kind", pa.array(["p", "q"] * 20).dictionary_encode())
    table = table.append_column("day", pa.array(range(40), pa.date32()))
    sink = io.BytesIO()
    with writer(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write_table(table, max_chunksize=20)
    return sink.getvalue()


def _parquet(codec: str) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), sink, compression=codec, row_group_size=20)
    return sink.getvalue()


def _zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(raw)
    return bytes(sink.getvalue())


@cache
def good_files() -> dict[str, bytes]:
    """Return name to bytes of one file for each format and compression."""
    files = {
        "a.jsonl": _LINES,
        "a.json": json.dumps(ROWS).encode(),
        "b.json": json.dumps({"version": 1, "data": ROWS}, indent=1).encode(),
        "a.csv": b"label,text\n" + _cells(","),
        "a.tsv": b"label\ttext\n" + _cells("\t"),
        "a.txt": _LINES,
        "file.arrow": _arrow(pa.ipc.new_file),
        "stream.arrow": _arrow(pa.ipc.new_stream),
        "lz4.arrow": _arrow(pa.ipc.new_file, compression="lz4"),
        "zstd.arrow": _arrow(pa.ipc.new_stream, compression="zstd"),
        "snappy.parquet": _parquet("snappy"),
        "plain.parquet": _parquet("none"),
    }
    packers: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": _zstd,
    }
    for suffix, pack in packers.items():
        files |= {f"{name}{suffix}": pack(files[name]) for name in ("a.jsonl", "a.json", "a.csv", "file.arrow")}
    return files


def _cells(mark: str) -> bytes:
    return "".join(f"{row['label']}{mark}{row['text']}\n" for row in ROWS).encode()


def damaged(raw: bytes, chance: random.Random) -> bytes:
    """Return bytes that are cut short, or have other bits, bytes or pieces in some places."""
    data = bytearray(raw)
    kind = chance.choice(("cut", "bits", "bits", "bytes", "piece"))
    if kind == "cut":
        return raw[: chance.randrange(len(raw))]
    for _ in range(1 if kind == "piece" else chance.choice((1, 1, 2, 3, 8))):
        place = chance.randrange(len(raw))
        if kind == "bits":
            data[place] ^= 1 << chance.randrange(8)
        elif kind == "bytes":
            data[place] = chance.choice((0, 0x22, 0x7B, 0x7F, 0x80, 0xC1, 0xFF))
        else:
            data[place : place + 8] = chance.randbytes(chance.randrange(16))
    return bytes(data)


def outcome(directory: Path, name: str, raw: bytes) -> str:
    """Return whether a file of these bytes is read or refused.

    Raises:
        Exception: what no file may cause.
    """
    path = directory / name
    path.write_bytes(raw)
    try:
        return "read" if all(isinstance(row, Record) for row in _source(path)) else "bad rows named"
    except UserError as error:
        assert str(path) in str(error), f"the file is not named: {error}"
        return "refused"


def _source(path: Path) -> Any:
    return resolve_source(DataSource(path=str(path))).rows()


def _try(first: int, last: int) -> None:
    """Try the cases of these numbers; the number of each is said before it is tried."""
    names = sorted(good_files())
    with tempfile.TemporaryDirectory() as folder:
        for case in range(first, last):
            name = names[case % len(names)]
            print(case, name, end=" ", flush=True)
            raw = damaged(good_files()[name], random.Random(case))
            try:
                print(outcome(Path(folder), name, raw), flush=True)
            except Exception as error:
                print(f"BUG {type(error).__name__}: {str(error)[:100]!r}", flush=True)


def _main(cases: int) -> None:
    counts: Counter[str] = Counter()
    case, code = 0, 1
    while code:
        command = [sys.executable, "-m", "tests.data.damaged_files", str(case), str(cases)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        code = done.returncode
        if code > 0:
            raise SystemExit("the child could not begin")
        for line in done.stdout.splitlines():
            number, name, found = (*line.split(" ", 2), "")[:3]
            case = int(number) + 1
            found = found or f"BUG ended by signal {-code}"
            counts[found if not found.startswith("BUG") else "BUG"] += 1
            if found.startswith("BUG"):
                print(number, name, found)
    print(", ".join(f"{found}: {count:,}" for found, count in sorted(counts.items())))


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    _try(*numbers) if len(numbers) == 2 else _main(numbers[0])
