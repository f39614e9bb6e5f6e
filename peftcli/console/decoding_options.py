"""The options by which commands that write texts choose their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from peftcli.tasks.decoding import Decoding

Temperature = Annotated[
    float,
    typer.Option(
        "--temperature", metavar="T", min=0.0, help="Sample at this temperature; 0 always takes the likeliest token."
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p",
        metavar="P",
        min=1e-6,
        max=1.0,
        help="Sample from the smallest set of likeliest tokens with this total probability; 1 means all tokens.",
    ),
]
TopK = Annotated[
    int, typer.Option("--top-k", metavar="K", min=0, help="Sample from the K likeliest tokens; 0 means all tokens.")
]
NumBeams = Annotated[
    int, typer.Option("--num-beams", metavar="N", min=1, max=1000, help="Use beam search with this many beams.")
]
SamplingSeed = Annotated[int, typer.Option("--seed", metavar="N", min=0, max=2**32 - 1, help="Seed for sampling.")]


def decoding_words(decoding: Decoding) -> dict[str, object]:
    """Return the options that give this decoding, None for those that need not be given."""
    return {
        "--temperature": decoding.temperature or None,
        "--top-p": decoding.top_p if decoding.top_p < 1 else None,
        "--top-k": decoding.top_k or None,
        "--num-beams": decoding.num_beams if decoding.num_beams > 1 else None,
    }
