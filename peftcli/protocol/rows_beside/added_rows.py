"""Put trained rows of the vocabulary's tables into a model, beside whatever its method changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from peftcli.errors import Problem, UserError
from peftcli.layers.parts.token_rows import TokenRows
from peftcli.layers.site import output_parts, output_site
from peftcli.models.anatomy import Anatomy
from peftcli.protocol.attachment import Attachment, PlacedRows
from peftcli.recipe.method_params import MethodParams
from peftcli.shown_text import some_of

KEY = "method.trainable_token_indices"
EMBEDDINGS, HEAD = "embeddings", "head"
"""How a recipe names the two tables."""
PLACE = "token_adapter"
"""What the rows' key has behind the module's path, as in HF peft."""
ROWS = f".{PLACE}.trainable_tokens_delta"
"""How the keys of rows end in an adapter file."""


@dataclass(frozen=True)
class WantedRows:
    """The rows that a recipe asks for.

    Args:
        chosen: numbers of rows by table: `embeddings`, `head`, or the path of a module or its last parts.
        new: tokens that the vocabulary did not have, by number; their rows are trained wherever there is a table.
    """

    chosen: Mapping[str, Sequence[int]] = field(default_factory=dict)
    new: Mapping[int, str] = field(default_factory=dict)


def by_table(params: MethodParams) -> dict[str, list[int] | list[str]]:
    """Return `trainable_token_indices` by table; a list alone is of the input embeddings, as in HF peft."""
    found = params.trainable_token_indices
    if found is None:
        return {}
    return dict(found) if isinstance(found, dict) else {EMBEDDINGS: found}


def counted_rows(params: MethodParams, model: nn.Module) -> WantedRows:
    """Return the rows that hyper-parameters name where no vocabulary is at hand.

    On the meta device tokens count, and their numbers do not matter.

    Raises:
        UserError: tokens are named for a live model.
    """
    found: dict[str, list[int]] = {}
    for table, tokens in by_table(params).items():
        numbers = [token for token in tokens if isinstance(token, int)]
        found[table] = numbers or list(range(len(tokens)))
        if not numbers and not all(parameter.is_meta for parameter in model.parameters()):
            reason = "tokens are named, and no vocabulary is at hand"
            raise UserError(Problem(reason, key=KEY, suggestion="name them by number"))
    return WantedRows(found)


def add_token_rows(attachment: Attachment, anatomy: Anatomy, wanted: WantedRows) -> None:
    """Add the rows to a model that has its method; tables with one weight (a tied head) share their rows.

    Neither reads nor changes base values.

    Raises:
        UserError: there is no such table or row, or it cannot be trained on its own.
    """
    model = attachment.model
    problems: list[Problem] = []
    tables: dict[str, list[int]] = {}
    for name, ids in wanted.chosen.items():
        try:
            path, chosen = _path(model, anatomy, name), sorted(set(ids))
            _refuse_beyond(model, path, chosen)
            reason = _why_not(model, path)
            if reason is not None:
                raise UserError(Problem(f"{name}: {reason}", key=KEY, suggestion="leave it out"))
            if tables.setdefault(path, chosen) != chosen:
                raise UserError(Problem(f"{name} is tied to another table: both need the same rows", key=KEY))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    left = {}
    for path in _both(model, anatomy) if wanted.new else ():
        reason = _why_not(model, path)
        if reason is None:
            tables[path] = sorted({*tables.get(path, ()), *wanted.new})
        else:
            left[path] = reason
    for path, ids in tables.items():
        _place(attachment, path, ids)
    if wanted.new:
        attachment.notes += _notes(wanted.new, [path for path in _both(model, anatomy) if path not in left], left)


def _notes(new: Mapping[int, str], trained: Sequence[str], left: Mapping[str, str]) -> list[str]:
    """Return what becomes of the rows of new tokens."""
    names = some_of(list(new.values()), 6)
    notes = [f"no row of its own for the new tokens {names} in {path}: {reason}" for path, reason in left.items()]
    if trained:
        where = " and ".join(path.rpartition(".")[2] for path in trained)
        rest = "model.new_special_tokens: {tokens: [...], train: false} leaves them at the mean of the others"
        notes.append(f"the rows of the new tokens {names} are trained in {where}, and no other row; {rest}")
    return notes


def _place(attachment: Attachment, path: str, ids: Sequence[int]) -> None:
    model = attachment.model
    first: TokenRows | None = None
    for tied in tied_to(model, path):
        module = model.get_submodule(tied)
        part = TokenRows(module, ids, first)
        output_site(module).parts.append(part)
        attachment.rows.append(PlacedRows(f"{tied}.{PLACE}", part, tied, list(ids)))
        first = first or part


def _both(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """Return the paths of the input embeddings and of the head of logits, once where they are tied."""
    paths = [anatomy.embeddings, *([anatomy.output_embeddings] if anatomy.output_embeddings else [])]
    return list(dict.fromkeys(tied_to(model, path)[0] for path in paths))


def _path(model: nn.Module, anatomy: Anatomy, name: str) -> str:
    """Return the path of a table as the recipe names it; of tied ones, the first.

    Raises:
        UserError: there is none; names those that are there.
    """
    roles = {EMBEDDINGS: anatomy.embeddings, HEAD: anatomy.output_embeddings}
    rows = len(_weight(model.get_submodule(anatomy.embeddings)))
    tables = [path for path, module in model.named_modules() if _is_table(module, rows)]
    found = [path for path in tables if f".{path}".endswith(f".{name}")]
    path = roles.get(name) or (found[0] if found and name not in roles else None)
    if path is None:
        known = [*(role for role, there in roles.items() if there), *tables]
        reason = f"{name!r} is no table of this model's vocabulary"
        raise UserError(Problem(reason, key=KEY, suggestion=f"there are: {', '.join(known)}"))
    return tied_to(model, path)[0]


def _is_table(module: nn.Module, rows: int) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2 and weight.shape[0] == rows


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)  # nn.Module types attributes as Tensor | Module
    return weight


def tied_to(model: nn.Module, path: str) -> list[str]:
    """Return the paths of all modules with the same weight as the one at `path`, itself among them, in order."""
    weight = _weight(model.get_submodule(path))
    return [name for name, module in model.named_modules() if module._parameters.get("weight") is weight]


def _refuse_beyond(model: nn.Module, path: str, ids: Sequence[int]) -> None:
    rows = len(_weight(model.get_submodule(path)))
    beyond = [number for number in ids if number >= rows]
    if beyond:
        reason = f"row {', '.join(map(str, beyond[:5]))} is beyond {path}, which has the rows 0 to {rows - 1}"
        remedy = "name rows that are there, or tokens; model.new_special_tokens adds new ones"
        raise UserError(Problem(reason, key=KEY, suggestion=remedy))


def _why_not(model: nn.Module, path: str) -> str | None:
    """Return why rows of a table cannot be trained on their own, or None."""
    weight = _weight(model.get_submodule(path))
    if weight.requires_grad:
        return f"the whole of {path} is trained"
    if not weight.is_floating_point():
        return f"{path} is quantised"
    for tied in tied_to(model, path):
        for part in output_parts(model.get_submodule(tied)):
            if part.exclusive:
                return f"the method changes {tied} by what the whole table is"
    return None
