"""Full fine-tuning: every parameter moves. The baseline that the other methods are compared with.

Left as they are: tables that the architecture itself keeps fixed, such as the sinusoidal positions of Pegasus, and what
text does not meet, such as a vision tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from peftcli.protocol.folding import replacing
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.recipe.method_params import MethodParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment


class FullParams(MethodParams):
    """Full fine-tuning has no hyper-parameters of its own."""

    name: Literal["full"] = "full"


class FullMethod(Method[FullParams]):
    """Full fine-tuning."""

    info = MethodInfo(
        name="full",
        family="full",
        summary="Trains every parameter: the baseline.",
        paper="Devlin et al. 2018, arXiv:1810.04805",
        params=FullParams,
        # BERT's search ends at 5e-5, which is slow for small models; decoders of billions take 1e-5
        learning_rate=1e-4,
        trains="weights",
        quantised_base=False,
        artifact="model",
    )

    def attach(self, model: nn.Module, anatomy: Anatomy, params: FullParams) -> Attachment:
        """Unfreeze every parameter of the base that training moves."""
        from peftcli.layers.site import base_parameters
        from peftcli.protocol.attachment import Attachment

        fixed = _fixed_tables(model)
        names = [name for name in base_parameters(model) if name not in fixed and name not in anatomy.untouched]
        for name in names:
            model.get_parameter(name).requires_grad_(True)
        return Attachment(model, unfrozen=names)

    def merge_rules(self, anatomy: Anatomy, params: FullParams, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return each trained tensor in place of the base's."""
        return replacing(anatomy, state)


def _fixed_tables(model: nn.Module) -> set[str]:
    """Return the parameters that a new model of this class holds fixed; a loaded one no longer knows."""
    import torch

    config = getattr(model, "config", None)
    if config is None:
        return set()
    with torch.device("meta"):
        fresh: nn.Module = type(model)(config)
    return {name for name, parameter in fresh.named_parameters() if not parameter.requires_grad}


METHOD = FullMethod()
