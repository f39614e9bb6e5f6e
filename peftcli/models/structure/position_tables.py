"""How many tokens a model outside the table of families can place: as many as its tables of positions have rows."""

from __future__ import annotations

from torch import Tensor
from transformers import PretrainedConfig

from peftcli.models.module_view import ModuleView
from peftcli.models.structure.block_lists import TextPart

_TABLES = (
    *("position_embeddings", "position_embedding", "positions_embed", "embed_positions"),
    *("pos_embed", "pos_encoding", "wpe"),
)
"""What transformers calls a table with a row for each place of a text, learned or computed once."""
_OF_BIASES = {"mpt": "max_seq_len"}
"""Types whose attention has a bias for each distance up to a number in the config."""


def positions_of_tables(view: ModuleView, config: PretrainedConfig) -> tuple[int | None, int | None]:
    """Return how many tokens a row may have, and a target, where encoder and decoder have tables of their own (LED).

    None stands for no limit: a model without such a table (rotary or relative positions), or without a second one.

    Args:
        config: of the text model.
    """
    text = TextPart(view)
    rooms: dict[bool, list[int]] = {}
    for path, module in view.modules.items():
        parent, _, name = path.rpartition(".")
        grows = hasattr(module, "make_weight")  # FSMT's computes more rows when it needs them
        tables = [getattr(module, "weight", None)] if name in _TABLES and not grows else []
        tables += [table for own, table in module.named_buffers(recurse=False) if own in _TABLES]
        for table in tables:
            if isinstance(table, Tensor) and table.dim() == 2 and text.holds(path):
                rooms.setdefault("decoder" in parent, []).append(len(table) - _first_row(module))
    if not rooms:
        number = getattr(config, _OF_BIASES.get(config.model_type, ""), None)
        return (number if isinstance(number, int) else None), None
    if len(rooms) == 2 and view.model.config.is_encoder_decoder:
        return min(rooms[False]), min(rooms[True])
    longest = max(min(found) for found in rooms.values())
    stated = getattr(config, "max_position_embeddings", None)  # YOSO's table has two rows that no token has
    return (min(longest, stated) if isinstance(stated, int) else longest), None


def _first_row(table: object) -> int:
    """Return the row of the first token: BART's tables begin with two others, RoBERTa's with those of padding."""
    offset, padding = getattr(table, "offset", None), getattr(table, "padding_idx", None)
    if isinstance(offset, int):
        return offset
    return padding + 1 if isinstance(padding, int) else 0
