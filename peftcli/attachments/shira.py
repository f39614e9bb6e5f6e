"""The torch half of SHiRA: places that come from a file are compared with the weights that they lie in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from peftcli.errors import UserError
from peftcli.layers.weight_changes.sparse import SparseDelta, why_no_places
from peftcli.protocol.attachment import Attachment


@dataclass
class ShiraAttachment(Attachment):
    """An attachment whose parts are sparse changes."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy saved tensors into place; strict.

        Raises:
            UserError: as `Attachment.load_state_dict`; or a place lies outside its weight.
        """
        super().load_state_dict(state)
        for placed in self.placed:
            if isinstance(placed.part, SparseDelta):
                base = placed.part.base
                check_places(placed.key, state[f"{placed.key}.shira_indices"], base.out_features, base.in_features)


def check_places(key: str, places: Tensor, d_out: int, d_in: int) -> None:
    """Refuse saved places that lie outside their weight.

    Raises:
        UserError: names the key.
    """
    reason = None if places.device.type == "meta" else why_no_places(places, d_out, d_in)
    if reason:
        raise UserError(f"{key}: {reason}", suggestion="save or download the adapter again")
