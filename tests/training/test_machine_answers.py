"""What a probe decided by the clock is kept for the machine, and float16 is never trained without loss scaling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from peftcli.assembly import machine_answers, precision
from peftcli.assembly.precision import decide_precision
from peftcli.distributed.processes import World
from peftcli.errors import UserError
from peftcli.recipe.schema import TrainingSpec

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "machine"


def decided(monkeypatch, answer: tuple[bool, float] | None, width: int = 32) -> precision.Precision:
    """Decide with a probe that gives this answer; None: it must not be asked."""

    def probe(*_: object) -> tuple[bool, float]:
        assert answer is not None, "the probe ran again"
        return answer

    monkeypatch.setattr(precision, "probe_bfloat16", probe)
    return decide_precision(TrainingSpec(), torch.float32, CPU, width=width)


@pytest.mark.parametrize(("answer", "dtype"), [((True, 2.0), torch.bfloat16), ((False, 0.9), torch.float32)])
def test_the_first_answer_holds_on_this_machine(monkeypatch, cache: Path, answer, dtype) -> None:
    first, again = decided(monkeypatch, answer), decided(monkeypatch, None)
    assert first.compute == again.compute == dtype
    if answer[0]:
        assert (first.reason, again.reason) == (
            "a probe found it 2.0x as fast here",
            "an earlier probe found it 2.0x as fast here",
        )
    (file,) = cache.iterdir()
    question = json.loads(file.read_text())["question"]
    assert question["torch"] == torch.__version__ and question["width"] == "32" and question["name"]


def test_another_width_is_another_question(monkeypatch) -> None:
    assert decided(monkeypatch, (True, 2.0)).compute == torch.bfloat16
    assert decided(monkeypatch, (False, 0.5), width=64).compute == torch.float32


@pytest.mark.parametrize("text", ["", "[]", "{", '{"answer": {"faster": "x"}}', "[" * 100_000])
def test_a_damaged_answer_is_measured_again(monkeypatch, cache: Path, text: str) -> None:
    decided(monkeypatch, (True, 2.0))
    (file,) = cache.iterdir()
    file.write_text(text)
    assert decided(monkeypatch, (False, 0.5)).compute == torch.float32


def test_of_two_processes_the_first_answer_counts() -> None:
    question = {"asked": "something"}
    first, second = machine_answers.Answer(True, 2.0), machine_answers.Answer(False, 0.5)
    assert machine_answers.keep_answer(question, first) == first
    assert machine_answers.keep_answer(question, second) == first


def test_without_a_home_the_answer_is_for_this_run(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PEFTCLI_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", lambda _self: (_ for _ in ()).throw(RuntimeError("no home")))
    assert machine_answers.answers_directory() is None
    assert decided(monkeypatch, (True, 2.0)).compute == torch.bfloat16
    assert decided(monkeypatch, (False, 0.5)).compute == torch.float32


def test_a_cache_that_cannot_be_written_is_no_fault(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path / "file"))
    assert decided(monkeypatch, (True, 2.0)).compute == torch.bfloat16


def test_the_main_process_decides_for_all(monkeypatch) -> None:
    class Second:
        size, is_main = 2, False

        def broadcast(self, value: object) -> object:
            assert value is None
            return True, "as the first says"

        from_main = World.from_main

    found = decide_precision(TrainingSpec(), torch.float32, CPU, width=32, world=Second())  # type: ignore[arg-type]  # its part
    assert (found.compute, found.reason) == (torch.bfloat16, "as the first says")


def test_float16_is_scaled_or_refused() -> None:
    scaled = decide_precision(TrainingSpec(), torch.float16, torch.device("cuda"), width=64)
    assert scaled.scaled and scaled.compute == torch.float16
    for device in ("cpu", "mps"):
        for options in ({}, {"bf16": False}):
            with pytest.raises(UserError, match="without loss scaling") as caught:
                decide_precision(TrainingSpec(**options), torch.float16, torch.device(device), width=64)
            assert caught.value.problems[0].key == "model.dtype"
    other = decide_precision(TrainingSpec(bf16=True), torch.float16, CPU, width=64)
    assert other.compute == torch.bfloat16 and not other.scaled
