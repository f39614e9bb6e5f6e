"""Greedy generation with a key-value cache, through transformers' public `generate`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.distributed.sharding import is_sharded
from peftcli.errors import UserError


def generate(
    model: nn.Module, inputs: dict[str, Any], tokenizer: Any, *, max_new_tokens: int, stop_ids: tuple[int, ...] = ()
) -> list[dict[str, Any]]:
    """Return the greedy continuation of each row.

    Args:
        stop_ids: tokens that end a text, besides the tokenizer's and the model's own.
        inputs: `input_ids` (or `inputs_embeds`) and `attention_mask`, padded on the left for decoder-only models.

    Returns:
        For each row `prediction` (the new text, special tokens left out), `scores`: `mean_logprob` of the generated
        tokens, end included, and `tokens`, their number, and `finish_reason`: `stop`, or `length` where the text did
        not end within `max_new_tokens`.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    stops = list(dict.fromkeys([*stop_tokens(model, tokenizer), *stop_ids]))
    logprobs = _Logprobs()
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        forced_bos_token_id=getattr(getattr(model, "generation_config", None), "forced_bos_token_id", None),
    )
    # token types are left out: `generate` would not lengthen them
    prompt = {key: inputs[key] for key in ("input_ids", "attention_mask", "inputs_embeds") if key in inputs}
    generating: Any = model  # with a divided model all processes go on until the last one has finished
    call = partial(generating.generate, synced_gpus=is_sharded(model))
    try:
        output = call(**prompt, generation_config=settings, logits_processor=LogitsProcessorList([logprobs]))
    except (TypeError, ValueError, IndexError, OverflowError, ZeroDivisionError) as error:
        _blame_settings(model, partial(call, **prompt, generation_config=settings), error)
        raise
    start = prompt["input_ids"].shape[1] if "input_ids" in prompt else 0  # embeddings: only new tokens come back
    start = 1 if getattr(model.config, "is_encoder_decoder", False) else start
    return _rows(output[:, start:].cpu(), logprobs.chosen(), set(stops), tokenizer)


def _blame_settings(model: nn.Module, again: Callable[[], Any], error: Exception) -> None:
    """Refuse a model's own generation settings if they are why it cannot generate: they hold where ours are silent.

    Raises:
        UserError: without them it generates.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        again()
    except Exception:
        return
    finally:
        model.generation_config = own
    raise UserError(
        f"{getattr(model, 'name_or_path', '')}/generation_config.json: the model cannot generate with it: {error}",
        suggestion="correct the value that this speaks of, or remove the file",
    ) from error


def stop_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    """Return the ids that end a text: the tokenizer's EOS and those of the model's own generation settings."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    return list(dict.fromkeys(i for i in (tokenizer.eos_token_id, *own) if i is not None))


class _Logprobs:
    """A logits processor that changes nothing and remembers the log-probability of each greedy choice."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.float()
        self.steps.append(best.max(-1).values - torch.logsumexp(best, -1))
        return scores

    def chosen(self) -> Tensor:
        """Return (rows, steps) on the CPU."""
        return torch.stack(self.steps, 1).cpu() if self.steps else torch.zeros(0, 0)


def _rows(tokens: Tensor, logprobs: Tensor, stops: set[int], tokenizer: Any) -> list[dict[str, Any]]:
    rows = []
    for index, row in enumerate(tokens.tolist()):
        stop = next((i + 1 for i, token in enumerate(row) if token in stops), None)
        end = len(row) if stop is None else stop
        text = tokenizer.decode(row[:end], skip_special_tokens=True)
        mean = float(logprobs[index, :end].mean()) if end else 0.0
        reason = "length" if stop is None else "stop"
        rows.append({"prediction": text, "scores": {"mean_logprob": mean, "tokens": end}, "finish_reason": reason})
    return rows
