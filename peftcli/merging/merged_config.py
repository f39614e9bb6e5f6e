"""The config of a merged model."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from peftcli.deliverables.config_file import restore_padding
from peftcli.deliverables.leaving_model import LeavingModel
from peftcli.merging.merge_plan import MergePlan
from peftcli.merging.run_to_merge import RunToMerge


def merged_config(run: RunToMerge, plan: MergePlan, leaving: LeavingModel) -> Any:
    """Return the config of the merged model: the task's class and labels, its dtype, its ties, no quantisation.

    Where the base holds more than the model, it is the base's with the model's as its part for text.
    """
    config: Any = deepcopy(run.model.config)
    config.architectures = [type(run.model).__name__]
    config.dtype = plan.dtype
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    if run.whole is not None:
        text, config = config, deepcopy(run.whole)
        text.architectures = None
        config.text_config, config.dtype = text, plan.dtype
    restore_padding(config, leaving)
    if plan.unties_tables:
        for part in {id(part): part for part in (config, config.get_text_config())}.values():
            part.tie_word_embeddings = False
    return config
