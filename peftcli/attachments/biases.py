"""Training biases of the base: in place, or beside the layer where it is quantised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from peftcli.layers.base_linear import base_linear
from peftcli.layers.parts.bias import BiasBeside
from peftcli.layers.site import output_site
from peftcli.models.module_view import module_kind
from peftcli.protocol.attachment import Attachment, Placed


class BiasAttachment(Attachment):
    """An attachment whose biases beside quantised layers start from those layers' own."""

    def initialise(self, model: nn.Module, *, tokenizer: Any = None, labels: Sequence[str] = ()) -> None:
        """Copy the base's biases."""
        start_from_base(self)


def train_biases(attachment: Attachment, names: Iterable[str]) -> None:
    """Have the attachment train the biases that `names` names; the same keys are saved either way.

    Args:
        attachment: changed in place; `start_from_base` must run where base values are known.
        names: of bias parameters of the base.
    """
    for name in names:
        module = name.rpartition(".")[0]
        host = attachment.model.get_submodule(module)
        own = attachment.model.get_parameter(name)
        if name.endswith(".bias") and module_kind(host) == "linear" and base_linear(host).quantised:
            part = BiasBeside(host, own)
            output_site(host).parts.append(part)
            attachment.placed.append(Placed(module, part))
        else:
            own.requires_grad_(True)
            attachment.unfrozen.append(name)


def start_from_base(attachment: Attachment) -> None:
    """Copy the base's biases into the parts beside quantised layers."""
    for placed in attachment.placed:
        if isinstance(placed.part, BiasBeside):
            placed.part.copy_own()
