"""In how many of a model's blocks a role or a branch is, where it is not in all of them."""

from __future__ import annotations

from collections.abc import Iterable

from peftcli.models.anatomy import BLOCK_ROLES, Anatomy
from peftcli.shown_text import all_of


def partial_reach(anatomy: Anatomy, names: Iterable[str]) -> list[str]:
    """Return a sentence for what some blocks lack, such as `attn.q and attn.v are in 15 of 60 blocks`.

    Only stacks that have it count: an encoder has no cross-attention.

    Args:
        names: roles (`attn.q`) and branches (`attn`), each once.
    """
    places = {(each.stack, each.layer, each.role) for each in anatomy.linears}
    places |= {(each.stack, each.layer, each.kind) for each in anatomy.blocks}
    by_count: dict[tuple[int, int], list[str]] = {}
    for name in names:
        having = {(stack, layer) for stack, layer, what in places if what == name}
        paths = [path for stack in {stack for stack, _ in having} for path in anatomy.layers[stack]]
        every = sum(path not in anatomy.idle for path in paths)
        if having and len(having) < every:
            shown = f"the branch {name}" if name in BLOCK_ROLES else name
            by_count.setdefault((len(having), every), []).append(shown)
    return [
        f"{all_of(shown)} {'is' if len(shown) == 1 else 'are'} in {count} of {every} blocks: "
        "the others have no such part, so the method changes nothing there"
        for (count, every), shown in by_count.items()
    ]
