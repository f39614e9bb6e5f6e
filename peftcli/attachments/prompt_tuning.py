"""The torch half of prompt tuning: how a batch makes room for a prompt, and what the prompt starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from peftcli.distributed.shares import gathered
from peftcli.errors import Problem, UserError
from peftcli.ignored_label import IGNORED
from peftcli.layers.site import device_of, made_on
from peftcli.layers.virtual_tokens.prompt import (
    Insertion,
    Prompt,
    StandIns,
    document_starts,
    insert_at,
    insert_once,
    prompt_site,
    tolerate_virtual_ids,
    tolerate_virtual_ids_within,
)
from peftcli.models.anatomy import Anatomy
from peftcli.models.load.head_rows import has_names
from peftcli.models.model_tasks import labels_each_token
from peftcli.protocol.attachment import Attachment
from peftcli.tasks.training_rows import TrainingRows


@dataclass(frozen=True)
class PromptStart:
    """What a prompt starts from; `methods.prompt_tuning.PromptTuningParams` says what each kind means.

    Args:
        kind: `prompt_tuning_init`.
        text: for `text`.
        sample_size: how many of the first tokens of the vocabulary are drawn from.
    """

    kind: Literal["random", "sample_vocab", "text", "class_labels"]
    text: str | None
    sample_size: int


@dataclass(kw_only=True)
class PromptAttachment(Attachment):
    """A prompt, and how batches make room for it.

    Args:
        embedding: path of the token embedding.
        start: what the prompt starts from.
        after_first: the prompt goes behind the first token.
        causal: tokens see earlier ones only.
        labels_follow_inputs: labels of the input's shape belong to its tokens, not to a decoder's.
        stand_ins: the hook that puts virtual ids in while text is generated.
        left_out: what of its start the prompt is too short for, for the user.
    """

    embedding: str
    start: PromptStart
    after_first: bool
    causal: bool
    labels_follow_inputs: bool
    stand_ins: StandIns = field(default_factory=StandIns)
    left_out: list[str] = field(default_factory=list)

    @property
    def prompt(self) -> Prompt:
        part = self.placed[0].part
        assert isinstance(part, Prompt)  # the only part that attach_prompt places
        return part

    def prepare_inputs(self, batch: Mapping[str, Any], *, generate: bool = False) -> dict[str, Any]:
        """Return the batch with room for the prompt; see `Attachment.prepare_inputs`.

        Virtual tokens get label -100. Packed rows (position ids that restart, no mask) get a prompt before every
        document. For generation the tokens that they stand before hold the places of virtual tokens.
        """
        self.stand_ins.forget()
        if not self.placed or not self.prompt.enabled:
            return dict(batch)
        host: Any = self.model.get_submodule(self.embedding)
        ids: Tensor = batch["input_ids"]
        insertion = self._insertion(batch)
        prepared = dict(batch)
        virtual = host.num_embeddings + insertion.slot
        pad = int(self._pad() or 0)
        prepared["input_ids"] = insertion.take(ids, virtual, pad)
        for key, value in batch.items():
            if key != "input_ids" and isinstance(value, Tensor) and not key.startswith("decoder_"):
                moved = self._moved(key, value, ids, insertion)
                if moved is not None:
                    prepared[key] = moved
        if generate:
            shown = insertion.take(ids, ids.gather(1, insertion.source), pad)
            self.stand_ins.expect(shown, prepared["input_ids"])
            prepared["input_ids"] = shown
            prepared.pop("position_ids", None)  # generate counts them from the mask
            prepared.setdefault("attention_mask", (~insertion.blank).long())
        return prepared

    def _pad(self) -> int | None:
        config: Any = self.model.config
        pad: int | None = getattr(config.get_text_config(), "pad_token_id", None)  # RWKV has none
        return pad

    def _insertion(self, batch: Mapping[str, Any]) -> Insertion:
        ids: Tensor = batch["input_ids"]
        length = self.prompt.embeddings.shape[0]
        mask, positions = batch.get("attention_mask"), batch.get("position_ids")
        if positions is not None and (mask is None or mask.dim() == 4):
            documents = document_starts(ids, positions, self._pad())
            starts = documents.roll(1, dims=1) if self.after_first else documents
            if self.after_first:
                starts[:, 0] = False  # a last document of one token: its prompt would come round to the front
            insertion = insert_at(starts, length)
            # the first token of a later document stands before its own prompt, though behind those of others
            behind = starts.cumsum(1) == documents.cumsum(1)
            return replace(insertion, moved=insertion.moved & behind.gather(1, insertion.source))
        if mask is not None and mask.dim() == 2:
            first = mask.long().argmax(dim=1)
        else:
            first = torch.zeros(ids.shape[0], dtype=torch.long, device=ids.device)
        return insert_once(first + int(self.after_first), ids.shape[1], length)

    def _moved(self, key: str, value: Tensor, ids: Tensor, insertion: Insertion) -> Tensor | None:
        """Return a tensor of the batch for the longer sequence, None if it is not one value per token."""
        if key == "position_ids":
            return insertion.positions(value)
        if value.dim() == 4 and value.shape[-2:] == (ids.shape[1], ids.shape[1]):
            return insertion.square_mask(value, causal=self.causal)
        if value.shape != ids.shape or value.is_floating_point():
            return None
        if key == "labels":
            return insertion.take(value, IGNORED, IGNORED) if self.labels_follow_inputs else None
        return insertion.take(value, 1 if key == "attention_mask" else 0, 0)

    @torch.no_grad()
    def initialise(self, model: nn.Module, *, tokenizer: Any = None, labels: Sequence[str] = ()) -> None:
        """Start the prompt from vocabulary, text or class names; `random` is done already."""
        super().initialise(model, tokenizer=tokenizer, labels=labels)
        kind = self.start.kind
        if kind == "random":
            return
        with gathered(model):
            self.prompt.embeddings.copy_(self._from_vocabulary(model, tokenizer, labels))

    def start_from_rows(self, model: nn.Module, rows: TrainingRows) -> None:
        """Tell what of its start the prompt is too short for; it takes nothing from the rows."""
        rows.notes.extend(self.left_out)

    def _from_vocabulary(self, model: nn.Module, tokenizer: Any, labels: Sequence[str]) -> Tensor:
        """Return the embeddings that the prompt starts from: (length, width)."""
        host: Any = model.get_submodule(self.embedding)
        length = self.prompt.embeddings.shape[0]
        if self.start.kind == "sample_vocab":
            return self._sampled(host, length, tokenizer)
        if self.start.kind == "text":
            ids = _ids(tokenizer, str(self.start.text))
            self._fits(len(ids), "tokens of prompt_tuning_init_text")
            return _embedded(host, ids[torch.arange(length) % len(ids)])
        names = _class_names(model, labels)
        self._fits(len(names), "classes")
        means = torch.stack([_embedded(host, _ids(tokenizer, name)).mean(0) for name in names[:length]])
        rest = length - len(means)
        return torch.cat([means, self._sampled(host, rest, tokenizer)]) if rest else means

    def _fits(self, given: int, what: str) -> None:
        length = self.prompt.embeddings.shape[0]
        if given > length:
            told = f"the prompt starts from the first {length} of {given} {what}: num_virtual_tokens is {length}"
            self.left_out.append(f"{told} ({given} would take all)")

    def _sampled(self, host: Any, count: int, tokenizer: Any) -> Tensor:
        """Return the embeddings of tokens drawn from the first ones, special tokens left out."""
        size = min(self.start.sample_size, host.num_embeddings)
        allowed = torch.ones(size, dtype=torch.bool)
        special = [i for i in getattr(tokenizer, "all_special_ids", []) if i < size]
        allowed[special] = len(special) == size
        candidates = allowed.nonzero().flatten()
        return _embedded(host, candidates[torch.randint(len(candidates), (count,))])


def _class_names(model: nn.Module, labels: Sequence[str]) -> list[str]:
    """Return the names of the classes: of the data, or those that the model's config has.

    Raises:
        UserError: there are none, as in tasks of text and in regression.
    """
    names = list(labels) or [str(name) for name in getattr(model.config, "id2label", {}).values()]
    if not labels and not has_names(names):
        reason = "class_labels starts from the names of classes, and here are none"
        remedy = "use sample_vocab, or text with prompt_tuning_init_text: the answers' words"
        raise UserError(Problem(reason, key="method.prompt_tuning_init", suggestion=remedy))
    return names


def _ids(tokenizer: Any, text: str) -> Tensor:
    if tokenizer is None:
        raise UserError(
            "prompt_tuning_init needs a tokenizer to start from text", suggestion="use prompt_tuning_init: sample_vocab"
        )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError(f"the tokenizer makes no token of {text!r}", suggestion="use prompt_tuning_init: sample_vocab")
    return torch.tensor(ids)


def _embedded(host: Any, ids: Tensor) -> Tensor:
    """Return what the embedding gives for ids, its own scaling included, in float32 and without its site's parts."""
    rows: Tensor = host.forward(ids.to(host.weight.device)).float()
    return rows


def attach_prompt(
    model: nn.Module, anatomy: Anatomy, *, length: int, after_first: bool | None, start: PromptStart
) -> PromptAttachment:
    """Put a prompt at the output of the token embedding.

    Args:
        length: virtual tokens.
        after_first: behind the first token of the text, or before it; None is behind it in encoders only.
        start: what the prompt starts from.

    Raises:
        UserError: what the anatomy calls the embedding is none.
    """
    host = model.get_submodule(anatomy.embeddings)
    if not isinstance(host, nn.Embedding):
        raise UserError(f"{anatomy.embeddings} is no token embedding", suggestion="use lora or prefix_tuning")
    encoder_only = "decoder" not in anatomy.layers
    two_stacks = anatomy.layers.get("encoder") and anatomy.layers.get("decoder")
    attachment = PromptAttachment(
        model,
        embedding=anatomy.embeddings,
        start=start,
        after_first=encoder_only if after_first is None else after_first,
        causal="encoder" not in anatomy.layers,
        labels_follow_inputs=not two_stacks or labels_each_token(model),  # T5Gemma's decoder reads the input again
    )
    part = made_on(device_of(host, model), lambda: Prompt(length, host.embedding_dim))
    _let_ids_in(model, attachment)
    attachment.place(f"{anatomy.embeddings}.prompt", part, prompt_site(host).parts)
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module is not host and module.num_embeddings == host.num_embeddings:
            tolerate_virtual_ids(module)
    for path in (path for paths in anatomy.layers.values() for path in paths):
        tolerate_virtual_ids_within(model.get_submodule(path), host)
    return attachment


def _let_ids_in(model: nn.Module, attachment: PromptAttachment) -> None:
    """Let the attachment put its virtual ids in where ids enter: at the model, or at the encoder of two stacks."""
    host: Any = model
    reader = model if attachment.labels_follow_inputs else host.get_encoder()
    handle = reader.register_forward_pre_hook(attachment.stand_ins, with_kwargs=True)
    attachment.undo.append(handle.remove)
