"""What becomes of tokens that the base model has no trained rows for, said before data and weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcli.models.anatomy import Anatomy
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.schema import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def vocabulary_notes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: ModelSpec,
    attachment: Attachment,
    anatomy: Anatomy,
) -> list[str]:
    """Return a note if tokens have no trained row in the embeddings and the method does not train those rows.

    They are `model.new_special_tokens`, and tokens of a tokenizer that is larger than the model's table. Their rows are
    the mean of the others, so that they mean the same to the model, and all stay alike.

    Args:
        model: the task model with the method attached, on the meta device; its table has the checkpoint's size.
        tokenizer: with the new tokens.
    """
    table = model.get_input_embeddings().weight
    beyond = max(0, len(tokenizer) - table.shape[0])
    added = _new_tokens(tokenizer, spec)
    if not beyond and not added:
        return []
    trained = {id(parameter) for parameter in attachment.trainable_parameters().values()}
    head = anatomy.output_embeddings
    tables = {anatomy.embeddings: table}
    if head is not None:
        tables[head] = model.get_submodule(head).weight
    frozen = [path.rpartition(".")[2] for path, weight in tables.items() if id(weight) not in trained]
    if not frozen:
        return []
    what = f"the new tokens {', '.join(added[:6])}" if added else f"the tokenizer's last {beyond:,} tokens"
    more = f" ({beyond:,} tokens more than the model's {table.shape[0]:,} rows)" if beyond else ""
    whole = list(dict.fromkeys(path.rpartition(".")[2] for path in tables))
    return [
        f"{what}{more} are not trained: their embedding rows stay frozen and alike; "
        f"method.modules_to_save: [{', '.join(whole)}] trains them"
    ]


def _new_tokens(tokenizer: PreTrainedTokenizerBase, spec: ModelSpec) -> list[str]:
    """Return those of `new_special_tokens` that the base did not have: they stand at the end of the vocabulary."""
    numbers = {int(tokenizer.convert_tokens_to_ids(token)): token for token in spec.new_special_tokens}
    first = len(tokenizer)
    while first - 1 in numbers:
        first -= 1
    return [token for number, token in sorted(numbers.items()) if number >= first]
