"""Leases: one worker trains a trial, and a dead one gives it back."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from peftcli.errors import UserError
from peftcli.studies.engine.leases import Leases
from peftcli.studies.engine.worker_identity import WorkerIdentity

SELF = WorkerIdentity.of_this_process()
ELSEWHERE = replace(SELF, host="other", machine="other 1 pid:[1]")


def test_one_worker_takes_a_trial_and_gives_it_back(tmp_path: Path) -> None:
    ours, theirs = Leases(tmp_path, SELF), Leases(tmp_path, SELF)
    lease = ours.take("a")
    assert lease is not None and (lease.attempt, lease.killed) == (1, 0)
    assert theirs.take("a") is None and theirs.holder("a") == lease and theirs.take("a.1") is not None
    ours.release(lease)
    assert theirs.holder("a") is None
    again = theirs.take("a")
    assert again is not None and (again.attempt, again.killed) == (2, 0)
    assert not ours.beat(lease) and theirs.beat(again)
    theirs.count_kill(again)
    third = ours.take("a")
    assert third is not None and third.killed == 1
    ours.end("a")
    assert [file.name for file in tmp_path.iterdir()] == ["a.1.1.json"]


def test_a_process_that_is_gone_gives_its_trial_back_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    import psutil

    since = psutil.boot_time() if psutil.LINUX else 0.0
    worker = replace(SELF, pid=child.pid, started=psutil.Process(child.pid).create_time() - since)
    assert Leases(tmp_path, worker).take("a") is not None
    assert Leases(tmp_path, SELF).take("a") is None
    reused = replace(worker, started=worker.started - 60)  # an older process had this number
    assert Leases(tmp_path, reused).take("b") is not None
    assert (lease := Leases(tmp_path, SELF).take("b")) is not None and lease.killed == 1
    child.kill()
    assert worker.lives() is False or (child.wait() and worker.lives() is False)
    assert (lease := Leases(tmp_path, SELF).take("a")) is not None and (lease.attempt, lease.killed) == (2, 1)


def test_kills_do_not_add_up_where_each_start_leaves_a_new_checkpoint(tmp_path: Path) -> None:
    leases, gone = Leases(tmp_path, SELF), Leases(tmp_path, replace(SELF, pid=2**30))
    held = [gone.take("a", step) for step in (0, 0, 4, 8, 8)]
    assert [lease and lease.killed for lease in held] == [0, 1, 1, 1, 2]
    assert held[-1] is not None
    leases.count_kill(held[-1])
    last = leases.take("a", 8)
    assert last is not None and last.killed == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system keeps the time at which a process started")
def test_a_worker_lives_on_when_somebody_sets_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    real = psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: real + 30)
    assert psutil.Process().create_time() > real + 30
    assert SELF.lives() is True


def test_a_worker_of_another_machine_is_dead_when_its_heartbeat_stands_still(tmp_path: Path) -> None:
    theirs = Leases(tmp_path, ELSEWHERE)
    lease = theirs.take("a")
    assert lease is not None
    patient, quick = Leases(tmp_path, SELF), Leases(tmp_path, SELF, stale=0.0)
    assert patient.take("a") is None and patient.take("a") is None
    assert quick.take("a") is None  # the first look says nothing
    assert theirs.beat(lease)
    assert quick.take("a") is None  # it lives
    assert (taken := quick.take("a")) is not None and taken.killed == 1
    assert not theirs.beat(lease)


def test_of_two_that_see_a_dead_worker_one_gets_its_trial(tmp_path: Path) -> None:
    assert Leases(tmp_path, replace(SELF, pid=2**30)).take("a") is not None
    workers = [Leases(tmp_path, SELF) for _ in range(3)]
    assert sum(worker.take("a") is not None for worker in workers) == 1


def test_a_damaged_lease_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.1.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.1\.json"):
        Leases(tmp_path, SELF).take("a")


def test_a_trial_is_given_up_after_three_kills_of_its_process_or_ten_of_its_worker(tmp_path: Path) -> None:
    leases, gone = Leases(tmp_path, SELF), Leases(tmp_path, replace(SELF, pid=2**30))
    held = [gone.take("timing") for _ in range(11)]  # it never gets to a checkpoint
    assert [lease and lease.hopeless for lease in held] == [False] * 10 + [True]
    for kills in range(4):
        lease = leases.take("large")
        assert lease is not None and (lease.processes, lease.hopeless) == (kills, kills == 3)
        leases.count_kill(lease)
