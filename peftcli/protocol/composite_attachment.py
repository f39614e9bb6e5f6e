"""The attachment of a composition: one attachment in front of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from peftcli.errors import UserError
from peftcli.layers.parts.gates import Gate, Kind, PaddingMask
from peftcli.models.anatomy import Anatomy
from peftcli.protocol.attachment import Attachment, Placed
from peftcli.protocol.bottlenecks import device_of
from peftcli.protocol.composition import SEPARATOR, PartSpec
from peftcli.protocol.registry import registry


@dataclass
class CompositeAttachment(Attachment):
    """Several attachments as one. Each part's tensors are kept below its label, trained base parameters by name.

    Args:
        parts: by label, in order.
    """

    parts: dict[str, Attachment] = field(default_factory=dict)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return every part's saved tensors."""
        return self._gathered({label: part.adapter_tensors() for label, part in self.parts.items()})

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the adapter file holds."""
        own = {key: tensor.detach() for key, tensor in self.head_tensors().items()}
        return {**self._gathered({label: part.state_dict() for label, part in self.parts.items()}), **own}

    def _gathered(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for label, of_part in tensors.items():
            found.update({self._named(label, key): tensor for key, tensor in of_part.items()})
        return found

    def _named(self, label: str, key: str) -> str:
        return key if key in self.parts[label].unfrozen else f"{label}{SEPARATOR}{key}"

    def saved_size(self) -> int:
        """Return the numbers in the file, the head left out; what two parts train both of the base, once."""
        names = [name for part in self.parts.values() for name in part.unfrozen]
        twice = sum(self.model.get_parameter(name).numel() * (names.count(name) - 1) for name in dict.fromkeys(names))
        beside = [name for name in self.to_save if name not in names and name not in self.head]
        kept = {id(parameter): parameter.numel() for parameter in self._base(beside).values()}
        return sum(part.saved_size() for part in self.parts.values()) - twice + sum(kept.values())

    def _named_trainable(self) -> Iterable[tuple[str, nn.Parameter]]:
        for label, part in self.parts.items():
            for name, parameter in part._named_trainable():
                yield self._named(label, name), parameter
        yield from self._base([*self.head, *self.to_save]).items()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Give every part its tensors; strict, as `Attachment.load_state_dict`."""
        rest = dict(state)
        for label, part in self.parts.items():
            own = {key: value for key, value in state.items() if key.startswith(f"{label}{SEPARATOR}")}
            rest = {key: value for key, value in rest.items() if key not in own}
            base = {name: state[name] for name in part.unfrozen if name in state}
            part.load_state_dict({**{key.split(SEPARATOR, 1)[1]: value for key, value in own.items()}, **base})
        trained = {name for part in self.parts.values() for name in part.unfrozen}
        rest = {key: value for key, value in rest.items() if key not in trained or key in self.head_tensors()}
        Attachment(self.model, head=self.head, to_save=self.to_save).load_state_dict(rest)

    def initialise(self, model: nn.Module, *, tokenizer: Any = None, labels: Sequence[str] = ()) -> None:
        """Initialise every part."""
        for part in self.parts.values():
            part.initialise(model, tokenizer=tokenizer, labels=labels)

    def prepare_inputs(self, batch: Mapping[str, Any], *, generate: bool = False) -> dict[str, Any]:
        """Return the batch after every part that changes it."""
        prepared = dict(batch)
        for part in self.parts.values():
            prepared = part.prepare_inputs(prepared, generate=generate)
        return prepared

    def extra_loss(self) -> Tensor | None:
        """Return the sum of the parts' terms."""
        terms = [term for part in self.parts.values() if (term := part.extra_loss()) is not None]
        return torch.stack([term.reshape(()) for term in terms]).sum() if terms else None

    def after_optimizer_step(self, step: int, total_steps: int) -> None:
        """Tell every part."""
        for part in self.parts.values():
            part.after_optimizer_step(step, total_steps)

    def training_state(self) -> dict[str, Any]:
        """Return the parts' states by label."""
        return {label: part.training_state() for label, part in self.parts.items()}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore `training_state`."""
        for label, part in self.parts.items():
            part.load_training_state(state[label])

    def learning_rate_ratios(self) -> dict[str, float]:
        """Return the parts' factors."""
        return {
            self._named(label, name): ratio
            for label, part in self.parts.items()
            for name, ratio in part.learning_rate_ratios().items()
        }

    def enable(self, on: bool = True) -> None:
        """Switch every part on or off."""
        for part in self.parts.values():
            part.enable(on)
        self.virtual_tokens = sum(part.virtual_tokens for part in self.parts.values())

    def detach(self) -> None:
        """Take every part out, the last one first."""
        for part in reversed(self.parts.values()):
            part.detach()
        super().detach()


def compose(model: nn.Module, anatomy: Anatomy, specs: list[PartSpec]) -> CompositeAttachment:
    """Attach every part, refuse what cannot share a place, and put gates where they are wanted.

    Raises:
        UserError: two parts want the same place, or a part takes no gate.
    """
    whole = CompositeAttachment(model)
    for spec in specs:
        part = registry.module(spec.params.name).attach(model, anatomy, spec.params)
        whole.parts[spec.label] = part
    _refuse_shared_places(whole)
    padding = PaddingMask()
    for spec in specs:
        if spec.gated:
            for placed in whole.parts[spec.label].placed:
                _put_gate(model, anatomy, spec.label, placed, padding)
    if any(spec.gated for spec in specs) and "encoder" in anatomy.layers:
        whole.undo += padding.note_all(_around(model, anatomy.layers["encoder"][0]))
    for part in whole.parts.values():
        whole.placed += part.placed
        whole.unfrozen += [name for name in part.unfrozen if name not in whole.unfrozen]
        whole.shared.update(part.shared)
        whole.targets += part.targets
        whole.virtual_tokens += part.virtual_tokens
    return whole


def _refuse_shared_places(whole: CompositeAttachment) -> None:
    """Refuse two parts of one kind at one place, and company for a part that needs its projection to itself."""
    taken: dict[tuple[str, type], str] = {}
    by_key: dict[str, list[tuple[str, Placed]]] = {}
    for label, part in whole.parts.items():
        for placed in part.placed:
            other = taken.setdefault((placed.key, type(placed.part)), label)
            if other != label:
                raise UserError(
                    f"the parts {other} and {label} cannot share a place: both are at {placed.key}",
                    suggestion="give them different targets, or one of them a larger size in place of both",
                )
            by_key.setdefault(placed.key, []).append((label, placed))
    for key, here in by_key.items():
        alone = next((label for label, placed in here if placed.part.exclusive), None)
        company = next((label for label, placed in here if label != alone and placed.part.stage == 0), None)
        if alone is not None and company is not None:
            raise UserError(
                f"the parts {alone} and {company} cannot share a place: {alone} rescales the whole of {key} by the "
                f"norm of its weight, which {company} changes too",
                suggestion="give them different targets, or leave use_dora out",
            )


def _put_gate(model: nn.Module, anatomy: Anatomy, label: str, placed: Placed, padding: PaddingMask) -> None:
    part = placed.part
    width = part.gate_width()
    if width is None:
        raise UserError(
            f"the part {label} takes no gate: what it adds at {placed.key} has no scale that may depend on the input",
            suggestion="use `gates: false`, or leave the part out",
        )
    with torch.device(device_of(part, model)):
        part.scale = Gate(width, _kind(anatomy, placed), padding, part.fill_gate)


def _kind(anatomy: Anatomy, placed: Placed) -> Kind:
    """Return how a gate looks at a sequence: by the stack that the part is in, and by what its route can express."""
    in_encoder = any(placed.key.startswith(f"{layer}.") for layer in anatomy.layers.get("encoder", ()))
    if in_encoder:
        return "mean"
    at_attention = any(placed.key == f"{role.module}.prefix" for role in anatomy.attentions)
    return "constant" if at_attention and anatomy.prefix_route != "interface" else "token"


def _around(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the modules around a block, outermost first: the model, ..., the stack."""
    parts = path.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts))]
    return [model.get_submodule(name) for name in names]
