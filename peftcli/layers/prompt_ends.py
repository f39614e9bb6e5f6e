"""Where the first and the last tokens of each prompt are, for parts that change the hidden states of these only.

A prompt is what stands before the answer: the whole input where text is generated and in an encoder; in training and
evaluation what stands before the first supervised token. A hook on the model works it out for every forward pass from
its mask, its position ids and one more input (`ANSWERS`), which says where the answers are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peftcli.ignored_label import IGNORED
from peftcli.layers.added_modules import ANSWERS


class PromptEnds:
    """Which tokens of the current forward pass are among the first or last of their prompts.

    A pre-hook of the model: it works this out before the blocks run. Behind a cache there is no prompt any more, so
    that nothing is chosen there.

    Attributes:
        prompt_length: columns of the prompts that text is being generated for, padding included: without a cache every
            pass has the generated tokens behind them.
    """

    def __init__(self) -> None:
        self.prompt_length: int | None = None
        self._chosen: dict[tuple[int, int], tuple[Tensor, Tensor] | None] = {}

    def want(self, first: int, last: int) -> None:
        """Work out so many first and last tokens from the next pass on."""
        self._chosen.setdefault((first, last), None)

    def chosen(self, first: int, last: int) -> tuple[Tensor, Tensor] | None:
        """Return which tokens are among the first and which among the last: (batch, seq) bool each, without overlap.

        None behind a cache.
        """
        return self._chosen[first, last]

    def generate_for(self, batch: Mapping[str, Any]) -> None:
        """Take the prompts that text is about to be generated for; an encoder is then called without the hook."""
        inputs: Tensor = batch["input_ids"]
        self.prompt_length = inputs.shape[1]
        self._look(inputs, batch, None)

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        answers = kwargs.pop(ANSWERS, None)
        if answers is not None:
            self.prompt_length = None
        inputs = args[0] if args else kwargs.get("input_ids")
        inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
        if inputs is not None:  # else a decoder goes on from what its encoder gave
            self._look(inputs, kwargs, answers)
        return args, kwargs

    def _look(self, inputs: Tensor, given: Mapping[str, Any], answers: Tensor | None) -> None:
        mask = given.get("attention_mask")
        mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        cache = given.get("past_key_values", given.get("cache"))  # transformers 5.24 renamed it
        length = inputs.shape[1]
        if (mask is not None and mask.shape[1] > length) or (cache is not None and _goes_on(cache)):
            self._chosen = dict.fromkeys(self._chosen)
            return
        shown = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device) if mask is None else mask.bool()
        documents = documents_of(shown, given.get("position_ids") if mask is None else None)
        if answers is None and self.prompt_length is not None and length > self.prompt_length:
            answers = (torch.arange(length, device=inputs.device) >= self.prompt_length).expand_as(shown)
        self._chosen = {key: ends(shown, documents, answers, *key) for key in self._chosen}


def _goes_on(cache: Any) -> bool:
    """Tell whether a cache holds tokens, or, of linear attention and state space models, a state."""
    try:
        if int(cache.get_seq_length()) > 0:
            return True
    except ValueError:  # no layer of it has a length
        return bool(cache.has_previous_state())
    # the length is that of the first layer, which in MiniMax keeps its state elsewhere
    return any(hasattr(layer, "get_seq_length") and int(layer.get_seq_length()) > 0 for layer in _layers(cache))


def _layers(cache: Any) -> list[Any]:
    return list(getattr(cache, "layers", ()))


def prompt_ends(model: nn.Module) -> tuple[PromptEnds, RemovableHandle | None]:
    """Return what works out the ends of prompts on this model, and the handle of its hook, where it is new.

    Parts share one, because it takes `ANSWERS` out of what the model gets.
    """
    for hook in model._forward_pre_hooks.values():
        if isinstance(hook, PromptEnds):
            return hook, None
    made = PromptEnds()
    return made, model.register_forward_pre_hook(made, with_kwargs=True, prepend=True)


def documents_of(shown: Tensor, positions: Tensor | None) -> Tensor:
    """Return which document of its row each token belongs to, (batch, seq), counted from 0.

    Args:
        shown: (batch, seq) bool; its shape is all that is asked.
        positions: (batch or 1, seq), which start again at 0 in every document, or (axes, batch, seq) of a model that
            places images, too (Qwen-VL), where the first axis is the text's; None where a row is one document.
    """
    if positions is None:
        return torch.zeros(shown.shape, dtype=torch.long, device=shown.device)
    positions = positions[0] if positions.dim() > 2 else positions
    return ((positions.expand_as(shown) == 0).long().cumsum(1) - 1).clamp(min=0)


def answers_of(labels: Tensor, documents: Tensor) -> Tensor:
    """Return (batch, seq) bool: from the first supervised token of each document to its end.

    Args:
        labels: (batch, seq), of the token at each position; -100 where it is not supervised.
        documents: of `documents_of`.
    """
    return _rank(labels != IGNORED, documents)[0] > 0


def ends(shown: Tensor, documents: Tensor, answers: Tensor | None, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Return which tokens are among the first and which among the last of their prompts, (batch, seq) bool each.

    A prompt of fewer tokens than both ask for is divided between them, at equal numbers where it can be. A text without
    a prompt, whose first token is supervised, has first tokens and no last ones: its end is not known beforehand.

    Args:
        shown: (batch, seq) bool, False at padding.
        documents: of `documents_of`.
        answers: of `answers_of`; None where everything is prompt.
    """
    prompt = shown if answers is None else shown & ~answers
    rank, total = _rank(prompt, documents)
    at_end = torch.minimum(torch.full_like(total, last), torch.maximum(total // 2, total - first))
    is_last = prompt & (rank > total - at_end)
    is_first = prompt & (rank <= first) & ~is_last
    if answers is not None:
        whole, tokens = _rank(shown, documents)
        is_first = is_first | (shown & (whole <= first) & (total == 0) & (tokens > 0))
    return is_first, is_last


def _rank(kept: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
    """Return, of each token's document, how many kept tokens stand up to it, and how many there are in all."""
    counts = torch.zeros(documents.shape, dtype=torch.long, device=kept.device).scatter_add_(1, documents, kept.long())
    before = counts.cumsum(1) - counts
    return kept.long().cumsum(1) - before.gather(1, documents), counts.gather(1, documents)
