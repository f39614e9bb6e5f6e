"""Prepared rows that were damaged, or whose files changed meanwhile, are made again and never trusted."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftcli.data.prepare import prepare_for_prediction
from peftcli.data.store import cache_key, open_store
from peftcli.data.store.cache_limit import mark_used, remove_oldest
from peftcli.data.store.file_digests import RECORD
from peftcli.data.store.temporary_cache import temporary_cache
from peftcli.data.store.token_store import META
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSpec
from tests.data.tools import ready, whole, write_jsonl

ROWS = [{"prompt": f"What is {n}? ", "completion": f"It is {n}."} for n in range(20)]


def texts(data: Any, tokenizer: Any) -> list[str]:
    return [whole(row, tokenizer) for row in data.train]


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2 + 1]


def flipped(raw: bytes) -> bytes:
    place = len(raw) // 2
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": cut,
    "one bit flipped": flipped,
    "emptied": lambda raw: b"",
    "zeroed": lambda raw: bytes(len(raw)),
    "longer": lambda raw: raw + b"\0\0\0\0",
    "another JSON value": lambda raw: b'{"files": {"\\u0000": {"size": 1, "digest": "x"}}, "inputs": 5}',
    "a list": lambda raw: b"[]",
    "nested deeply": lambda raw: b"[" * 100_000,
}


@pytest.mark.parametrize("name", ["ids.bin", META, RECORD])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again_and_named(tokenizer: Any, tmp_path: Path, name: str, damage: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    first = ready(tokenizer, path)
    entry = Path(first.report.cache_directory)
    before = texts(first, tokenizer)
    (entry / name).write_bytes(DAMAGES[damage]((entry / name).read_bytes()))
    again = ready(tokenizer, path)
    assert again.report.cache == "miss" and texts(again, tokenizer) == before
    assert str(entry) in str(again.report.notes) and "damaged" in str(again.report.notes)
    last = ready(tokenizer, path)
    assert last.report.cache == "hit" and "damaged" not in str(last.report.notes)


@pytest.mark.parametrize("name", ["ids.bin", META, RECORD])
def test_an_entry_without_one_of_its_files_is_made_again(tokenizer: Any, tmp_path: Path, name: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    (Path(ready(tokenizer, path).report.cache_directory) / name).unlink()
    assert ready(tokenizer, path).report.cache == "miss" and ready(tokenizer, path).report.cache == "hit"


def test_any_flipped_bit_of_any_file_is_found(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS[:4])
    first = ready(tokenizer, path)
    entry, before = Path(first.report.cache_directory), texts(first, tokenizer)
    chance = random.Random(0)
    for file in sorted(entry.iterdir()):
        raw = bytearray(file.read_bytes())
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        file.write_bytes(raw)
        assert texts(ready(tokenizer, path), tokenizer) == before, file.name


def test_a_damaged_entry_is_made_again_for_predictions(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    spec = DataSpec(path=str(path), num_proc=1)
    made = prepare_for_prediction(str(path), spec, "causal_lm", tokenizer)
    before = [row.input_ids.tolist() for row in made]
    ids = made.store.directory / "ids.bin"
    ids.write_bytes(cut(ids.read_bytes()))
    again = prepare_for_prediction(str(path), spec, "causal_lm", tokenizer)
    assert [row.input_ids.tolist() for row in again] == before


def test_other_versions_of_what_makes_tokens_miss(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    ready(tokenizer, path)
    versions = cache_key.installed_versions("peftcli", "transformers", "tokenizers", "jinja2")
    assert set(versions) == {"peftcli", "transformers", "tokenizers", "jinja2"}
    for package in versions:
        other = {**versions, package: "999"}
        monkeypatch.setattr(cache_key, "installed_versions", lambda *_names, other=other: other)
        assert ready(tokenizer, path).report.cache == "miss", package


class _Writing:
    """Prepares rows, while the file is written as many times as `left` says."""

    def __init__(self, path: Path, left: int, put_back: bool) -> None:
        self.path, self.left, self.put_back = path, left, put_back
        self._build = open_store.build_store

    def __call__(self, *arguments: Any, **options: Any) -> None:
        before, writes = self.path.read_bytes(), self.left > 0
        if writes:
            self.left -= 1
            write_jsonl(self.path, [{"prompt": f"Other {self.left}", "completion": " x"}] * 20)
        self._build(*arguments, **options)
        if writes and self.put_back:
            self.path.write_bytes(before)


@pytest.mark.parametrize("put_back", [False, True])
def test_rows_and_key_are_of_the_same_bytes(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put_back: bool
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    raw = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(open_store, "build_store", _Writing(path, 1, put_back))
        made = ready(tokenizer, path)
    assert "prepared again" in str(made.report.notes)
    assert texts(made, tokenizer)[0].startswith("What is 0" if put_back else "Other 0")
    path.write_bytes(raw)
    assert texts(ready(tokenizer, path), tokenizer)[0].startswith("What is 0")


def test_a_file_that_never_rests_is_refused(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    monkeypatch.setattr(open_store, "build_store", _Writing(path, 100, False))
    with pytest.raises(UserError, match="changed during each of the 3 attempts"):
        ready(tokenizer, path, cache_dir=str(tmp_path / "cache"))
    assert [entry.name for entry in (tmp_path / "cache").iterdir() if entry.is_dir()] == []


def test_the_oldest_unused_entries_go_beyond_the_limit(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, entries = tmp_path / "cache", []
    for number in range(3):
        path = write_jsonl(tmp_path / f"{number}.jsonl", ROWS[number:])
        entry = Path(ready(tokenizer, path, cache_dir=str(root)).report.cache_directory)
        os.utime(entry / RECORD, (number, number))
        entries.append(entry)
    (root / "something else").mkdir()
    (root / f".{'0' * 32}-half").mkdir()
    used = mark_used(entries[0])
    os.utime(entries[0] / RECORD, (0, 0))
    monkeypatch.setenv("PEFTCLI_CACHE_LIMIT", "1B")
    last = ready(tokenizer, write_jsonl(tmp_path / "3.jsonl", ROWS[3:]), cache_dir=str(root))
    assert used is not None and [entry.exists() for entry in entries] == [True, False, False]
    assert len(last.train) == 17 and "the 2 least recently used entries" in str(last.report.notes)
    assert (root / "something else").exists() and not (root / f".{'0' * 32}-half").exists()
    used.close()
    assert remove_oldest(root, 10**9) == [] and remove_oldest(root, 1) == [entries[0]]


def test_a_limit_that_is_no_size_is_refused(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    monkeypatch.setenv("PEFTCLI_CACHE_LIMIT", "much")
    with pytest.raises(UserError, match="PEFTCLI_CACHE_LIMIT is 'much'"):
        ready(tokenizer, path)
    monkeypatch.setenv("PEFTCLI_CACHE_LIMIT", "1.5 GiB")
    assert len(ready(tokenizer, path).train) == 20


def test_a_template_that_prints_dates_says_of_which_day(tokenizer: Any, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(
        "{{ strftime_now('%Y') }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}",
        encoding="utf-8",
    )
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    for state in ("miss", "hit"):
        report = ready(tokenizer, path, chat_template=str(template)).report
        assert report.cache == state and "strftime_now" in str(report.notes)


def test_what_a_killed_process_left_in_the_temporary_directory_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "peftcli-data-left"
    left.mkdir()
    (left / "alive.lock").touch()
    (left / "ids.bin").touch()
    alive, made = temporary_cache.__wrapped__(), temporary_cache.__wrapped__()
    assert not left.exists() and alive.exists() and made.exists()


@pytest.mark.parametrize("name", ["~no-such-user-here/cache", "a\0b"])
def test_cache_directories_that_cannot_be(tokenizer: Any, tmp_path: Path, name: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    if name.startswith("~"):
        with pytest.raises(UserError, match=r"data\.cache_dir: ~no-such-user-here"):
            ready(tokenizer, path, cache_dir=name)
    else:
        assert "cannot be written" in str(ready(tokenizer, path, cache_dir=name).report.notes)


def test_without_any_place_for_rows_the_message_says_what_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"no place for prepared rows.*\n.*TMPDIR"):
        temporary_cache.__wrapped__()
