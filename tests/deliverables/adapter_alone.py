"""`use_alone` with an adapter of HF peft (`adapter`) or of AdapterHub's library (`adapterhub`), read by that library.

    python adapter_alone.py USE_ALONE < REQUEST

USE_ALONE is the path of `use_alone.py`: it is loaded as a file, so that nothing of this project is imported.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any


def adapted(request: dict[str, Any], model: Any, tokenizer: Any) -> Any:
    if request.get("adapter"):
        from peft import PeftModel

        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return PeftModel.from_pretrained(model, request["adapter"])
    if request.get("adapterhub"):
        import adapters

        adapters.init(model)
        model.set_active_adapters(model.load_adapter(request["adapterhub"], use_safetensors=True))
    return model


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("use_alone", sys.argv[1])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    request = json.loads(sys.stdin.read())
    found = module.use(request, lambda model, tokenizer: adapted(request, model, tokenizer))
    assert "peftcli" not in sys.modules
    print(json.dumps(found))
