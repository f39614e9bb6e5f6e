"""OFT: rotations of a projection's input (Qiu et al. 2023, arXiv:2306.07280; input-centric: 2025, arXiv:2506.19847).

y = W (R x) + b with R block-diagonal and orthogonal: angles and lengths between the weight's rows stay as pretrained.
As HF peft computes it: a block x of the input becomes x R, and R comes from a trained skew-symmetric matrix by a
truncated series (`use_cayley_neumann`) or by Cayley's transform. The base's weight is not needed, so that a 4-bit one
stays packed; only a role of a fused projection multiplies by its frozen rows once more.

Differences from HF peft 0.21: `module_dropout` acts (there its layer is made and never called); transformers' Conv1D
and roles of fused projections are rotated, too; COFT's bound is applied after each step and not before each pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from peftcli.errors import UserError
from peftcli.protocol.folding import Folding, tensors_by_key
from peftcli.protocol.method import MergeRule, Method, MethodInfo
from peftcli.recipe.method_params import LARGEST, NotNegative, TargetedParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.models.targets.target import Target
    from peftcli.protocol.attachment import Attachment


class OftParams(TargetedParams):
    """Hyper-parameters of OFT."""

    name: Literal["oft"] = "oft"
    oft_block_size: NotNegative = 32
    """Features that turn together, or the nearest number that divides the width; 0 leaves the choice to `r`."""
    r: NotNegative = 0
    """Blocks of each projection, in place of a block size; then oft_block_size must be 0."""
    module_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """How often a block does not turn in a training step."""
    coft: bool = False
    """Bound the rotations: stay near the pretrained weights (COFT)."""
    eps: Annotated[float, Field(gt=0.0)] = 6e-5
    """The bound of `coft`: largest norm of a block's skew-symmetric matrix, times the root of the number of blocks."""
    block_share: bool = False
    """One rotation for all blocks of a projection."""
    use_cayley_neumann: bool = True
    """Approximate the rotation by a series; false inverts matrices, exact and slower."""
    num_cayley_neumann_terms: Annotated[int, Field(ge=2, le=LARGEST)] = 5
    """Terms of that series."""
    init_weights: bool = True
    """Start at no rotation; false starts from small random ones, for tests."""

    @model_validator(mode="after")
    def _one_size(self) -> OftParams:
        if self.r and self.oft_block_size:
            raise ValueError("r and oft_block_size exclude each other: their product is the width; set the other to 0")
        if not self.r and not self.oft_block_size:
            raise ValueError("r and oft_block_size are both 0: one of them must give the size of the blocks")
        return self

    def idle_keys(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others."""
        idle = {}
        if not self.coft:
            idle["eps"] = "it is the bound of coft, which is false"
        if not self.use_cayley_neumann:
            idle["num_cayley_neumann_terms"] = "use_cayley_neumann is false"
        if self.block_share and self.module_dropout:
            idle["module_dropout"] = "with block_share there is one block, which always turns"
        return idle

    @property
    def terms(self) -> int | None:
        """Terms of the series; None for Cayley's transform."""
        return self.num_cayley_neumann_terms if self.use_cayley_neumann else None


class OftMethod(Method[OftParams]):
    """OFT."""

    info = MethodInfo(
        name="oft",
        family="reparameterised",
        summary="Rotates the input of chosen projections, block by block; COFT by option.",
        paper="Qiu et al. 2023, arXiv:2306.07280; Qiu et al. 2025, arXiv:2506.19847",
        params=OftParams,
        hf_type="OFT",
        learning_rate=4e-3,  # measured on the demo; OFTv2 takes about four times the rate of LoRA
    )

    def attach(self, model: nn.Module, anatomy: Anatomy, params: OftParams) -> Attachment:
        """Add a rotation at each target.

        Raises:
            UserError: a target matches nothing, or no block size above 1 is near to what the recipe asks for.
        """
        from peftcli.attachments.oft import OftAttachment, attach_rotation, rotated_width
        from peftcli.models.targets.target_modules import resolve_targets

        targets = resolve_targets(
            model, anatomy, params.target_modules, exclude=params.exclude_modules, layers=params.layers_to_transform
        )
        options = {
            "shared": params.block_share,
            "terms": params.terms,
            "eps": params.eps if params.coft else None,
            "dropout": params.module_dropout,
            "random": not params.init_weights,
        }
        attachment = OftAttachment(model, targets=targets)
        widths: dict[int, list[Target]] = {}
        for target in targets:
            width = rotated_width(model, target)
            widths.setdefault(width, []).append(target)
            if block_size(params, width) == 1:
                raise UserError(
                    f"method: the width {width} of {target.role or target.module} would be blocks of 1 feature, "
                    "which cannot turn",
                    suggestion=f"choose an oft_block_size (or a number of blocks r) that divides {width}",
                )
            attach_rotation(attachment, target, block_size(params, width), options)
        attachment.notes += [*_adjusted(params, widths), *_never_dropped(params, widths)]
        return attachment

    def why_not_identity(self, params: OftParams) -> str | None:
        """Return that the rotations start at random, where the recipe says so."""
        return "the rotations start at random (init_weights: false)" if params.init_weights is False else None

    def merge_rules(self, anatomy: Anatomy, params: OftParams, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return rules that rotate the rows of the weights: W R^T."""
        from peftcli.layers.weight_changes.rotation import rotated_columns, rotated_table

        folding = Folding(anatomy)
        slices = {linear.key for linear in anatomy.linears if linear.slice is not None}
        for key, tensors in tensors_by_key(state, ("oft_R.weight",)).items():

            def turn(weight: Tensor, angles: Tensor = tensors["oft_R.weight"]) -> Tensor:
                return rotated_columns(weight, angles, params.terms)

            if key in slices:
                folding.change_weight(key, turn)
            else:
                folding.change_input(key, turn)
        for key, tensors in tensors_by_key(state, ("oft_embedding_R.weight",)).items():

            def turn_rows(table: Tensor, angles: Tensor = tensors["oft_embedding_R.weight"]) -> Tensor:
                return rotated_table(table, angles, params.terms)

            folding.change_weight(key, turn_rows)
        return folding.rules()


def block_size(params: OftParams, width: int) -> int:
    """Return the size of the blocks of a width: what the recipe asks for, or the nearest that divides it."""
    from peftcli.layers.weight_changes.rotation import nearest_divisor

    if params.oft_block_size:
        return nearest_divisor(width, params.oft_block_size)
    return width // nearest_divisor(width, params.r)


def _adjusted(params: OftParams, widths: Mapping[int, list[Target]]) -> list[str]:
    """Return a note for each width that the wanted size does not divide."""
    notes = []
    key, wanted = ("oft_block_size", params.oft_block_size) if params.oft_block_size else ("r", params.r)
    for width, targets in widths.items():
        size = block_size(params, width)
        used = size if params.oft_block_size else width // size
        if used != wanted:
            notes.append(f"{key} {wanted} does not divide the width {width} of {_names(targets)}: {used} is used there")
    return notes


def _never_dropped(params: OftParams, widths: Mapping[int, list[Target]]) -> list[str]:
    """Return a note for each width that is one block, which `module_dropout` leaves alone."""
    if not params.module_dropout or params.block_share:
        return []
    return [
        f"module_dropout has no effect on {_names(targets)}: the width {width} is one block, which always turns"
        for width, targets in widths.items()
        if block_size(params, width) == width
    ]


def _names(targets: Iterable[Target]) -> str:
    return ", ".join(dict.fromkeys(target.role or target.module for target in targets))


METHOD = OftMethod()
