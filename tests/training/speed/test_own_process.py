"""Measurements in a process of their own: what it answers, says and leaves, however either of the two ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peftcli.distributed.launching import SIZES
from peftcli.errors import UserError
from peftcli.training.speed.own_process import ProcessFailed, ask

PROGRAM = """
import os, signal, sys, time
from peftcli.errors import UserError
from peftcli.training.speed.own_process import answer

def compute():
    what, place = sys.argv[1:]
    told = open(place, "w")  # held until the end
    print(os.getpid(), file=told, flush=True)
    if what == "sleep":
        time.sleep(60)
    if what == "error":
        raise UserError("no such column", suggestion="look")
    if what == "fail":
        print("lines before")
        raise RuntimeError("a bug")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "alone":
        import torch
        from peftcli.distributed.processes import World
        return World(torch.device("cpu")).size
    print("what a library says")
    return {"seconds": 1.5}

if __name__ == "__main__":
    answer(compute)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "measured_thing.py").write_text(PROGRAM)
    here = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    monkeypatch.setenv("PYTHONPATH", here)
    return "measured_thing"


def test_it_answers_behind_what_libraries_print(module: str, tmp_path: Path) -> None:
    assert ask(module, ["well", str(tmp_path / "pid")]) == {"seconds": 1.5}


@pytest.mark.parametrize("size", SIZES)
def test_it_is_one_process_also_of_a_run_of_several(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setenv(size, "2")
    monkeypatch.setenv("RANK", "0")
    assert ask(module, ["alone", str(tmp_path / "pid")]) == 1


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("error", UserError, "no such column"),
        ("fail", ProcessFailed, "RuntimeError: a bug"),
        ("killed", ProcessFailed, "memory may have run out"),
    ],
)
def test_what_went_wrong_there_is_said_here(module: str, tmp_path: Path, what: str, kind: type, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        ask(module, [what, str(tmp_path / "pid")])
    assert type(caught.value) is kind


def test_one_that_takes_too_long_is_ended(module: str, tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="longer than 1 s"):
        ask(module, ["sleep", str(tmp_path / "pid")], seconds=1.0)
    assert gone(int((tmp_path / "pid").read_text()))


def test_it_ends_when_its_parent_is_killed(module: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    asks = f"from peftcli.training.speed.own_process import ask; ask({module!r}, ['sleep', {str(pipe)!r}])"
    with subprocess.Popen([sys.executable, "-c", asks]) as parent, pipe.open() as told:
        assert told.readline().strip().isdigit()
        parent.send_signal(signal.SIGKILL)
        assert told.read() == ""  # the end of the pipe: nobody holds it any more


def gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"
