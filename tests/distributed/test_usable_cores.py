"""The cores that a process may use are those of its container and of `taskset`, not those of the machine."""

from __future__ import annotations

import os

import pytest

from peftcli.distributed import usable_cores as module
from peftcli.distributed.usable_cores import usable_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_a_containers_limit_counts(tmp_path, monkeypatch, files, cores) -> None:
    monkeypatch.setattr(module, "LIMITS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores() == cores


def test_cores_that_are_not_allowed_do_not_count(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "LIMITS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert usable_cores() == 1
