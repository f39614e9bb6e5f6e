"""Training biases of the base: in place, or beside the layer where it is quantised."""

from __future__ import annotations

from collections.abc import Iterable

from peftcli.layers.base_linear import BaseLinear
from peftcli.layers.parts.bias import BiasBeside
from peftcli.layers.site import output_site
from peftcli.models.module_view import module_kind
from peftcli.protocol.attachment import Attachment


def train_biases(attachment: Attachment, names: Iterable[str]) -> None:
    """Have the attachment train the biases of these names; the same keys are saved either way.

    Args:
        attachment: changed in place.
        names: of bias parameters of the base.
    """
    for name in names:
        module = name.rpartition(".")[0]
        host = attachment.model.get_submodule(module)
        if name.endswith(".bias") and module_kind(host) == "linear" and BaseLinear(host).quantised:
            attachment.place(module, BiasBeside(BaseLinear(host)), output_site(host).parts)
        else:
            attachment.model.get_parameter(name).requires_grad_(True)
            attachment.unfrozen.append(name)
