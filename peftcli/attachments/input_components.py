"""The principal components of what projections receive on training rows: what EVA starts LoRA's A from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftcli.ignored_label import IGNORED
from peftcli.layers.running_components import RunningComponents
from peftcli.layers.site import first_tensor
from peftcli.tasks.training_rows import TrainingRows

THRESHOLD = 0.99
"""HF peft's `tau`."""


def input_components(model: nn.Module, counts: Mapping[str, int], rows: TrainingRows) -> dict[str, Tensor]:
    """Return the first principal components of each module's input, (count, d_in), by path.

    Rows are read until no component moves any more, once at most. Positions count that are neither padding nor, where
    labels stand at positions, without a label. A module that got too few vectors is left out.

    Args:
        model: the base, with every part switched off.
        counts: components by path of the module; modules with one input get the most that one of them asks for.
        rows: to run the base on.
    """
    modules = {path: model.get_submodule(path) for path in counts}
    watched: dict[str, str] = {}
    shared: dict[str, RunningComponents] = {}
    for batch in rows.batches():
        if not watched:
            watched = _same_inputs(model, modules, batch)
            for path, first in watched.items():
                most = max(counts[path], shared[first].count if first in shared else 0)
                shared[first] = RunningComponents(most, THRESHOLD)
        open_ones = {path: modules[path] for path, each in shared.items() if not each.found}
        if not open_ones:
            break
        with _hooked(open_ones, lambda path, x, given=batch: shared[path].add(_counted(x, given))):
            _run(model, batch)
    found = {path: shared[first].components for path, first in watched.items()}
    return {path: components[: counts[path]] for path, components in found.items() if components is not None}


def _same_inputs(model: nn.Module, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each module that runs the first one that gets the same tensor: q for q, k and v."""
    found: dict[str, str] = {}
    last: list[Any] = [None, ""]

    def note(path: str, x: Tensor) -> None:
        if x is not last[0]:
            last[:] = [x, path]
        found.setdefault(path, found.get(last[1], path))

    with _hooked(modules, note):
        _run(model, batch)
    return found


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], note: Any) -> Iterator[None]:
    """Call `note` with path and input of each module that runs."""
    handles: list[RemovableHandle] = []
    try:
        for path, module in modules.items():

            def hook(_module: nn.Module, args: Any, kwargs: Any, at: str = path) -> None:
                note(at, first_tensor(args, kwargs))

            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name != "labels"}
    if getattr(model.config, "is_encoder_decoder", False) and "labels" in batch:
        inputs["labels"] = batch["labels"]  # the decoder's input is made from them
    else:
        inputs["use_cache"] = False
    model(**inputs)


def _counted(x: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the vectors of x, (..., d), that count, as (n, d)."""
    places = x.shape[:-1]
    kept = None
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    for tensor in (mask, None if labels is None or labels.is_floating_point() else labels.ne(IGNORED)):
        if tensor is not None and tensor.shape == places:
            kept = tensor.bool() if kept is None else kept & tensor.bool()
    return x.reshape(-1, x.shape[-1]) if kept is None else x[kept]
