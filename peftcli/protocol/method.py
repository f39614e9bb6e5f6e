"""What a method is to the rest of the program. No torch here: `peft methods` and `peft validate` read this.

A method is one module, `methods/NAME.py`, that imports no torch at module level and holds

- `INFO`: a `MethodInfo`;
- `attach(model, anatomy, params) -> Attachment`: adds the method's parts, on any device, meta included, without
  reading or changing base values;
- optionally `check(anatomy, params) -> list[str]`: reasons why this model cannot carry these hyper-parameters, each
  with the limit and what to use instead. The anatomy comes from a model on the meta device: no weights are loaded;
- optionally `positions_taken(anatomy, params) -> int`: learned positions that the method uses up; rows must fit what
  is left of `anatomy.max_positions`;
- optionally `check_config(config, params) -> list[str]`: the part of `check` that a local config.json answers, read as
  JSON (`models.config_facts` has its numbers under one name each); each reason starts with the hyper-parameter it is
  about. `peft validate` and `peft train` ask it before torch is imported;
- optionally `check_run(params, total_steps) -> list[str]`: the same for what depends on the run's length, asked there
  where the recipe has `max_steps`, else once the rows are counted;
- if mergeable, `merge_rules(anatomy, params, state) -> dict[str, MergeRule]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from peftcli.recipe.params import MethodParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment

Family = Literal["additive", "selective", "reparameterised", "hybrid", "full"]


@dataclass(frozen=True)
class MethodInfo:
    """One method: what `peft methods` shows and what the loop, the loader and the merge ask.

    Args:
        name: as in `method.name`.
        family: the field's grouping.
        summary: one sentence.
        paper: authors, year, arXiv number.
        params: the typed hyper-parameters.
        learning_rate: the default peak learning rate, with AdamW.
        mergeable: None if its change folds into the base weights, else the reason why not, and the alternative. A
            function of the parameters where it depends on them.
        quantised_base: whether it trains on a 4- or 8-bit base.
        forces_4bit: whether it implies a 4-bit base (QLoRA).
        artifact: `adapter` (small tensors) or `model` (a complete model is saved).
        tasks: the tasks it serves; empty for all.
    """

    name: str
    family: Family
    summary: str
    paper: str
    params: type[MethodParams]
    learning_rate: float
    mergeable: str | Callable[[MethodParams], str | None] | None = None
    quantised_base: bool = True
    forces_4bit: bool = False
    artifact: Literal["adapter", "model"] = "adapter"
    tasks: frozenset[str] = frozenset()

    def why_not_mergeable(self, params: MethodParams) -> str | None:
        """Return None if a change trained with `params` merges, else the reason and the alternative."""
        return self.mergeable(params) if callable(self.mergeable) else self.mergeable


@dataclass(frozen=True)
class MergeRule:
    """How one base parameter changes when an adapter is folded in.

    Args:
        apply: from the base tensor in float32 (None when `kind` is "add") to the merged one in float32. The argument
            is the rule's own, so that it may work in place.
        kind: `change` an existing tensor, `add` one that the base lacks, or `untie` one that shared the storage of
            another.
        replaces: whether the base's values do not matter: other rules for the same tensor apply after this one,
            whatever the order of the methods, since what they add sits behind the base.
    """

    apply: Callable[[Tensor | None], Tensor]
    kind: Literal["change", "add", "untie"] = "change"
    replaces: bool = False


class Method(Protocol):
    """The module of a method, as the registry returns it."""

    INFO: MethodInfo

    def attach(self, model: nn.Module, anatomy: Anatomy, params: MethodParams) -> Attachment:
        """Add the method's parts to `model`; see the module docstring."""
        ...
