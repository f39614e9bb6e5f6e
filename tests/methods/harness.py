"""What the tests of single methods share: a frozen tiny model with its anatomy, a batch, a few steps of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.models.anatomy import Anatomy
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.method import MergeRule
from peftcli.protocol.registry import registry
from tests.tiny import VOCAB, kind_of, tiny_model

TASK_OF_KIND = {
    "encoder": "sequence_classification",
    "decoder": "causal_lm",
    "seq2seq": "seq2seq_lm",
    "speech": "speech_seq2seq",
    "vision": "image_classification",
}
TEXT_FAMILIES_SAMPLE = ["bert", "distilbert", "gpt2", "llama", "gemma3_text", "t5", "bart"]


def frozen(family: str, task: str | None = None, **changes: Any) -> tuple[nn.Module, Anatomy]:
    """Return a tiny model whose parameters are all frozen, and its anatomy."""
    model = tiny_model(family, task or TASK_OF_KIND[kind_of(family)], **changes)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, read_anatomy(model)


def attached(
    method: str, family: str, task: str | None = None, changes: dict[str, Any] | None = None, **params: Any
) -> Attachment:
    """Return a method attached to a frozen tiny model; `.model` is the model."""
    model, anatomy = frozen(family, task, **(changes or {}))
    return attach(method, model, anatomy, **params)


def attach(method: str, model: nn.Module, anatomy: Anatomy, **params: Any) -> Attachment:
    """Attach a method with hyper-parameters given as in a recipe."""
    found = registry.method(method)
    typed = found.info.params(**params)
    problems = found.check(anatomy, typed)
    assert not problems, problems
    torch.manual_seed(7)  # two attachments of one method start equal
    attachment = found.attach(model, anatomy, typed)
    model.eval()
    return attachment


def batch_for(
    model: nn.Module, *, rows: int = 3, length: int = 9, padding: str = "right", seed: int = 1
) -> dict[str, Any]:
    """Return random rows of different lengths with what the model's forward needs, labels included."""
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config
    ids = torch.randint(5, VOCAB, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if padding != "none":
        for row in range(1, rows):
            blank = slice(0, row) if padding == "left" else slice(length - row, length)
            mask[row, blank] = 0
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    ids = torch.where(mask.bool(), ids, torch.full_like(ids, pad))
    if config.is_encoder_decoder:
        labels = torch.randint(5, VOCAB, (rows, 6), generator=generator)
    elif type(model).__name__.endswith("SequenceClassification"):
        labels = torch.arange(rows) % 3
    elif type(model).__name__.endswith("TokenClassification"):
        labels = torch.randint(0, 3, ids.shape, generator=generator).masked_fill(mask == 0, -100)
    else:
        labels = ids.masked_fill(mask == 0, -100)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if padding == "left" and not config.is_encoder_decoder and "causal" in type(model).__name__.lower():
        batch["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return batch


def logits_of(attachment: Attachment, batch: dict[str, Any]) -> Tensor:
    """Return the model's logits for a batch, without gradient."""
    with torch.no_grad():
        out: Tensor = attachment.model(**attachment.prepare_inputs(batch)).logits
    return out


def loss_of(attachment: Attachment, batch: dict[str, Any]) -> Tensor:
    """Return the model's own loss for a batch."""
    out: Tensor = attachment.model(**attachment.prepare_inputs(batch)).loss
    return out


def train_steps(attachment: Attachment, batch: dict[str, Any], steps: int = 3, lr: float = 1e-2) -> set[str]:
    """Run a few optimizer steps; return the names of the trainable parameters that had a non-zero gradient."""
    trainable = attachment.trainable_parameters()
    optimizer = torch.optim.AdamW(trainable.values(), lr=lr, weight_decay=0.0)
    moved: set[str] = set()
    attachment.model.train()
    for step in range(1, steps + 1):
        loss = loss_of(attachment, batch)
        extra = attachment.extra_loss()
        (loss if extra is None else loss + extra).backward()
        moved |= {name for name, p in trainable.items() if p.grad is not None and bool(p.grad.abs().max() > 0)}
        optimizer.step()
        attachment.after_optimizer_step(step, steps)
        optimizer.zero_grad(set_to_none=True)
    attachment.model.eval()
    return moved


def losses_of_steps(
    model: nn.Module, trained: Iterable[nn.Parameter], batch: dict[str, Any], *, steps: int = 10, lr: float = 1e-2
) -> list[float]:
    """Return the loss before each of some AdamW steps, of a model of ours or of another library's."""
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    losses = []
    model.eval()  # no dropout: two libraries draw it at other moments
    for _ in range(steps):
        loss = model(**batch).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses


def frozen_without_gradient(attachment: Attachment) -> bool:
    """Return whether no parameter outside the trainable ones holds a gradient or asks for one."""
    mine = {id(p) for p in attachment.trainable_parameters().values()}
    return all(p.grad is None and not p.requires_grad for p in attachment.model.parameters() if id(p) not in mine)


def disturb(attachment: Attachment, std: float = 0.3, seed: int = 3) -> None:
    """Move every trainable parameter at random, so that a fresh adapter's zeros hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.trainable_parameters().values():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))


def round_trip(attachment: Attachment, fresh: Attachment) -> None:
    """Load a trained attachment's saved tensors into a fresh one; raises if they do not fit."""
    fresh.load_state_dict({key: tensor.clone() for key, tensor in attachment.state_dict().items()})


@torch.no_grad()
def fold_(plain: nn.Module, rules: Mapping[str, MergeRule]) -> None:
    """Apply merge rules to a model without parts; tied weights are parted where a rule asks for that."""
    if any(rule.kind == "untie" for rule in rules.values()):
        head: Any = plain.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.clone())
    for name, rule in rules.items():
        parameter = plain.get_parameter(name)
        parameter.copy_(rule.apply(parameter.clone()))


def numbers(tensors: dict[str, Tensor]) -> int:
    """Return how many numbers these tensors hold, shared ones once."""
    return sum({id(t): t.numel() for t in tensors.values()}.values())


def checkpointing(model: nn.Module) -> None:
    """Turn gradient checkpointing on, under the name that this transformers has for it."""
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
