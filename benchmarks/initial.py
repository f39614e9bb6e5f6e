"""The values that both sides start from: one adapter file, head included, for a cell's method and checkpoint.

The file is one that this project saves: in HF peft's layout where HF has the method, and with the names that
`formulations` uses where it has not. What a method starts at zero (LoRA's B, AdaLoRA's singular values) is drawn at
random here, so that every trained tensor takes part in the loss and in the gradients from the first step.
"""

from __future__ import annotations

from pathlib import Path

from cells import CLASSES, Cell
from material import digest
from ours import method_block

STD = 0.02


def initial_values(cell: Cell, checkpoint: Path, material: Path) -> Path:
    """Return the adapter directory of a cell's method on its checkpoint, written if it is not there yet."""
    target = material / f"initial-{digest(str(checkpoint), cell.task, method_block(cell))}"
    if not (target / "adapter_model.safetensors").exists():
        _write(cell, checkpoint, target)
    return target


def _write(cell: Cell, checkpoint: Path, target: Path) -> None:
    import torch

    from peftcli.adapters.format import describe
    from peftcli.adapters.saving import save_adapter
    from peftcli.models.load.load_model import load_model
    from peftcli.models.read_anatomy import read_anatomy
    from peftcli.protocol.apply_method import apply_method
    from peftcli.protocol.registry import registry
    from peftcli.recipe.schema import ModelSpec

    torch.manual_seed(0)
    params = registry.info(cell.method).params(**method_block(cell))
    classes = CLASSES if cell.task == "sequence_classification" else None
    base = load_model(ModelSpec(name_or_path=str(checkpoint), num_labels=classes), cell.task)
    anatomy = read_anatomy(base.model)
    attachment = apply_method(base.model, anatomy, params)
    attachment.initialise(base.model)
    with torch.no_grad():
        for parameter in attachment.trainable_parameters().values():
            if not parameter.any():
                parameter.normal_(std=STD)
    labels = {"problem": "single_label", "names": [str(n) for n in range(CLASSES)]} if classes else None
    meta = describe(attachment, anatomy, task=cell.task, base=base.identity, labels=labels)
    save_adapter(target, attachment_state=attachment.state_dict(), params=params, meta=meta)
