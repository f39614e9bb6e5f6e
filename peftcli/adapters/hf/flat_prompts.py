"""What HF peft's prefix and prompt tuning share: one flat tensor, `prompt_embeddings`, that names no module.

The file also holds the task head, whose keys have one level less in front than in other files. Only the base model
tells which modules the tensor belongs to, so reading a file of HF peft needs it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic

from torch import Tensor

from peftcli.adapters.base_shape import Base, BaseName, fit
from peftcli.adapters.format import AdapterMeta, SavedAdapter
from peftcli.adapters.hf import hf_files
from peftcli.adapters.hf.hf_files import PROMPT_PREFIX
from peftcli.adapters.hf.hf_format import HfFormat, Params, State
from peftcli.errors import UserError

FLAT = "prompt_embeddings"


class FlatFormat(HfFormat[Params], Generic[Params]):
    """A method that HF peft saves as one flat tensor."""

    needs_base = True

    @abstractmethod
    def flat(self, state: Mapping[str, Tensor], meta: AdapterMeta) -> Tensor:
        """Return HF peft's tensor, (num_virtual_tokens, width) or a multiple of the rows."""

    @abstractmethod
    def unflat(self, flat: Tensor, params: Params, meta: AdapterMeta, config: Mapping[str, Any]) -> State:
        """Return our tensors of the flat one: the inverse of `flat`.

        Raises:
            UserError: it is not of the shape that the config says.
        """

    @abstractmethod
    def params_of(self, config: Mapping[str, Any], whole: list[str], base: Base, where: Path) -> Params:
        """Return the hyper-parameters of an adapter that HF peft saved.

        Args:
            config: its adapter_config.json.
            whole: the modules that were saved whole.
            base: the base model.
            where: the adapter, for messages.

        Raises:
            UserError: it means something else on this base there than here.
        """

    @abstractmethod
    def places(self, base: Base) -> tuple[str, ...]:
        """Return the keys below which the method's tensors are saved on a base."""

    def to_file(self, state: Mapping[str, Tensor], params: Params, meta: AdapterMeta) -> State:
        """Return the flat tensor, and the head's tensors by HF peft's keys."""
        own = tuple(f"{key}." for key in meta.places)
        head = {key: tensor for key, tensor in state.items() if not key.startswith(own)}
        return {FLAT: self.flat(state, meta), **hf_files.add_prefix(head, PROMPT_PREFIX)}

    def from_file(
        self, tensors: Mapping[str, Tensor], params: Params, meta: AdapterMeta, config: Mapping[str, Any]
    ) -> State:
        """Return the tensors by our keys.

        Raises:
            UserError: the flat tensor is missing, or is not of the shape that the config says.
        """
        if FLAT not in tensors:
            raise UserError(f"the adapter has no {FLAT}: not a file of HF peft's layout")
        head = {key: tensor for key, tensor in tensors.items() if key != FLAT}
        return hf_files.drop_prefix(head, PROMPT_PREFIX) | self.unflat(tensors[FLAT], params, meta, config)

    def read(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor], where: Path, base: BaseName | None
    ) -> SavedAdapter:
        """Read what HF peft saved; the base model tells which modules the tensor belongs to.

        Raises:
            UserError: the base is not known, or does not fit.
        """
        assert base is not None  # `needs_base`
        task = hf_files.task_of(config, where)
        found = base.read(task, tensors)
        head = hf_files.drop_prefix({key: tensor for key, tensor in tensors.items() if key != FLAT}, PROMPT_PREFIX)
        params = self.params_of(config, hf_files.whole_modules(head, config), found, where)
        state = self.from_file(tensors, params, AdapterMeta(task=task, places=self.places(found)), config)
        return SavedAdapter(params, state, fit(found, params, state, task, where))
