"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691; code google-research/prompt-tuning).

Learned vectors join the embedded input, in an encoder-decoder that of the encoder only, and nothing else is trained.

Where they go: in front of the text (behind left padding). In an encoder with a head they go behind the first token,
because the head reads position 0; `prompt_position: front` puts them before it, as HF peft does.

Initialisation: `random` draws U(-0.5, 0.5), the paper's range (the official flax code draws U(0, 0.5), HF peft N(0,
1)); `sample_vocab` copies the embeddings of tokens drawn from the first `sample_vocab_size` (the paper's 5,000 most
frequent; HF peft: all); `text` repeats a text's embeddings (HF peft); `class_labels` averages the tokens of each
class name and draws the rest from the vocabulary (the paper's best for small models); it needs a task with classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from peftcli.models.config_facts import positions
from peftcli.protocol.method import Method, MethodInfo
from peftcli.recipe.method_params import MethodParams, Positive

if TYPE_CHECKING:
    from torch import nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment


class PromptTuningParams(MethodParams):
    """Hyper-parameters of prompt tuning."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    num_virtual_tokens: Positive = 20
    """Learned vectors in the input."""
    prompt_tuning_init: Literal["random", "sample_vocab", "text", "class_labels"] = "sample_vocab"
    """What they start from."""
    prompt_tuning_init_text: str | None = None
    """The text, for `prompt_tuning_init: text`, repeated or cut to num_virtual_tokens."""
    sample_vocab_size: Positive = 5000
    """How many of the first tokens of the vocabulary `sample_vocab` and `class_labels` draw from."""
    prompt_position: Literal["auto", "front", "after_first"] = "auto"
    """Before the text or behind its first token; auto is after_first in encoders, front elsewhere."""

    @model_validator(mode="after")
    def _text_given(self) -> PromptTuningParams:
        if self.prompt_tuning_init == "text" and not (self.prompt_tuning_init_text or "").strip():
            raise ValueError("prompt_tuning_init: text needs a prompt_tuning_init_text")
        if self.prompt_tuning_init != "text" and self.prompt_tuning_init_text is not None:
            raise ValueError("prompt_tuning_init_text has no effect without prompt_tuning_init: text")
        return self

    def idle_keys(self) -> dict[str, str]:
        """Return the size of a sample that is not drawn."""
        drawn = self.prompt_tuning_init in ("sample_vocab", "class_labels")
        return {} if drawn else {"sample_vocab_size": f"prompt_tuning_init is {self.prompt_tuning_init}"}


class PromptTuningMethod(Method[PromptTuningParams]):
    """Prompt tuning."""

    info = MethodInfo(
        name="prompt_tuning",
        family="additive",
        summary="Learned vectors in front of the embedded input.",
        paper="Lester et al. 2021, arXiv:2104.08691",
        params=PromptTuningParams,
        hf_type="PROMPT_TUNING",
        learning_rate=3e-2,
        trains="vectors",
        unmergeable="learned inputs are not a change of any weight; keep the adapter beside its base, or `peft export` "
        "it",
    )

    def check(self, anatomy: Anatomy, params: PromptTuningParams) -> list[str]:
        """Return why this model cannot be prompted: it takes no tokens, or has too few positions."""
        if not anatomy.takes_tokens:
            remedy = "use lora or prefix_tuning"
            return [f"a {anatomy.family} model takes no token embeddings that a prompt could join; {remedy}"]
        return _too_many(params, anatomy.max_positions)

    def check_config(self, config: Mapping[str, Any], params: PromptTuningParams) -> list[str]:
        """Return what a config.json says against these hyper-parameters: more virtual tokens than positions."""
        return _too_many(params, positions(config))

    def positions_taken(self, anatomy: Anatomy, params: PromptTuningParams) -> int:
        """Return how many of the model's positions the prompt takes."""
        return params.num_virtual_tokens

    def why_not_identity(self, params: PromptTuningParams) -> str | None:
        """Return that every row sees the virtual tokens from the start."""
        return "the virtual tokens stand before every row from the first step on"

    def attach(self, model: nn.Module, anatomy: Anatomy, params: PromptTuningParams) -> Attachment:
        """Put a prompt at the output of the token embedding."""
        from peftcli.attachments.prompt_tuning import PromptStart, attach_prompt

        return attach_prompt(
            model,
            anatomy,
            length=params.num_virtual_tokens,
            after_first={"auto": None, "front": False, "after_first": True}[params.prompt_position],
            start=PromptStart(params.prompt_tuning_init, params.prompt_tuning_init_text, params.sample_vocab_size),
        )


def _too_many(params: PromptTuningParams, limit: int | None) -> list[str]:
    if limit is None or params.num_virtual_tokens < limit:
        return []
    return [
        f"num_virtual_tokens = {params.num_virtual_tokens} leaves no position of this model's {limit} for text; "
        f"use at most {limit - 1}"
    ]


METHOD = PromptTuningMethod()
