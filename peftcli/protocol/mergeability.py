"""Whether what is about to be trained will fold into the base weights: known before the first step."""

from __future__ import annotations

from peftcli.errors import UserError
from peftcli.models.anatomy import Anatomy
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
            method.merge_rules(anatomy, params, attachment.state_dict())
        except UserError as error:
            reason = error.problems[0].message
    return None if reason is None else f"`peft merge` will not fold this adapter into its base: {reason}"
