"""In which context a training forward pass computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from peftcli.assembly.precision import Precision
from peftcli.layers.cpu.document_attention import DocumentAttention
from peftcli.layers.joined_documents import Documents
from peftcli.record.random_state import seed_pass
from peftcli.tasks.task import Batch
from peftcli.training.speed.fast_paths import FastPaths

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Computing:
    """Makes the context of a training forward pass: its dtype, and the faster paths that the recipe leaves on.

    Args:
        skips_together: whether the model skips layers in training, and all processes must skip the same.
    """

    precision: Precision
    fast_paths: FastPaths
    accelerator: Accelerator
    skips_together: bool = False

    @contextmanager
    def __call__(self, batch: Batch) -> Iterator[None]:
        """Be in the context of a forward pass of this batch."""
        if batch.drawn is not None:
            by_rows, together = self.fast_paths.draws_dropout, self.skips_together
            seed_pass(batch.drawn, self.accelerator.device, by_rows=by_rows, together=together)
        documents = batch.documents() if self.fast_paths.by_document else Documents()
        attention = DocumentAttention(documents) if len(documents) > 1 else None
        with ExitStack() as contexts:
            if batch.idle:  # the random numbers of the passes that count are those of a process that has no idle ones
                devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
                contexts.enter_context(torch.random.fork_rng(devices))
            contexts.enter_context(self.accelerator.autocast())
            contexts.enter_context(self.fast_paths(attention, batch.drawn))
            yield
