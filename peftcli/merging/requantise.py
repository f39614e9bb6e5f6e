"""Quantise a merged model to 4 bits, on request, and measure what that costs.

Quantising again is lossy where merging is not: the rounding of a 4-bit layer can be as large as the adapter's own
change. So it is done on request only, and its loss is printed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peftcli.data.rows.row_set import Row
from peftcli.merging.compare_outputs import Comparison, all_outputs, compare, free_memory
from peftcli.merging.run_to_merge import RunToMerge
from peftcli.models.load.quantization import keep_trainable, quantisation_keywords
from peftcli.models.model_tasks import auto_class
from peftcli.process_state import quiet_transformers
from peftcli.recipe.schema import ModelSpec


def requantise(
    directory: Path,
    run: RunToMerge,
    config: Any,
    rows: list[Row],
    reference: Tensor,
    device: torch.device,
    max_shard_size: int,
) -> Comparison:
    """Replace the weights of a merged model, and its config, by their 4-bit form.

    Args:
        directory: of the merged model, without config.json.
        run: the run; its recipe's 4-bit settings are used.
        config: of the merged model.
        rows: of the run's data.
        reference: outputs of base + adapter on them.
        device: where to compute.
        max_shard_size: bytes of a weight file.

    Returns:
        The comparison of the quantised model with base + adapter.
    """
    spec = four_bit(run.recipe.model)
    keywords = quantisation_keywords(spec, config, run.model, config.dtype, device)
    with quiet_transformers():
        model = auto_class(config, run.recipe.task).from_pretrained(
            directory,
            config=config,
            dtype=config.dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=run.spec.trust_remote_code,
            **keywords,
        )
    keep_trainable(model)  # before the first pass: bitsandbytes repacks weights on some CPUs, and then saves nonsense
    model.eval()
    quantised = directory / "quantised"
    with quiet_transformers():
        model.save_pretrained(quantised, max_shard_size=max_shard_size)
    found = all_outputs(model, rows, run, device, config.dtype)
    result = compare(reference, found, torch.float32, several=run.of_several_labels)
    del model
    free_memory()
    for file in directory.glob("*.safetensors*"):
        file.unlink()
    for file in quantised.iterdir():
        if file.name != "config.json":
            file.replace(directory / file.name)
    (quantised / "config.json").replace(directory / "config.json")
    shutil.rmtree(quantised)
    return result


def four_bit(spec: ModelSpec) -> ModelSpec:
    """Return the run's model block with 4 bits asked for."""
    return spec.model_copy(update={"load_in_4bit": True, "load_in_8bit": False})
