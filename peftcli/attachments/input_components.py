"""The principal components of what projections receive on training rows: what EVA starts LoRA's A from.

Ranks can move between projections (Paischer et al. 2024, arXiv:2410.07170, section 3.3): of all components of all
projections, those that explain the largest share of their own input's variance are taken, as many as the ranks are
together. The order in which equal shares count is HF peft's.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftcli.ignored_label import IGNORED
from peftcli.layers.running_components import RunningComponents
from peftcli.layers.site import first_tensor
from peftcli.tasks.lm_head import HeadRoute, find_route
from peftcli.tasks.seq2seq_lm import decoder_inputs
from peftcli.tasks.training_rows import TrainingRows

THRESHOLD = 0.99
"""HF peft's `tau`."""
TRIED = 4
"""Tokens on which it is tried whether a model's head can do without most of them."""


@dataclass(frozen=True)
class Asked:
    """What one projection asks for.

    Args:
        module: path of the module that receives the input.
        rank: components, where ranks stay.
        most: components that it may get where ranks move; projections of one input share the largest of theirs.
        limit: no projection gets more: the smaller side of its matrix.
    """

    module: str
    rank: int
    most: int
    limit: int


@dataclass(frozen=True)
class Found:
    """The components of a projection's input, (at least rank, d_in), and the rank that it gets: 0 for none."""

    components: Tensor
    rank: int


def input_components(model: nn.Module, asked: Mapping[str, Asked], rows: TrainingRows) -> dict[str, Found]:
    """Return the first principal components of each projection's input, by the keys of `asked`.

    Rows are read until none of the components that are used moves any more, once at most. Positions count that are
    neither padding nor, where labels stand at positions, without a label. A projection whose module got too few vectors
    is left out, and its rank does not move.

    Args:
        model: the base, with every part switched off.
        asked: in the model's order. Ranks move where one of them may get more than its rank.
        rows: to run the base on.
    """
    modules = {each.module: model.get_submodule(each.module) for each in asked.values()}
    route: HeadRoute | None = None
    search: _Search | None = None
    for batch in rows.batches():
        if search is None:
            route = _route(model, batch)
            search = _Search(asked, _same_inputs(model, modules, batch, route))
        open_ones = {path: modules[path] for path in search.open_inputs()}
        if not open_ones:
            break
        shared = search.shared
        with _hooked(open_ones, lambda path, x, given=batch, at=shared: at[path].add(_counted(x, given))):
            _run(model, batch, route)
        search.distribute()
    return {} if search is None else search.found()


class _Search:
    """The components of every distinct input so far, and how ranks are distributed over projections by them.

    Args:
        asked: as in `input_components`.
        leaders: from each module that runs to the first one, in the model's order, that gets the same input.
    """

    def __init__(self, asked: Mapping[str, Asked], leaders: Mapping[str, str]) -> None:
        self.moves = any(each.most > each.rank for each in asked.values())
        self.asked = {key: each for key, each in asked.items() if each.module in leaders}
        self.leader = {key: leaders[each.module] for key, each in self.asked.items()}
        most: dict[str, int] = {}
        for key, each in self.asked.items():
            most[self.leader[key]] = max(each.most, most.get(self.leader[key], 0))
        self.ranks = {
            key: min(most[self.leader[key]], each.limit) if self.moves else each.rank
            for key, each in self.asked.items()
        }
        """Ranks as they are now; before the first batch the largest that each may get."""
        self.largest = dict(self.ranks)
        self.shared = {path: RunningComponents(count, THRESHOLD) for path, count in self._needed().items()}

    def _needed(self) -> dict[str, int]:
        """Return how many components of each distinct input are used."""
        needed: dict[str, int] = {}
        for key, rank in self.ranks.items():
            needed[self.leader[key]] = max(rank, needed.get(self.leader[key], 0))
        return needed

    def open_inputs(self) -> list[str]:
        """Return the modules whose components still move, or got too few vectors so far."""
        return [path for path, count in self._needed().items() if not self.shared[path].found(count)]

    def distribute(self) -> None:
        """Give the projections whose input has components the ranks that these explain."""
        known = [key for key in self._in_order() if self.shared[self.leader[key]].components is not None]
        if not (self.moves and known):
            return
        ratios = {key: self.shared[self.leader[key]].ratios[: self.largest[key]] for key in known}
        owners = [key for key in known for _ in ratios[key]]
        order = torch.cat([ratios[key].cpu() for key in known]).argsort(descending=True, stable=True)
        taken = Counter(owners[place] for place in order[: sum(self.asked[key].rank for key in known)].tolist())
        self.ranks.update({key: taken[key] for key in known})

    def _in_order(self) -> list[str]:
        """Return the keys: the first of each distinct input, then the others, one input after the other."""
        groups: dict[str, list[str]] = {}
        for key, path in self.leader.items():
            groups.setdefault(path, []).append(key)
        return [keys[0] for keys in groups.values()] + [key for keys in groups.values() for key in keys[1:]]

    def found(self) -> dict[str, Found]:
        """Return what is known of each projection."""
        by_key = {key: self.shared[path].components for key, path in self.leader.items()}
        return {key: Found(each, self.ranks[key]) for key, each in by_key.items() if each is not None}


def _same_inputs(
    model: nn.Module, modules: Mapping[str, nn.Module], batch: Mapping[str, Tensor], route: HeadRoute | None
) -> dict[str, str]:
    """Return for each module that runs the first one that gets the same tensor: q for q, k and v."""
    inputs: dict[int, tuple[weakref.ref[Tensor], list[str]]] = {}
    groups: list[list[str]] = []

    def note(path: str, x: Tensor) -> None:
        held, group = inputs.get(id(x), (None, []))
        if held is None or held() is not x:
            group = []
            inputs[id(x)] = (weakref.ref(x), group)
            groups.append(group)
        group.append(path)

    with _hooked(modules, note):
        _run(model, batch, route)
    order = {path: place for place, path in enumerate(modules)}
    found: dict[str, str] = {}
    for group in groups:
        first = min(group, key=order.__getitem__)
        for path in group:
            found.setdefault(path, found.get(first, first))
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


def _run(model: nn.Module, batch: Mapping[str, Tensor], route: HeadRoute | None) -> None:
    """Run the model; logits are made for one position of each row where the head can be called apart."""
    inputs = _inputs(model, batch)
    if route is None:
        model(**inputs)
    else:
        route.hidden_states(model, inputs, last=True)  # what else is hooked sees the head's whole input


def _route(model: nn.Module, batch: Mapping[str, Tensor]) -> HeadRoute | None:
    """Return the way to the model's head, tried on a few tokens; None of a model without, or of other inputs."""
    if "input_ids" not in batch:
        return None
    ids = batch["input_ids"][:1, :TRIED]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    both = getattr(model.config, "is_encoder_decoder", False)
    return find_route(model, {**inputs, "decoder_input_ids": ids} if both else {**inputs, "use_cache": False})


def _inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what the model reads of a batch; a decoder beside an encoder reads what its labels say."""
    inputs: dict[str, Any] = {name: tensor for name, tensor in batch.items() if name != "labels"}
    if not getattr(model.config, "is_encoder_decoder", False):
        inputs["use_cache"] = False
    elif "labels" in batch and "decoder_input_ids" not in batch:
        inputs["decoder_input_ids"] = decoder_inputs(model, batch["labels"].long())
    return inputs


def _counted(x: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the vectors of x, (..., d), that count, as (n, d)."""
    places = x.shape[:-1]
    kept = None
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    for tensor in (mask, None if labels is None or labels.is_floating_point() else labels.ne(IGNORED)):
        if tensor is not None and tensor.shape == places:
            kept = tensor.bool() if kept is None else kept & tensor.bool()
    return x.reshape(-1, x.shape[-1]) if kept is None else x[kept]
