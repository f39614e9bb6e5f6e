"""What the system refuses to write becomes one message, and leaves nothing half written and nothing lost."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from peftcli.atomic import new_directory, new_file, write_text
from peftcli.write_errors import CannotWrite, writing

LIMIT = 20_000
"""Bytes of a file in the processes of these tests."""


def limited(work: Callable[..., None], *arguments: object) -> None:
    """Run `work` in a child process whose files hold at most `LIMIT` bytes; what it asserts holds here, too."""
    child = multiprocessing.get_context("fork").Process(target=_limited, args=(work, *arguments))
    child.start()
    child.join()
    assert child.exitcode == 0


def _limited(work: Callable[..., None], *arguments: object) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    work(*arguments)


def by_python(path: Path) -> None:
    path.write_bytes(bytes(10 * LIMIT))


def by_numpy(path: Path) -> None:
    with open(path, "wb") as file:
        np.zeros(LIMIT).tofile(file)


def by_torch(path: Path) -> None:
    torch.save(torch.zeros(LIMIT), path)


def by_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(LIMIT)}, path)


def by_copying(path: Path) -> None:
    source = path.parent.parent.parent / "large"
    path.mkdir()
    shutil.copytree(source, path / "copy")


WRITERS = (by_python, by_numpy, by_torch, by_safetensors, by_copying)


@pytest.mark.parametrize("write", WRITERS)
def test_every_library_gives_the_same_error(write: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "file").write_bytes(bytes(10 * LIMIT))

    def work() -> None:
        with pytest.raises(CannotWrite) as caught, new_directory(tmp_path / "out" / "run") as partial:
            write(partial / "file")
        text = str(caught.value)
        assert text.startswith(f"{tmp_path / 'out' / 'run'} cannot be written") and "write to another place" in text

    limited(work)
    assert not (tmp_path / "out").exists()  # the directory that was made for it has gone, too


def test_what_was_there_stays(tmp_path: Path) -> None:
    directory, file = tmp_path / "run", tmp_path / "file"
    with new_directory(directory) as partial:
        (partial / "a").write_text("old")
    write_text(file, "old")

    def work() -> None:
        with pytest.raises(CannotWrite), new_directory(directory) as partial:
            by_python(partial / "a")
        with pytest.raises(CannotWrite, match="MB free in"):
            write_text(file, "x" * 10 * LIMIT)

    limited(work)
    assert (directory / "a").read_text() == file.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "run"]


def test_a_directory_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "missing" / ".." / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").write_text("theirs")
    with pytest.raises(CannotWrite, match="in the way"), new_directory(output, replace=False):
        pass  # what leads there through a directory that does not exist is seen only now
    with pytest.raises(CannotWrite, match="in the way"), new_directory(tmp_path / "new", replace=False):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "a").write_text("theirs")
    assert (tmp_path / "run" / "a").read_text() == (tmp_path / "new" / "a").read_text() == "theirs"
    assert sorted(os.listdir(tmp_path)) == ["new", "run"]
    (tmp_path / "empty").mkdir()
    with new_directory(tmp_path / "empty", replace=False) as partial:
        (partial / "a").write_text("ours")
    assert (tmp_path / "empty" / "a").read_text() == "ours"


@pytest.mark.parametrize("name", ["a" * 250, "run \U0001f600", "é" * 120, "-", "two\nlines"])
def test_every_name_that_the_file_system_takes(name: str, tmp_path: Path) -> None:
    for _again in range(2):
        write_text(tmp_path / f"{name}.txt", "text")
        with new_directory(tmp_path / name) as partial:
            (partial / "file").write_text("text")
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"{name}.txt"])


@pytest.mark.parametrize("name", ["a" * 256, "file/run", "a\0b", "half\ud83d"])
def test_names_that_it_does_not_take(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(CannotWrite, match="cannot be written"), new_directory(tmp_path / name):
        pass
    with pytest.raises(CannotWrite, match="cannot be written"):
        write_text(tmp_path / name, "text")
    assert os.listdir(tmp_path) == ["file"]


def test_a_device_is_written_and_a_link_is_followed(tmp_path: Path) -> None:
    with new_file(Path(os.devnull), instead="") as file:
        file.write("text")
    assert not Path(os.devnull).is_file()
    full = pytest.raises(CannotWrite, match=r"/dev/full cannot be written: the disk is full")
    with full, new_file(Path("/dev/full"), instead="give another --output") as file:
        file.write("text")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with new_file(tmp_path / "link", instead="") as file:
        file.write("text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "text"


def test_an_error_of_reading_is_none_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path / "run"):
        (tmp_path / "base").read_text()
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "run"):
        raise ZeroDivisionError
