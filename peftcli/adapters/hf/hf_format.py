"""The base class of a method's layout in HF peft: its config, and its tensors' names in both directions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from peftcli.adapters.base_shape import BaseName
from peftcli.adapters.format import AdapterMeta, SavedAdapter
from peftcli.adapters.hf.hf_files import add_prefix, drop_prefix, sliced
from peftcli.recipe.method_params import MethodParams

State = dict[str, Tensor]
Params = TypeVar("Params", bound=MethodParams)


@dataclass(frozen=True)
class HfFiles:
    """Files that HF peft loads.

    Args:
        config: adapter_config.json.
        tensors: adapter_model.safetensors.
        notes: how they differ from what was trained, for the user.
    """

    config: dict[str, Any]
    tensors: State
    notes: tuple[str, ...] = ()


class HfFormat(ABC, Generic[Params]):
    """One method in HF peft's layout. The defaults suit a method whose tensors have the same shapes and names there.

    Attributes:
        peft_type: HF's name of the method.
        note: what a user of HF peft should know, for the model card.
        needs_base: whether a file of HF peft can only be read with the base model, since it names no module.
        holds_rows: whether it can hold trained rows of the vocabulary's tables beside the method.
        remedy: what to do where `why_not` gives a reason; None for the general advice (`library.other_use`).
    """

    peft_type: ClassVar[str]
    note: ClassVar[str | None] = None
    needs_base: ClassVar[bool] = False
    holds_rows: ClassVar[bool] = False
    remedy: ClassVar[str | None] = None

    def why_not_whole(self, params: Params, meta: AdapterMeta, state: Mapping[str, Tensor]) -> str | None:
        """Return why HF peft cannot hold an adapter as it is, what is trained beside the method included, or None."""
        return self.why_not_beside(meta) or self.why_not(params, meta, state)

    def why_not_beside(self, meta: AdapterMeta) -> str | None:
        """Return why HF peft cannot hold what the adapter trained beside the method, or None."""
        if meta.buffers:
            path, _, buffer = meta.buffers[0].rpartition(".")
            return f"it trained {path} whole, and HF peft needs its buffer {buffer}, which is not saved here"
        if (twice := _trained_whole(meta)) is not None:
            return f"{twice} is trained whole and has a change of its own, which HF peft leaves out"
        if meta.token_rows and not self.holds_rows:
            return f"it trained rows of single tokens, which HF peft supports with LoRA only, not {self.peft_type}"
        both = [target.module for target in meta.targets if target.module in meta.token_rows]
        return f"both its LoRA and rows of single tokens change {both[0]}" if both else None

    def why_not(self, params: Params, meta: AdapterMeta, state: Mapping[str, Tensor]) -> str | None:
        """Return why HF peft cannot hold these parameters and tensors as they are, or None.

        By default the reason is a slice of a fused projection, which HF peft does not know.
        """
        return sliced(meta)

    @abstractmethod
    def config(self, params: Params, meta: AdapterMeta, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return adapter_config.json."""

    def to_file(self, state: Mapping[str, Tensor], params: Params, meta: AdapterMeta) -> State:
        """Return the tensors by HF peft's keys."""
        return add_prefix(state)

    def for_export(self, state: Mapping[str, Tensor], params: Params) -> State:
        """Return the tensors that files for others need: all, by default."""
        return dict(state)

    def from_file(
        self, tensors: Mapping[str, Tensor], params: Params, meta: AdapterMeta, config: Mapping[str, Any]
    ) -> State:
        """Return the tensors by our keys: the inverse of `to_file`, with the config that lies beside them."""
        return drop_prefix(tensors)

    @abstractmethod
    def read(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName | None
    ) -> SavedAdapter:
        """Read a directory that HF peft wrote.

        Args:
            config: its adapter_config.json.
            tensors: its adapter_model.safetensors.
            where: the directory, for messages.
            base: the base model; not None where `needs_base` is set.

        Raises:
            UserError: an option that has no counterpart here, an unknown task type, or a missing or foreign key.
        """

    def whole_module_files(self, params: Params, meta: AdapterMeta, state: Mapping[str, Tensor]) -> HfFiles | None:
        """Return files in which slices of fused projections are the equal change of the whole module.

        None where there is no such change, as by default.
        """
        return None

    def as_lora(
        self, params: Params, meta: AdapterMeta, state: Mapping[str, Tensor]
    ) -> tuple[MethodParams, State] | None:
        """Return the plain LoRA that is equal to this adapter, or None where there is none, as by default."""
        return None


def _trained_whole(meta: AdapterMeta) -> str | None:
    """Return a target that was trained whole, alone or with the module that it is in; None where there is none."""
    whole = tuple(f"{path}." for path in (*meta.head, *meta.modules_to_save))
    return next((target.module for target in meta.targets if f"{target.module}.".startswith(whole)), None)
