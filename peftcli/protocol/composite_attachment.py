"""The attachment of a composition: one attachment in front of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from peftcli.protocol.attachment import Attachment
from peftcli.protocol.combining import Ask, answers_for_parts, each, merged
from peftcli.protocol.composition import SEPARATOR, CompositeParams
from peftcli.recipe.method_params import MethodParams

if TYPE_CHECKING:
    from peftcli.tasks.training_rows import TrainingRows


@answers_for_parts(Attachment)
@dataclass
class CompositeAttachment(Attachment):
    """Several attachments as one. Each part's tensors are kept below its label, trained base parameters by name.

    Args:
        parts: by label, in order.
    """

    parts: dict[str, Attachment] = field(default_factory=dict)

    def asks(self, hook: str, *args: Any, **kwargs: Any) -> Mapping[str, Ask]:
        """Return each part's own hook by label."""
        return {label: getattr(part, hook) for label, part in self.parts.items()}

    def collect(self) -> None:
        """Take over what the parts have placed, chosen and unfrozen."""
        parts = self.parts.values()
        self.placed = [placed for part in parts for placed in part.placed]
        self.targets = [target for part in parts for target in part.targets]
        self.unfrozen = list(dict.fromkeys(name for part in parts for name in part.unfrozen))

    def start_from_rows(self, model: nn.Module, rows: TrainingRows) -> None:
        """Let every part start, one after the other; a part may drop a place."""
        each(self, "start_from_rows", model, rows)
        self.collect()

    def params_now(self, params: MethodParams) -> MethodParams:
        """Return the hyper-parameters with those of the parts as they are now."""
        if not isinstance(params, CompositeParams):
            return params
        now = {spec.label: self.parts[spec.label].params_now(spec.params) for spec in params.specs}
        return params.with_parts(now) if any(now[spec.label] is not spec.params for spec in params.specs) else params

    def named(self, label: str, text: str) -> str:
        """Return a part's key as it stands in the file: below its label, unless it is a parameter of the base."""
        return text if text in self.parts[label].unfrozen else f"{label}{SEPARATOR}{text}"

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the adapter file holds: what the parts' files would hold, and what is trained beside them."""
        own = {key: tensor.detach() for key, tensor in self.head_tensors().items()}
        return {**merged(self, "state_dict"), **own}

    def saved_size(self) -> int:
        """Return the numbers in the file, the head left out; what two parts train both of the base, once."""
        names = [name for part in self.parts.values() for name in part.unfrozen]
        twice = sum(self.model.get_parameter(name).numel() * (names.count(name) - 1) for name in dict.fromkeys(names))
        beside = [name for name in self.to_save if name not in names and name not in self.head]
        kept = {id(parameter): parameter.numel() for parameter in self._base(beside).values()}
        rows = sum(tensor.numel() for tensor in self.row_tensors().values())
        return sum(part.saved_size() for part in self.parts.values()) - twice + sum(kept.values()) + rows

    def _named_trainable(self) -> Iterable[tuple[str, nn.Parameter]]:
        for label, part in self.parts.items():
            for name, parameter in part._named_trainable():
                yield self.named(label, name), parameter
        yield from self._trained_beside([*self.head, *self.to_save])

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
        Attachment(self.model, head=self.head, to_save=self.to_save, rows=self.rows).load_state_dict(rest)

    def initialise(self, model: nn.Module, *, tokenizer: Any = None, labels: Sequence[str] = ()) -> None:
        """Start every part, and the rows beside them."""
        for part in self.parts.values():
            part.initialise(model, tokenizer=tokenizer, labels=labels)
        for placed in self.rows:
            placed.part.start_from_base()

    def enable(self, on: bool = True) -> None:
        """Switch every part on or off, and the rows beside them."""
        for part in self.parts.values():
            part.enable(on)
        for placed in self.rows:
            placed.part.enabled = on

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Give every part its own of `training_state`."""
        for label, part in self.parts.items():
            part.load_training_state(state[label])

    def detach(self) -> None:
        """Take every part out, the last one first."""
        for part in reversed(self.parts.values()):
            part.detach()
        super().detach()
