"""Streams: no row is lost or doubled within a pass, resuming reads on, broken rows stop or are passed over."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.prepare import prepare
from peftcli.data.prepared_data import PreparedData
from peftcli.data.read import row_errors
from peftcli.data.rows import streaming
from peftcli.data.rows.batching import epoch_batches
from peftcli.data.rows.streaming import StreamedRows
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSource, DataSpec
from tests.data.tools import learnt, write_jsonl


def numbered(path: Path, count: int) -> Path:
    return write_jsonl(path, [{"prompt": f"What is {n}?", "completion": f" It is {n}."} for n in range(count)])


def stream(tokenizer: Any, path: Path, count: int, seed: int = 0, **data: Any) -> PreparedData:
    spec = DataSpec(path=str(path), **{"val_set_size": 0.0, "streaming": True, **data})
    return prepare(spec, "causal_lm", tokenizer, seed=seed, stream_rows=count)


@pytest.fixture(autouse=True)
def _small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BUFFER", 8)
    monkeypatch.setattr(streaming, "CHUNK", 3)


def test_rows_come_shuffled_from_pass_after_pass(tokenizer: Any, tmp_path: Path) -> None:
    data = stream(tokenizer, numbered(tmp_path / "a.jsonl", 20), 60)
    assert isinstance(data.train, StreamedRows) and len(data.train) == 60
    rows = [row.row for row in data.train]
    assert set(rows) == set(range(1, 21)) and rows[:20] != sorted(rows[:20])
    assert max(Counter(rows).values()) <= 5
    assert learnt(data.train[0], tokenizer) == f" It is {data.train[0].row - 1}.</s>"
    assert data.report.evidence[0].endswith("prompt, completion -> prompt_completion")
    assert data.report.cache == "streaming"


def test_the_order_depends_on_the_seed_and_a_resumed_run_reads_on(tokenizer: Any, tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 50)
    rows = [row.row for row in stream(tokenizer, path, 40).train]
    again = stream(tokenizer, path, 40).train
    assert [again[place].row for place in range(25, 40)] == rows[25:]
    assert [row.row for row in stream(tokenizer, path, 40, seed=1).train] != rows
    assert again[3].row == rows[3], "reading back is possible"


def test_batches_keep_the_order_of_the_stream(tokenizer: Any, tmp_path: Path) -> None:
    rows = stream(tokenizer, numbered(tmp_path / "a.jsonl", 9), 10).train
    assert epoch_batches(rows, 4, seed=0, epoch=0) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_streamed_pair_has_both_sides(tokenizer: Any, tmp_path: Path) -> None:
    """What a stream yields is the row that is prepared."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Green?", "chosen": "Yes.", "rejected": "No, red."}] * 2)
    spec = DataSpec(path=str(path), val_set_size=0.0, cache_dir=str(tmp_path / "cache"))
    streamed = spec.model_copy(update={"streaming": True})
    whole = prepare(spec, "preference", tokenizer, seed=0).train[0]
    row = prepare(streamed, "preference", tokenizer, seed=0, stream_rows=1).train[0]
    assert row.token_type_ids is not None and set(row.token_type_ids.tolist()) == {0, 1}
    for own, other in ((row.token_type_ids, whole.token_type_ids), (row.labels, whole.labels)):
        assert np.array_equal(own, other)


def test_the_first_rows_may_be_the_validation_set(tokenizer: Any, tmp_path: Path) -> None:
    data = stream(tokenizer, numbered(tmp_path / "a.jsonl", 20), 60, val_set_size=5.0)
    assert [row.row for row in data.validation[""]] == [1, 2, 3, 4, 5]
    assert {row.row for row in data.train} == set(range(6, 21))
    assert data.report.validation_rows == {"": 5}


def test_validation_files_are_prepared_as_ever(tokenizer: Any, tmp_path: Path) -> None:
    other = numbered(tmp_path / "v.jsonl", 3)
    data = stream(tokenizer, numbered(tmp_path / "a.jsonl", 20), 5, validation={"path": str(other)}, val_set_size=0.1)
    assert len(data.validation[""]) == 3


def test_sources_are_drawn_by_weight(tokenizer: Any, tmp_path: Path) -> None:
    one, two = numbered(tmp_path / "one.jsonl", 10), numbered(tmp_path / "two.jsonl", 10)
    spec = DataSpec(
        datasets=[DataSource(path=str(one), weight=3.0), DataSource(path=str(two))], streaming=True, val_set_size=0.0
    )
    data = prepare(spec, "causal_lm", tokenizer, seed=0, stream_rows=400)
    found = Counter(Path(row.source).name for row in data.train)
    assert 0.65 < found["one.jsonl"] / 400 < 0.85


def test_broken_rows(tokenizer: Any, tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 20)
    with path.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    with pytest.raises(UserError, match=r"a\.jsonl:21: broken JSON"):
        list(stream(tokenizer, path, 100).train)
    rows = stream(tokenizer, path, 100, on_error="skip").train
    assert isinstance(rows, StreamedRows)
    assert {row.row for row in rows} == set(range(1, 21))
    assert [(row.row, row.message) for row in rows.broken] == [(21, rows.broken[0].message)] and rows.skipped == 1


def test_a_stream_without_anything_to_learn_ends_in_a_message(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "x"}]}] * 5
    with pytest.raises(UserError, match="no row of the stream has a token to train on"):
        stream(tokenizer, write_jsonl(tmp_path / "a.jsonl", rows), 5, chat_template="chatml")
    (tmp_path / "e.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="there are no rows"):
        stream(tokenizer, tmp_path / "e.jsonl", 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_set_size": 0.1}, "cannot split off a share"),
        ({"packing": True}, "cannot be combined with packing"),
        ({"group_by": "prompt"}, "cannot be combined with group_by"),
        ({"max_rows": 3}, "cannot be combined with max_rows"),
    ],
)
def test_what_a_stream_cannot_do(tokenizer: Any, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        stream(tokenizer, numbered(tmp_path / "a.jsonl", 5), 5, **options)


def test_classification_needs_all_labels_first(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": n} for n in range(3)])
    with pytest.raises(UserError, match="labels are counted before training"):
        prepare(
            DataSpec(path=str(path), streaming=True, val_set_size=0.0), "sequence_classification", tokenizer, seed=0
        )


def test_lengths_of_a_stream_are_the_limit(tokenizer: Any, tmp_path: Path) -> None:
    rows = stream(tokenizer, numbered(tmp_path / "a.jsonl", 5), 7, max_length=30).train
    assert np.array_equal(rows.lengths, np.full(7, 30))
    with pytest.raises(IndexError):
        rows[7]


def test_what_a_stream_does_not_use_is_named(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"row {n}", "id": n + 1} for n in range(30)])
    spec = DataSpec(path=str(path), val_set_size=0.0, streaming=True)
    data = prepare(spec, "causal_lm", tokenizer, seed=0, stream_rows=8)
    assert "column id" in data.report.unused and any("not used: column id" in note for note in data.report.notes)


def test_broken_rows_of_the_head_and_of_validation_files_are_listed_too(tokenizer: Any, tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 20)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], "{broken", *lines[1:], '{"prompt": 5}']), encoding="utf-8")
    data = stream(tokenizer, path, 100, val_set_size=3.0, on_error="skip")
    assert [row["row"] for row in data.skipped_rows()] == [2] and data.skipped_of_stream == 1
    list(data.train)
    assert [row["row"] for row in data.skipped_rows()] == [2, 22], "each once, however often the stream starts over"
    (note,) = data.skipped_note()
    assert note.startswith("2 broken rows of the stream were left out, first ") and "a.jsonl:2: broken JSON" in note
    apart = stream(tokenizer, numbered(tmp_path / "b.jsonl", 20), 5, validation={"path": str(path)}, on_error="skip")
    assert [row["row"] for row in apart.skipped_rows()] == [2, 22] and apart.skipped_note() == []


def test_what_the_head_of_a_stream_loses_is_told_each_row_once(tokenizer: Any, tmp_path: Path) -> None:
    asked, answered = {"role": "user", "content": "Green?"}, {"role": "assistant", "content": "Red."}
    rows = [{"messages": [asked] if n < 3 else [asked, answered], "id": n} for n in range(20)]
    path, chat = write_jsonl(tmp_path / "a.jsonl", rows), {"chat_template": "chatml"}
    data = stream(tokenizer, path, 60, max_fully_masked=0.5, **chat)
    (note,) = [note for note in data.report.notes if note.startswith("at the head of the stream: ")]
    assert note == "at the head of the stream: 12 rows, 9 kept, 3 with nothing to learn"
    assert isinstance(data.train, StreamedRows)
    assert data.train[59].row and data.train[0].row, "passes over the file, and back to its begin"
    assert sum(data.train.passed.statuses.values()) == data.train.passed.unused["column id"] == 20
    with pytest.raises(UserError, match="3 of 12 rows at the head of the stream have no token to train on"):
        stream(tokenizer, path, 60, **chat)


def test_what_is_kept_of_broken_rows_does_not_grow_with_their_number(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading finds some and encoding others, behind each other; either goes through a file in order."""
    monkeypatch.setattr(row_errors, "LISTED_SKIPS", 5)
    lines = numbered(tmp_path / "a.jsonl", 400).read_text(encoding="utf-8").splitlines()
    for place in range(0, 400, 4):
        lines[place] = "{broken" if place % 8 else '{"prompt": 5}'
    path = tmp_path / "b.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    data = stream(tokenizer, path, 900, val_set_size=3.0, on_error="skip")
    list(data.train)
    list(data.train)  # from the beginning
    assert data.skipped_of_stream == 100 and len(data.skipped_rows()) == 5
    errors = data.train._errors  # type: ignore[attr-defined]
    assert errors._counted == {(str(path), False): 397, (str(path), True): 393}


def test_rows_that_are_used_again_are_told(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step where all rows are in the buffer by then, else at the end."""
    path = numbered(tmp_path / "a.jsonl", 20)
    told = f"the stream {path} has 20 rows to train on, each of which is used 5 times"
    monkeypatch.setattr(streaming, "BUFFER", 50)
    short = stream(tokenizer, path, 100)
    monkeypatch.setattr(streaming, "BUFFER", 4)
    enough, unknown = stream(tokenizer, path, 20), stream(tokenizer, path, 100)
    assert [told in data.report.notes for data in (short, enough, unknown)] == [True, False, False]
    for data in (short, enough, unknown):
        assert len([*data.train]) == len(data.train)
    assert (short.repeated_notes(), enough.repeated_notes(), unknown.repeated_notes()) == ([], [], [told])
