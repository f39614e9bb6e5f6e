"""Turn a pretrained model into one that a method trains: freeze, attach, unfreeze what is trained beside it."""

from __future__ import annotations

import torch
from torch import nn

from peftcli.errors import Problem, UserError
from peftcli.layers.added_modules import is_added
from peftcli.layers.quantised.quantised_weights import is_quantised
from peftcli.layers.site import base_parameters
from peftcli.models.anatomy import Anatomy
from peftcli.models.module_view import module_kind
from peftcli.models.reach import partial_reach
from peftcli.models.structure.norms_and_biases import untouched_note
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.narrow_layers import notes_on_left_out
from peftcli.protocol.registry import MethodRegistry, registry
from peftcli.protocol.rows_beside.added_rows import WantedRows, add_token_rows, counted_rows
from peftcli.recipe.method_params import MethodParams


def apply_method(
    model: nn.Module,
    anatomy: Anatomy,
    params: MethodParams,
    *,
    train_head: bool = True,
    masters: bool = True,
    rows: WantedRows | None = None,
    methods: MethodRegistry = registry,
) -> Attachment:
    """Freeze `model`, attach the method that `params` names, and what is trained beside it: head, modules, token rows.

    Neither reads nor changes base values: it works on the meta device. Call `Attachment.initialise` (a new training) or
    `load_state_dict` (a saved adapter) afterwards.

    Args:
        model: the task model; changed in place.
        anatomy: its roles.
        params: the method's hyper-parameters.
        train_head: train the task head; it is saved either way, since the pretrained base lacks it.
        masters: keep trained base parameters in float32 on a bf16 or fp16 base, where a step would be lost in rounding;
            the forward pass then runs under autocast. False to evaluate in the base's dtype.
        rows: of the vocabulary's tables, to train; None takes those that `params` names.
        methods: where methods are found.

    Raises:
        UserError: the method does not fit the model, `modules_to_save` matches nothing, there is no such row, or
            nothing would be trained.
    """
    method = methods.method(params.name)
    reasons = method.check(anatomy, params)
    if reasons:
        raise UserError(Problem(reason, key="method") for reason in reasons)
    model.requires_grad_(False)
    attachment = method.attach(model, anatomy, params)
    attachment.notes += _notes(model, anatomy, params, attachment)
    attachment.head = _parameters_below(model, anatomy.head)
    attachment.to_save = _parameters_to_save(model, params.modules_to_save or [])
    for name in attachment.head:
        model.get_parameter(name).requires_grad_(train_head)
    for name in attachment.to_save:
        model.get_parameter(name).requires_grad_(True)
    add_token_rows(attachment, anatomy, counted_rows(params, model) if rows is None else rows)
    trainable = attachment.trainable_parameters()
    if not trainable:
        raise UserError(
            Problem(
                f"{params.name} would train nothing on this model",
                key="method",
                suggestion="choose other targets, or set training.train_head: true",
            )
        )
    if masters:
        _upcast_(model, attachment)
    return attachment


def _notes(model: nn.Module, anatomy: Anatomy, params: MethodParams, attachment: Attachment) -> list[str]:
    """Return what the method leaves out, and in how many blocks it is."""
    reach = partial_reach(anatomy, _named(anatomy, attachment))
    untouched = untouched_note(anatomy) if attachment.unfrozen else None
    left_out = notes_on_left_out(model, anatomy, params, attachment.targets)
    return [*reach, *left_out, *([untouched] if untouched else [])]


def _named(anatomy: Anatomy, attachment: Attachment) -> list[str]:
    """Return the roles and branches that the method went by; no roles where it took modules that have none, too."""
    kinds = {block.exit: block.kind for block in anatomy.blocks}
    branches = [kinds.get(placed.key.rpartition(".")[0]) for placed in attachment.placed]
    fused = {linear.module for linear in anatomy.linears if linear.slice is not None}
    by_role = all(target.role or target.module in fused for target in attachment.targets)
    roles = [target.role for target in attachment.targets] if by_role else []
    return list(dict.fromkeys(name for name in [*roles, *branches] if name is not None))


def _parameters_below(model: nn.Module, paths: tuple[str, ...] | list[str]) -> list[str]:
    """Names of base parameters at or below the modules, each once."""
    inside = tuple(f"{path}." for path in paths)
    return [name for name in base_parameters(model) if name in paths or name.startswith(inside)]


def _parameters_to_save(model: nn.Module, entries: list[str]) -> list[str]:
    """Names of the base parameters below `modules_to_save`; a tied one under every name, as other loaders expect.

    Raises:
        UserError: an entry names no module with parameters, or one whose weights are quantised.
    """
    every = [name for name, _ in model.named_parameters(remove_duplicate=False) if not is_added(name)]
    found: dict[str, None] = {}
    problems = []
    for entry in entries:
        matched = [name for name in every if f".{entry}." in f".{name.rpartition('.')[0]}."]
        if not matched:
            modules = sorted({name.rpartition(".")[0].rpartition(".")[2] for name in every})
            problems.append(
                Problem(
                    f"{entry!r} names no module with parameters",
                    key="method.modules_to_save",
                    suggestion=f"modules are named by a full path or its last parts, such as: {', '.join(modules)}",
                )
            )
        modules_of = dict.fromkeys(name.rpartition(".")[0] for name in matched)
        if low := [path for path in modules_of if is_quantised(model.get_submodule(path))]:
            reason = f"{low[0]} is quantised, and weights of a few bits cannot be trained"
            remedy = f"leave {entry} out, or load the base in 16 bits (no model.load_in_4bit or load_in_8bit)"
            problems.append(Problem(reason, key="method.modules_to_save", suggestion=remedy))
        found.update(dict.fromkeys(matched))
    if problems:
        raise UserError(problems)
    chosen = {id(model.get_parameter(name)) for name in found}
    return [name for name in every if id(model.get_parameter(name)) in chosen]


def _upcast_(model: nn.Module, attachment: Attachment) -> None:
    """Hold the trained base parameters in float32, and the others of a norm with them: it takes one dtype."""
    for name in dict.fromkeys([*attachment.unfrozen, *attachment.head, *attachment.to_save]):
        parameter = model.get_parameter(name)
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            module = model.get_submodule(name.rpartition(".")[0])
            own = [parameter] if parameter.ndim > 1 or module_kind(module) else module.parameters(recurse=False)
            for each in own:
                # as nn.Module.to does it: the parameter stays the same object, so that tied modules still share it.
                # A base is sharded after its method is attached, so no shard is replaced here.
                each.data = each.data.float()
