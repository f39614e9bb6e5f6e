"""Causal language modelling: every supervised token is predicted from what stands before it."""

from __future__ import annotations

from peftcli.training.tasks.language_model import LanguageModelTask


class CausalLM(LanguageModelTask):
    """Prompt and completion in one sequence; labels are the inputs, masked where not supervised."""

    name = "causal_lm"
    shift = 1
