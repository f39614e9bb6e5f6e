"""Partial fine-tuning: the last k blocks, or the norms only; the rest of the base is frozen.

The last blocks are those next to the output: of the decoder, if the model has one. With `num_layers: 0` the task head
is trained on a frozen body: the baseline that every other method of a task with a new head should beat. The norms'
variant is that of Frankle et al. 2020 (arXiv:2003.00152), with the transformer's normalisation layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from peftcli.protocol.folding import replacing
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.recipe.method_params import MethodParams, NotNegative

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy, Stack
    from peftcli.protocol.attachment import Attachment


class FreezeParams(MethodParams):
    """Which part of the base is trained."""

    name: Literal["freeze"] = "freeze"
    trainable: Literal["last_layers", "norms"] = "last_layers"
    """What is trained: the last blocks, or every normalisation layer."""
    num_layers: NotNegative = 2
    """How many blocks, counted from the output, are trained; one that runs n times counts n; 0: the head alone."""

    def idle_keys(self) -> dict[str, str]:
        """Return the number of blocks, where norms are trained."""
        return {"num_layers": "trainable is norms"} if self.trainable == "norms" else {}


class FreezeMethod(Method[FreezeParams]):
    """Partial fine-tuning."""

    info = MethodInfo(
        name="freeze",
        family="selective",
        summary="Trains the last k blocks (0: the task head alone), or the normalisation layers, and freezes the rest.",
        paper="Lee et al. 2019, arXiv:1911.03090",
        params=FreezeParams,
        learning_rate=1e-3,  # measured on the demo: 1e-4 hardly moves within a hundred steps
        quantised_base=False,
        artifact="model",
    )

    def rate_settings(self, params: FreezeParams) -> dict[str, float]:
        """Return that the head alone is trained, where it is."""
        alone = params.trainable == "last_layers" and params.num_layers == 0
        return {"head_alone": 1.0} if alone else {}

    def check(self, anatomy: Anatomy, params: FreezeParams) -> list[str]:
        """Return why this model cannot be trained so: fewer blocks than asked for, no norms, or no head to train."""
        depth = sum(_runs(anatomy).values())
        if params.trainable == "last_layers" and params.num_layers == 0 and not _head_or_saved(anatomy, params):
            return ["num_layers is 0, which trains the task head alone, but this task adds no head; use 1 or more"]
        if params.trainable == "last_layers" and params.num_layers > depth:
            return [f"num_layers is {params.num_layers}, but this {anatomy.family} model has {depth} blocks"]
        if params.trainable == "norms" and not anatomy.norms:
            return [f"no normalisation layers were found in this {anatomy.family} model; use `trainable: last_layers`"]
        return []

    def attach(self, model: nn.Module, anatomy: Anatomy, params: FreezeParams) -> Attachment:
        """Unfreeze the chosen blocks or norms."""
        from peftcli.layers.site import base_parameters
        from peftcli.protocol.attachment import Attachment

        roots = anatomy.norms if params.trainable == "norms" else _last_blocks(anatomy, params.num_layers)
        inside = tuple(f"{root}." for root in roots)
        names = [name for name in base_parameters(model) if name.startswith(inside) and name not in anatomy.untouched]
        for name in names:
            model.get_parameter(name).requires_grad_(True)
        return Attachment(model, unfrozen=names)

    def merge_rules(self, anatomy: Anatomy, params: FreezeParams, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return each trained tensor in place of the base's."""
        return replacing(anatomy, state)


def _head_or_saved(anatomy: Anatomy, params: FreezeParams) -> bool:
    """Return whether something is trained beside the blocks."""
    return bool(anatomy.head or params.modules_to_save)


def _last_blocks(anatomy: Anatomy, count: int) -> list[str]:
    """Return the paths of the blocks that the last `count` of a forward pass are."""
    chosen: list[str] = []
    for path, runs in reversed(_runs(anatomy).items()):
        if count > 0:
            chosen.append(path)
        count -= runs
    return chosen


def _runs(anatomy: Anatomy) -> dict[str, int]:
    """Return how often each block of the output's stack runs in one pass, in order of depth (ALBERT shares blocks).

    Blocks that text does not reach are none.
    """
    stack: Stack = "decoder" if anatomy.layers.get("decoder") else "encoder"
    depths = {each.layer: each.depths for each in anatomy.attentions if each.stack == stack and each.kind == "self"}
    paths = enumerate(anatomy.layers.get(stack, ()))
    return {path: depths.get(index, 1) for index, path in paths if path not in anatomy.idle}


METHOD = FreezeMethod()
