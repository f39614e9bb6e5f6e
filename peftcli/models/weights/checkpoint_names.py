"""Names in checkpoint files and names in the live model: prefixes, legacy names, and transformers' own conversions.

transformers loads a file's tensors under other names: it adds or takes the base model's prefix (a `BertModel` file has
`encoder.layer.0...`, the classifier wants `bert.encoder.layer.0...`), renames legacy norms (`gamma`), and for some
families joins or splits tensors (experts). A merge streams over files, so it needs the map without loading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, apply_renamings, rename_source_key

from peftcli.models.experts.expert_pieces import ExpertPiece, expert_piece, is_of_pieces


@dataclass(frozen=True)
class FileTensor:
    """The meaning of one tensor of a checkpoint file for the model.

    Args:
        file_name: its name in the file.
        live_name: the parameter or buffer that it becomes; with `converted`, one that it becomes a part of.
        saved_name: the name under which the task model's own checkpoint holds it.
        converted: whether loading changes its values or shape (joined, split, transposed).
        piece: where it lies in the parameter, if it is the tensor of one expert.
    """

    file_name: str
    live_name: str
    saved_name: str
    converted: bool = False
    piece: ExpertPiece | None = None


class CheckpointNames:
    """The map between files and one model.

    Args:
        model: the task model, without parts; meta is enough.
    """

    def __init__(self, model: nn.Module) -> None:
        self.live = model.state_dict()
        self._prefix: str = getattr(model, "base_model_prefix", "")
        transforms: list[Any] = get_model_conversion_mapping(model, add_legacy=False)
        self._converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
        self._renamings = [transform for transform in transforms if not isinstance(transform, WeightConverter)]
        every = get_model_conversion_mapping(model, add_legacy=True)
        self._legacy = every[len(transforms) :]

    def of_file(self, file_name: str) -> FileTensor | None:
        """Return a file tensor's meaning for the model, or None if the model has no such tensor."""
        saved = apply_renamings(file_name, self._legacy)
        bare, _ = rename_source_key(saved, self._renamings, self._converters)
        live, converter = rename_source_key(
            saved, self._renamings, self._converters, base_model_prefix=self._prefix, meta_state_dict=self.live
        )
        if live not in self.live:
            return None
        if live != bare:
            prefix = f"{self._prefix}."
            saved = saved.removeprefix(prefix) if bare == prefix + live else prefix + saved
        piece = None if converter is None else expert_piece(file_name, converter, self._converters)
        return FileTensor(file_name, live, saved, converter is not None, piece)

    def in_pieces(self, live_names: Iterable[str], *, but_experts: bool = False) -> list[str]:
        """Return the parameters that a checkpoint of this family holds in pieces, such as one for each expert.

        Args:
            live_names: of the parameters to look at.
            but_experts: leave out those whose pieces are rows of single experts, which can be changed one by one.
        """
        converters = [each for each in self._converters if not (but_experts and is_of_pieces(each))]
        patterns = [str(pattern) for converter in converters for pattern in converter.target_patterns]
        return [name for name in live_names if any(re.search(pattern, name) for pattern in patterns)]
