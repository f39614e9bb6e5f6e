"""Hidden states in front of a language-model head, so that only supervised positions go through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.layers.chunked_loss import LogitTransform


@dataclass(frozen=True)
class HeadRoute:
    """A head that can be called apart from the model, and what the family does to its logits."""

    head: nn.Module
    transform: LogitTransform

    def hidden_states(self, model: nn.Module, inputs: dict[str, Any], *, last: bool = False) -> Tensor:
        """Return what the head would get: (batch, positions, d_model).

        The model runs as usual, hooks included; a hook on the head keeps its input and hands on one position, so
        that the logits nobody reads cost nothing.

        Args:
            last: whether the head's other hooks come first, and see its whole input.
        """
        caught: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            caught.append(args[0])
            return (args[0].detach()[..., :1, :], *args[1:])

        handle = self.head.register_forward_pre_hook(keep, prepend=not last)
        try:
            model(**inputs)
        finally:
            handle.remove()
        return caught[0]


def transform_of(config: Any) -> LogitTransform:
    """Return the factor and the soft cap that a config names for its logits."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = 1.0
    if divisor := getattr(text, "logits_scaling", None):
        scale /= float(divisor)
    if factor := getattr(text, "logit_scale", None):
        scale *= float(factor)
    cap = getattr(text, "final_logit_softcapping", None)
    return LogitTransform(scale, float(cap) if cap else None)


def find_route(model: nn.Module, inputs: dict[str, Any]) -> HeadRoute | None:
    """Return the route to a model's head, or None where the full logits are needed.

    The route is tried on `inputs` and must give the model's own logits: a family that does something unknown after
    its head is found here, not in a wrong loss.

    Args:
        model: the live model; it is left in the mode it was in.
        inputs: a few tokens.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        return None
    route = HeadRoute(head, transform_of(model.config))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            wanted = model(**inputs).logits.float()
            hidden = route.hidden_states(model, inputs)
            got = route.transform(head(hidden)).float()
    except (IndexError, TypeError):  # the head is not called with its input as the first argument
        return None
    finally:
        model.train(training)
    close = got.shape == wanted.shape and torch.allclose(got, wanted, rtol=1e-2, atol=1e-2 * float(wanted.std() + 1e-6))
    return route if close else None
