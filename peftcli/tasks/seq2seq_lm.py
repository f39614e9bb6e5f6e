"""Sequence to sequence: the encoder reads the input, the decoder writes the target."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from peftcli.errors import UserError
from peftcli.ignored_label import IGNORED
from peftcli.tasks.language_model import LanguageModelTask
from peftcli.tasks.task import Batch, PrepareInputs
from peftcli.tasks.task_info import Refusal, TaskInfo

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

INFO = TaskInfo(
    name="seq2seq_lm",
    summary="a target text from an input text, with an encoder-decoder",
    auto_class="AutoModelForSeq2SeqLM",
    mapping="MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    rows="pairs",
    predictions={"text": ()},
    generates=True,
    why_not_split="part an input from its target",
    refused={
        "encoder": Refusal(
            "it is no encoder-decoder",
            "use sequence_classification or token_classification, or a model such as t5 or bart",
        ),
        "decoder": Refusal("it is no encoder-decoder", "use causal_lm, or a model such as t5 or bart"),
    },
    hf_task_type="SEQ_2_SEQ_LM",
    hf_prompt_copies=2,
    adapterhub_classes=("ForConditionalGeneration",),
)


class Seq2SeqLM(LanguageModelTask):
    """Labels are the target tokens; the decoder's input is the labels moved right by one."""

    info = INFO
    shift = 0

    def bind(self, model: nn.Module, prepare_inputs: PrepareInputs) -> list[str]:
        """Take the model's rule for its decoder's input, then find the way to the head's input."""
        self.inputs_for = partial(decoder_inputs, model)
        return super().bind(model, prepare_inputs)

    def probe_inputs(self, device: torch.device) -> dict[str, Tensor]:
        """Return a few tokens for both sides."""
        inputs = super().probe_inputs(device)
        return {**inputs, "decoder_input_ids": inputs["input_ids"]}

    def with_targets(self, batch: Batch, tensors: Mapping[str, Tensor]) -> Batch:
        """Fill in the targets and the decoder's input."""
        batch = super().with_targets(batch, tensors)
        labels = tensors.get("labels")
        if labels is not None and "decoder_input_ids" not in batch.inputs:
            batch.inputs["decoder_input_ids"] = self.inputs_for(labels.long())
            batch.tokens += batch.supervised
        return batch


def decoder_inputs(model: Any, labels: Tensor) -> Tensor:
    """Return what the decoder reads while it predicts labels, (batch, seq): these, behind its first token.

    The model's own rule is the right one where it has one: mBART puts the last token (the language's code) in front,
    and T5Gemma's config tells its decoder's tokens apart. Where the config does not say what comes first, the
    generation settings may, by which texts are written.

    Raises:
        UserError: neither says it.
    """
    import torch

    own, first = getattr(model, "prepare_decoder_input_ids_from_labels", None), _first_of(model.config)
    if own is not None:
        try:
            moved: Tensor = own(labels)
            return moved
        except (TypeError, ValueError):  # in both ways models refuse a config that lacks a token
            if None not in (first, model.config.pad_token_id):
                raise
    pad = model.config.pad_token_id or 0
    if first is None:
        first = _first_of(getattr(model, "generation_config", None))
    if first is None and own is None:
        first = pad
    if first is None:
        raise UserError(
            f"the config of {model.config.name_or_path or model.config.model_type} does not say which token its "
            "decoder begins with",
            suggestion="add decoder_start_token_id to its config.json (in T5 it is pad_token_id)",
        )
    moved = torch.cat([labels.new_full((len(labels), 1), first), labels[:, :-1]], dim=1)
    return moved.masked_fill(moved == IGNORED, pad)


def _first_of(settings: Any) -> int | None:
    """Return the token that a decoder begins with by a config or generation settings, if these say it."""
    found: int | None = getattr(settings, "decoder_start_token_id", None)
    return found
