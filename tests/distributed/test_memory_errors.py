"""Memory that cannot be allocated is one message, whichever library asked for it; what is saved stays."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from peftcli.distributed.memory_errors import OutOfMemory, memory_for, says_nothing_of_the_model
from peftcli.errors import UserError
from peftcli.models.packed_documents import packing_route
from peftcli.recipe.load_recipe import LoadedRecipe
from peftcli.record.callback import StepRecord
from peftcli.training.run import train
from tests.recipes import Recorder
from tests.tiny import tiny_model

HUGE = 2**52


def by_torch() -> None:
    torch.empty(HUGE, dtype=torch.uint8)


def by_numpy() -> None:
    np.empty(HUGE, dtype=np.uint8)


def by_python() -> None:
    bytearray(HUGE)


def by_mapping() -> None:
    mmap.mmap(-1, HUGE)


def on_cuda() -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 16 GiB"
    )


@pytest.mark.parametrize(
    ("allocate", "size"),
    [
        (by_torch, r"4,503,599,627\.4 MB"),
        (by_numpy, "4.00 PiB"),
        (by_python, ""),
        (by_mapping, ""),
        (on_cuda, "20.00 GiB"),
    ],
)
def test_every_library_gives_the_same_error(allocate: Callable[[], None], size: str) -> None:
    with pytest.raises(OutOfMemory) as caught, memory_for("at step 3", "lower the batch"):
        allocate()
    text = str(caught.value)
    assert text.startswith("out of memory at step 3") and text.endswith("lower the batch")
    assert re.search(size, text)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"), memory_for("at step 3"):
        raise RuntimeError("size mismatch")


class Greedy(Recorder):
    """Asks for more memory than there is while the third step is recorded."""

    def step(self, record: StepRecord) -> None:
        super().step(record)
        if record.step == 3:
            by_torch()


def test_a_run_says_what_to_lower_and_goes_on_from_its_checkpoint(recipe: Callable[..., LoadedRecipe]) -> None:
    loaded = recipe(training__max_steps=4, training__save_steps=2, training__logging_steps=1)
    with pytest.raises(OutOfMemory) as caught:
        train(loaded, reporter=Greedy())
    text = str(caught.value)
    assert text.startswith("out of memory at step 4: 4,503,599,627.4 MB more were asked for")
    assert "lower training.per_device_train_batch_size (now" in text and "data.max_length (now 48)" in text
    assert text.endswith("the state of step 2 is saved: --resume continues from there")
    assert train(loaded, resume=True).status == "finished"


@pytest.mark.parametrize(
    ("error", "nothing"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("cuBLAS error: CUBLAS_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (IndexError("index out of range in self"), False),
    ],
    ids=["memory", "assertion", "cuBLAS", "shapes", "index"],
)
def test_what_a_trial_on_a_model_meets_is_an_answer_or_not(error: Exception, nothing: bool) -> None:
    """A probe takes an error as `no`; not one of the device, after which nothing computes."""
    assert says_nothing_of_the_model(error) == nothing
    model = tiny_model("llama")

    def fail(_module: object, args: object, words: dict[str, object]) -> None:
        if words.get("position_ids") is not None:
            raise error

    model.register_forward_pre_hook(fail, with_kwargs=True)
    with pytest.raises(type(error) if nothing else UserError):
        packing_route(model)
