"""Micro-batches without padding: rows behind each other in one, each a document of its own.

Saves the padding, which is a twentieth of a step's tokens even among rows of similar length, and lets rows of any
length share a micro-batch. Only where the live model, parts attached, gives each row the values that it has alone,
and all of its attention is computed row by row (on a CPU; see `layers.document_attention`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcli.errors import UserError
from peftcli.layers.cpu.document_attention import DocumentAttention
from peftcli.layers.joined_documents import Documents
from peftcli.models.packed_documents import DOCUMENTS, packing_route
from peftcli.recipe.schema import Recipe
from peftcli.tasks.task_table import task_info
from peftcli.training.speed.fast_paths import AllowedPaths, FastPaths

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def rows_stay_apart(recipe: Recipe, model: PreTrainedModel, allowed: AllowedPaths) -> bool:
    """Try on the model itself whether rows behind each other are computed as if each were alone.

    Args:
        model: live, parts attached; it is left in the mode it was in.
    """
    noise = recipe.training.neftune_noise_alpha  # its size depends on the length of a row
    if task_info(recipe.task).reads != "text" or not allowed.by_document or noise:
        return False
    documents = DocumentAttention(Documents(DOCUMENTS, (0,) * len(DOCUMENTS)))
    try:
        with FastPaths(allowed)(documents):
            route = packing_route(model, rows=1)
    except UserError:
        return False
    return route == "positions" and documents.taken > 0 and documents.passed == 0
