"""What becomes of tokens that the base model has no trained rows for, said before data and weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcli.models.anatomy import Anatomy
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.rows_beside.added_rows import tied_to
from peftcli.recipe.schema import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def vocabulary_notes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: ModelSpec,
    attachment: Attachment,
    anatomy: Anatomy,
    size: int,
) -> list[str]:
    """Return a note if tokens have no trained row in the embeddings and those rows are not trained.

    They are `model.new_special_tokens`, and tokens of a tokenizer that is larger than the model's table. Their rows are
    the mean of the others, so that they mean the same to the model, and all stay alike.

    Args:
        model: the task model with the method attached, on the meta device.
        tokenizer: with the new tokens.
        size: how many rows the checkpoint's table has.
    """
    fresh = {*range(size, len(tokenizer)), *tokenizer.convert_tokens_to_ids(spec.new_tokens)}
    if not fresh:
        return []
    trained = {id(parameter) for parameter in attachment.trainable_parameters().values()}
    rows = {tied: set(ids) for path, ids in attachment.row_numbers().items() for tied in tied_to(model, path)}
    tables = [anatomy.embeddings, *([anatomy.output_embeddings] if anatomy.output_embeddings else [])]
    frozen = [
        path.rpartition(".")[2]
        for path in tables
        if id(model.get_submodule(path).weight) not in trained and fresh - rows.get(path, set())
    ]
    if not frozen:
        return []
    beyond, new = max(0, len(tokenizer) - size), spec.new_tokens
    what = f"the new tokens {', '.join(new[:6])}" if new else f"the tokenizer's last {beyond:,} tokens"
    more = f" ({beyond:,} tokens more than the model's {size:,} rows)" if beyond else ""
    whole = list(dict.fromkeys(path.rpartition(".")[2] for path in tables))
    remedy = f"method.modules_to_save: [{', '.join(whole)}] trains them"
    if beyond and not new:
        remedy += f", and method.trainable_token_indices alone those that are named ({size} to {len(tokenizer) - 1})"
    return [
        f"{what}{more} are not trained: their embedding rows stay frozen and alike in {' and '.join(frozen)}; {remedy}"
    ]
