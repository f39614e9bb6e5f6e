"""The plan of a merged model: for every tensor its source, the rule that changes it, and its type."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftcli.errors import UserError
from peftcli.merging.tensor_writer import Planned
from peftcli.models.experts.expert_pieces import ExpertPiece
from peftcli.models.load.dtypes import dtype_name
from peftcli.models.weights.checkpoint_names import CheckpointNames, FileTensor
from peftcli.models.weights.tensor_source import CHUNK_BYTES, Source
from peftcli.protocol.method import MergeRule


@dataclass(frozen=True)
class MergedTensor:
    """One tensor of the merged model.

    Args:
        planned: its name, type and shape in the new files.
        source: the base's tensor; None for one that a rule makes.
        rule: what changes it; None copies it.
        rows: grow the base's first dimension to this many rows (added tokens): the new ones are the mean of the old,
            and zeros in a bias.
        live_name: of the model's parameter; empty for what the files hold in pieces.
    """

    planned: Planned
    source: Source | None = None
    rule: MergeRule | None = None
    rows: int | None = None
    live_name: str = ""

    def pieces(self) -> Iterator[Tensor]:
        """Yield the elements in order, in the planned type; a tensor without a rule is never whole in memory.

        Raises:
            UserError: the result is not finite, or has another shape than the model's parameter.
        """
        if self.rule is None and self.rows is None:
            if self.source is None:
                raise ValueError(f"{self.planned.name} has neither a source nor a rule")
            for chunk in self.source.chunks():
                yield self._rounded(chunk)
            return
        merged = self._merged()
        if tuple(merged.shape) != self.planned.shape:
            raise UserError(
                f"{self.planned.name} would be {tuple(merged.shape)} instead of {self.planned.shape}",
                suggestion="use the base model that the adapter was trained with",
            )
        flat = merged.reshape(-1)
        step = max(1, CHUNK_BYTES // flat.element_size())
        for start in range(0, flat.numel(), step):
            yield self._rounded(flat[start : start + step])

    def read_base(self) -> Tensor | None:
        """Return the base's tensor in float32, in memory of its own, grown to `rows`; None where the base has none."""
        base = None if self.source is None else self.source.read_float32()
        if base is not None and self.rows is not None and self.rows > len(base):
            fresh = base.mean(0, keepdim=True).expand(self.rows - len(base), *base.shape[1:])
            fresh = fresh if base.ndim > 1 else torch.zeros_like(fresh)  # a bias of the head, as the model was trained
            base = torch.cat([base, fresh])
        return base

    def _merged(self) -> Tensor:
        base = self.read_base()  # its own: a rule may work in place
        if self.rule is not None:
            return self.rule.apply(base)
        if base is None:
            raise ValueError(f"{self.planned.name} has neither a source nor a rule")
        return base

    def _rounded(self, piece: Tensor) -> Tensor:
        if self.rule is None and piece.dtype == self.planned.dtype:
            return piece
        rounded = piece.to(self.planned.dtype)
        if rounded.is_floating_point() and not torch.isfinite(rounded).all():
            raise UserError(
                f"{self.planned.name} holds values that are not finite in {dtype_name(self.planned.dtype)}",
                suggestion="use --dtype float32 or bfloat16; if that fails too, the adapter itself is broken",
            )
        return rounded


@dataclass
class MergePlan:
    """The tensors of a merged model.

    Args:
        outputs: its tensors, in the order of the base's files.
        dtype: of most of its numbers.
        untied: names of parameters that no longer share their storage.
        unties_tables: tables of tokens are among them, which the config says.
        left_out: names in the base's files that the task's model does not have.
    """

    outputs: list[MergedTensor]
    dtype: torch.dtype
    untied: list[str] = field(default_factory=list)
    unties_tables: bool = False
    left_out: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(output.planned.nbytes for output in self.outputs)

    @property
    def changed(self) -> int:
        """Tensors that differ from the base's."""
        return sum(output.rule is not None for output in self.outputs)


def plan_merge(
    model: PreTrainedModel,
    stored: Mapping[str, Source],
    rules: Mapping[str, MergeRule],
    dtype: torch.dtype | None,
    *,
    whole: bool = False,
) -> MergePlan:
    """Plan the tensors of the merged model.

    Args:
        model: the task model on the meta device, without parts.
        stored: the base's tensors by their names in the files.
        rules: by name of the live parameter; those of kind `add` and the head's need no tensor of the base.
        dtype: of the result's floating-point tensors; None keeps the base's own.
        whole: the model is a part of what the files hold: keep their names, and copy the tensors that it lacks.

    Raises:
        UserError: a rule names a tensor that the model lacks or that loading joins from several, or the base lacks one.
    """
    names = CheckpointNames(model)
    groups = tied_groups(model)
    files, left_out = _by_live_name(names, stored)
    _check_rules(rules, files, names)
    usual = dtype or _usual_dtype(stored.values())
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    builder = _Builder(names.live, parameters, files, groups, rules, dtype, usual)
    tables = {name for name in groups if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)}
    unties_tables = bool(builder.untied & tables)
    if unties_tables:  # one key of the config unties everything
        builder.untied.update(groups)
    if whole:
        builder.keep_names()
    outputs = [builder.copied(entry) for parts in files.values() for entry in parts]
    written = {output.planned.name for output in outputs}
    outputs += [output for output in builder.added() if output.planned.name not in written]
    builder.refuse_gaps(computed_names(model, parameters))
    if whole:
        outputs += [builder.beside(stored[name]) for name in left_out]
        left_out = []
    return MergePlan(outputs, usual, sorted(builder.untied), unties_tables, left_out)


Entry = tuple[FileTensor, Source]


def _by_live_name(names: CheckpointNames, stored: Mapping[str, Source]) -> tuple[dict[str, list[Entry]], list[str]]:
    files: dict[str, list[Entry]] = {}
    left_out = []
    for name, tensor in stored.items():
        meaning = names.of_file(name)
        if meaning is None:
            left_out.append(name)
        else:
            files.setdefault(meaning.live_name, []).append((meaning, tensor))
    return files, left_out


def _check_rules(rules: Mapping[str, MergeRule], files: Mapping[str, list[Entry]], names: CheckpointNames) -> None:
    unknown = sorted(set(rules) - set(names.live))
    if unknown:
        raise UserError(
            f"the adapter changes {unknown[0]}, which this model does not have",
            suggestion="use the base model that the adapter was trained with",
        )
    joined = sorted(name for name, rule in rules.items() if not _reaches(rule, files.get(name, ()), names.live[name]))
    if joined:
        raise UserError(
            f"{joined[0]} is stored in several pieces in the base's files, which a merge cannot change",
            suggestion="keep the adapter, or leave that module out of modules_to_save and target_modules",
        )


def _reaches(rule: MergeRule, entries: Sequence[Entry], live: Tensor) -> bool:
    """Tell whether a rule can change what the files hold: each tensor is the parameter, or rows of one expert of it."""
    converted = [(meaning.piece, source) for meaning, source in entries if meaning.converted]
    if not converted:
        return True
    fits = (piece is not None and source.shape == piece.shape_in(live.shape) for piece, source in converted)
    return live.ndim == 3 and rule.on_rows() is not None and all(fits)


def _of_piece(rule: MergeRule, piece: ExpertPiece) -> MergeRule:
    """Return what a rule of a 3-D parameter does to one piece of it."""
    change = rule.on_rows()
    assert change is not None  # `_check_rules`

    def apply(rows: Tensor | None) -> Tensor:
        assert rows is not None  # a piece is what a file holds
        return change(piece.expert, piece.part * len(rows), rows)

    return MergeRule(apply)


def tied_groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return, for every parameter that shares its storage, the names of all that do."""
    by_identity: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_identity.setdefault(id(parameter), []).append(name)
    return {name: tuple(group) for group in by_identity.values() if len(group) > 1 for name in group}


def computed_names(model: PreTrainedModel, names: list[str]) -> set[str]:
    """Return the parameters that the model computes and no file holds, such as Marian's sinusoidal positions."""
    patterns = [*(model._keys_to_ignore_on_save or ()), *(model._keys_to_ignore_on_load_missing or ())]
    return {name for name in names if any(re.search(str(pattern), name) for pattern in patterns)}


def _usual_dtype(tensors: Any) -> torch.dtype:
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.dtype.is_floating_point:
            sizes[tensor.dtype] += tensor.numel
    return sizes.most_common(1)[0][0] if sizes else torch.float32


@dataclass
class _Builder:
    """Turns file tensors and rules into outputs.

    Args:
        prefix: where the files hold more than the model: of its tensors' names there; None for names of its own.
    """

    live: Mapping[str, Tensor]
    parameters: list[str]
    files: Mapping[str, list[Entry]]
    groups: Mapping[str, tuple[str, ...]]
    rules: Mapping[str, MergeRule]
    dtype: torch.dtype | None
    usual: torch.dtype
    untied: set[str] = field(default_factory=set)
    prefix: str | None = None

    def __post_init__(self) -> None:
        for name, rule in self.rules.items():
            if rule.kind == "untie" and name in self.groups:
                self.untied.update(self.groups[name])

    def keep_names(self) -> None:
        """Write every tensor under the name that the base's files have, and new ones beside those of the same part."""
        entries = [meaning for parts in self.files.values() for meaning, _ in parts]
        same = (one for one in entries if one.file_name.endswith(one.live_name))
        self.prefix = next((one.file_name.removesuffix(one.live_name) for one in same), "")

    def beside(self, source: Source) -> MergedTensor:
        """Return the output of a tensor of the files that the model does not have."""
        return MergedTensor(Planned(source.name, self._type(source.dtype), source.shape), source)

    def copied(self, entry: Entry) -> MergedTensor:
        """Return the output of one tensor of the files, its rule included."""
        meaning, source = entry
        saved = meaning.saved_name if self.prefix is None else meaning.file_name
        if meaning.converted:
            planned = Planned(saved, self._type(source.dtype), source.shape)
            rule = self.rules.get(meaning.live_name)
            if rule is None or meaning.piece is None:
                return MergedTensor(planned, source)
            return MergedTensor(planned, source, _of_piece(rule, meaning.piece))
        return self._output(saved, meaning.live_name, source)

    def added(self) -> Iterator[MergedTensor]:
        """Yield tensors that have no entry of their own in the files: heads, and tied tensors that become untied."""
        for name in self.live:
            if name in self.files:
                continue
            if name in self.untied:
                yield self._output(f"{self.prefix or ''}{name}", name, self._shared_source(name))
            elif name in self.rules and not self._rule_of_group_used(name):
                yield self._output(f"{self.prefix or ''}{name}", name, None)

    def refuse_gaps(self, computed: set[str]) -> None:
        """Raise if neither the files nor a rule supply a parameter that the model does not compute."""
        for name in self.parameters:
            if name in computed:
                continue
            names = (name, *self.groups.get(name, ()))
            if not any(twin in self.files or twin in self.rules for twin in names):
                raise UserError(f"the base's files lack {name}", suggestion="name the complete base model with --base")

    def _output(self, saved_name: str, live_name: str, source: Source | None) -> MergedTensor:
        shape = tuple(self.live[live_name].shape)
        rule = self._rule(live_name)
        dtype = self._type(source.dtype) if source is not None else self.usual
        if rule is not None and rule.kind == "add":
            return MergedTensor(Planned(saved_name, dtype, shape), None, rule, live_name=live_name)
        rows = shape[0] if source is not None and source.shape != shape and source.shape[1:] == shape[1:] else None
        if source is not None and rows is None and source.shape != shape:
            raise UserError(
                f"the base's {source.name} is {source.shape}, the model's {live_name} is {shape}",
                suggestion="use the base model that the adapter was trained with",
            )
        return MergedTensor(Planned(saved_name, dtype, shape), source, rule, rows, live_name)

    def _rule(self, name: str) -> MergeRule | None:
        """Return a tensor's rule: its own, or that of a name that shares its storage and does not change alone."""
        if name in self.rules:
            return self.rules[name]
        twins = (self.rules.get(twin) for twin in self.groups.get(name, ()))
        return next((rule for rule in twins if rule is not None and rule.kind != "untie"), None)

    def _shared_source(self, name: str) -> Source | None:
        for twin in self.groups[name]:
            for _, source in self.files.get(twin, ()):
                return source
        return None

    def _rule_of_group_used(self, name: str) -> bool:
        return any(twin in self.files for twin in self.groups.get(name, ()))

    def _type(self, stored: torch.dtype) -> torch.dtype:
        return self.dtype if self.dtype is not None and stored.is_floating_point else stored
