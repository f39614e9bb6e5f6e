"""An attachment: what a method added to a live model, and everything the rest of the program asks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftcli.distributed.whole_tensors import put
from peftcli.errors import UserError
from peftcli.layers.site import Part, PartList
from peftcli.protocol.combining import by_label, combined, each, every, in_turn, inherited, merged, total

if TYPE_CHECKING:
    from peftcli.models.targets.target import Target
    from peftcli.models.weights.stored_weights import StoredWeights
    from peftcli.recipe.method_params import MethodParams
    from peftcli.tasks.training_rows import TrainingRows


@dataclass
class Placed:
    """A part and its place: the key below which its tensors are saved, such as `model.layers.0.self_attn.q_proj`."""

    key: str
    part: Part


@dataclass
class PlacedRows(Placed):
    """A part with trained rows of a table of the vocabulary.

    Args:
        table: path of the module.
        numbers: of the rows.
    """

    table: str
    numbers: list[int]


@dataclass
class Attachment:
    """What a method added to one model.

    Args:
        model: the live model, base and parts together.
        placed: the parts, in order.
        unfrozen: names of base parameters that the method trains itself (biases, norms, whole modules).
        shared: tensors that belong to no single part (Compacter's A), by key.
        head: names of the task head's parameters, trained beside every method.
        to_save: names of parameters below `modules_to_save`.
        rows: parts with trained rows of the vocabulary's tables, beside every method.
        targets: the projections that the method chose, where it chooses some; they are recorded beside the adapter.
        notes: what the user should know of where the method went.
        undo: what `detach` runs after the parts are gone (hooks, the attention implementation).
    """

    model: nn.Module
    placed: list[Placed] = field(default_factory=list)
    unfrozen: list[str] = field(default_factory=list)
    shared: dict[str, nn.Parameter] = field(default_factory=dict)
    head: list[str] = field(default_factory=list)
    to_save: list[str] = field(default_factory=list)
    rows: list[PlacedRows] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)

    @combined(inherited)
    def place(self, key: str, part: Part, parts: PartList) -> None:
        """Add a part to those of a site; its tensors are saved below `key`."""
        parts.append(part)
        self.placed.append(Placed(key, part))

    @combined(merged)
    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return the method's own saved tensors by key: parts, shared ones and unfrozen base parameters."""
        tensors: dict[str, Tensor] = {}
        for placed in self.placed:
            for suffix, tensor in placed.part.adapter_tensors().items():
                tensors[f"{placed.key}.{suffix}"] = tensor
        tensors.update(self.shared)
        tensors.update(self._base(self.unfrozen))
        return tensors

    @combined(inherited)
    def head_tensors(self) -> dict[str, Tensor]:
        """Return what is trained beside the method: task head and `modules_to_save` by parameter name, token rows."""
        return {**self._base([*self.head, *self.to_save]), **self.row_tensors()}

    @combined(inherited)
    def row_tensors(self) -> dict[str, Tensor]:
        """Return the trained rows of the vocabulary's tables by key."""
        return {
            f"{placed.key}.{suffix}": tensor
            for placed in self.rows
            for suffix, tensor in placed.part.adapter_tensors().items()
        }

    def _base(self, names: Iterable[str]) -> dict[str, nn.Parameter]:
        return {name: self.model.get_parameter(name) for name in dict.fromkeys(names)}

    @combined(inherited)
    def row_numbers(self) -> dict[str, list[int]]:
        """Return the numbers of the trained rows by the path of their table; of tied tables, the first."""
        return {placed.table: list(placed.numbers) for placed in self.rows if placed.part.adapter_tensors()}

    @combined(inherited)
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return every parameter that training moves, by name; shared tensors once."""
        seen: set[int] = set()
        found: dict[str, nn.Parameter] = {}
        for name, parameter in self._named_trainable():
            if id(parameter) not in seen and parameter.requires_grad:
                seen.add(id(parameter))
                found[name] = parameter
        return found

    def _named_trainable(self) -> Iterable[tuple[str, nn.Parameter]]:
        for placed in self.placed:
            for suffix, parameter in placed.part.named_parameters():
                yield f"{placed.key}.{suffix}", parameter
        yield from self.shared.items()
        yield from self._trained_beside([*self.unfrozen, *self.head, *self.to_save])

    def _trained_beside(self, names: Iterable[str]) -> Iterable[tuple[str, nn.Parameter]]:
        yield from self._base(names).items()
        for placed in self.rows:
            for suffix, parameter in placed.part.named_parameters():
                yield f"{placed.key}.{suffix}", parameter

    @combined(merged)
    def part_buffers(self) -> dict[str, Tensor]:
        """Return the tensors that the parts count to their state and that are no parameters, by key."""
        return {
            f"{placed.key}.{suffix}": tensor
            for placed in self.placed
            for suffix, tensor in placed.part.state_dict(keep_vars=True).items()
            if not isinstance(tensor, nn.Parameter)
        }

    @combined(each)
    def forget(self) -> None:
        """Drop what the parts computed from their values and keep between calls: they were given other ones."""
        for placed in self.placed:
            placed.part.forget()

    @combined(inherited)
    def multiplicative(self) -> set[str]:
        """Return the names of trainable parameters that multiply what is there (`Part.multiplicative`), and of rows.

        Weight decay leaves them alone: zero is not where they do nothing.
        """
        mine = {id(parameter) for placed in self.placed for parameter in placed.part.multiplicative()}
        mine |= {id(parameter) for parameter in self.row_tensors().values()}
        return {name for name, parameter in self.trainable_parameters().items() if id(parameter) in mine}

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the adapter file holds, detached: the method's tensors and what is trained beside it."""
        return {key: tensor.detach() for key, tensor in {**self.adapter_tensors(), **self.head_tensors()}.items()}

    def saved_size(self) -> int:
        """Return how many numbers the adapter file holds, the head left out; shared and tied tensors once."""
        saved = {**self.adapter_tensors(), **self._base(self.to_save), **self.row_tensors()}
        head = {id(tensor) for tensor in self._base(self.head).values()}
        distinct = {id(tensor): tensor.numel() for tensor in saved.values()}
        return sum(size for identity, size in distinct.items() if identity not in head)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy saved tensors into place; strict.

        Raises:
            UserError: a key is missing or unexpected, or a shape differs; names the first few of each. Or tables that
                this model ties have different values, or only one of them has any.
        """
        own = {**self.adapter_tensors(), **self.head_tensors()}
        _refuse_untied(own, state)
        wrong = [f"missing {key}" for key in own if key not in state]
        wrong += [f"unexpected {key}" for key in state if key not in own]
        wrong += [
            f"{key} has shape {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ]
        if wrong:
            more = f" (and {len(wrong) - 5} more)" if len(wrong) > 5 else ""
            raise UserError(
                f"the adapter does not fit this model: {'; '.join(wrong[:5])}{more}",
                suggestion="use the base model and the recipe that the adapter was trained with",
            )
        with torch.no_grad():
            for key, tensor in own.items():
                put(tensor, state[key])

    @combined(each)
    def initialise(self, model: nn.Module, *, tokenizer: Any = None, labels: Sequence[str] = ()) -> None:
        """Do what needs base values (DoRA norms, PiSSA, vocabulary prompts); skipped on meta and on load.

        Args:
            tokenizer: for prompts that start from text; without one such an initialisation is a UserError.
            labels: class names, for prompts that start from them; by default those of the model's config.
        """
        for placed in [*self.placed, *self.rows]:
            placed.part.start_from_base()

    @combined(each)
    def start_from_rows(self, model: nn.Module, rows: TrainingRows) -> None:
        """Do what needs training rows (prefixes from real text): once, before the first step of a new run.

        Comes after `initialise`; the parts are switched off, the model is in evaluation mode and without gradients.
        What is set here must depend on the rows alone: processes do it each on its own. A run that goes on, and one
        that starts from an earlier adapter, have the values already.
        """

    def params_now(self, params: MethodParams) -> MethodParams:
        """Return the hyper-parameters that attach what is attached now: with what `start_from_rows` decided (ranks).

        They are saved with the adapter, and a run that goes on attaches by them.

        Args:
            params: those that this attachment was made by.
        """
        return params

    @combined(each)
    def start_from_stored(self, weights: StoredWeights) -> None:
        """Do what needs the unquantised weights of a quantised base (LoftQ): once, before the first step of a new run.

        Comes after `initialise`, and before `start_from_rows`. A run that goes on, and one that starts from an earlier
        adapter, have the values already.

        Args:
            weights: reads them from the checkpoint's files; what is not asked for is not opened.
        """

    @combined(in_turn)
    def prepare_inputs(self, batch: Mapping[str, Any], *, generate: bool = False) -> dict[str, Any]:
        """Return the batch as the model must receive it; training, evaluation and prediction call this last.

        Args:
            batch: `input_ids` (batch, seq), `attention_mask`, `labels`, `position_ids`, ... as the collator made them.
            generate: for `model.generate`, which gets ids of the vocabulary only.

        Returns:
            A new dictionary. Token labels grow with the sequence (-100 at virtual tokens): use these for the loss.
        """
        return dict(batch)

    @combined(total)
    def extra_loss(self) -> Tensor | None:
        """Return a term added once per optimizer step (AdaLoRA's orthogonality), or None."""
        return None

    @combined(each)
    def after_optimizer_step(self, step: int, total_steps: int) -> None:
        """Run once per step, before gradients are cleared; `step` counts from 1.

        Where float16 gradients overflowed, the step was not taken and no parameter has a gradient: what the schedule
        asks for at this step (AdaLoRA's last pruning) must happen all the same.
        """

    @combined(every)
    def settled(self, step: int, total_steps: int) -> bool:
        """Return whether the adapter is settled: after this step it has its final form, and may be kept as the best.

        AdaLoRA's is settled once its ranks are down to the budget that the recipe asks for.
        """
        return True

    @combined(by_label)
    def training_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds besides `state_dict` (allocator, prefix MLP): tensors and plain values."""
        return {}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore `training_state`."""

    @combined(merged)
    def learning_rate_ratios(self) -> dict[str, float]:
        """Return factors on the learning rate by trainable parameter name (LoRA+); 1 where absent."""
        return {}

    def _drop(self, key: str) -> None:
        """Take the parts at one place out for good, as if the method had not chosen it."""
        dropped = {id(placed.part) for placed in self.placed if placed.key == key}
        self._take_out(dropped)
        self.placed = [placed for placed in self.placed if placed.key != key]
        self.targets = [target for target in self.targets if target.key != key]

    def _take_out(self, parts: set[int]) -> None:
        for module in list(self.model.modules()):
            if isinstance(module, nn.ModuleList) and any(id(part) in parts for part in module):
                kept = [part for part in module if id(part) not in parts]
                del module[:]
                module.extend(kept)

    def detach(self) -> None:
        """Take the parts out of the model and undo what the method set; base values stay as they are."""
        self._take_out({id(placed.part) for placed in [*self.placed, *self.rows]})
        for undo in reversed(self.undo):
            undo()
        self.placed, self.rows, self.shared, self.undo = [], [], {}, []

    @combined(each)
    def enable(self, on: bool = True) -> None:
        """Switch the parts on or off; unfrozen base parameters are not affected."""
        for placed in [*self.placed, *self.rows]:
            placed.part.enabled = on


def _refuse_untied(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse tensors for one table of the model that are two tables in the adapter, as HF peft trains tied ones."""
    names: dict[int, list[str]] = {}
    for name, tensor in own.items():
        names.setdefault(id(tensor), []).append(name)
    for tied in names.values():
        saved = [state[name] for name in tied if name in state]
        if not saved or (len(saved) == len(tied) and all(torch.equal(saved[0], other) for other in saved[1:])):
            continue
        what = "has two different ones" if len(saved) == len(tied) else "changes one of them alone"
        raise UserError(
            f"{' and '.join(tied)} are one table in this model (their weights are tied), and the adapter {what}",
            suggestion="save the base with the tables untied: load it in transformers, give lm_head a copy of the "
            "weight, set config.tie_word_embeddings = False, save_pretrained(DIR); then name DIR as the base",
        )
