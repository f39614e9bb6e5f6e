"""The rows of the vocabulary's tables that a recipe trains beside its method, by number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcli.errors import Problem, UserError
from peftcli.models.load.tokenizers import load_tokenizer
from peftcli.protocol.rows_beside.added_rows import KEY, WantedRows, by_table
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import ModelSpec
from peftcli.suggestions import did_you_mean, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def rows_to_train(spec: ModelSpec, params: MethodParams, tokenizer: PreTrainedTokenizerBase) -> WantedRows:
    """Return the rows that `method.trainable_token_indices` names, and those of the new tokens.

    Args:
        tokenizer: with the new tokens.

    Raises:
        UserError: a token is not in the vocabulary; says what it is made of instead.
    """
    chosen: dict[str, list[int]] = {}
    problems: list[Problem] = []
    for table, tokens in by_table(params).items():
        numbers = chosen.setdefault(table, [])
        for token in tokens:
            try:
                numbers.append(token if isinstance(token, int) else _number(tokenizer, token))
            except UserError as error:
                problems += error.problems
    if problems:
        raise UserError(problems)
    new = spec.new_tokens if spec.trains_new_tokens else []
    return WantedRows(chosen, {int(tokenizer.convert_tokens_to_ids(token)): token for token in new})


def known_tokens(spec: ModelSpec) -> list[Problem]:
    """Return that tokens of `model.new_special_tokens` are in the vocabulary already, before a training begins."""
    if not spec.new_tokens:
        return []
    tokenizer = load_tokenizer(spec.model_copy(update={"new_special_tokens": []}))
    vocabulary = tokenizer.get_vocab()
    known = [token for token in spec.new_tokens if token in vocabulary]
    if not known:
        return []
    told = ", ".join(f"{token!r} ({vocabulary[token]})" for token in known[:6])
    remedy = f"leave them out; method.trainable_token_indices: [{', '.join(map(repr, known[:6]))}] trains their rows"
    return [Problem(f"in the vocabulary already: {told}", key="model.new_special_tokens", suggestion=remedy)]


def _number(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    vocabulary = tokenizer.get_vocab()
    if token in vocabulary:
        return int(vocabulary[token])
    pieces = tokenizer.encode(token, add_special_tokens=False)
    if len(pieces) == 1 and pieces[0] != tokenizer.unk_token_id:  # as it stands in a text: ' hello' for 'Ġhello'
        return int(pieces[0])
    near = did_you_mean(map(repr, nearest(token, vocabulary)))
    shown = " ".join(repr(piece) for piece in tokenizer.convert_ids_to_tokens(pieces)[:8])
    raise UserError(
        Problem(
            f"{token!r} is no token of the vocabulary; it is read as {shown or 'nothing'}",
            key=KEY,
            suggestion=f"{near} model.new_special_tokens: [{token!r}] adds it, and trains its row".lstrip(),
        )
    )
