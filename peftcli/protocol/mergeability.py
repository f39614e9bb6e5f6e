"""Whether what is about to be trained will fold into the base weights: known before the first step."""

from __future__ import annotations

from torch import Tensor

from peftcli.errors import UserError
from peftcli.models.anatomy import Anatomy
from peftcli.models.weights.checkpoint_names import CheckpointNames
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams


def merge_note(anatomy: Anatomy, params: MethodParams, attachment: Attachment) -> str | None:
    """Return that this adapter will not merge although its method can; None where it will, or no one expects it.

    Args:
        attachment: of the live model, before training: its tensors have the names that a merge will see.
    """
    method = registry.method(params.name)
    if method.info.unmergeable is not None:
        return None
    reason = method.why_not_mergeable(params)
    if reason is None:
        try:
            rules = method.merge_rules(anatomy, params, _without_rows(attachment))
            beside = (*attachment.to_save, *attachment.unfrozen)
            by_rows = [name for name, rule in rules.items() if rule.on_rows() is not None]
            by_rows += [name for name in beside if attachment.model.get_parameter(name).ndim == 3]
            tables = [f"{placed.table}.weight" for placed in attachment.rows]
            whole = [name for name in (*rules, *beside, *tables) if name not in by_rows]
            reason = _in_pieces(by_rows, whole, attachment)
        except UserError as error:
            reason = error.problems[0].message
    return None if reason is None else f"`peft merge` will not fold this adapter into its base: {reason}"


def _without_rows(attachment: Attachment) -> dict[str, Tensor]:
    rows = attachment.row_tensors()
    return {key: tensor for key, tensor in attachment.state_dict().items() if key not in rows}


def _in_pieces(by_rows: list[str], whole: list[str], attachment: Attachment) -> str | None:
    """Return that the base's files hold a changed parameter as several tensors, None if each can be changed.

    Args:
        by_rows: parameters whose change can be made for rows of single experts.
        whole: others that change.
    """
    names = CheckpointNames(attachment.model)
    found = [*names.in_pieces(whole), *names.in_pieces(by_rows, but_experts=True)]
    return f"{found[0]} is stored in several pieces in the base's files" if found else None
