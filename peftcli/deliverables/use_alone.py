"""Use a model directory as a stranger does: in a process with transformers alone. This file is run, not imported.

    python use_alone.py < REQUEST

REQUEST is a JSON object: `model` (a directory), `auto` (name of transformers' class), `texts` (prompts, special tokens
written out), and optionally `conversations` (lists of messages, used as prompts after `texts`), `new_tokens`, `dtype`,
`device`, `num_labels`, `trust_remote_code` and `tokenizer` (a directory).

Prints one JSON object as its last line: `prompts`; `ids` of each prompt; `answers` and `tokens`, the new text of each
and its number of tokens (without an end that is forced at the limit), unless the model generates nothing; `logits` of
the last position of each prompt, or all of a model that generates nothing; `labels`, the names of the classes in order;
`transformers`, its version.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def use(request: dict[str, Any], adapt: Callable[[Any, Any], Any] = lambda model, _tokenizer: model) -> dict[str, Any]:
    """Do what the request asks for; see the head of this file.

    Args:
        request: as it came.
        adapt: receives the model and the tokenizer, and returns the model to use.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    keywords: dict[str, Any] = {"local_files_only": True, "trust_remote_code": bool(request.get("trust_remote_code"))}
    tokenizer = transformers.AutoTokenizer.from_pretrained(request.get("tokenizer") or request["model"], **keywords)
    keywords |= {key: request[key] for key in ("dtype", "num_labels") if request.get(key)}
    model = getattr(transformers, request["auto"]).from_pretrained(request["model"], **keywords)
    model = adapt(model, tokenizer)
    model.eval().to(request.get("device") or "cpu")
    prompts = [*request.get("texts", ())]
    prompts += [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in request.get("conversations", ())
    ]
    with torch.no_grad():
        lines = [_answer(model, tokenizer, prompt, request.get("new_tokens")) for prompt in prompts]
    found = {key: [line[key] for line in lines if key in line] for key in ("ids", "answers", "tokens", "logits")}
    labels = [model.config.id2label[number] for number in sorted(model.config.id2label)]
    return {"prompts": prompts, **found, "labels": labels, "transformers": transformers.__version__}


def _answer(model: Any, tokenizer: Any, prompt: str, new_tokens: int | None) -> dict[str, Any]:
    encoded = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    inputs = {key: encoded[key].to(model.device) for key in ("input_ids", "attention_mask")}
    ids = inputs["input_ids"][0].tolist()
    if not model.can_generate():
        return {"ids": ids, "logits": model(**inputs).logits[0].float().tolist()}
    output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, num_beams=1)
    seq2seq = bool(model.config.is_encoder_decoder)
    start = 1 if seq2seq else len(ids)
    line = {"ids": ids, "tokens": output.shape[1] - start - _forced_end(model, output[0, start:].tolist(), new_tokens)}
    line["answers"] = tokenizer.decode(output[0, start:], skip_special_tokens=True)
    if not seq2seq:
        line["logits"] = model(**inputs).logits[0, -1].float().tolist()
    return line


def _forced_end(model: Any, tokens: list[int], new_tokens: int | None) -> int:
    """Return 1 if the last token is an end that the model's settings force at the limit: it is none of the text."""
    forced = model.generation_config.forced_eos_token_id
    ends = forced if isinstance(forced, list) else [forced]
    return int(len(tokens) == new_tokens and tokens[-1] in ends)


if __name__ == "__main__":
    sys.path.pop(0)  # this file's directory: nothing there is to be found as a module
    print(json.dumps(use(json.loads(sys.stdin.read()))))
