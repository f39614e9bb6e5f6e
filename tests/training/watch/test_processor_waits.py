"""A run on a CPU says that others use its processors, once, and only where its threads really waited."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.training.watch import processor_waits
from peftcli.training.watch.processor_waits import THREADS, WINDOW, ProcessorWaits


class Machine:
    """A clock, and what the system says of two threads."""

    def __init__(self, directory: Path) -> None:
        self.now, self.directory = 100.0, directory
        self.runs(0, 0, seconds=0)

    def clock(self) -> float:
        return self.now

    def runs(self, ran: float, waited: float, seconds: float = WINDOW) -> None:
        """Let both threads run and wait for these seconds, half of each."""
        self.now += seconds
        for name in ("11", "12"):
            file = self.directory / name / "schedstat"
            file.parent.mkdir(exist_ok=True)
            before = [int(number) for number in file.read_text().split()[:2]] if file.exists() else [10**9, 10**6]
            own = [before[0] + int(ran * 5e8), before[1] + int(waited * 5e8)]
            file.write_text(f"{own[0]} {own[1]} 7\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_says_once_how_long_threads_waited(machine: Machine, monkeypatch) -> None:
    monkeypatch.setattr(processor_waits, "usable_cores", lambda: 2)
    waits = ProcessorWaits(2, machine.directory, machine.clock)
    assert waits.note() is None
    machine.runs(4, 12)
    note = waits.note()
    assert note is not None
    assert "2 threads waited for a core 75% of the time" in note and "OMP_NUM_THREADS=1" in note
    machine.runs(4, 12)
    assert waits.note() is None


@pytest.mark.parametrize(
    ("cores", "said"), [(2, "other programs use"), (1, "lets this run use 1 of the machine's cores")]
)
def test_says_whether_others_or_a_limit_take_the_processors(machine: Machine, monkeypatch, cores, said) -> None:
    monkeypatch.setattr(processor_waits, "usable_cores", lambda: cores)
    waits = ProcessorWaits(2, machine.directory, machine.clock)
    waits.note()
    machine.runs(10, 10)
    note = waits.note()
    assert note is not None and said in note and "OMP_NUM_THREADS=1" in note
    assert ("once the others have ended" in note) == (cores == 2)


def test_a_load_that_begins_later_is_noticed(machine: Machine) -> None:
    waits = ProcessorWaits(2, machine.directory, machine.clock)
    waits.note()
    for _ in range(3):
        machine.runs(18, 1)
        assert waits.note() is None
    machine.runs(10, 10)
    assert waits.note() is not None


def test_says_nothing_before_the_time_is_up_nor_of_a_run_that_has_little_to_compute(machine: Machine) -> None:
    waits = ProcessorWaits(2, machine.directory, machine.clock)
    waits.note()
    machine.runs(1, 5, seconds=WINDOW / 2)
    assert waits.note() is None
    machine.runs(0, 0, seconds=WINDOW)
    machine.directory.joinpath("11", "schedstat").unlink()
    assert waits.note() is None


@pytest.mark.parametrize("threads", [1, 2])
def test_says_nothing_of_one_thread_nor_where_the_system_does_not_count(threads: int, tmp_path: Path) -> None:
    clock = iter(range(0, 1000, 100))
    waits = ProcessorWaits(threads, tmp_path, lambda: float(next(clock)))
    assert [waits.note() for _ in range(4)] == [None] * 4


@pytest.mark.skipif(not THREADS.exists(), reason="only Linux counts")
def test_this_system_counts() -> None:
    clock = iter([0.0, WINDOW])
    waits = ProcessorWaits(2, clock=lambda: next(clock))
    assert waits.note() is None
    sum(range(10**6))
    waits.note()
    assert waits._since is not None and waits._since[0] == WINDOW and waits._since[1] > 0
