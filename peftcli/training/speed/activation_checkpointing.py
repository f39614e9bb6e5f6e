"""Activation checkpointing: blocks are computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from peftcli.errors import Problem, UserError


def enable_checkpointing(
    model: nn.Module, recomputing: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> None:
    """Recompute blocks in the backward pass, without the reentrant kind that needs gradients at the embeddings.

    Args:
        recomputing: called in each forward pass; makes the context that its recomputation runs in, beside autocast,
            which is restored by torch.

    Raises:
        UserError: the family does not do it.
    """
    # the name of both the method and its argument changed in transformers 5.2x
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    enable = getattr(model, f"{kind}_checkpointing_enable", None)
    try:
        if enable is None:
            raise ValueError(f"{type(model).__name__} has no such switch")
        options: dict[str, Any] = {"use_reentrant": False}
        if recomputing is not nullcontext:  # compiled blocks, which have no such context, refuse the argument
            options["context_fn"] = lambda: (nullcontext(), recomputing())
        enable(**{f"{kind}_checkpointing_kwargs": options})
        # transformers makes the embeddings' output need a gradient, for the reentrant kind; ours would then go back
        # through every frozen block below the lowest trained one
        getattr(model, "disable_input_require_grads", lambda: None)()
    except ValueError as error:
        problem = Problem(str(error), key="training.gradient_checkpointing", suggestion="set it to false")
        raise UserError(problem) from error
