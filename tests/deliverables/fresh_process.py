"""Uses a model directory as a stranger does: a process with transformers alone, and no peftcli.

    python -I fresh_process.py REQUEST

REQUEST is a JSON file: `model` (a directory), `adapter` (for HF peft, or null), `auto` (transformers' class),
`conversations` (lists of messages) or `texts`, `new_tokens`. Prints one JSON object: `answers` (new text of each),
`tokens` (how many new tokens each took), `prompts`, `logits` (of the last position of each prompt), `transformers`
(its version).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def use(request: dict[str, Any]) -> dict[str, Any]:
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(request.get("tokenizer") or request["model"])
    model = getattr(transformers, request["auto"]).from_pretrained(request["model"])
    if request.get("adapter"):
        from peft import PeftModel

        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model = PeftModel.from_pretrained(model, request["adapter"])
    model.eval()
    prompts = request.get("texts") or [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in request["conversations"]
    ]
    found: dict[str, Any] = {"answers": [], "tokens": [], "logits": [], "prompts": prompts}
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens="texts" in request)
        inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            if not model.can_generate():
                found["logits"].append(model(**inputs).logits[0].tolist())
                continue
            output = model.generate(**inputs, max_new_tokens=request["new_tokens"], do_sample=False, num_beams=1)
        start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        found["answers"].append(tokenizer.decode(output[0, start:], skip_special_tokens=True))
        found["tokens"].append(output.shape[1] - start)
        if not model.config.is_encoder_decoder:
            with torch.no_grad():
                found["logits"].append(model(**inputs).logits[0, -1].tolist())
    assert "peftcli" not in sys.modules
    return {**found, "transformers": transformers.__version__}


if __name__ == "__main__":
    print(json.dumps(use(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
