"""Causal language modelling: every supervised token is predicted from what stands before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from peftcli.tasks.language_model import LanguageModelTask
from peftcli.tasks.task import Batch
from peftcli.tasks.task_info import Refusal, TaskInfo

if TYPE_CHECKING:
    from torch import Tensor

INFO = TaskInfo(
    name="causal_lm",
    summary="the next tokens: completions, assistant turns, or whole texts",
    auto_class="AutoModelForCausalLM",
    mapping="MODEL_FOR_CAUSAL_LM_MAPPING",
    whole_class="AutoModelForImageTextToText",
    whole_mapping="MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    rows="text",
    predictions={"text": ()},
    generates=True,
    packs=True,
    refused={
        # transformers has causal classes of encoders, but their attention sees the tokens that are to be predicted
        "encoder": Refusal(
            "it is an encoder, whose attention sees later tokens",
            "use sequence_classification or token_classification, or a decoder such as gpt2, llama or qwen2",
        ),
        "encoder_decoder": Refusal("it is an encoder-decoder", "use the task seq2seq_lm"),
    },
    pipeline_tag="text-generation",
    hf_task_type="CAUSAL_LM",
    adapterhub_classes=("ForCausalLM", "LMHeadModel"),
)


class CausalLM(LanguageModelTask):
    """Prompt and completion in one sequence; labels are the inputs, masked where not supervised."""

    info = INFO
    shift = 1

    def with_targets(self, batch: Batch, tensors: Mapping[str, Tensor]) -> Batch:
        """Fill in the targets, and leave out a mask that hides only what stands behind each row.

        A causal model's real tokens never see the padding to their right, and padding has no loss. Without a mask the
        attention takes its fast path: no (seq, seq) mask for each row, and no wait for the device to look at it. That
        transformers warns of it is hidden by `process_state.libraries_quiet`.
        """
        batch = super().with_targets(batch, tensors)
        mask = batch.inputs.get("attention_mask")
        if "labels" in tensors and mask is not None and mask.dim() == 2 and bool(mask[:, 0].all()):
            del batch.inputs["attention_mask"]
        return batch
