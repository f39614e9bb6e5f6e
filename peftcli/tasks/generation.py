"""Generation with a key-value cache, through transformers' public `generate`: greedy, by beams, or sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.distributed.sharding import is_sharded
from peftcli.errors import UserError
from peftcli.tasks.decoding import GREEDY, Decoding, OnText, token_ids

_ON_EVERY_TEXT = (
    "repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size",
    "min_length", "min_new_tokens", "exponential_decay_length_penalty", "forced_bos_token_id", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids", "sequence_bias", "guidance_scale", "max_time", "watermarking_config",
)  # fmt: skip
"""A model's own generation settings that change greedy texts, too, and that nothing here sets."""
_ON_DRAWN = ("min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Those that change texts which are drawn with a temperature, and that nothing here sets."""
_ON_BEAMS = ("length_penalty", "early_stopping", "renormalize_logits")
"""Those that change what a search finds."""
_NEUTRAL = {
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "guidance_scale": 1, "num_return_sequences": 1,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0,
    "renormalize_logits": False, "remove_invalid_values": False, "early_stopping": False, "length_penalty": 1,
    "top_k": 0, "top_p": 1, "typical_p": 1, "min_p": 0, "epsilon_cutoff": 0, "eta_cutoff": 0,
}  # fmt: skip
"""Values that mean nothing, which many models' files write out."""


def generate(
    model: nn.Module,
    inputs: dict[str, Any],
    tokenizer: Any,
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...] = (),
    decoding: Decoding = GREEDY,
    on_text: OnText | None = None,
) -> list[dict[str, Any]]:
    """Return the continuation of each row.

    Args:
        inputs: `input_ids` and `attention_mask`, padded on the left for decoder-only models.
        stop_ids: tokens that end a text, besides the tokenizer's and the model's own.
        decoding: how tokens are chosen; sampling draws from torch's global generator.
        on_text: of a single row, without beams: receives its text piece by piece.

    Returns:
        For each row `prediction` (the new text, special tokens left out), `scores`: `mean_logprob` of the generated
        tokens, end included, by the distribution that the model's own settings leave (`settings_note`), before a
        temperature, top_p and top_k, and `tokens`, their number, and `finish_reason`: `stop`, or `length` where the
        text did not end within `max_new_tokens`. An end that the model's own settings force at the limit
        (`forced_eos_token_id` of BART) is no token of the text.
    """
    from transformers import LogitsProcessorList

    stops = list(dict.fromkeys([*stop_tokens(model, tokenizer), *stop_ids]))
    logprobs = _Logprobs()
    beams = decoding.num_beams > 1
    settings = _settings(model, tokenizer, stops, decoding, max_new_tokens)
    # token types are left out: `generate` would not lengthen them
    prompt = {key: inputs[key] for key in ("input_ids", "attention_mask") if key in inputs}
    generating: Any = model  # with a divided model all processes go on until the last one has finished
    call = partial(generating.generate, synced_gpus=is_sharded(model))
    extra: dict[str, Any] = {} if beams else {"logits_processor": LogitsProcessorList([logprobs])}
    if on_text is not None:
        extra["streamer"] = TextStream(tokenizer, on_text)
    try:
        output = call(**prompt, generation_config=settings, **extra)
    except (TypeError, ValueError, IndexError, OverflowError, ZeroDivisionError) as error:
        _blame_settings(model, partial(call, **prompt, generation_config=settings), error)
        raise
    start = 1 if getattr(model.config, "is_encoder_decoder", False) else prompt["input_ids"].shape[1]
    tokens = output.sequences[:, start:].cpu()
    rows = tokens.tolist()
    lengths = [_length(row, stops) for row in rows]
    forced = token_ids(getattr(getattr(model, "generation_config", None), "forced_eos_token_id", None))
    kept = [n - (n == max_new_tokens and row[n - 1] in forced) for row, n in zip(rows, lengths, strict=True)]
    if beams:  # what a search says of a text is the sum of its log-probabilities over a power of its length
        found = zip(output.sequences_scores.tolist(), lengths, kept, strict=True)
        means = [score * n**settings.length_penalty / max(1, own) for score, n, own in found]
    else:
        means = logprobs.means(tokens, kept)
    return [text_line(row[:n], mean, set(stops), tokenizer) for row, n, mean in zip(rows, kept, means, strict=True)]


def _settings(model: nn.Module, tokenizer: Any, stops: list[int], decoding: Decoding, max_new_tokens: int) -> Any:
    """Return transformers' settings; what they leave open is as the model's own settings say."""
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    penalty = getattr(own, "length_penalty", None)
    penalty = 1.0 if penalty is None else penalty
    beams = decoding.num_beams > 1
    of_beams = {"length_penalty": penalty} if beams and isinstance(penalty, int | float) else {}
    return GenerationConfig(
        **decoding.settings(),
        **of_beams,
        use_cache=True,
        return_dict_in_generate=True,
        output_scores=beams,
        max_new_tokens=max_new_tokens,
        num_return_sequences=1,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
        forced_bos_token_id=getattr(own, "forced_bos_token_id", None),
    )


def settings_without_effect(model: Any) -> set[str]:
    """Return the names of a model's own generation settings whose values change nothing."""
    own = model.generation_config
    return {name for name, value in _NEUTRAL.items() if getattr(own, name, None) == value}


def settings_note(model: Any, tokenizer: Any) -> str | None:
    """Return which of a model's own generation settings change texts however they are decoded; None if none does.

    The first token that they force is told where it is not the tokenizer's own first one.
    """
    own = getattr(model, "generation_config", None)
    first = getattr(own, "forced_bos_token_id", None)
    names = [name for name in _ON_EVERY_TEXT if name != "forced_bos_token_id" or first != tokenizer.bos_token_id]
    acting = "" if own is None else _shown(model, names)
    if not acting:
        return None
    return (
        f"the base's generation_config.json acts on every text that is written: {acting}; if the rows do not want "
        "that (shorter texts, repeated words), take it out of that file"
    )


def decoding_note(model: Any, decoding: Decoding) -> str | None:
    """Return which of a model's own generation settings act on texts that are drawn or searched for, or do not.

    Args:
        model: with its `generation_config`.
        decoding: on greedy texts nothing acts but what `settings_note` tells.
    """
    if not decoding.samples:
        found = _shown(model, _ON_BEAMS) if decoding.num_beams > 1 else ""
        return f"the base's generation_config.json acts on a search with beams: {found}" if found else None
    left = {"top_p": decoding.top_p == 1.0, "top_k": decoding.top_k == 0}
    acting, ignored = _shown(model, _ON_DRAWN), _shown(model, [name for name, unset in left.items() if unset])
    parts = [f"acts on texts that are drawn with a temperature: {acting}"] if acting else []
    parts += [f"has {ignored}, which does not act: what is set here does"] if ignored else []
    return f"the base's generation_config.json {'; it '.join(parts)}" if parts else None


def _shown(model: Any, names: Iterable[str]) -> str:
    """Return those of a model's own generation settings that say something, with their values."""
    idle = settings_without_effect(model)
    values = {name: getattr(model.generation_config, name, None) for name in names if name not in idle}
    return ", ".join(f"{name} {value!r:.60}" for name, value in values.items() if value is not None)


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
    own = token_ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None))
    return list(dict.fromkeys([*token_ids(tokenizer.eos_token_id), *own]))


class TextStream:
    """Hands on the text of a row while `generate` writes it: a streamer of transformers.

    A tokenizer joins a token with those before it, so the last tokens are decoded together with those that were handed
    on before, and an incomplete character is held back.
    """

    def __init__(self, tokenizer: Any, on_text: OnText) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._tokens: list[int] = []
        self._before, self._done = 0, 0
        self._prompt = True

    def put(self, value: Tensor) -> None:
        """Take the prompt, which comes first, or the next token of the row."""
        if self._prompt:
            self._prompt = False
            return
        self._tokens += value.flatten().tolist()
        text = self._new_text()
        if text and not text.endswith("\ufffd"):
            self._before, self._done = self._done, len(self._tokens)
            self._on_text(text)

    def end(self) -> None:
        """Hand on what was held back."""
        if text := self._new_text():
            self._on_text(text)

    def _new_text(self) -> str:
        known, all_of_it = self._text(self._done), self._text(len(self._tokens))
        return all_of_it[len(known) :] if all_of_it.startswith(known) else ""

    def _text(self, end: int) -> str:
        text: str = self._tokenizer.decode(self._tokens[self._before : end], skip_special_tokens=True)
        return text


class _Logprobs:
    """A logits processor that changes nothing and remembers the log-probability of each token that was chosen.

    It stands behind the processors of the model's own settings and before those of sampling. Which token was chosen
    shows at the next call, or in the finished text.
    """

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._found: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._last is not None:
            self._found.append(logprobs_of(self._last, input_ids[:, -1]))
        self._last = scores
        return scores

    def means(self, tokens: Tensor, lengths: list[int]) -> list[float]:
        """Return the mean of each row; 0 of one without a token.

        Args:
            tokens: (rows, steps), those that were generated.
            lengths: how many of each row's tokens count.
        """
        found = list(self._found)
        if self._last is not None and len(found) < tokens.shape[1]:
            found.append(logprobs_of(self._last, tokens[:, -1].to(self._last.device)))
        values = torch.stack(found, 1).cpu() if found else torch.zeros(len(tokens), 0)
        return [float(row[:n].mean()) if n else 0.0 for row, n in zip(values, lengths, strict=True)]


def logprobs_of(scores: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of a token in each row of logits, (rows,)."""
    logits = scores.float()
    return logits.gather(-1, tokens[:, None]).squeeze(-1) - torch.logsumexp(logits, -1)


def _length(row: list[int], stops: list[int]) -> int:
    """Return how many tokens of a row are its text, the one that ends it included; what follows is padding."""
    return next((place + 1 for place, token in enumerate(row) if token in stops), len(row))


def text_line(tokens: list[int], mean_logprob: float, stops: set[int], tokenizer: Any) -> dict[str, Any]:
    """Return what `generate` does for one row.

    Args:
        tokens: those of the text, the one that ends it included.
        stops: what may end a text.
    """
    scores = {"mean_logprob": mean_logprob, "tokens": len(tokens)}
    ended = bool(tokens) and tokens[-1] in stops
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return {"prediction": text, "scores": scores, "finish_reason": "stop" if ended else "length"}
