"""The norms and biases that training moves, and the parameters that it cannot move."""

from __future__ import annotations

from collections.abc import Container

from peftcli.layers.site import base_parameters
from peftcli.models.anatomy import Anatomy
from peftcli.models.module_view import ModuleView
from peftcli.models.structure.block_lists import TextPart
from peftcli.models.targets.target import short_path
from peftcli.models.trial_forward import without_gradient

_OTHER_TOWER = "text does not enter it"
_NO_GRADIENT = "no gradient of a text reaches it"
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
            found[name] = _NO_GRADIENT
    return found


def untouched_note(anatomy: Anatomy) -> str | None:
    """Return that parameters without a gradient stay as they are, for a method that trains the base's own ones."""
    left = [name for name, why in anatomy.untouched.items() if why == _NO_GRADIENT]
    if not left:
        return None
    shown = list(dict.fromkeys(short_path(name) for name in left))
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    places = f"{', '.join(shown[:_SHOWN])}{more}"
    return f"parameters of the base that no gradient of a text reaches stay as they are ({len(left)}): {places}"


def norms(view: ModuleView, unmoved: Container[str]) -> tuple[str, ...]:
    """Return the norms that training moves: modules of the base whose class name says so, and that have parameters."""
    seen: set[int] = set()
    found = []
    for name, module in view.modules.items():
        own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
        if "norm" in type(module).__name__.lower() and own and view.in_base(name) and id(module) not in seen:
            seen.add(id(module))
            if any(parameter not in unmoved for parameter in own):
                found.append(name)
    return tuple(found)


def biases(view: ModuleView, head: tuple[str, ...], unmoved: Container[str]) -> tuple[str, ...]:
    """Return the base's biases that training moves, shared ones once: `bias`, `q_bias`, not T5's relative positions."""
    inside = tuple(f"{path}." for path in head)
    own = (name for name in base_parameters(view.model) if not name.startswith(inside))
    return tuple(name for name in own if name.rpartition(".")[2].endswith("bias") and name not in unmoved)
