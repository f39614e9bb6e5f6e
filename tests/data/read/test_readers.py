"""Files of every kind that rows are read from, and the messages for files that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path
from typing import Any

import pytest

from peftcli.data.read.json_files import read_json
from peftcli.data.read.records import BadRow, Record
from peftcli.data.read.sources import resolve_source
from peftcli.data.read.text_files import read_csv, read_jsonl, read_tsv, read_txt
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSource
from tests.data.read.reading import rows, values
from tests.data.tools import ready
from tests.tiny import tiny_tokenizer


def test_jsonl_numbers_are_physical_lines_with_bom_crlf_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "NA"}\r\n{"text": null}')
    assert values(path) == [(1, {"text": "one"}), (3, {"text": "NA"}), (4, {"text": None})]


def test_jsonl_says_what_is_broken_where(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1, 2]\n{"a": "caf\xe9"}\n{"a": 2}\n')
    good, broken, a_list, latin, last = list(read_jsonl(path, "a.jsonl"))
    assert isinstance(good, Record) and isinstance(last, Record) and last.row == 5
    assert isinstance(broken, BadRow) and broken.row == 2 and "broken JSON" in broken.message
    assert broken.excerpt == '{"a":'
    assert isinstance(a_list, BadRow) and "holds a list" in a_list.message
    assert isinstance(latin, BadRow) and "0xe9" in latin.message and latin.expected == "UTF-8 text"


@pytest.mark.parametrize("text", ['{"text": "b", "text": "c"}', '{"a": [{"text": 1, "b": 2, "text": 1}], "b": 0}'])
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_a_key_that_an_object_has_twice_makes_a_bad_row(suffix: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text(f'{{"text": "a"}}\n{text}\n' if suffix == "jsonl" else f'[{{"text": "a"}},\n{text}]\n')
    read = read_jsonl if suffix == "jsonl" else read_json
    good, bad = list(read(path, path.name))
    assert isinstance(good, Record) and isinstance(bad, BadRow)
    assert (bad.row, bad.message, bad.expected) == (2, "the key 'text' is given twice", "one value for each key")


def test_jsonl_with_half_a_character_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}\n{"text": "a \\uD800 b"}\n', encoding="utf-8")
    good, bad = list(read_jsonl(path, "a.jsonl"))
    assert isinstance(good, Record) and good.values == {"text": "😀"}
    assert isinstance(bad, BadRow) and bad.row == 2 and "half a character" in bad.message


def test_csv_follows_rfc_4180_and_numbers_rows_by_their_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\r\n"two\r\nlines, ""quoted""",NA\r\n\r\nplain,None\r\n')
    assert values(path) == [
        (2, {"text": 'two\r\nlines, "quoted"', "label": "NA"}),
        (5, {"text": "plain", "label": "None"}),
    ]


def test_csv_errors_have_their_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\na,b,c\ncaf\xe9,x\nfine,y\n"open,z\nend,w\n')
    ragged, latin, fine, unclosed = list(read_csv(path, "a.csv"))
    assert isinstance(ragged, BadRow) and (ragged.row, ragged.message) == (2, "the row has 3 cells")
    assert ragged.expected == "2 cells: text, label"
    assert isinstance(latin, BadRow) and latin.row == 3 and "0xe9" in latin.message
    assert isinstance(fine, Record) and fine.row == 4
    assert isinstance(unclosed, BadRow) and unclosed.row == 5 and "broken CSV" in unclosed.message


def test_csv_cells_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "x" * 1_000_000 + ",a\n", encoding="utf-8")
    assert len(values(path)[0][1]["text"]) == 1_000_000


def test_tsv_is_never_quoted(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b'text\tlabel\r\n"half quote\tx\r\n say ""hi""\t\r\nonly one\r\n')
    found = list(read_tsv(path, "a.tsv"))
    assert [row.values for row in found if isinstance(row, Record)] == [
        {"text": '"half quote', "label": "x"},
        {"text": ' say ""hi""', "label": ""},
    ]
    assert isinstance(found[2], BadRow) and found[2].row == 4


@pytest.mark.parametrize("header", ["a,a\n1,2\n", "a,,b\n1,2,3\n"])
def test_a_header_needs_a_name_for_every_column(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(header, encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.csv:1: the header"):
        list(read_csv(path, str(path)))


def test_a_table_that_pandas_wrote_with_row_numbers_is_answered_with_its_option(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",text,label\n0,one,x\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"an empty name[\s\S]*index=False"):
        list(read_csv(path, str(path)))


def test_txt_is_a_row_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"first\r\n\nthird\n")
    assert [(row.row, row.values) for row in read_txt(path, "a") if isinstance(row, Record)] == [
        (1, {"text": "first"}),
        (3, {"text": "third"}),
    ]


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".txt"])
def test_every_text_format_may_be_compressed(tmp_path: Path, suffix: str, compress: Any, kind: str) -> None:
    text = {".jsonl": '{"text": "hi"}\n', ".json": '[{"text": "hi"}]', ".txt": "hi\n"}.get(kind, "text\nhi\n")
    path = tmp_path / f"a{kind}{suffix}"
    path.write_bytes(compress(text.encode()))
    assert [row for _, row in values(path)] == [{"text": "hi"}]


def test_damaged_compression_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 500)[:-9])
    with pytest.raises(UserError, match="damaged"):
        rows(path)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(UserError, match="damaged"):
        rows(path)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".txt"])
@pytest.mark.parametrize(("raw", "message"), [("{}\n".encode("utf-16"), "UTF-16"), (b"\x00\x01\x02\n", "binary")])
def test_files_that_are_no_utf8_text_are_refused(tmp_path: Path, kind: str, raw: bytes, message: str) -> None:
    path = tmp_path / f"a{kind}"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=message):
        rows(path)


def test_parquet_and_arrow_in_both_formats(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": ["a", "b", None], "n": [1, 2, 3], "tags": [["x"], [], ["y", "z"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    expected = [
        (1, {"text": "a", "n": 1, "tags": ["x"]}),
        (2, {"text": "b", "n": 2, "tags": []}),
        (3, {"text": None, "n": 3, "tags": ["y", "z"]}),
    ]
    for name in ("a.parquet", "stream.arrow", "file.arrow", "b.parquet.gz"):
        assert values(tmp_path / name) == expected, name
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "bad.arrow").write_bytes(b"nothing")
    for name in ("bad.parquet", "bad.arrow"):
        with pytest.raises(UserError, match="cannot be read"):
            rows(tmp_path / name)


def test_saved_data_sets_give_class_names_and_splits(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    one = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(tmp_path / "both")
    expected = [(1, {"text": "a", "label": "pos"}), (2, {"text": "b", "label": "neg"})]
    assert values(tmp_path / "one") == expected
    assert values(tmp_path / "both", split="train") == expected
    assert values(tmp_path / "both", split="test") == [(1, {"text": "b", "label": "neg"})]
    with pytest.raises(UserError, match="splits: test, train"):
        rows(tmp_path / "both", split="dev")


def test_globs_and_directories_of_files_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n', encoding="utf-8")
    (tmp_path / "README.md").write_text("no data", encoding="utf-8")
    for place in (tmp_path, tmp_path / "*.jsonl"):
        found = rows(place)
        assert [Path(row.source).name for row in found] == ["a.jsonl", "b.jsonl"]


def test_class_folders(tmp_path: Path) -> None:
    for label, raw in (("tea", "grün".encode()), ("coffee", b"caf\xe9 \xa3")):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.txt").write_bytes(raw)
        (tmp_path / label / ".hidden.txt").write_bytes(b"no")
    notes: list[str] = []
    found = list(resolve_source(DataSource(path=str(tmp_path))).rows(notes))
    assert [row.values for row in found if isinstance(row, Record)] == [
        {"text": "café £", "label": "coffee"},
        {"text": "grün", "label": "tea"},
    ]
    assert notes == ["not UTF-8, read as Windows-1252: 1 of 2 files: coffee/1.txt"]


def test_a_split_may_be_a_folder_of_class_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "pos").mkdir(parents=True)
        (tmp_path / split / "pos" / "1.txt").write_text(split, encoding="utf-8")
    assert values(tmp_path, split="test") == [(1, {"text": "test", "label": "pos"})]
    with pytest.raises(UserError, match="several splits: test, train"):
        rows(tmp_path)


def test_missing_and_unreadable_sources(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "a.xlsx").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.jsonl"):
        rows(tmp_path / "trian.jsonl")
    with pytest.raises(UserError, match=r"there is no reader for the suffix \.xlsx"):
        rows(tmp_path / "a.xlsx")
    with pytest.raises(UserError, match="nothing matches"):
        rows(tmp_path / "*.csv")


def test_a_hub_id_without_network_is_explained() -> None:
    with pytest.raises(UserError, match="cannot be loaded from the hub") as caught:
        rows(Path("nobody/nothing-like-this"))
    assert caught.value.problems[0].key == "data.path"


def test_data_sets_of_the_datasets_library(tmp_path: Path) -> None:
    import datasets

    from peftcli.data.read.hub_datasets import from_dataset

    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B"]))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "tags": tags})
    rows = [{"tokens": ["a", "b"], "tags": [0, 1]}, {"tokens": ["c"], "tags": [1]}]
    loaded = datasets.Dataset.from_generator(
        lambda: iter(rows), features=features, cache_dir=str(tmp_path), fingerprint="test"
    )
    whole = from_dataset(loaded, "some/name", "None train")
    found = [(row.source, row.row, row.values) for row in whole.rows() if isinstance(row, Record)]
    assert found == [
        ("some/name", 1, {"tokens": ["a", "b"], "tags": ["O", "B"]}),
        ("some/name", 2, {"tokens": ["c"], "tags": ["B"]}),
    ]
    part = from_dataset(loaded.select([1]), "some/name", "None train[1:]")
    assert [row.values["tokens"] for row in part.rows() if isinstance(row, Record)] == [["c"]]
    in_memory = from_dataset(datasets.Dataset.from_list(rows), "x", "")
    prints = {source.fingerprint() for source in (whole, part, in_memory)}
    assert len(prints) == 3 and whole.fingerprint() in prints


def test_fingerprints_follow_content_not_place(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n' if name != "c.jsonl" else '{"text": "y"}\n', encoding="utf-8")
    a, b, c = (resolve_source(DataSource(path=str(tmp_path / f"{n}.jsonl"))).fingerprint() for n in "abc")
    assert a == b != c


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "txt"])
def test_a_file_of_another_encoding_is_one_error_with_a_remedy(tmp_path: Path, suffix: str) -> None:
    rows = {"csv": "text,label\n", "tsv": "text\tlabel\n"}.get(suffix, "")
    line = {"csv": "café {},{}\n", "tsv": "café {}\t{}\n", "jsonl": '{{"text": "café {}", "label": "{}"}}\n'}
    rows += "".join(line.get(suffix, "café {} {}\n").format(n, "ab"[n % 2]) for n in range(30))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(rows.encode("cp1252"))
    task = "causal_lm" if suffix == "txt" else "sequence_classification"
    with pytest.raises(UserError) as caught:
        ready(tiny_tokenizer(cls=True), path, task)
    assert str(caught.value).count("not UTF-8") == 1 and f"iconv -f WINDOWS-1252 -t UTF-8 {path}" in str(caught.value)


@pytest.mark.parametrize("cell", ['"\\ud83d x"', '"[{\\"role\\": \\"user\\", \\"content\\": \\"\\\\ud83d\\"}]"'])
def test_half_a_character_is_a_bad_row(tmp_path: Path, cell: str) -> None:
    column = "text" if "role" not in cell else "messages"
    good = '{"text": "x"}' if column == "text" else '{"messages": [{"role": "user", "content": "x"}]}'
    path = tmp_path / "a.jsonl"
    path.write_text(f'{good}\n{{"{column}": {cell}}}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl:2: half a character"):
        ready(tiny_tokenizer(), path, max_fully_masked=1.0, train_on="all")


@pytest.mark.parametrize("head", ["text;label\n", "sep=;\ntext;label\n", "text\tlabel\r\n"])
def test_csv_files_of_office_programs(tmp_path: Path, head: str) -> None:
    separator = "\t" if "\t" in head else ";"
    path = tmp_path / "a.csv"
    path.write_bytes(f'{head}"a, b"{separator}x\nc d{separator}y\n'.encode())
    first = head.count("\n") + 1
    assert values(path) == [(first, {"text": "a, b", "label": "x"}), (first + 1, {"text": "c d", "label": "y"})]


def test_lines_that_end_with_carriage_returns_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\ra,x\rb,y\r")
    assert [row.message for row in rows(tmp_path / "a.csv") if isinstance(row, BadRow)] == [
        "the lines end with carriage returns alone"
    ]
