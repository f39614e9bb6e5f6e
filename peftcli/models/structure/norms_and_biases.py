"""The norms and biases that training moves, and the parameters that it cannot move."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from torch import nn

from peftcli.layers.added_modules import is_added
from peftcli.layers.site import base_parameters
from peftcli.models.anatomy import Anatomy
from peftcli.models.module_view import ModuleView
from peftcli.models.structure.block_lists import TextPart
from peftcli.models.targets.target import short_path
from peftcli.models.trial_forward import without_gradient
from peftcli.shown_text import some_of

_OTHER_TOWER = "text does not enter it"
NO_GRADIENT = "no gradient of a text reaches it"
"""Why a projection has no role though its name and shape suggest one, too; a note of the anatomy names it then."""
_SHOWN = 4


def untouched(view: ModuleView, text: TextPart, *, tried: bool) -> dict[str, str]:
    """Return the parameters of the base that training cannot move, and why.

    Experts are none of them: which of them a text meets depends on the text.

    Args:
        tried: look for parameters without a gradient, too.
    """
    without = without_gradient(view.model) if tried else frozenset()
    found = {}
    for name in base_parameters(view.model):
        if ".experts." in name:
            continue
        if view.in_base(name) and not text.holds(name):
            found[name] = _OTHER_TOWER
        elif name in without:
            found[name] = NO_GRADIENT
    return found


def untouched_note(anatomy: Anatomy) -> str | None:
    """Return that parameters without a gradient stay as they are, for a method that trains the base's own ones."""
    left = [name for name, why in anatomy.untouched.items() if why == NO_GRADIENT]
    if not left:
        return None
    shown = list(dict.fromkeys(short_path(name) for name in left))
    places = some_of(shown, _SHOWN)
    return f"parameters of the base that no gradient of a text reaches stay as they are ({len(left)}): {places}"


def lies_idle(module: nn.Module, path: str, unmoved: Mapping[str, str]) -> bool:
    """Tell whether no gradient of a text reaches anything in a module: what is put there would be lost.

    Args:
        path: of the module.
        unmoved: of `untouched`; experts are not in it, and do not count.
    """
    own = (f"{path}.{name}" for name, _ in module.named_parameters() if not is_added(name))
    said = [unmoved.get(name) for name in own if ".experts." not in name]
    return bool(said) and set(said) == {NO_GRADIENT}


def idle_note(paths: Iterable[str]) -> str:
    """Return the note on projections that `lies_idle` is true of."""
    shown = ", ".join(dict.fromkeys(short_path(path) for path in paths))
    return f"no gradient of a text reaches {shown} (parts for images, or that only choose): nothing is added there"


def norms(view: ModuleView, unmoved: Container[str]) -> tuple[str, ...]:
    """Return the norms that training moves: modules of the base whose class name says so, and that have parameters.

    Of several that have the same parameters it is the first.
    """
    seen: set[int] = set()
    found = []
    for name, module in view.modules.items():
        own = {f"{name}.{key}": id(parameter) for key, parameter in module.named_parameters(recurse=False)}
        if "norm" in type(module).__name__.lower() and view.in_base(name) and not seen.issuperset(own.values()):
            seen.update(own.values())
            if any(parameter not in unmoved for parameter in own):
                found.append(name)
    return tuple(found)


def shared_names(view: ModuleView) -> frozenset[str]:
    """Return the names of the parameters that several modules have as one tensor; a module of two names is one."""
    owners: dict[int, dict[int, None]] = {}
    names: dict[int, list[str]] = {}
    for path, module in view.modules.items():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), {})[id(module)] = None
            names.setdefault(id(parameter), []).append(f"{path}.{key}" if path else key)
    return frozenset(name for each, found in names.items() if len(owners[each]) > 1 for name in found)


def biases(view: ModuleView, head: tuple[str, ...], unmoved: Container[str]) -> tuple[str, ...]:
    """Return the base's biases that training moves, shared ones once: `bias`, `q_bias`, not T5's relative positions."""
    inside = tuple(f"{path}." for path in head)
    own = (name for name in base_parameters(view.model) if not name.startswith(inside))
    return tuple(name for name in own if name.rpartition(".")[2].endswith("bias") and name not in unmoved)
