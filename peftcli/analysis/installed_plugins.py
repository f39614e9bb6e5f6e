"""The plug-ins that installed packages offer, each imported and checked."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from peftcli.data.recognition.format_table import OWN_FORMATS, format_of_plugin
from peftcli.errors import UserError
from peftcli.protocol.registry import registry
from peftcli.recipe.entry_points import plugin, plugins
from peftcli.record.callback import find_callback
from peftcli.tasks.metric_table import metrics_of_plugin, own_names


@dataclass(frozen=True)
class InstalledPlugin:
    """One plug-in.

    Args:
        kind: `method`, `metric`, `format` or `callback`.
        name: as a recipe has it.
        package: the package with its version.
        module: what the entry point names.
        problem: why it cannot be used, with the remedy; None where it can.
    """

    kind: str
    name: str
    package: str
    module: str
    problem: str | None


def installed_plugins() -> list[InstalledPlugin]:
    """Return all that are installed, by kind and name."""
    kinds: dict[str, tuple[Collection[str], Callable[[str], Any]]] = {
        "method": (registry.names(), registry.find),
        "metric": (own_names(), metrics_of_plugin),
        "format": (OWN_FORMATS, format_of_plugin),
        "callback": ((), find_callback),
    }
    found = []
    for kind, (ours, find) in kinds.items():
        for one in plugins(kind):
            problem = None
            try:
                plugin(kind, one.name, ours)
                find(one.name)
            except UserError as error:
                problem = str(error)
            found.append(InstalledPlugin(kind, one.name, one.package, one.entry.value, problem))
    return found
