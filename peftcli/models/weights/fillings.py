"""Which tensors of a checkpoint's files become which tensors of a model, by transformers' own renaming and joining."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    dot_natural_key,
    rename_source_key,
)

from peftcli.models.weights.tensor_source import Stored


@dataclass(frozen=True)
class Filling:
    """Tensors of the files that become tensors of the model together.

    Args:
        sources: the files' tensors in transformers' order, each with the pattern that it matched.
        name: the model's name that transformers gives them together.
        targets: names of what they become in the model; several where one tensor is split.
        converter: transformers' joining, splitting or transposing; None where a tensor only has another name.
    """

    sources: tuple[tuple[str, Stored], ...]
    name: str
    targets: tuple[str, ...]
    converter: WeightConverter | None = None

    def convert(self, model: PreTrainedModel, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the model's tensors that the sources' values become; values on the meta device give shapes."""
        if self.converter is None:
            return {self.name: values[0]}
        return _convert(self.converter, model, self.name, [pattern for pattern, _ in self.sources], values)

    def only(self, first: int, last: int) -> Filling | None:
        """Return the filling whose result is rows `first` to `last` (not included) of this one's, reading those alone.

        None where rows cannot be told apart among the sources. They can be where each source is one row (one expert)
        of a joined tensor.
        """
        if self.converter is None or len(self.targets) > 1:
            return None
        joins, *others = self.converter.operations
        if not isinstance(joins, MergeModulelist) or joins.dim != 0:
            return None
        if not all(_keeps_rows(operation) for operation in others):
            return None
        by_pattern: dict[str, list[Stored]] = {}
        for pattern, source in self.sources:
            by_pattern.setdefault(pattern, []).append(source)
        kept = [(pattern, source) for pattern, found in by_pattern.items() for source in found[first:last]]
        return replace(self, sources=tuple(kept))


def _keeps_rows(operation: object) -> bool:
    """Tell whether an operation on joined tensors leaves their first dimension alone."""
    if isinstance(operation, Concatenate):
        return bool(operation.dim > 0)
    return isinstance(operation, Transpose) and bool(min(operation.dim0, operation.dim1) > 0)


def fillings(model: PreTrainedModel, stored: Mapping[str, Stored]) -> list[Filling]:
    """Return what the tensors of a checkpoint's files become; those that the model has no place for are left out.

    Args:
        model: the task model without parts; meta is enough.
        stored: the files' tensors by name.

    Raises:
        Exception: whatever a conversion of transformers raises that needs values, not only shapes.
    """
    live = model.state_dict()
    transforms: list[Any] = get_model_conversion_mapping(model)
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    renamings = [transform for transform in transforms if not isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    plain: dict[str, Filling] = {}
    joined: dict[str, list[tuple[str, Stored]]] = {}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, live)
        if target not in live and name in live:
            target, pattern = rename_source_key(name, [], [], model.base_model_prefix, live)
        if target not in live:
            continue
        if pattern is None:
            plain.setdefault(target, Filling(((name, stored[name]),), target, (target,)))
        else:
            joined.setdefault(target, []).append((pattern, stored[name]))
    found = list(plain.values())
    for first, sources in joined.items():
        converter = by_pattern[sources[0][0]]
        shapes = [torch.empty(source.shape, dtype=source.dtype, device="meta") for _, source in sources]
        targets = _convert(converter, model, first, [pattern for pattern, _ in sources], shapes)
        found.append(Filling(tuple(sources), first, tuple(name for name in targets if name in live), converter))
    return found


@torch.no_grad()
def _convert(
    converter: WeightConverter, model: nn.Module, name: str, patterns: Sequence[str], values: Sequence[Tensor]
) -> dict[str, Tensor]:
    own = copy.deepcopy(converter)
    for pattern, value in zip(patterns, values, strict=True):
        own.add_tensor(name, name, pattern, value)
    converted = own.convert(name, model=model, config=model.config)
    return {key: value[0] if isinstance(value, list) else value for key, value in converted.items()}
