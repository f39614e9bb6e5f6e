"""Tensors that a file holds more precisely than the loaded model: what trained stays float32 beside a half base."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from peftcli.models.weights.base_files import stored_tensors
from peftcli.models.weights.checkpoint_names import CheckpointNames


def restore_wider(model: nn.Module, directory: Path) -> None:
    """Put the float32 tensors of a directory into a model that was loaded from it in half precision, as they trained.

    Args:
        model: changed in place; a tensor that loading joins or splits stays as it is.
        directory: of the safetensors files.
    """
    names, parameters = CheckpointNames(model), dict(model.named_parameters(remove_duplicate=False))
    for file_name, stored in stored_tensors(directory).items():
        found = names.of_file(file_name)
        parameter = None if found is None or found.converted else parameters.get(found.live_name)
        if parameter is not None and stored.dtype == torch.float32 != parameter.dtype:
            parameter.data = stored.read_float32().view(parameter.shape).to(parameter.device)
