"""The files beside a merged model's weights: config, tokenizer, chat template, generation config."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

from peftcli.merging.merge_plan import MergePlan
from peftcli.merging.run_to_merge import RunToMerge
from peftcli.tasks.task_table import task_info

# Files that converters (llama.cpp's) and older loaders need and a tokenizer does not save itself.
_TOKENIZER_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def merged_config(run: RunToMerge, plan: MergePlan) -> Any:
    """Return the config of the merged model: the task's class and labels, its dtype, its ties, no quantisation."""
    config: Any = deepcopy(run.model.config)
    config.architectures = [type(run.model).__name__]
    config.dtype = plan.dtype
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if plan.untied:
        for part in {id(part): part for part in (config, config.get_text_config())}.values():
            part.tie_word_embeddings = False
    return config


def write_files_beside(directory: Path, run: RunToMerge, base: Path | None) -> None:
    """Write tokenizer, chat template, generation config and, if the recipe allows it, the base's own code.

    Args:
        directory: of the merged model.
        run: the run.
        base: directory of the base's files, None for a GGUF file.
    """
    run.tokenizer.save_pretrained(directory)
    generation = getattr(run.model, "generation_config", None)
    if base is not None:
        if (base / "generation_config.json").is_file():
            shutil.copyfile(base / "generation_config.json", directory / "generation_config.json")
            generation = None
        for name in _TOKENIZER_FILES:
            if (base / name).is_file() and not (directory / name).exists():
                shutil.copyfile(base / name, directory / name)
        if run.spec.trust_remote_code:
            for file in base.glob("*.py"):
                shutil.copyfile(file, directory / file.name)
    if generation is not None and task_info(run.recipe.task).generates:
        generation.save_pretrained(directory)


def write_config(directory: Path, config: Any) -> None:
    """Write config.json. It is written last, because a directory without it does not load."""
    config.save_pretrained(directory)
