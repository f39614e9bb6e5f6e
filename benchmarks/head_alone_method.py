"""The task head on a frozen body, as a method: the baseline of benchmarks/learns.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from peftcli.protocol.method import Method, MethodInfo
from peftcli.recipe.method_params import MethodParams

if TYPE_CHECKING:
    from torch import nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment


class HeadAloneParams(MethodParams):
    """No hyper-parameters."""

    name: Literal["head_alone"] = "head_alone"


class HeadAloneMethod(Method[HeadAloneParams]):
    """Attaches nothing: the head is trained beside every method."""

    info = MethodInfo(
        name="head_alone",
        family="selective",
        summary="Trains the task head; the body is frozen.",
        paper="a baseline",
        params=HeadAloneParams,
        learning_rate=3e-2,
    )

    def attach(self, model: nn.Module, anatomy: Anatomy, params: HeadAloneParams) -> Attachment:
        """Return an attachment without parts."""
        from peftcli.protocol.attachment import Attachment

        return Attachment(model)


METHOD = HeadAloneMethod()
