"""Where the roles of a fused projection are among its output features."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from peftcli.models.anatomy import FusedSlice
from peftcli.models.module_view import hidden_size

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from peftcli.models.families.family_row import FusedRow


def fused_slices(fused: FusedRow, total: int, heads: int, config: PretrainedConfig) -> dict[str, FusedSlice]:
    """Return each role's features.

    Args:
        total: output features of the module.
        heads: of the queries.
    """
    if fused.sizes is not None:
        width = sum(fused.sizes)
        starts = accumulate(fused.sizes, initial=0)
        parts = zip(fused.roles, starts, fused.sizes, strict=False)
        return {role: FusedSlice(total // width, width, start, size) for role, start, size in parts}
    if len(fused.roles) == 2:  # gate and up: halves
        half = total // 2
        return {role: FusedSlice(1, total, i * half, half) for i, role in enumerate(fused.roles)}
    if fused.layout == "per_head":
        width = total // heads
        size = width // len(fused.roles)
        return {role: FusedSlice(heads, width, i * size, size) for i, role in enumerate(fused.roles)}
    query, key, value = fused.roles
    if fused.layout == "per_group":
        groups = int(config.num_kv_heads)
        width = total // groups
        size = width // (heads // groups + 2)
        return {
            query: FusedSlice(groups, width, 0, width - 2 * size),
            key: FusedSlice(groups, width, width - 2 * size, size),
            value: FusedSlice(groups, width, width - size, size),
        }
    head_dim = getattr(config, "head_dim", None) or hidden_size(config) // heads
    queries = heads * int(head_dim)
    size = (total - queries) // 2  # smaller than the queries' in grouped-query attention
    return {
        query: FusedSlice(1, total, 0, queries),
        key: FusedSlice(1, total, queries, size),
        value: FusedSlice(1, total, queries + size, size),
    }
