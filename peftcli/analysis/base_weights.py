"""Weights of a base model, read one at a time from its safetensors files by the names of the live model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from peftcli.errors import UserError
from peftcli.models.anatomy import Anatomy, ExpertRole, LinearRole
from peftcli.models.experts.expert_pieces import ExpertPiece
from peftcli.models.load.model_files import find_source
from peftcli.models.weights.base_files import stored_tensors
from peftcli.models.weights.checkpoint_names import CheckpointNames
from peftcli.models.weights.tensor_source import Source
from peftcli.recipe.schema import ModelSpec


class FileWeights:
    """The parameters of one model, read from disk on demand.

    Args:
        model: the task model on the meta device, without parts.
        directory: with its safetensors files.

    Raises:
        UserError: the files are missing or damaged.
    """

    def __init__(self, model: nn.Module, directory: Path) -> None:
        names = CheckpointNames(model)
        self._stored: dict[str, Source] = {}
        self._pieces: dict[str, list[tuple[ExpertPiece, Source]]] = {}
        self._shapes = {name: tuple(tensor.shape) for name, tensor in names.live.items()}
        tables = _tables(model)
        for file_name, stored in stored_tensors(directory).items():
            meaning = names.of_file(file_name)
            if meaning is None or not stored.dtype.is_floating_point:
                continue
            shape = self._shapes[meaning.live_name]
            if meaning.piece is not None and meaning.piece.shape_in(shape) == stored.shape:
                self._pieces.setdefault(meaning.live_name, []).append((meaning.piece, stored))
            elif meaning.converted:
                continue
            elif shape == stored.shape or (meaning.live_name in tables and shape[1:] == stored.shape[1:]):
                self._stored[meaning.live_name] = stored
        self._last: tuple[str, Tensor] | None = None

    def read(self, name: str) -> Tensor | None:
        """Return a parameter in float32, or None if the files hold it in no readable form (quantised, joined).

        The last one is kept: the roles of a fused projection ask for it one after the other.
        """
        if self._last is not None and self._last[0] == name:
            return self._last[1]
        stored = self._stored.get(name)
        value = self._of_pieces(name) if stored is None else self._grown(name, stored.read_float32())
        if value is not None:
            self._last = (name, value)
        return value

    def _of_pieces(self, name: str) -> Tensor | None:
        """Return a parameter of experts that the files hold in tensors of their own, or None."""
        pieces = self._pieces.get(name, ())
        if not pieces or len(pieces) < self._shapes[name][0] * pieces[0][0].parts:
            return None
        whole = torch.empty(self._shapes[name])
        for piece, stored in pieces:
            rows = stored.shape[0]
            whole[piece.expert, piece.part * rows : (piece.part + 1) * rows] = stored.read_float32()
        return whole

    def _grown(self, name: str, weight: Tensor) -> Tensor:
        """Return a weight with the rows of new tokens, which are the mean of the others, as in training."""
        more = self._shapes[name][0] - len(weight) if weight.ndim else 0
        return weight if more <= 0 else torch.cat([weight, weight.mean(0, keepdim=True).expand(more, -1)])


def _tables(model: nn.Module) -> set[str]:
    """Return the names of the weights that have a row for each token."""
    found = (getattr(model, f"get_{which}_embeddings", lambda: None)() for which in ("input", "output"))
    weights = {id(module.weight) for module in found if module is not None}
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in weights}


def base_weights(model: nn.Module, spec: ModelSpec) -> tuple[FileWeights | None, str | None]:
    """Return the base's weights, or None and the reason; nothing is downloaded."""
    source = find_source(spec.name_or_path)
    if source.kind == "gguf":
        return None, "the base is a GGUF file, which is not read here: sizes relative to the weights are left out"
    directory = source.path
    if directory is None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            directory = Path(snapshot_download(source.name, revision=spec.revision, local_files_only=True))
        except (LocalEntryNotFoundError, OSError):
            return None, f"{source.name} is not in the hub's cache: sizes relative to its weights are left out"
    try:
        return FileWeights(model, directory), None
    except UserError as error:
        return None, f"the base's weights cannot be read ({error.problems[0].message}): relative sizes are left out"


def role_weight(weight: Tensor, linear: LinearRole | None) -> Tensor:
    """Return a role's own (d_out, d_in) of its module's stored weight."""
    if linear is None:
        return weight
    rows = weight.T if linear.transposed else weight
    return rows if linear.slice is None else linear.slice.take(rows.T).T


def expert_weight(weight: Tensor, role: ExpertRole) -> Tensor:
    """Return a role's own (experts, d_out, d_in) of a 3-D parameter as it is stored."""
    rows = weight.transpose(1, 2) if role.transposed else weight
    return rows if role.slice is None else role.slice.take(rows.transpose(1, 2)).transpose(1, 2)


def linears_by_key(anatomy: Anatomy) -> dict[str, LinearRole]:
    """Return the projections by the key that adapter files give them."""
    return {linear.key: linear for linear in anatomy.linears}
