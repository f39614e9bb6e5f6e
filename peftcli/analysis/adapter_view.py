"""What a saved adapter changed, module by module: sizes, spectra, ranks. No model is loaded.

The task model is built on the meta device, the method attaches its parts, and the low-rank ones among them get the
saved values. The base's weights are read from disk one at a time, for their norms and where a change depends on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.adapters.loading import load_adapter
from peftcli.analysis.base_weights import FileWeights, base_weights, linears_by_key, role_weight
from peftcli.analysis.spectrum import Spectrum, product_spectrum
from peftcli.data.store.labels import LabelSpec
from peftcli.errors import UserError
from peftcli.layers.site import Part
from peftcli.models.anatomy import Anatomy, LinearRole
from peftcli.models.load.heads import configure_head
from peftcli.models.load.load_model import build_meta, load_config
from peftcli.models.load.tokenizers import fit_to_tokenizer, load_tokenizer
from peftcli.models.read_anatomy import read_anatomy
from peftcli.names import NAMES
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.composite_attachment import CompositeAttachment
from peftcli.protocol.composition import SEPARATOR
from peftcli.protocol.method import MergeRule
from peftcli.protocol.registry import registry
from peftcli.recipe.params import MethodParams
from peftcli.recipe.schema import ModelSpec, Recipe, TaskName
from peftcli.recipe.stored import load_stored_recipe

_UNFINISHED = "finish the training: peft train RECIPE --resume"


@dataclass(frozen=True)
class ModuleChange:
    """What was trained at one place.

    Args:
        name: key of the adapter, or name of a base parameter.
        role, layer: of the projection, where it has one.
        shape: of the weight that changes.
        change: Frobenius norm of the weight's change; None where it is no weight, or depends on a base not at hand.
        weight: Frobenius norm of the base's weight; None if it is not at hand.
        allotted: ranks that the factors had in training.
        spectrum: of a low-rank change, over the ranks that were kept.
        magnitude: least, mean and largest learnt magnitude over the weight's own row norm (DoRA).
        tensors: norm of each saved tensor, where the change is no change of a weight.
        gated: a gate scales the change by what it sees; sizes are those before the gate.
    """

    name: str
    role: str | None = None
    layer: int | None = None
    shape: tuple[int, ...] | None = None
    change: float | None = None
    weight: float | None = None
    allotted: int | None = None
    spectrum: Spectrum | None = None
    magnitude: tuple[float, float, float] | None = None
    tensors: Mapping[str, float] = field(default_factory=dict)
    gated: bool = False

    @property
    def relative(self) -> float | None:
        """The change's norm over the weight's."""
        return None if self.change is None or not self.weight else self.change / self.weight

    @property
    def kept(self) -> int | None:
        """Ranks in the file."""
        return None if self.spectrum is None else len(self.spectrum.values)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        found: dict[str, Any] = {
            "module": self.name,
            "role": self.role,
            "layer": self.layer,
            "shape": None if self.shape is None else list(self.shape),
            "change_norm": self.change,
            "weight_norm": self.weight,
            "relative_change": self.relative,
        }
        if self.spectrum is not None:
            found |= {
                "r": self.allotted,
                "kept_rank": self.kept,
                "effective_rank": self.spectrum.effective_rank,
                "rank_90": self.spectrum.rank_of_energy(0.9),
                "rank_99": self.spectrum.rank_of_energy(0.99),
                "rank_used": self.spectrum.effective_rank / self.allotted if self.allotted else None,
                "singular_values": list(self.spectrum.values),
            }
        if self.magnitude is not None:
            found["magnitude_ratio"] = dict(zip(("min", "mean", "max"), self.magnitude, strict=True))
        if self.tensors:
            found["tensor_norms"] = dict(self.tensors)
        return found | ({"gated": True} if self.gated else {})


@dataclass
class AdapterView:
    """A saved adapter, or complete model, as numbers.

    Args:
        params: the method's hyper-parameters.
        rows: one for each place, in the model's order.
        notes: what was left out, and why.
    """

    params: MethodParams
    rows: list[ModuleChange]
    notes: list[str] = field(default_factory=list)


def view_adapter(path: Path) -> AdapterView:
    """Measure what a run, or an adapter directory, holds.

    Args:
        path: what `peft train` left, or a directory with adapter_config.json.

    Raises:
        UserError: neither is there, or the base's config is out of reach.
    """
    if (path / "recipe.yaml").is_file():
        recipe = load_stored_recipe(path / "recipe.yaml", NAMES).recipe
        if registry.info(recipe.method.name).artifact == "model":
            return _view_model(path, recipe)
        if not (path / "adapter").is_dir():
            raise UserError(
                f"{path} holds no adapter yet", suggestion="finish the training: peft train RECIPE --resume"
            )
        return _view_adapter(path / "adapter", recipe.model, recipe.task)
    if (path / "adapter_config.json").is_file():
        return _view_adapter(path, None, None)
    raise UserError(
        f"{path} is neither a run directory nor an adapter", suggestion="name what `peft train` left, or an adapter/"
    )


def _view_adapter(directory: Path, spec: ModelSpec | None, task: TaskName | None) -> AdapterView:
    saved = load_adapter(directory)
    spec = spec or ModelSpec(name_or_path=str(saved.meta.base["name"]))
    model, anatomy = _meta_model(spec, task or saved.meta.task, saved.meta.label_spec)
    base, reason = base_weights(model, spec)
    rules = _rules(anatomy, saved.params, saved.state)
    attachment = apply_method(model, anatomy, saved.params)
    attachment.load_state_dict(saved.state)  # on meta: names and shapes only
    reader = _Reader(anatomy, base, rules, saved.state)
    notes = [*saved.notes, *([reason] if reason else [])]
    if attachment.head:
        notes.append("the task head, trained from scratch beside the method, is left out")
    return AdapterView(saved.params, list(reader.rows(attachment)), notes)


def _meta_model(spec: ModelSpec, task: TaskName, labels: LabelSpec | None) -> tuple[nn.Module, Anatomy]:
    config = load_config(spec)
    configure_head(config, task, labels, spec)
    model = build_meta(config, task, config.num_labels)
    fit_to_tokenizer(model, load_tokenizer(spec, task))
    return model, read_anatomy(model, spec.anatomy)


def _rules(anatomy: Anatomy, params: MethodParams, state: Mapping[str, Tensor]) -> Mapping[str, MergeRule]:
    """Return how base parameters change; empty for a method that does not fold into them."""
    method = registry.method(params.name)
    return {} if method.why_not_mergeable(params) is not None else method.merge_rules(anatomy, params, state)


def _places(attachment: Attachment) -> Iterator[tuple[str, Part, str]]:
    """Yield the key, the part, and the start of its names in the file: a composition puts a label in front."""
    if isinstance(attachment, CompositeAttachment):
        for label, inner in attachment.parts.items():
            for key, part, start in _places(inner):
                yield key, part, f"{label}{SEPARATOR}{start}"
    else:
        for placed in attachment.placed:
            yield placed.key, placed.part, f"{placed.key}."


def _fill_(part: Part, own: Mapping[str, Tensor]) -> None:
    """Put saved tensors in place of a part's own, which are on meta; a file may hold fewer ranks."""
    for suffix, value in own.items():
        path, _, name = suffix.rpartition(".")
        module = part.get_submodule(path)
        if name in module._buffers:
            module._buffers[name] = value.float()
        else:
            module._parameters[name] = nn.Parameter(value.float(), requires_grad=False)


@dataclass
class _Reader:
    """Measures places of one attachment."""

    anatomy: Anatomy
    base: FileWeights | None
    rules: Mapping[str, MergeRule]
    state: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        self.linears = linears_by_key(self.anatomy)

    def rows(self, attachment: Attachment) -> Iterator[ModuleChange]:
        """Yield the parts' places, then the base parameters that were trained in place."""
        for key, part, start in _places(attachment):
            own = {name.removeprefix(start): value for name, value in self.state.items() if name.startswith(start)}
            yield self._place(key, part, {name: own[name] for name in part.adapter_tensors() if name in own})
        for name in dict.fromkeys([*attachment.unfrozen, *attachment.to_save]):
            if name in self.state and name not in attachment.head:
                yield weight_change(name, self.base.read(name) if self.base else None, self.state[name].float())

    def _place(self, key: str, part: Part, own: Mapping[str, Tensor]) -> ModuleChange:
        linear = self.linears.get(key)
        gated = isinstance(part.scale, nn.Module)
        role, layer = (linear.role, linear.layer) if linear else (None, layer_of(key))
        allotted = _ranks(part)
        if allotted is not None:
            _fill_(part, own)
        factors = part.low_rank() if allotted is not None else None
        magnitude = getattr(part, "lora_magnitude_vector", None)
        before, after = self._before_and_after(key, linear, change=factors is None or magnitude is not None)
        weight = None if before is None else float(torch.linalg.vector_norm(before))
        change = None if before is None or after is None else float(torch.linalg.vector_norm(after - before))
        if factors is None:
            tensors = {name: float(torch.linalg.vector_norm(t.float())) for name, t in own.items()}
            shape = None if before is None else tuple(before.shape)
            return ModuleChange(key, role, layer, shape, change, weight, tensors=tensors, gated=gated)
        left, right = factors
        spectrum = product_spectrum(left, right, 1.0 if gated else float(part.scale))
        return ModuleChange(
            key,
            role,
            layer,
            (left.shape[0], right.shape[1]),
            spectrum.norm if magnitude is None else change,
            weight,
            allotted,
            spectrum,
            _magnitude_ratio(magnitude, before),
            gated=gated,
        )

    def _before_and_after(
        self, key: str, linear: LinearRole | None, *, change: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the role's weight in the base, and, if asked, as a merge would leave it."""
        name = f"{linear.module if linear else key}.weight"
        whole = self.base.read(name) if self.base else None
        if whole is None:
            return None, None
        before = role_weight(whole, linear)
        if not change or name not in self.rules:
            return before, None
        return before, role_weight(self.rules[name].apply(whole.clone()), linear)


def _ranks(part: Part) -> int | None:
    """Return the ranks that a part was given, PiSSA's initial pair too; None for a part without a low-rank change."""
    values = getattr(part, "lora_E", None)  # pruned ranks included: the part as the recipe makes it
    if values is not None:
        return int(values.numel())
    factors = part.low_rank()
    return None if factors is None else factors[1].shape[0]


def _magnitude_ratio(magnitude: Tensor | None, weight: Tensor | None) -> tuple[float, float, float] | None:
    if magnitude is None or weight is None:
        return None
    axis = 1 if magnitude.numel() == weight.shape[0] else 0  # a table's magnitudes belong to its columns
    ratio = magnitude.detach() / torch.linalg.vector_norm(weight, dim=axis)
    return float(ratio.min()), float(ratio.mean()), float(ratio.max())


def weight_change(name: str, before: Tensor | None, after: Tensor) -> ModuleChange:
    """Return the row of a base parameter that was trained in place.

    Args:
        name: of the parameter.
        before: the base's value in float32, or None if it is not at hand.
        after: the trained value in float32.
    """
    if before is None or before.shape != after.shape:
        norms = {"trained": float(torch.linalg.vector_norm(after))}
        return ModuleChange(name, None, layer_of(name), tuple(after.shape), tensors=norms)
    change, weight = (float(torch.linalg.vector_norm(each)) for each in (after - before, before))
    return ModuleChange(name, None, layer_of(name), tuple(after.shape), change, weight)


def layer_of(path: str) -> int | None:
    """Return the first number in a module path: the block's."""
    found = re.search(r"\.(\d+)(?:\.|$)", path)
    return int(found.group(1)) if found else None


def _view_model(run: Path, recipe: Recipe) -> AdapterView:
    """Compare the complete model that a run left with its base, parameter by parameter; frozen ones are left out."""
    path = run / "model"
    if not path.is_dir():
        raise UserError(f"{run} holds no model yet", suggestion=_UNFINISHED)
    own = recipe.model.model_copy(update={"name_or_path": str(path), "revision": None, "new_special_tokens": []})
    config = load_config(own)
    model = build_meta(config, recipe.task, config.num_labels)
    anatomy = read_anatomy(model, recipe.model.anatomy)
    trained = FileWeights(model, path)
    base, reason = base_weights(model, recipe.model)
    roles = {f"{linear.module}.weight": linear for linear in anatomy.linears if linear.slice is None}
    rows = []
    for name, _ in model.named_parameters():
        after = trained.read(name)
        if after is None or name.startswith(tuple(f"{path}." for path in anatomy.head)):
            continue
        row = weight_change(name, base.read(name) if base else None, after)
        if row.change == 0.0:
            continue  # frozen
        linear = roles.get(name)
        rows.append(row if linear is None else _with_role(row, linear))
    return AdapterView(recipe.method, rows, [reason] if reason else [])


def _with_role(row: ModuleChange, linear: LinearRole) -> ModuleChange:
    return ModuleChange(row.name, linear.role, linear.layer, row.shape, row.change, row.weight, tensors=row.tensors)
