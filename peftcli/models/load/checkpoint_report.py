"""Report what a checkpoint lacked, held in addition, or held in another shape."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftcli.errors import Problem, UserError
from peftcli.models.module_view import ModuleView
from peftcli.models.read_anatomy import head_modules
from peftcli.shown_text import some_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Buffers that older checkpoints stored: causal masks, rotary tables, position numbers.
_SHOWN = 4
_OLD_BUFFERS = re.compile(r"(attn\.(masked_)?bias|attention\.(masked_)?bias|inv_freq|position_ids)$")


@dataclass(frozen=True)
class LoadingNotes:
    """What the user should know of a checkpoint.

    Args:
        head: that the task head starts from random values, and why; None where the checkpoint has it.
        others: what else was lacking or left unused.
    """

    head: str | None
    others: list[str]


def check_loading(model: PreTrainedModel, report: Mapping[str, Any], name: str) -> LoadingNotes:
    """Return notes about what a checkpoint lacked or held besides the model.

    Args:
        report: transformers' loading info: missing, unexpected and mismatched keys.

    Raises:
        UserError: weights other than the task head (or an unused pooler) are missing or of another shape, or blocks of
            the checkpoint have no place in the model.
    """
    view = ModuleView(model)
    head = tuple(f"{path}." for path in head_modules(view))
    missing = sorted(report["missing_keys"])
    mismatched = {str(key): tuple(shapes) for key, *shapes in report["mismatched_keys"]}
    new = [key for key in [*missing, *mismatched] if key.startswith(head)]
    pooler = [key for key in missing if ".pooler." in f".{key}" and key not in new]
    lost = [key for key in missing if key not in new and key not in pooler]
    problems = []
    if lost:
        problems.append(
            Problem(
                f"{name!r} lacks {len(lost)} weights of a {type(model).__name__}: {some_of(lost, _SHOWN)}",
                key="model.name_or_path",
                suggestion="the checkpoint is incomplete, or belongs to another architecture than its config.json says",
            )
        )
    wrong = [f"{key} {shapes}" for key, shapes in mismatched.items() if key not in new]
    if wrong:
        problems.append(
            Problem(
                f"{name!r} holds weights of other shapes (checkpoint, config): {some_of(wrong, _SHOWN)}",
                key="model.name_or_path",
                suggestion="its config.json does not describe its weights",
            )
        )
    unexpected = sorted(key for key in report["unexpected_keys"] if not _OLD_BUFFERS.search(key))
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    blocks = [key for key in unexpected if view.in_base(view.absolute(key)) and _looks_like_block(key, names, view)]
    if blocks:
        problems.append(
            Problem(
                f"{name!r} holds blocks that its config.json does not have: {some_of(blocks, _SHOWN)}",
                key="model.name_or_path",
                suggestion="correct the number of layers in its config.json",
            )
        )
    if problems:
        raise UserError(problems)
    return LoadingNotes(_head_note(new, mismatched), _notes(pooler, unexpected))


def _head_note(new: list[str], mismatched: Mapping[str, Any]) -> str | None:
    fresh = sorted({key.split(".")[0] for key in new})
    if not fresh:
        return None
    other = any(key in mismatched for key in new)
    why = "has another shape in the checkpoint" if other else "is not in the checkpoint"
    return f"the task head ({', '.join(fresh)}) {why}: it starts from random values, as is usual"


def _notes(pooler: list[str], unexpected: list[str]) -> list[str]:
    notes = []
    if pooler:
        notes.append(
            "the checkpoint has no pooler: it starts from random values and stays frozen; "
            "method.modules_to_save: [pooler] trains it"
        )
    if unexpected:
        notes.append(f"not needed for this task, so not loaded from the checkpoint: {some_of(unexpected, _SHOWN)}")
    return notes


def _looks_like_block(key: str, names: Collection[str], view: ModuleView) -> bool:
    """Tell whether a key names a block beyond the last one: the same path exists with another number.

    Args:
        names: of the model's parameters.
    """
    other = re.sub(r"\.\d+\.", ".0.", key, count=1)
    return other != key and (other in names or view.absolute(other) in names)
