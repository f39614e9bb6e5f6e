"""Workers prepare the next steps' batches: the same ones in order, however many; errors are told, no thread is left."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch

from peftcli.distributed.processes import World
from peftcli.errors import Stopped, UserError
from peftcli.record.run_directory import RunDirectory
from peftcli.record.train_state import TrainState
from peftcli.tasks.task import Batch
from peftcli.training.run import train
from peftcli.training.setup import build_session
from peftcli.training.step_batches import Share, StepBatches, prepared_ahead
from peftcli.training.watch.reporting import Silent
from tests.recipes import CtrlC, Recorder, chat_rows, write_jsonl

STEPS = range(3, 20)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def tensors(step: Sequence[Batch]) -> list[list[int]]:
    """Return what a step's batches hold, for comparing."""
    return [values.flatten().tolist() for batch in step for values in (*batch.inputs.values(), *batch.targets.values())]


def batches_of(loaded, tmp_path) -> StepBatches:
    directory = RunDirectory(tmp_path / "built")
    return build_session(loaded, World(torch.device("cpu")), directory, Silent(), TrainState()).batches


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "stream"])
def test_steps_come_in_order_and_are_the_same_with_any_number_of_workers(recipe, tmp_path, streaming) -> None:
    loaded = recipe("llama", "causal_lm", chat_rows(30), training__max_steps=20, data__streaming=streaming,
                    training__max_tokens_per_micro_batch=24)  # fmt: skip
    seen = []
    for workers in (0, 1, 4, 40):
        with prepared_ahead(batches_of(loaded, tmp_path), STEPS, workers) as upcoming:
            seen.append([tensors(step) for step in upcoming])
        assert threads() == []
    assert len(seen[0]) == len(STEPS) and len({str(step) for step in seen[0]}) > 10
    assert seen[1:] == [seen[0]] * 3


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "stream"])
def test_a_micro_batch_holds_rows_of_like_length_within_its_limit(recipe, tmp_path, streaming) -> None:
    loaded = recipe("llama", "causal_lm", chat_rows(30), data__streaming=streaming, training__max_steps=20,
                    training__per_device_train_batch_size=8, training__max_tokens_per_micro_batch=60,
                    training__fast_paths={"padding_free": False})  # fmt: skip
    batches, counts = batches_of(loaded, tmp_path), []
    for step in range(20):
        shares = [[len(row.input_ids) for row in share.rows] for share in batches.read(step)]
        flat = [length for share in shares for length in share]
        assert len(flat) in (6, 8) and flat == sorted(flat, reverse=True)
        assert all(len(share) == 1 or len(share) * share[0] <= 60 for share in shares)
        counts += map(len, shares)
    assert max(counts) > 2


@pytest.mark.parametrize("streaming", [False, True], ids=["stored", "stream"])
def test_pairs_of_unequal_sides_stay_within_the_limit(recipe, tmp_path, streaming) -> None:
    """Both sides are padded to the longest one: a long answer beside a short one takes twice its tokens."""
    rows = [{"prompt": "the cat", "chosen": "green", "rejected": "red and " * (1 + n % 9)} for n in range(24)]
    loaded = recipe("llama", "preference", rows, data__streaming=streaming, training__max_steps=6,
                    training__reference="live", training__per_device_train_batch_size=8,
                    training__max_tokens_per_micro_batch=240, training__fast_paths={"padding_free": False})  # fmt: skip
    batches, counts = batches_of(loaded, tmp_path), []
    for step in range(6):
        for batch in batches(step):
            counts.append(len(batch.inputs["input_ids"]) // 2)
            assert counts[-1] == 1 or batch.inputs["input_ids"].numel() <= 240
    assert max(counts) > 2


class Counting(StepBatches):
    """Notes which steps are read, and how many are collated at once."""

    def __init__(self, inner: StepBatches, at_once: int) -> None:
        self.__dict__.update(inner.__dict__)
        self.steps: list[int] = []
        self.meeting = threading.Barrier(at_once, timeout=60)

    def read(self, step: int) -> list[Share]:
        self.steps.append(step)
        return super().read(step)

    def collate(self, shares: Sequence[Share]) -> list[Batch]:
        self.meeting.wait()  # for as many workers as were promised
        return super().collate(shares)


def test_as_many_workers_as_asked_for_work_at_once_and_as_many_steps_ahead(recipe, tmp_path) -> None:
    batches = Counting(batches_of(recipe(training__max_steps=20), tmp_path), 4)
    with prepared_ahead(batches, range(16), 4) as upcoming:
        for number, _ in enumerate(upcoming):
            assert len(batches.steps) <= number + 1 + 4
    assert batches.steps == list(range(16))


class Broken(StepBatches):
    """Fails at one step, as a stream with a broken row does."""

    def __init__(self, inner: StepBatches) -> None:
        self.__dict__.update(inner.__dict__)

    def read(self, step: int) -> list[Share]:
        if step == 5:
            raise UserError("row 7 is broken")
        return super().read(step)


def test_what_a_worker_raises_is_raised_where_its_step_is_due(recipe, tmp_path) -> None:
    batches = Broken(batches_of(recipe(training__max_steps=20), tmp_path))
    taken = 0
    with pytest.raises(UserError, match="row 7"), prepared_ahead(batches, range(20), 3) as upcoming:
        for _ in upcoming:
            taken += 1
    assert taken == 5
    assert threads() == []


def test_a_broken_row_of_a_stream_reaches_the_user(recipe, tmp_path) -> None:
    loaded = recipe(data__streaming=True, training__max_steps=400, training__dataloader_num_workers=2)
    rows = [*chat_rows(1100), {"prompt": "no answer"}]  # behind those that are read before the model loads
    write_jsonl(tmp_path / "run.jsonl", rows)
    with pytest.raises(UserError, match=r"run\.jsonl:1101"):
        train(loaded)
    assert threads() == []


@pytest.mark.parametrize("way", ["early stop", "Ctrl-C", "error"])
def test_no_thread_outlives_a_run(recipe, way) -> None:
    class Fails(Recorder):
        def step(self, record) -> None:
            assert threads()
            if record.step == 3:
                raise RuntimeError("power cut")

    early = {"training__early_stopping_patience": 1, "training__eval_steps": 1, "training__early_stopping_threshold": 9}
    loaded = recipe(data__val_set_size=4, training__max_steps=50, training__dataloader_num_workers=3,
                    **early if way == "early stop" else {})  # fmt: skip
    if way == "early stop":
        assert train(loaded).stopped_early
    else:
        with pytest.raises(Stopped if way == "Ctrl-C" else RuntimeError):
            train(loaded, reporter=CtrlC(3) if way == "Ctrl-C" else Fails())
    assert threads() == []
