"""Beside the peers: rows, the runner with a stand-in for a peer, the order of runs, and the table's arithmetic."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

import pytest

from benchmarks.common import process_tree
from benchmarks.common.record import between, read_record
from benchmarks.peers import comparison, environments, peer_report, peer_rows, peer_table, side_runs
from benchmarks.peers.__main__ import options
from benchmarks.peers.peer_table import OURS, PEERS, SIDES, Peer, Side, side

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GIB = 2**30


@pytest.fixture
def place(tmp_path: Path) -> side_runs.Place:
    """Where nothing is set up, with ten rows and a checkpoint that has a config only."""
    data = tmp_path / "rows.jsonl"
    rows = ({"question": f"How much is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(10))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"dtype": "float32"}', encoding="utf-8")
    return side_runs.Place(tmp_path / "environments", tmp_path / "material", model, data, 1)


def stand_in(program: str, **changes: Any) -> Side:
    """A side of this environment that runs a few lines of Python."""
    return Side("stand-in", OURS, "a stand-in", ("$python", "-c", program, "$rows", "$dtype", "$precision"), **changes)


def test_a_run_is_counted_from_outside(place: side_runs.Place) -> None:
    program = (
        "import os, sys; rows = open(sys.argv[1] + '/messages.jsonl').readlines(); held = bytearray(64 << 20)\n"
        "print({'loss': '1.31', 'rows': len(rows)}, sys.argv[2:], os.environ['OMP_NUM_THREADS']); print({'loss': 0.5})"
    )
    found = side_runs.run_side(stand_in(program, precision={"bfloat16": "bf16"}), place, 4, "bfloat16")
    assert found["losses"] == [1.31, 0.5]
    assert found["seconds"] > 0 and found["cpu_seconds"] > 0 and found["peak_bytes"] > 64 << 20
    log = (place.material / "logs/stand-in-bfloat16-4.log").read_text(encoding="utf-8")
    assert "'rows': 4" in log and "['bfloat16', 'bf16'] 1" in log
    assert not list(place.material.glob("run-*"))


def test_losses_may_be_in_a_file_that_a_template_names(
    place: side_runs.Place, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "settings.txt").write_text("$dtype of $model", encoding="utf-8")
    monkeypatch.setattr(side_runs, "PROGRAMS", tmp_path)
    program = "print('loss: 9'); open('steps', 'w').write('loss: 2.5 ' + open('read').read())"
    one = stand_in(program, files={"settings.txt": "read"}, losses="loss: ([0-9.]+) float32", log="steps")
    assert side_runs.run_side(one, place, 2, "float32")["losses"] == [2.5]


@pytest.mark.parametrize(
    ("program", "limit", "reason"),
    [
        ("import sys; print({'loss': 1.0}); sys.exit('no such option')", 600.0, "exit code 1: no such option"),
        ("print('done')", 600.0, "no loss in its output: done"),
        ("import signal; print({'loss': 1.0}, flush=True); signal.pause()", 1.0, "not done after 1 s"),
    ],
)
def test_a_run_that_fails_says_why(place: side_runs.Place, program: str, limit: float, reason: str) -> None:
    with pytest.raises(side_runs.NotRun, match=reason):
        side_runs.run_side(stand_in(program), replace(place, limit=limit), 2, "float32")


def test_a_peer_that_is_not_there_says_how_it_comes_there(place: side_runs.Place) -> None:
    with pytest.raises(side_runs.NotRun, match=r"--setup .*environments trl"):
        side_runs.run_side(side("trl"), place, 2, "float32")


def test_memory_is_that_of_all_processes() -> None:
    child = "held = bytearray(96 << 20); print('ready', flush=True); input()"
    parent = f"import subprocess, sys; held = bytearray(64 << 20); subprocess.run([sys.executable, '-c', {child!r}])"
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        assert process_tree.resident_bytes(process.pid) > 160 << 20
        os.killpg(process.pid, signal.SIGKILL)
    assert process_tree.resident_bytes(process.pid) == 0


def test_an_installation_that_fails_is_the_reason_of_the_row(place: side_runs.Place, monkeypatch: Any) -> None:
    def failing(command: list[str], stdout: Any = None, **_: Any) -> None:
        stdout.write(b"ERROR: no matching distribution\n")
        stdout.flush()
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(environments.subprocess, "run", failing)
    assert environments.set_up(Peer("trl", ("trl",)), place, 1.0) == "installation: ERROR: no matching distribution"
    with pytest.raises(side_runs.NotRun, match="installation: ERROR: no matching distribution"):
        side_runs.run_side(side("trl"), place, 2, "float32")


@pytest.mark.parametrize("one", SIDES, ids=lambda one: one.name)
def test_every_word_of_a_side_is_filled_in(one: Side, place: side_runs.Place, monkeypatch: Any) -> None:
    monkeypatch.setattr(side_runs, "bin_folder", lambda *_: place.environments)
    monkeypatch.setattr(side_runs, "rows_folder", lambda *_: place.material)
    monkeypatch.setattr(side_runs, "encoder_checkpoint", lambda: place.model)
    known = side_runs.words(one, place, 8, "float32", place.material)
    files = [(side_runs.PROGRAMS / name).read_text(encoding="utf-8") for name in one.files]
    for text in (*one.command, *one.environment.values(), *files):
        assert "$" not in Template(text).substitute(known)
    assert one.peer in [peer.name for peer in PEERS] and set(one.precision) == set(peer_table.DTYPES)
    scripts = [part.removeprefix("$programs/") for part in one.command if part.startswith("$programs/")]
    assert all((side_runs.PROGRAMS / script).exists() for script in scripts)


def test_names_are_unique_and_each_work_has_a_side_of_ours() -> None:
    assert len({one.name for one in SIDES}) == len(SIDES)
    for one in SIDES:
        ours = peer_table.reference(one)
        assert ours.name.startswith(OURS) and ours.work == one.work
    with pytest.raises(SystemExit, match="there is no trll"):
        side("trll")


def test_all_formats_hold_the_same_rows_and_few_are_among_many(place: side_runs.Place) -> None:
    few, many = (peer_rows.rows_folder(place.material, place.data, count, encoder=False) for count in (2, 5))

    def lines(folder: Path, name: str) -> list[Any]:
        return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]

    pairs = [(row["prompt"], row["completion"]) for row in lines(many, "prompt_completion.jsonl")]
    assert len(pairs) == 5 and pairs != sorted(pairs)
    assert [(row["prompt"], row["completion"]) for row in lines(few, "prompt_completion.jsonl")] == pairs[:2]
    turns = [
        (row["prompt"][0]["content"], row["completion"][0]["content"])
        for row in lines(many, "chat_prompt_completion.jsonl")
    ]
    messages = [tuple(turn["content"] for turn in row["messages"]) for row in lines(many, "messages.jsonl")]
    alpaca = [(row["instruction"], row["output"]) for row in json.loads((many / "alpaca/rows.json").read_text())]
    litgpt = [(row["instruction"], row["output"]) for row in json.loads((many / "litgpt/train.json").read_text())]
    assert pairs == turns == messages == alpaca == litgpt


def plan(**changes: Any) -> comparison.Plan:
    return comparison.Plan(**{"few": 8, "many": 32, "repeats": 2, "minutes": 60.0, **changes})


def run_all(monkeypatch: Any, names: list[str], fails: str = "", **changes: Any) -> tuple[list[str], dict[str, Any]]:
    """Return what was run in which order, and the last record of each side."""
    ran: list[str] = []
    records: dict[str, Any] = {}

    def run_side(one: Side, _place: Any, count: int, dtype: str) -> dict[str, Any]:
        ran.append(f"{one.name} {count} {dtype}")
        if one.name == fails:
            raise side_runs.NotRun("no wheel")
        return {"seconds": float(count), "cpu_seconds": 1.0, "peak_bytes": GIB, "losses": [1.31]}

    monkeypatch.setattr(comparison, "run_side", run_side)
    monkeypatch.setattr(comparison, "versions", lambda *_: "1.0")

    def done(one: Side, _dtype: str, record: dict[str, Any]) -> None:
        records[one.name] = record

    nowhere = side_runs.Place(Path(), Path(), Path(), Path(), 1)  # nothing is run there
    comparison.measure([side(name) for name in names], ["float32"], nowhere, plan(**changes), done)
    return ran, records


def test_sides_alternate_and_ours_is_always_among_them(monkeypatch: Any) -> None:
    ran, records = run_all(monkeypatch, ["hf", "torchtune"])
    once = [f"{name} {count} float32" for name in (OURS, "hf", "torchtune") for count in (8, 32)]
    assert ran == once * 2
    assert [run["ours"]["many"]["seconds"] for run in records["hf"]["runs"]] == [32.0, 32.0]


def test_each_work_has_its_own_side_beside_it(monkeypatch: Any) -> None:
    ran, _ = run_all(monkeypatch, ["adapters/mam"], repeats=1)
    assert [line.split()[0] for line in ran] == ["ours/mam"] * 2 + ["adapters/mam"] * 2


def test_a_side_that_fails_is_not_run_again(monkeypatch: Any) -> None:
    ran, records = run_all(monkeypatch, ["hf", "unsloth"], fails="unsloth")
    assert [line for line in ran if line.startswith("unsloth")] == ["unsloth 8 float32"]
    assert records["unsloth"]["failed"] == "no wheel" and len(records["hf"]["runs"]) == 2


def test_nothing_is_started_that_would_end_too_late(monkeypatch: Any, capsys: Any) -> None:
    ran, _ = run_all(monkeypatch, ["hf"], minutes=0.0)
    assert ran == [] and "hf float32 is not repeated" in capsys.readouterr().err
    known = plan(minutes=1.0, seconds={("hf", "float32"): 70.0})
    assert not known.allows(side("hf"), "float32") and not known.allows(side("trl"), "float32")
    assert plan(minutes=1.0, seconds={("hf", "float32"): 50.0}).allows(side("trl"), "float32")


def run(few: float, many: float, gib: float, ours: dict[str, Any] | None = None) -> dict[str, Any]:
    shared = {"cpu_seconds": 1.0, "peak_bytes": int(gib * GIB)}
    both = {
        "few": {**shared, "seconds": few, "losses": [1.31]},
        "many": {**shared, "seconds": many, "losses": [1.31, 1]},
    }
    return {**both, "ours": ours or both}


def stored() -> dict[str, Any]:
    """Two repeats of this project, HF and unsloth; torchtune failed."""
    first, second = run(10.0, 20.0, 2.0), run(10.0, 30.0, 2.0)
    about = {"says": "", "date": "2026-01-02", "commit": "abc", "versions": "peft 0.1"}
    sides = {
        OURS: {**about, "runs": [first, second]},
        "hf": {**about, "runs": [run(12.0, 42.0, 8.0, first), run(12.0, 52.0, 8.0, second)]},
        "hf+malloc": {**about, "runs": [run(12.0, 32.0, 8.0, first), run(12.0, 52.0, 8.0, second)]},
        "unsloth": {**about, "runs": [run(20.0, 35.0, 4.0, first), run(20.0, 50.0, 4.0, second)]},
        "torchtune": {**about, "runs": [], "failed": "exit code 1: a | b"},
    }
    shared = {"machine": "a machine", "threads": 2, "model": "smol", "few": 8, "many": 32, "tokens": 3000}
    pages = {"fresh": 1.5, "held": 9.0}
    return {"fresh_pages": pages, "tables": {"decoder/float32": {"conditions": shared, "sides": sides}}}


def test_figures_are_medians_and_ratios_within_a_repeat() -> None:
    found = peer_report.figures(stored()["tables"]["decoder/float32"]["sides"]["hf"], 3000)
    assert (found["seconds"], found["lowest"], found["highest"]) == (35.0, 30.0, 40.0)
    assert found["ratios"] == [3.0, 2.0] and found["ratio"] == 2.5
    assert found["speed"] == pytest.approx(3000 / 35) and found["whole"] == 47.0
    assert found["memory_ratio"] == 0.25 and found["peak_bytes"] == 8 * GIB


def test_the_page_says_the_fastest_peer_the_memory_and_what_does_not_run() -> None:
    part = peer_report.page_part(stored())
    assert "The fastest peer is unsloth: ours is **1.50** times as fast (1.50 to 1.50, 2 repeats)." in part
    assert "the least memory is unsloth: ours takes **0.50** of it" in part
    assert "1.5 GB/s where a process takes it anew" in part and "is 1.17 times as fast in float32" in part
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in part.splitlines() if line.startswith("| ")}
    assert "does not run here: exit code 1: a / b" in lines["torchtune"] and "not measured" in lines["litgpt"]
    assert "**2.50** (2.00 to 3.00, 2 repeats)" in lines["hf"] and "**" not in lines[OURS]
    assert {line.count("|") for line in lines.values()} == {len(peer_report.COLUMNS) + 1}
    assert set(lines) == {"side", *(one.name for one in SIDES if one.work == "decoder")}


def test_sides_measured_under_the_same_conditions_stay() -> None:
    record = {"runs": [], "failed": "no wheel", "date": "2026-03-04"}
    before = stored()
    shared = before["tables"]["decoder/float32"]["conditions"]
    after = comparison.merged(before, "decoder/float32", shared, "unsloth", record)
    assert after["tables"]["decoder/float32"]["sides"]["unsloth"] == record
    assert set(after["tables"]["decoder/float32"]["sides"]) == set(before["tables"]["decoder/float32"]["sides"])
    other = comparison.merged(before, "decoder/float32", {**shared, "many": 64}, "unsloth", record)
    assert set(other["tables"]["decoder/float32"]["sides"]) == {"unsloth"}


def test_the_committed_page_is_what_the_record_says() -> None:
    text = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    part = peer_report.page_part(read_record(BENCHMARKS / "peers.json"))
    assert between(text, peer_report.BEGIN, peer_report.END, part) == text


def test_the_speed_of_fresh_pages_is_measured_in_a_process_of_its_own(monkeypatch: Any) -> None:
    found = comparison.fresh_pages()
    assert found["fresh"] > 0 and found["held"] > 0


def test_a_model_is_asked_for() -> None:
    with pytest.raises(SystemExit):
        options([])
    assert options(["--table"]).sides == list(peer_table.CORE)
