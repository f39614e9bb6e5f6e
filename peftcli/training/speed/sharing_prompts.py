"""One prompt for both answers to it: in a joined row the second answer continues the first one's prompt.

Saves the prompt of every pair once, which is a sixth of the tokens if it is half as long as an answer. What both
answers see of the prompt is the same only without dropout, which draws a mask for each sequence; and a window of
attention is not kept for a document that continues another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftcli.distributed.memory_errors import says_nothing_of_the_model
from peftcli.errors import UserError
from peftcli.layers.cpu.document_attention import DocumentAttention
from peftcli.layers.joined_documents import Documents
from peftcli.models.packed_documents import EXACT, ROUNDED, logits_of
from peftcli.recipe.schema import Recipe
from peftcli.tasks.task import PrepareInputs
from peftcli.tasks.task_table import task_info
from peftcli.training.speed.fast_paths import AllowedPaths, FastPaths

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PROMPT, FIRST, SECOND = 5, 7, 6
"""Tokens of the prompt and of each answer that are tried."""
WINDOWS = ("sliding_window", "attention_types", "attention_chunk_size")
"""Names in a config of attention that does not reach back to the first token in every block."""


def may_share_prompts(recipe: Recipe, config: PretrainedConfig, allowed: AllowedPaths) -> bool:
    """Return whether a run's settings leave it open: rows are pairs, no window of attention, no rate of dropout."""
    text = config.get_text_config()
    windowed = any(getattr(text, name, None) for name in WINDOWS)
    if not allowed.shared_prompts or task_info(recipe.task).rows != "preferences" or windowed:
        return False
    return not any(_rates(config.to_dict())) and not any(_rates(recipe.method.model_dump()))


def _rates(tree: Mapping[Any, Any]) -> Iterator[float]:
    """Yield the rates of dropout in settings, at any depth."""
    for key, value in tree.items():
        inner = value if isinstance(value, list) else [value]
        yield from (rate for one in inner if isinstance(one, Mapping) for rate in _rates(one))
        if "drop" in str(key) and isinstance(value, float):
            yield value


def prompts_are_shared(
    recipe: Recipe, model: PreTrainedModel, allowed: AllowedPaths, prepare_inputs: PrepareInputs
) -> bool:
    """Try on the model itself whether two answers behind one prompt are computed as if each had its own.

    Args:
        model: live, parts attached, found to keep joined rows apart; it is left in the mode it was in.
        prepare_inputs: the attachment's: with virtual tokens, or positions counted from an answer, rows stay apart.
    """
    if not may_share_prompts(recipe, model.config, allowed) or not _leaves_inputs(prepare_inputs):
        return False
    training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _same(model.eval(), allowed) and not _draws(model.train())
    finally:
        model.train(training)


def _leaves_inputs(prepare_inputs: PrepareInputs) -> bool:
    """Return whether the model gets a joined row as the collator made it."""
    row = torch.arange(PROMPT + FIRST)[None]
    given = {"input_ids": row, "position_ids": row, "labels": row}
    prepared = prepare_inputs(given)
    return prepared.keys() == given.keys() and all(torch.equal(prepared[key], row) for key in given)


def _same(model: PreTrainedModel, allowed: AllowedPaths) -> bool:
    """Return whether both answers get the logits that they have alone, and neither sees the other."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    prompt, first, second = (torch.randint(0, vocabulary, (1, n), generator=generator) for n in (PROMPT, FIRST, SECOND))
    alone = [
        logits_of(model, input_ids=torch.cat((prompt, one), 1), use_cache=False)[:, PROMPT:] for one in (first, second)
    ]
    unlike = float((logits_of(model, input_ids=second, use_cache=False) - alone[1]).abs().mean())
    joined = _behind_one(model, allowed, prompt, first, second)
    others = [(one + vocabulary // 2) % vocabulary for one in (first, second)]
    beside = [_behind_one(model, allowed, prompt, *pair) for pair in ((others[0], second), (first, others[1]))]
    if joined is None or beside[0] is None or beside[1] is None:
        return False
    difference = max(float((got - wanted).abs().mean()) for got, wanted in zip(joined, alone, strict=True))
    seen = max(
        float((joined[1] - beside[0][1]).abs().mean()),
        float((joined[0] - beside[1][0]).abs().mean()),
    )
    rounds = next(model.parameters()).dtype != torch.float32
    return difference <= (ROUNDED if rounds else EXACT) * unlike and seen <= EXACT * unlike


def _behind_one(
    model: PreTrainedModel, allowed: AllowedPaths, prompt: Tensor, first: Tensor, second: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return the logits of both answers in one row; None where the model does not compute it document by document."""
    documents = DocumentAttention(Documents((PROMPT + FIRST, SECOND), (0, PROMPT)))
    positions = torch.cat((torch.arange(PROMPT + FIRST), torch.arange(PROMPT, PROMPT + SECOND)))[None]
    ids = torch.cat((prompt, first, second), 1)
    try:
        with FastPaths(allowed)(documents):
            logits = logits_of(model, input_ids=ids, position_ids=positions, use_cache=False)
    except (TypeError, ValueError, RuntimeError, IndexError, UserError) as error:  # they refuse in different ways
        if says_nothing_of_the_model(error):
            raise
        return None
    if not documents.taken or documents.passed:
        return None
    return logits[:, PROMPT : PROMPT + FIRST], logits[:, PROMPT + FIRST :]


def _draws(model: PreTrainedModel) -> bool:
    """Return whether a forward pass of training draws random masks, of the base or of the method."""
    before = torch.random.get_rng_state()
    logits_of(model, input_ids=torch.zeros(1, PROMPT + FIRST, dtype=torch.long), use_cache=False)
    return not torch.equal(before, torch.random.get_rng_state())
