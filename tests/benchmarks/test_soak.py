"""The soak: its judgement of how a command ended, its file of outcomes, and a sample of it in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.soak import results
from benchmarks.soak.__main__ import campaign
from benchmarks.soak.campaign import KINDS, drawn
from benchmarks.soak.child import Ended
from benchmarks.soak.outcomes import Journal, Outcome, bad, table, well

ROOT = Path(__file__).parents[2]
SEED = 15


def ended(code: int = 0, out: str = "", err: str = "", **more: bool) -> Ended:
    return Ended(("eval", "run"), code, out, err, 1.0, **more)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (ended(1, err="Aborted!"), "exit code 1"),
        (ended(-11), "SIGSEGV"),
        (ended(-9, hung=True), "longer than"),
        (ended(1, err="Traceback (most recent call last):\n  x\nKeyError: 'a'\n"), "KeyError: 'a'"),
        (ended(0, err="Traceback (most recent call last):\n"), "a traceback"),
        (ended(2), "without a message"),
        (ended(2, err="error: no column \x1b[31mred"), "a control character"),
        (ended(0, left=True), "a process was left"),
    ],
)
def test_what_is_no_answer_ends_badly(end: Ended, words: str) -> None:
    assert words in str(end.fault())


def test_answers_end_well() -> None:
    assert ended().fault() is None
    assert ended(2, err="error: run/summary.json: it is empty\n").fault() is None


def test_results_are_compared_without_times(tmp_path: Path) -> None:
    for name, seconds, loss in (("a", 1, 2.0), ("b", 3, 2.0), ("c", 1, 2.5)):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "metrics.jsonl").write_text(f'{{"step": 1, "loss": {loss}, "time": {seconds}}}\n')
    a, b, c = (results.result(tmp_path / name, ("run", "missing")) for name in "abc")
    assert results.difference(a, b) is None
    assert results.difference(a, c) == "different: run/metrics.jsonl"
    assert results.difference(a, {}) == "missing: run/metrics.jsonl"


def test_what_is_left_behind_is_found(tmp_path: Path) -> None:
    for name in ("run/.partial-adapter", "run/checkpoints/best-000002", ".cache/.0f-x", ".tmp/peftcli-data-1"):
        (tmp_path / name).mkdir(parents=True)
    assert len(results.leftovers(tmp_path)) == 4


def test_the_table_counts_kinds_and_says_how_to_repeat_a_bad_end() -> None:
    found = {"kill/merge/1": well("the same after a kill"), "cut/base/2": bad("a traceback: 2")}
    found |= {"cut/base/3": bad("a traceback: 3"), "cut/base/4": well("refused")}
    text = table(found, 7)
    assert "| a cut file | 3 | 1 | 1 refused | 2 |" in text
    assert "| all | 4 | 2 |  | 2 |" in text
    assert "2 x a traceback: N\n    python -m benchmarks.soak --seed 7 --only cut/base/2" in text


def test_a_file_of_another_campaign_is_not_gone_on_with(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.begin(campaign(1, 1.0))
    journal.begin(campaign(1, 1.0))
    with pytest.raises(SystemExit, match="name another file"):
        journal.begin(campaign(2, 1.0))


def test_a_sample_ends_well_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """One of its cases is on file as done, one line is cut off: neither is a reason to do what is done again."""
    journal = Journal(tmp_path / "outcomes.jsonl")
    journal.begin(campaign(SEED, "sample"))
    recipes = [f"recipe/{case}" for case in KINDS["recipe"].cases(None, True)]  # type: ignore[arg-type]
    done, torn = drawn(SEED, recipes, KINDS["recipe"].sampled)[:2]
    journal.add(done, well("known before"), 0.1)
    with journal.path.open("a") as file:
        file.write(f'{{"case": "{torn}", "ended_we\n')
    command = [
        sys.executable,
        "-m",
        "benchmarks.soak",
        "--sample",
        "--seed",
        str(SEED),
        "--jobs",
        "1",
        "--journal",
        str(journal.path),
    ]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    outcomes = journal.outcomes()
    assert len(outcomes) == sum(kind.sampled for kind in KINDS.values())
    assert outcomes[done] == Outcome(True, "known before") and torn in outcomes
    assert ran.stdout.startswith(table(outcomes, SEED))
