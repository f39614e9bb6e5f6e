"""The torch half of LoReFT: a batch says where its answers are, and each block's output has its part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.layers.added_modules import ANSWERS
from peftcli.layers.parts.subspace_edit import SubspaceEdit
from peftcli.layers.prompt_ends import PromptEnds, answers_of, documents_of, prompt_ends
from peftcli.layers.site import device_of, made_on, output_site
from peftcli.protocol.attachment import Attachment

Choose = Callable[[tuple[Tensor, Tensor]], Tensor]


@dataclass(kw_only=True)
class LoreftAttachment(Attachment):
    """Interventions, and what tells them where the prompts are.

    Args:
        ends: works out the ends of the prompts in every pass.
        labels_are_tokens: the model generates text behind its input, so that labels say where the answer begins.
    """

    ends: PromptEnds
    labels_are_tokens: bool

    def prepare_inputs(self, batch: Mapping[str, Any], *, generate: bool = False) -> dict[str, Any]:
        """Return the batch with the key `ANSWERS`; when text is generated, the whole input is the prompt."""
        prepared = dict(batch)
        if not self.placed:
            return prepared
        if generate:
            self.ends.generate_for(batch)
        else:
            prepared[ANSWERS] = self._answers(batch)
        return prepared

    def _answers(self, batch: Mapping[str, Any]) -> Tensor:
        ids: Tensor = batch["input_ids"]
        labels, mask = batch.get("labels"), batch.get("attention_mask")
        found = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
        if labels is None or not self.labels_are_tokens or labels.shape != ids.shape:
            return found
        padded = mask is not None and mask.dim() == 2
        return answers_of(labels, documents_of(found, None if padded else batch.get("position_ids")))


def attach_loreft(
    model: nn.Module,
    blocks: Mapping[str, int],
    *,
    rank: int,
    first: int,
    last: int,
    tied: bool,
    dropout: float,
    labels_are_tokens: bool,
) -> LoreftAttachment:
    """Put an intervention at the output of each block; two where first and last tokens have their own.

    Args:
        blocks: path of each block, and the width of its output.
        rank: of the subspace.
        first, last: tokens of the prompt that are changed.
        tied: the same intervention at first and last tokens.
        dropout: of `SubspaceEdit`.
        labels_are_tokens: of `LoreftAttachment`.
    """
    ends, handle = prompt_ends(model)
    ends.want(first, last)
    attachment = LoreftAttachment(model, ends=ends, labels_are_tokens=labels_are_tokens)
    if handle is not None:
        attachment.undo.append(handle.remove)
    kinds: dict[str, Choose] = {"loreft": _both}
    if not tied:
        asked = {"loreft_first": (_first, first), "loreft_last": (_last, last)}
        kinds = {name: choose for name, (choose, count) in asked.items() if count}
    for path, width in blocks.items():
        host = model.get_submodule(path)
        for name, choose in kinds.items():
            where = partial(_where, ends, (first, last), choose)
            part = made_on(device_of(host, model), partial(SubspaceEdit, width, rank, dropout, where))
            attachment.place(f"{path}.{name}", part, output_site(host).parts)
    return attachment


def _where(ends: PromptEnds, counts: tuple[int, int], choose: Choose) -> Tensor | None:
    chosen = ends.chosen(*counts)
    return None if chosen is None else choose(chosen)


def _both(chosen: tuple[Tensor, Tensor]) -> Tensor:
    return chosen[0] | chosen[1]


def _first(chosen: tuple[Tensor, Tensor]) -> Tensor:
    return chosen[0]


def _last(chosen: tuple[Tensor, Tensor]) -> Tensor:
    return chosen[1]
