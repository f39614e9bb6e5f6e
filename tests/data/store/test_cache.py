"""The cache of prepared rows: what makes it hit, what makes it miss, and two runs at once."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftcli.data.prepare import prepare
from peftcli.data.rows.row_fingerprint import row_fingerprint
from peftcli.data.store.cache import cache_directory, cached_store
from peftcli.data.store.cache_key import tokenizer_fingerprint
from peftcli.recipe.schema import DataSpec
from tests.data.tools import chat_tokenizer, ready, write_jsonl

ROWS = [{"prompt": f"What is {n}? ", "completion": f"It is {n}."} for n in range(20)]


def test_the_same_content_hits_wherever_it_lies(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert ready(tokenizer, path).report.cache == "miss"
    assert ready(tokenizer, path).report.cache == "hit"
    (tmp_path / "else").mkdir()
    moved = Path(shutil.move(path, tmp_path / "else" / "b.jsonl"))
    again = ready(tokenizer, moved, seed=5, val_set_size=0.5)
    assert again.report.cache == "hit", "the split is no part of the prepared rows"
    assert again.train[0].source == str(moved)


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 8},
        {"overflow": "drop"},
        {"train_on": "all"},
        {"chat_template": "chatml"},
        {"format": "text", "columns": {"text": "prompt"}},
        {"template": "{prompt}!"},
        {"on_error": "skip"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_key_that_matters_misses(tokenizer: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    ready(tokenizer, path)
    assert ready(tokenizer, path, **change).report.cache == "miss"


def test_other_bytes_another_tokenizer_or_template_miss(tokenizer: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    ready(tokenizer, path)
    assert ready(chat_tokenizer(add_bos=True), path).report.cache == "miss"
    other = chat_tokenizer(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    assert ready(other, path, max_fully_masked=1.0, train_on="all").report.cache == "miss"
    changed = write_jsonl(tmp_path / "a.jsonl", [*ROWS[:-1], {"prompt": "x", "completion": "y"}])
    assert ready(tokenizer, changed).report.cache == "miss"


def test_a_tokenizer_has_one_fingerprint_whatever_its_last_call(tokenizer: Any) -> None:
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(tokenizer) == before


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is mapped")
def test_the_fingerprint_of_many_rows_leaves_none_of_them_in_memory(tokenizer: Any, tmp_path: Path) -> None:
    """A file's pages count as memory of the process that mapped them: of a million rows, a sixth of the whole."""

    def mapped() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text()

    rows = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", ROWS)).train
    first = rows[0].input_ids.tolist()
    assert mapped()
    before = row_fingerprint(rows)
    assert not mapped()
    assert rows[0].input_ids.tolist() == first
    assert row_fingerprint(rows) == before


def test_a_failed_preparation_leaves_nothing(tmp_path: Path) -> None:
    def fails(directory: Path) -> None:
        (directory / "ids.bin").write_bytes(b"half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        cached_store(tmp_path / "cache", "key", fails)
    assert [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")] == []


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".key-half").mkdir()
    (tmp_path / ".key-half" / "ids.bin").write_bytes(b"half")
    (tmp_path / ".other-half").mkdir()
    with pytest.raises(RuntimeError, match="stopped"):
        cached_store(tmp_path, "key", lambda directory: (_ for _ in ()).throw(RuntimeError("stopped")))
    assert not (tmp_path / ".key-half").exists() and (tmp_path / ".other-half").exists()


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_one(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory", encoding="utf-8")
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    data = ready(tokenizer, path, cache_dir=str(tmp_path / "file" / "cache"))
    assert data.report.cache == "miss" and len(data.train) == 20


_RUN = """
import sys
from tests.data.tools import chat_tokenizer, ready
data = ready(chat_tokenizer(), sys.argv[1])
print(data.report.cache, len(data.train), int(data.train.lengths.sum()))
"""


def test_two_runs_at_once_share_one_preparation(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS * 100)
    environment = {**os.environ, "PEFTCLI_CACHE": str(tmp_path / "shared"), "PYTHONPATH": os.getcwd()}
    started = [
        subprocess.Popen([sys.executable, "-c", _RUN, str(path)], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert sorted(output[0] for output in outputs) == ["hit", "miss"]
    assert outputs[0][1:] == outputs[1][1:] and outputs[0][1] == "2000"
    assert len([entry for entry in (tmp_path / "shared").iterdir() if entry.is_dir()]) == 1


def test_processes_give_the_same_rows_in_the_same_order(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"text": f"label {n % 3} " * (n % 7 + 1), "label": "xyz"[n % 3]} for n in range(2500)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    seen: list[int] = []
    made = []
    for processes in (1, 2):
        spec = DataSpec(path=str(path), val_set_size=0.0, num_proc=processes, cache_dir=str(tmp_path / str(processes)))
        made.append(prepare(spec, "sequence_classification", tokenizer, seed=0, progress=seen.append))
    one, two = made
    assert two.report.cache == "miss" and one.labels == two.labels
    assert np.array_equal(one.train.lengths, two.train.lengths)
    for index in range(0, 2500, 100):
        assert np.array_equal(one.train[index].input_ids, two.train[index].input_ids)
        assert (one.train[index].labels, one.train[index].row) == (two.train[index].labels, two.train[index].row)
    assert seen == [1000, 2000, 2500] * 2


def test_a_user_without_a_home_has_rows_until_the_command_ends(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PEFTCLI_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "~no-such-user-here/cache")  # `expanduser` fails as without a home
    assert cache_directory(None) is None and cache_directory(str(tmp_path)) == tmp_path
    data = ready(tokenizer, write_jsonl(tmp_path / "a.jsonl", ROWS))
    assert len(data.train) == 20 and "no home directory" in str(data.report.notes)


_KILLED = """
import os, sys
sys.path.insert(0, os.getcwd())
if __name__ == "__main__":
    from peftcli.data.prepare import prepare
    from peftcli.recipe.schema import DataSpec
    from tests.data.tools import chat_tokenizer
    pids = set()
    def seen(_rows):
        from multiprocessing import active_children
        if not pids:
            pids.update(child.pid for child in active_children())
            print(*pids, flush=True)
            sys.stdin.readline()
    prepare(DataSpec(path=sys.argv[1], num_proc=2), "causal_lm", chat_tokenizer(), seed=0, progress=seen)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes that are not its children")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent_and_temporary_rows_with_sigterm(tmp_path: Path, how: int) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS * 500)
    script = tmp_path / "run.py"
    script.write_text(_KILLED, encoding="utf-8")
    (tmp_path / "t").mkdir()
    environment = {**os.environ, "PEFTCLI_CACHE": "/proc/nowhere", "TMPDIR": str(tmp_path / "t")}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, script, path], env=environment, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        workers = [os.pidfd_open(int(pid)) for pid in process.stdout.readline().split()]
        assert len(workers) == 2 and list((tmp_path / "t").glob("peftcli-data-*"))
        process.send_signal(how)
        assert process.wait(timeout=60) == -how
    for worker in workers:
        assert select.select([worker], [], [], 60)[0], "the worker lives on"
        os.close(worker)
    if how == signal.SIGTERM:
        assert not list((tmp_path / "t").glob("peftcli-data-*"))
