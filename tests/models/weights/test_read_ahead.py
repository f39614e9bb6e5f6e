"""Weight files are asked of the disk before libraries are imported; what is wrong with them is said later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftcli.models.weights import read_ahead as module
from peftcli.models.weights.read_ahead import read_ahead


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Inode and advice of each file that is asked for."""
    found: list[tuple[int, int]] = []

    def advise(file: int, start: int, length: int, advice: int) -> None:
        assert start == length == 0  # the whole file
        found.append((os.fstat(file).st_ino, advice))

    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    return found


def test_the_files_that_loading_reads_are_asked_for(models, asked) -> None:
    directory = models("llama", "causal_lm")
    thread = read_ahead(str(directory))
    assert thread is not None
    thread.join()
    assert asked == [(os.stat(directory / "model.safetensors").st_ino, 3)]


def test_nothing_is_asked_or_said_where_there_is_nothing(models, asked, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text("no index")
    for name in ("a/hub-id", str(tmp_path / "none"), str(tmp_path)):
        assert read_ahead(name) is None
    monkeypatch.setattr(module, "SHARE", 0.0)  # larger than the memory
    assert read_ahead(str(models("llama", "causal_lm"))) is None
    assert not asked


def test_asking_loads_no_torch() -> None:
    code = "import sys; import peftcli.models.weights.read_ahead; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
