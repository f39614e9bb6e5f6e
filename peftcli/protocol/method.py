"""What a method is to the rest of the program. No torch at the top: `peft methods` and `peft validate` read this."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from peftcli.protocol.combining import combined, joined, largest, total
from peftcli.recipe.method_params import MethodParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from peftcli.models.anatomy import Anatomy
    from peftcli.protocol.attachment import Attachment

Family = Literal["additive", "selective", "reparameterised", "hybrid", "full"]

Trains = Literal["factors", "layers", "vectors", "weights"]
"""What a method trains, by which its learning rate changes with the model: low-rank products; new layers, changes of
whole matrices and compositions; scales, biases, norms and virtual tokens; the base's own weights."""


@dataclass(frozen=True)
class MethodInfo:
    """One method: what `peft methods` shows and what the loop, the loader and the merge ask.

    Args:
        name: as in `method.name`.
        family: the field's grouping.
        summary: one sentence.
        paper: authors, year, arXiv number.
        params: the typed hyper-parameters.
        learning_rate: the peak learning rate that suits it on the demo, an encoder of width 384, with AdamW; the
            default elsewhere is made from it (`rates.default_rate`).
        trains: what kind of parameters, by which that default changes with the model.
        unmergeable: why its change never folds into the base weights, and the alternative; None if it does.
        quantised_base: whether it trains on a 4- or 8-bit base.
        forces_4bit: whether it implies a 4-bit base (QLoRA).
        artifact: `adapter` (small tensors) or `model` (a complete model is saved).
        tasks: the tasks it serves; empty for all.
        hf_type: `peft_type` of HF peft's files of such an adapter, in which a run's are written; None where HF peft
            lacks it.
        plain_lora: whether the adapter can be written as a plain LoRA that changes the same.
    """

    name: str
    family: Family
    summary: str
    paper: str
    params: type[MethodParams]
    learning_rate: float
    trains: Trains = "layers"
    unmergeable: str | None = None
    quantised_base: bool = True
    forces_4bit: bool = False
    artifact: Literal["adapter", "model"] = "adapter"
    tasks: frozenset[str] = frozenset()
    hf_type: str | None = None
    plain_lora: bool = False


REPLACES, CHANGES, CHANGES_INPUT = range(3)
"""When a step of a merge applies, whatever the order of the methods: a replaced tensor is what all others change; a
change of a projection's input multiplies everything that sees this input."""


RowsChange = Callable[[int, int, "Tensor"], "Tensor"]
"""What happens to some output features of one expert: the expert's number, the first feature, and the rows (features,
in) in float32, which are the change's own; it returns the changed rows."""


@dataclass(frozen=True)
class MergeStep:
    """One step of a rule: what it does to the float32 tensor, and when among the steps of all methods.

    Args:
        apply: from the tensor to the changed one.
        stage: when.
        rows: the same for rows of one expert, where the tensor holds experts: files may hold each in pieces.
    """

    apply: Callable[[Tensor | None], Tensor]
    stage: int = CHANGES
    rows: RowsChange | None = None


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
        steps: what `apply` does, in order, where it is made of several steps.
    """

    apply: Callable[[Tensor | None], Tensor]
    kind: Literal["change", "add", "untie"] = "change"
    replaces: bool = False
    steps: tuple[MergeStep, ...] = ()

    def in_steps(self) -> tuple[MergeStep, ...]:
        """Return the steps, or the one that the whole rule is."""
        return self.steps or (MergeStep(self.apply, REPLACES if self.replaces else CHANGES),)

    def on_rows(self) -> RowsChange | None:
        """Return what the rule does to rows of one expert; None where it needs the whole tensor."""
        steps = [step.rows for step in self.in_steps()]
        known = [step for step in steps if step is not None]
        if len(known) < len(steps):
            return None

        def change(expert: int, start: int, rows: Tensor) -> Tensor:
            for step in known:
                rows = step(expert, start, rows)
            return rows

        return change


Params = TypeVar("Params", bound=MethodParams)


class Method(ABC, Generic[Params]):
    """One method of fine-tuning: its record, its checks, and how it changes a model.

    A subclass in `methods/NAME.py` sets `info`, defines `attach`, and overrides the hooks that it needs. The file
    imports torch inside functions only, and ends in `METHOD = ...`, the one instance, which the registry hands out. A
    method keeps no state of a run: that is in the `Attachment` which `attach` returns.
    """

    info: MethodInfo

    @combined(joined)
    def check(self, anatomy: Anatomy, params: Params) -> list[str]:
        """Return why this model cannot carry these hyper-parameters; each reason has the limit and what to use instead.

        Args:
            anatomy: of the model on the meta device: no weights are loaded.
            params: the hyper-parameters.
        """
        return []

    @combined(joined)
    def check_config(self, config: Mapping[str, Any], params: Params) -> list[str]:
        """Return the reasons of `check` that a local config.json is enough for.

        `peft validate` and `peft train` ask this before torch is imported. Each reason starts with the name of the
        hyper-parameter that it is about.

        Args:
            config: read as JSON; `models.config_facts` has its numbers under one name each.
            params: the hyper-parameters.
        """
        return []

    @combined(joined)
    def check_run(self, params: Params, total_steps: int) -> list[str]:
        """Return why these hyper-parameters do not fit a run of so many optimizer steps; written as in `check_config`.

        Asked before torch is imported where the recipe has `max_steps`, else once the rows are counted.
        """
        return []

    @combined(largest)
    def rate_settings(self, params: Params) -> dict[str, float]:
        """Return the hyper-parameters that ask for another learning rate: name in `rate_evidence.yaml` -> value.

        A value is relative to the default's, 1 where only the name counts.
        """
        return {}

    @combined(total)
    def positions_taken(self, anatomy: Anatomy, params: Params) -> int:
        """Return how many positions the method uses up; rows must fit what is left of `anatomy.max_positions`."""
        return 0

    @abstractmethod
    def attach(self, model: nn.Module, anatomy: Anatomy, params: Params) -> Attachment:
        """Add the method's parts to the model, and let base parameters train that the method trains.

        Neither reads nor changes base values: this runs on the meta device, too, where parameters are counted.

        Args:
            model: the frozen base, on any device; changed in place.
            anatomy: its roles.
            params: the hyper-parameters.

        Raises:
            UserError: the hyper-parameters do not fit the model (a target matches nothing, say).
        """

    def why_not_identity(self, params: Params) -> str | None:
        """Return None if a fresh adapter gives the base's outputs, else why it does not."""
        return None

    def why_not_mergeable(self, params: Params) -> str | None:
        """Return None if a change trained with `params` folds into the base weights, else why not, and what to do."""
        return self.info.unmergeable

    def merge_rules(self, anatomy: Anatomy, params: Params, state: Mapping[str, Tensor]) -> dict[str, MergeRule]:
        """Return how the base parameters change, by name; asked only where `why_not_mergeable` returns None.

        Needs no live model, so that a merge can read and write one tensor at a time.

        Args:
            anatomy: of the base.
            params: the hyper-parameters of the training.
            state: the adapter's tensors by key.

        Raises:
            UserError: the rules cannot be computed from these tensors alone.
        """
        raise TypeError(f"{self.info.name} defines no merge_rules: its info must say why in `unmergeable`")


def merges_by_default(method: Method[Any]) -> bool | None:
    """Return whether a method merges with its default hyper-parameters; None where it has no complete ones."""
    try:
        return method.why_not_mergeable(method.info.params.model_validate({})) is None
    except ValidationError:
        return None
