"""Greedy texts by continuous batching (Yu et al. 2022, Orca): a row that ends makes room for one that waits.

`generate` computes a batch until its longest text ends, copies all keys and values in every step, and begins anew with
the next batch. Here as many rows as memory is meant for are at work all the time, and new keys and values are written
behind those that are there. On a CPU a step with few rows mostly reads weights, so that this is most of the time. A
text is that of its row alone, but for rounding. Models and settings of which this is not known are left to `generate`.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import Cache, DynamicLayer

from peftcli.distributed.memory_errors import is_out_of_memory, release
from peftcli.distributed.sharding import is_sharded
from peftcli.inference.halved_batches import in_halves
from peftcli.recipe.schema import DataSpec, Recipe
from peftcli.tasks.decoding import GREEDY
from peftcli.tasks.generation import logprobs_of, settings_without_effect, stop_tokens, text_line
from peftcli.tasks.language_model import LanguageModelTask
from peftcli.tasks.task import Batch, Task

ROOM = 64
"""Columns for new tokens that keys and values get at once."""
MOST = 48
"""Rows at work, unless an evaluation batch has more: on two cores a row of SmolLM2-135M takes 11.4 ms of a step with 16
rows and 5.7 with 48. More rows save little of that, and each takes memory."""
SHARE = 4
"""Rows are exchanged when a quarter has ended: that copies what the others hold, and reads several prompts at once."""
READ_TOKENS = 2048
"""Prompts are read so many padded tokens at once, or one by one: more save nothing on a CPU, and take memory."""
HARMLESS = frozenset({
    "bos_token_id", "cache_implementation", "decoder_start_token_id", "do_sample", "early_stopping", "eos_token_id",
    "length_penalty", "max_length", "max_new_tokens", "min_p", "num_beams", "output_attentions",
    "output_hidden_states", "pad_token_id", "return_dict_in_generate", "temperature", "top_k", "top_p",
    "transformers_version", "typical_p", "use_cache",
})  # fmt: skip
"""Generation settings of a model that change no greedy text, or that this project sets."""

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Prompting:
    """Where the texts of rows come from.

    Args:
        model: in eval mode.
        task: as it generates.
        prompts: makes a batch of rows, padded on the left, on the device.
        context: of a forward pass.
        size: rows of a batch that ends together.
        at_once: rows at work where they can be exchanged; see `rows_at_once`.
    """

    model: nn.Module
    task: Task
    prompts: Callable[[Sequence[int]], Batch]
    context: Callable[[], AbstractContextManager[object]]
    size: int
    at_once: int

    def texts(
        self, rows: Sequence[int], otherwise: Callable[[Sequence[int]], Lines], *, halves: bool
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each row with its prediction, as they end.

        Args:
            rows: longest prompts first.
            otherwise: predicts a batch of rows where they cannot be exchanged, or where memory lacks for that.
            halves: whether a batch may be halved where memory lacks.
        """
        left = list(rows)
        if len(left) > 1 and fits(self.model, self.task):
            done: set[int] = set()
            try:
                for row, line in ContinuousBatch(self)(left):
                    done.add(row)
                    yield row, line
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                release(error)
            left = [row for row in left if row not in done]
        for first in range(0, len(left), self.size):
            for chosen, lines in in_halves(left[first : first + self.size], otherwise, allowed=halves):
                yield from zip(chosen, lines, strict=True)


def rows_at_once(recipe: Recipe, lengths: npt.NDArray[np.int32]) -> int:
    """Return how many texts may be written at once: they hold no more tokens than a batch of the recipe's longest rows.

    Args:
        lengths: tokens of the prompts.
    """
    training, data = recipe.training, recipe.data or DataSpec()
    size, new = training.per_device_eval_batch_size, training.max_new_tokens
    planned, longest = size * (data.max_length + new), int(lengths.max(initial=0)) + new
    return max(size, min(MOST, planned // longest))


def fits(model: nn.Module, task: Task) -> bool:
    """Return whether rows can be exchanged: greedy texts of a decoder on a CPU that keeps keys and values alone."""
    if not isinstance(task, LanguageModelTask) or not isinstance(model, GenerationMixin):
        return False
    if not task.settings.training.fast_paths.continuous_batching or is_sharded(model):
        return False
    if task.settings.decoding != GREEDY or task.settings.on_text is not None:
        return False
    model_class: Any = type(model)
    config: Any = model.config
    if next(model.parameters()).device.type != "cpu" or config.is_encoder_decoder:
        return False
    own_inputs = model_class.prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
    taken = inspect.signature(model.forward).parameters
    if own_inputs or getattr(model, "_is_stateful", False) or "attention_mask" not in taken or not cache_name(taken):
        return False
    settings = {name for name in model.generation_config.to_diff_dict() if not name.startswith("_")}
    layers = DynamicCache(config=config).layers
    acting = settings - settings_without_effect(model)
    return acting <= HARMLESS and len(layers) > 0 and all(type(layer) is DynamicLayer for layer in layers)


def cache_name(taken: Mapping[str, Any]) -> str:
    """Return what a forward pass calls its keys and values, '' where it takes none; transformers 5.24 renamed them."""
    return next((name for name in ("cache", "past_key_values") if name in taken), "")


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # has no types there
    """The keys and values of a layer, (rows, heads, columns, d), with room behind them.

    Args:
        keys, values: with room.
        length: columns that are filled.
    """

    _layer_type = None  # a name would put this class in the place of transformers' own

    def __init__(self, keys: Tensor, values: Tensor, length: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._whole = [keys, values]
        self._show(length)

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new columns behind the others, and return all."""
        start, end = self._length, self._length + key_states.shape[-2]
        for place, new in enumerate((key_states, value_states)):
            if end > self._whole[place].shape[-2]:
                self._whole[place] = aligned([self._whole[place]], self._whole[place].shape[-2])
            self._whole[place][:, :, start:end] = new
        self._show(end)
        return self.keys, self.values

    def _show(self, length: int) -> None:
        self._length = length
        self.keys, self.values = (whole[:, :, :length] for whole in self._whole)


def aligned(parts: Sequence[Tensor], length: int) -> Tensor:
    """Return keys or values of some rows and others, (rows, heads, columns, d), as one, with room behind them.

    Args:
        parts: their last columns stand behind each other there.
        length: columns to keep; of a shorter part those in front are zero. No row may look at what is not its own.
    """
    rows = sum(len(part) for part in parts)
    _, heads, _, width = parts[0].shape
    out, at = parts[0].new_zeros(rows, heads, length + ROOM, width), 0
    for part in parts:
        kept = min(part.shape[2], length)
        out[at : at + len(part), :, length - kept : length] = part[:, :, part.shape[2] - kept :]
        at += len(part)
    return out


@dataclass
class Text:
    """A text that is being written.

    Args:
        row: its number.
        held: columns of keys and values that are its own; the position of its last token, too.
        room: tokens that it may have.
    """

    row: int
    held: int
    room: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False

    def read_last(self) -> None:
        """Count the column that its last token gets, or, of a text that has ended, that of a pass for nothing."""
        self.held += 1

    def add(self, token: int, logprob: float, stops: Container[int]) -> None:
        """Take a further token, which ends the text if it is one of `stops` or the last that it may have."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.ended = token in stops or len(self.tokens) >= self.room


class ContinuousBatch:
    """Writes the texts of many rows, some of them at once."""

    def __init__(self, given: Prompting) -> None:
        assert isinstance(given.task, LanguageModelTask)  # it fits
        self._given, self._task = given, given.task
        model: Any = given.model
        self._config = model.config
        self._stops = {*stop_tokens(model, self._task.settings.tokenizer), *self._task.settings.stop_ids}
        taken = inspect.signature(model.forward).parameters
        self._cache_name, self._counts_positions = cache_name(taken), "position_ids" in taken
        self._constant = {"use_cache": True, **({"logits_to_keep": 1} if "logits_to_keep" in taken else {})}
        self._texts: list[Text] = []
        self._layers: list[Any] = []
        self._columns = 0

    def __call__(self, rows: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each row with what `tasks.generation.generate` returns for it, as they end."""
        waiting = deque(rows)
        while waiting or self._texts:
            yield from self._exchange(waiting)
            while self._goes_on(bool(waiting)):
                self._step()

    def _goes_on(self, some_wait: bool) -> bool:
        """Return whether a step is better than an exchange."""
        count, ended = len(self._texts), sum(text.ended for text in self._texts)
        if ended == count:
            return False
        free = ended + self._given.at_once - count
        return free < max(1, self._given.at_once // SHARE) if some_wait else ended * SHARE < count

    def _exchange(self, waiting: deque[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the texts that have ended, and put rows that wait in their places."""
        live = [place for place, text in enumerate(self._texts) if not text.ended]
        lines = [(text.row, self._line(text)) for text in self._texts if text.ended]
        texts = [self._texts[place] for place in live]
        sources = [self._layers] if live else []
        new = [waiting.popleft() for _ in range(min(self._given.at_once - len(live), len(waiting)))]
        for made, layers in self._read(new) if new else ():
            texts += made
            sources.append(layers)
        self._texts, self._columns = texts, max((text.held for text in texts), default=0)
        count = len(sources[0]) if sources else 0
        # what is joined is let go of: a layer at a time is there twice, not all of them
        self._layers = [self._joined([layers.pop(0) for layers in sources], live) for _ in range(count)]
        yield from lines

    def _joined(self, of_rows: Sequence[Any], live: list[int]) -> GrowingLayer:
        """Return what a layer keeps of the rows that go on, whose places are `live`, and of new ones."""
        both = []
        for name in ("keys", "values"):
            parts = [getattr(layer, name) for layer in of_rows]
            if live:
                parts[0] = parts[0][:, :, -self._columns :][live]
            both.append(aligned(parts, self._columns))
        return GrowingLayer(both[0], both[1], self._columns)

    def _read(self, rows: Sequence[int]) -> list[tuple[list[Text], list[Any]]]:
        """Return the texts of new rows with their first token, and what each layer keeps of the prompts."""
        batch = self._given.prompts(rows)
        if len(rows) > 1 and batch.inputs["input_ids"].numel() > READ_TOKENS:
            middle = (len(rows) + 1) // 2
            return [*self._read(rows[:middle]), *self._read(rows[middle:])]
        rooms = self._task.rooms(self._given.model, batch)
        inputs = self._task.prepare_inputs(batch.inputs, generate=True)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        positions = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
        cache = DynamicCache(config=self._config)
        logits = self._forward(ids, mask, positions, cache)
        held = mask.sum(1).tolist()
        texts = [Text(row, int(own), room) for row, own, room in zip(rows, held, rooms, strict=True)]
        self._write(texts, logits)
        return [(texts, cache.layers)]

    def _step(self) -> None:
        """Write a token of each text; those that have ended are computed with the others, for nothing."""
        self._columns += 1
        last = torch.tensor([[text.tokens[-1]] for text in self._texts])
        positions = torch.tensor([[0 if text.ended else text.held] for text in self._texts])
        for text in self._texts:
            text.read_last()
        own = torch.tensor([[text.held] for text in self._texts])
        mask = (torch.arange(self._columns) >= self._columns - own).long()
        self._write(self._texts, self._forward(last, mask, positions, Cache(layers=self._layers)))

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Return the logits behind the last column, (rows, vocabulary), float32."""
        counted = {"position_ids": positions} if self._counts_positions else {}
        with torch.no_grad(), self._given.context():
            out = self._given.model(
                input_ids=ids, attention_mask=mask, **{self._cache_name: cache}, **counted, **self._constant
            )
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def _write(self, texts: Sequence[Text], logits: Tensor) -> None:
        """Give each text its likeliest next token."""
        tokens = logits.argmax(-1)
        found = zip(texts, tokens.tolist(), logprobs_of(logits, tokens).tolist(), strict=True)
        for text, token, logprob in found:
            if not text.ended:
                text.add(token, logprob, self._stops)

    def _line(self, text: Text) -> dict[str, Any]:
        mean = float(torch.tensor(text.logprobs).mean())
        return text_line(text.tokens, mean, self._stops, self._task.settings.tokenizer)
