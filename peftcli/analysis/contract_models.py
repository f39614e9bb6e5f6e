"""Tiny random models on which the contracts of a method are tried: one of each kind that transformers has for text."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from peftcli.ignored_label import IGNORED
from peftcli.layers.seeded import seeded
from peftcli.models.anatomy import Anatomy
from peftcli.models.model_tasks import auto_class, possible_tasks
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import TaskName
from peftcli.tasks.seq2seq_lm import decoder_inputs
from peftcli.tasks.task_info import RowKind
from peftcli.tasks.task_table import task_info

VOCABULARY, POSITIONS, WIDTH, INNER = 96, 64, 32, 64
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": INNER, "max_position_embeddings": POSITIONS, "initializer_range": 0.2,
}  # fmt: skip
_LARGEST_START = 1e4
_WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class ContractModel:
    """How to build one model.

    Args:
        title: what stands for it in a report.
        config: of transformers, `model_type` included.
    """

    title: str
    config: dict[str, Any]

    def made_config(self) -> PretrainedConfig:
        """Return transformers' config."""
        settings = {key: value for key, value in self.config.items() if key != "model_type"}
        made: PretrainedConfig = AutoConfig.for_model(str(self.config["model_type"]), **settings)
        return made

    @cached_property
    def task(self) -> TaskName:
        """The first task that it can do."""
        return possible_tasks(self.made_config())[0]

    @property
    def rows(self) -> RowKind:
        """What a row of its task is."""
        return task_info(self.task).rows

    @cached_property
    def built(self) -> nn.Module:
        """The model alone on the CPU, in float32: made once, since copying is several times faster; change copies."""
        return _built(self, "cpu")

    @cached_property
    def without_effect(self) -> frozenset[str]:
        """Parameters of the bare model that take part and on which its loss does not depend: their gradient is zero.

        Longformer classifies by a token that its last block's local attention does not enter; MRA's attention gives
        zeros where its kernel is not there. A parameter without any gradient is none of them.
        """
        model = bare(self)
        model.requires_grad_(True)
        torch.autograd.backward(model(**batch_of(self, padded=False)).loss)
        named = model.named_parameters(remove_duplicate=False)
        return frozenset(name for name, each in named if each.grad is not None and not bool(each.grad.any()))

    @cached_property
    def tokens_apart(self) -> bool:
        """Whether no token's outputs change with another token: MRA's attention gives zeros without its kernel."""
        if self.rows not in ("text", "tagged"):
            return False
        batch = batch_of(self, padded=False)
        ids = batch["input_ids"].clone()
        ids[:, 0] = ids[:, 0] % 50 + 6  # another token, none of the special ones
        before, after = (
            own_logits(bare(self), batch | {"input_ids": each}, batch["labels"]) for each in (batch["input_ids"], ids)
        )
        return torch.equal(before[:, 1:], after[:, 1:])

    @cached_property
    def last_disturbed(self) -> dict[str, Live]:
        """By hyper-parameters the last method that was disturbed on this model (`disturbed`)."""
        return {}


MODELS = (
    ContractModel(
        "llama", {"model_type": "llama", **_SIZES, **_IDS, "num_key_value_heads": 2}
    ),
    ContractModel(
        "gpt2",
        {
            "model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4,
            "n_inner": INNER, "n_positions": POSITIONS, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            "initializer_range": 0.2, **_IDS,
        },
    ),
    ContractModel(
        "bert",
        {"model_type": "bert", **_SIZES, **_WITHOUT_DROPOUT, "pad_token_id": 0, "num_labels": 3},
    ),
    ContractModel(
        "t5",
        {
            "model_type": "t5", "vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": INNER, "num_layers": 2,
            "num_heads": 4, "dropout_rate": 0.0, "initializer_factor": 1.0, "pad_token_id": 0, "eos_token_id": 2,
            "decoder_start_token_id": 0,
        },
    ),
)  # fmt: skip


@dataclass
class Live:
    """A method on a live model.

    Args:
        base: copies of the base's values, by name, as they were before the method came.
        reached: names of trained tensors of the base that a backward pass gave a gradient, zero or not.
    """

    model: nn.Module
    anatomy: Anatomy
    attachment: Attachment
    base: dict[str, Tensor]
    reached: set[str] = field(default_factory=set)

    def outputs(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the logits of the batch's own tokens, in eval mode: (rows, length or labels, ...)."""
        return own_logits(self.model, self.attachment.prepare_inputs(batch), batch["labels"])

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the model's own loss, with the method's in it, in training mode."""
        self.model.train()
        loss: Tensor = self.model(**self.attachment.prepare_inputs(batch)).loss
        extra = self.attachment.extra_loss()
        return loss if extra is None else loss + extra

    def train(
        self,
        batch: dict[str, Tensor],
        steps: range,
        total: int,
        optimizer: torch.optim.Optimizer,
        *,
        until_all_moved: bool = False,
    ) -> set[str]:
        """Take steps; return the names of the trained tensors that had a gradient other than zero.

        Args:
            steps: their numbers, counted from 1.
            total: steps of the whole run.
            until_all_moved: take no step after each tensor had such a gradient.
        """
        moved: set[str] = set()
        for step in steps:
            if until_all_moved and moved.issuperset(self.attachment.trainable_parameters()):
                break
            torch.autograd.backward(self.loss(batch))
            for name, parameter in self.attachment.trainable_parameters().items():
                if parameter.grad is not None and bool(parameter.grad.abs().max() > 0):
                    moved.add(name)
                if parameter.grad is not None and name in self.base:
                    self.reached.add(name)
            optimizer.step()
            self.attachment.after_optimizer_step(step, total)
            optimizer.zero_grad()
        return moved

    def disturb(self) -> None:
        """Move every trained tensor at random, so that values which start at zero hide nothing."""
        _disturb(self.attachment.trainable_parameters().values(), 3)


def _disturb(parameters: Iterable[nn.Parameter], seed: int, std: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))


def moved(kind: ContractModel, seed: int) -> nn.Module:
    """Return the model alone with values at random around its own."""
    model = bare(kind)
    _disturb((each for each in model.parameters() if each.is_floating_point()), seed)
    return model


def own_logits(model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> Tensor:
    """Return the logits of as many last tokens as there are labels, in eval mode: (rows, length or labels, ...)."""
    model.eval()
    with torch.no_grad():
        out: Tensor = model(**inputs).logits
    return out[:, -labels.shape[1] :] if out.ndim == 3 and labels.ndim == 2 else out


def bare(kind: ContractModel, device: str = "cpu") -> nn.Module:
    """Return the model alone, always with the same values; in float32."""
    return deepcopy(kind.built) if device == "cpu" else _built(kind, device)


def _built(kind: ContractModel, device: str) -> nn.Module:
    with seeded(0), torch.device(device):
        config = kind.made_config()
        model: nn.Module = auto_class(config, kind.task).from_config(config)
        _fill(model)
    return model.eval()


def _fill(model: nn.Module) -> None:
    """Give values to weights that models leave as memory was, or at zero: nothing behind zeros has a gradient."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.device.type == "meta" or not parameter.is_floating_point():
                continue
            unset = not name.endswith("bias") and not bool(parameter.any())
            if unset or not bool(parameter.isfinite().all()) or float(parameter.abs().max()) > _LARGEST_START:
                parameter.normal_(0, 0.02)


def live(kind: ContractModel, params: MethodParams, *, initialise: bool = True) -> Live:
    """Return the model with a method on it, always with the same values."""
    model = bare(kind)
    named = model.named_parameters(remove_duplicate=False)  # a tensor of several modules may change at one of them
    base = {name: parameter.detach().clone() for name, parameter in named}
    anatomy = read_anatomy(model)
    with seeded(7):
        attachment = apply_method(model, anatomy, params)
        if initialise:
            attachment.initialise(model)
    return Live(model, anatomy, attachment, base)


def disturbed(kind: ContractModel, params: MethodParams) -> Live:
    """Return the model with a disturbed method on it, the same object until other hyper-parameters are asked.

    It is for what runs the model and changes nothing of it.
    """
    key = params.model_dump_json()
    if key not in kind.last_disturbed:
        kind.last_disturbed.clear()
        found = live(kind, params)
        found.disturb()
        kind.last_disturbed[key] = found
    return kind.last_disturbed[key]


def batch_of(kind: ContractModel, *, padded: bool = True, more: int = 0) -> dict[str, Tensor]:
    """Return three rows of nine tokens with what the model's loss needs; the second and third are padded at the end.

    Args:
        more: tokens that each row is longer.
    """
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (3, 9 + more), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 7 + more :], mask[2, 5 + more :] = 0, 0
    ids = torch.where(mask.bool(), ids, 0)
    if kind.rows == "labelled":
        ids.scatter_(1, mask.sum(1, keepdim=True) - 1, _IDS["eos_token_id"])  # some classify where the text ends
    if kind.rows == "pairs":
        labels = torch.randint(5, VOCABULARY, (3, 4), generator=generator)
    elif kind.rows == "labelled":
        labels = torch.arange(3)
    elif kind.rows == "tagged":
        labels = (ids % 3).masked_fill(mask == 0, IGNORED)
    else:
        labels = ids.masked_fill(mask == 0, IGNORED)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if kind.rows == "pairs":
        batch["decoder_input_ids"] = decoder_inputs(kind.built, labels)
    return batch
