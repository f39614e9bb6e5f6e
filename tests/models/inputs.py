"""Inputs for the tiny models, and a way to watch modules during one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny import HIDDEN, VOCAB, kind_of

TASKS = {
    "encoder": "sequence_classification",
    "decoder": "causal_lm",
    "seq2seq": "seq2seq_lm",
    "speech": "speech_seq2seq",
    "vision": "image_classification",
}


def task_of(family: str) -> str:
    """Return a task that every member of the family's kind has."""
    return TASKS[kind_of(family)]


def inputs_for(family: str, length: int = 7) -> dict[str, Tensor]:
    """Return two rows for a tiny model, without padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCAB, (2, length), generator=generator)
    kind = kind_of(family)
    if kind == "vision":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    if kind == "speech":
        return {"input_features": torch.randn(2, 8, 32, generator=generator), "decoder_input_ids": ids}
    if kind == "seq2seq":
        return {"input_ids": ids, "decoder_input_ids": ids.flip(1)}
    return {"input_ids": ids}


def logits(model: nn.Module, family: str, **more: Any) -> Tensor:
    """Run one pass without a cache."""
    output: Tensor = model(**inputs_for(family), **more).logits
    return output


class Seen:
    """First input and first output of watched modules, by path."""

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}


@contextmanager
def watching(model: nn.Module, paths: Iterable[str]) -> Iterator[Seen]:
    """Record what goes into and comes out of modules, as (rows, width); copies, since Falcon adds in place."""
    seen = Seen()
    handles = []
    for path in set(paths):

        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any, path: str = path) -> None:
            first = args[0] if args else kwargs["hidden_states"]
            result = output[0] if isinstance(output, tuple) else output
            seen.inputs.setdefault(path, first.detach().clone().reshape(-1, first.shape[-1]))
            seen.outputs.setdefault(path, result.detach().clone().reshape(-1, result.shape[-1]))

        handles.append(model.get_submodule(path).register_forward_hook(hook, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


__all__ = ["HIDDEN", "Seen", "inputs_for", "logits", "task_of", "watching"]
