"""`peft estimate --memory 24GB`: which settings and which methods fit, and what each saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from peftcli.analysis.estimate.estimating import Basis, estimate
from peftcli.errors import UserError
from peftcli.protocol.registry import registry


@dataclass(frozen=True)
class Option:
    """One way to run the recipe.

    Args:
        method: its name.
        overrides: to type behind the recipe; empty for the recipe as it is.
        peak: bytes of the fullest device.
        saves: bytes less than the recipe as it is takes; negative where it takes more.
    """

    method: str
    overrides: str
    peak: int
    saves: int
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `estimate --memory --json` lists."""
        return asdict(self)


Changes = Mapping[str, Any]


def options(
    basis: Basis, limit: int, processes: int, trying: Callable[[str], None]
) -> tuple[list[Option], list[Option]]:
    """Return cheaper settings for the recipe, and the other methods with its settings; the recipe as it is comes first.

    Where the recipe does not fit as it is, the methods are tried with the first settings with which it does, or with
    those that take least. What the model, the base or the task does not allow is left out.

    Args:
        limit: bytes of one device.
        trying: is told what is estimated next.

    Raises:
        UserError: the recipe as it is cannot be estimated.
    """
    method = basis.recipe.method.name
    settings: list[Option] = []
    made: list[tuple[Changes, int]] = []
    for changes, count in _settings(basis, processes):
        text = _typed(changes, count, processes)
        trying(text or "the recipe as it is")
        peak = _peak(basis, changes, count, must=not changes)
        if peak is not None:
            saves = settings[0].peak - peak if settings else 0
            settings.append(Option(method, text, peak, saves, peak <= limit))
            made.append((changes, count))
    chosen = next((n for n, option in enumerate(settings) if option.fits), None)
    if chosen is None:
        chosen = min(range(len(settings)), key=lambda n: settings[n].peak)
    changes, count = made[chosen]
    return settings, list(_methods(basis, limit, changes, count, settings[0].peak, processes, trying))


def _peak(basis: Basis, changes: Changes, processes: int, *, must: bool = False) -> int | None:
    """Return what a change takes; None where it cannot be."""
    try:
        return estimate(basis, changes, processes=processes).peak
    except UserError:
        if must:
            raise
        return None


def _typed(changes: Changes, count: int, processes: int) -> str:
    """Return what to type behind the recipe."""
    words = [f"{key}={str(value).lower()}" for key, value in changes.items()]
    return " ".join([*words, *([f"--num-processes {count}"] if count != processes else [])])


def _method_typed(basis: Basis, name: str) -> str:
    """Return what to type for another method with its defaults; keys of the recipe's own must not stay in its block."""
    written = basis.loaded.tree.data.get("method")
    others = isinstance(written, Mapping) and written.keys() - {"name"}
    return f"""'method={{"name":"{name}"}}'""" if others else f"method.name={name}"


def _methods(
    basis: Basis,
    limit: int,
    changes: Changes,
    count: int,
    as_it_is: int,
    processes: int,
    trying: Callable[[str], None],
) -> Iterator[Option]:
    task = basis.recipe.task
    for name in registry.names():
        info = registry.info(name)
        packed = basis.packed_by_recipe or changes.get("model.load_in_4bit")
        if name == basis.recipe.method.name or (info.tasks and task not in info.tasks):
            continue
        if (packed and not info.quantised_base) or (info.forces_4bit and not basis.may_be_quantised):
            continue
        try:
            params = info.params.model_validate({})
        except ValidationError:
            continue  # a composition has no defaults
        trying(name)
        peak = _peak(basis, {**changes, "method": params}, count)
        if peak is not None:
            text = f"{_method_typed(basis, name)} {_typed(changes, count, processes)}".strip()
            yield Option(name, text, peak, as_it_is - peak, peak <= limit)


def _settings(basis: Basis, processes: int) -> Iterator[tuple[Changes, int]]:
    """Yield changes of the recipe, from those that cost nothing to those that change what is learnt."""
    recipe = basis.recipe
    training, model = recipe.training, recipe.model
    longest = int(basis.train.lengths.max())
    recompute: dict[str, Any] = {} if training.gradient_checkpointing is True else {_RECOMPUTE: True}
    few: dict[str, Any] = {}
    most = training.max_tokens_per_micro_batch
    if training.per_device_train_batch_size > 1 and (most is None or most > longest):
        few = {"training.max_tokens_per_micro_batch": longest}
    yield {}, processes
    tried: list[Changes] = [{}]
    for changes in (few, recompute, recompute | few):
        if changes not in tried:
            tried.append(changes)
            yield changes, processes
    cheap = recompute | few
    if not basis.packed and basis.may_be_quantised and registry.info(recipe.method.name).quantised_base:
        quarter = {"model.load_in_4bit": True}
        yield quarter, processes
        if cheap:
            yield quarter | cheap, processes
    if model.dtype in ("auto", "float32") and basis.weights_are_float32:
        yield {"model.dtype": "bfloat16"} | cheap, processes
    for count in (2, 4, 8):
        if count > processes and basis.can_be_divided:
            yield {"distributed.strategy": "fsdp"} | cheap, count
    half = longest // basis.sequences // 2
    if half:
        tokens = {"training.max_tokens_per_micro_batch": half * basis.sequences} if few else {}
        yield {"data.max_length": half} | recompute | tokens, processes


_RECOMPUTE = "training.gradient_checkpointing"
