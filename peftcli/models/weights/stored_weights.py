"""The unquantised weights of a base that is quantised in memory: read from its files, one projection at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peftcli.errors import UserError
from peftcli.layers.base_linear import is_transposed
from peftcli.models.load.load_model import load_config
from peftcli.models.load.meta_model import build_meta
from peftcli.models.load.model_files import find_source
from peftcli.models.weights.base_files import base_directory, stored_tensors
from peftcli.models.weights.fillings import Filling, fillings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftcli.recipe.schema import ModelSpec, TaskName


@dataclass
class StoredWeights:
    """The weights as the checkpoint's files hold them. Nothing is opened before the first is asked for.

    Args:
        spec: of the base.
        task: of the model, whose names its modules have.
        notes: what was started from them, for the user.
    """

    spec: ModelSpec
    task: TaskName
    notes: list[str] = field(default_factory=list)

    def projection(self, module: str) -> Tensor:
        """Return the weight of a projection, (out_features, in_features), float32, on the CPU.

        Args:
            module: its path in the live model.

        Raises:
            UserError: the files hold no such weight, or hold it quantised.
        """
        filling = self._fillings.get(f"{module}.weight")
        if filling is None:
            raise UserError(
                f"the files of {self.spec.name_or_path} hold no weight of {module}",
                suggestion="name a checkpoint in safetensors, with all weights of the model",
            )
        read = [source.read(torch.float32) for _, source in filling.sources]
        weight = filling.convert(self._model, read)[f"{module}.weight"]
        return weight.T if is_transposed(self._model.get_submodule(module)) else weight

    @cached_property
    def _model(self) -> PreTrainedModel:
        """The task model on the meta device, unquantised."""
        config = load_config(self.spec)
        if getattr(config, "quantization_config", None) is not None:
            raise UserError(
                f"the base {self.spec.name_or_path} is stored quantised, and its unquantised weights are needed",
                suggestion="name the original model with model.load_in_4bit: true",
            )
        return build_meta(config, self.task, trust_remote_code=self.spec.trust_remote_code)

    @cached_property
    def _fillings(self) -> dict[str, Filling]:
        model = self._model
        directory = base_directory(find_source(self.spec.name_or_path), self.spec.revision)
        return {name: filling for filling in fillings(model, stored_tensors(directory)) for name in filling.targets}
