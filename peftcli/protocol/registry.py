"""From a method's name to its module. Only the named module is imported; plug-ins only for a name that is not ours."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType

from peftcli.errors import UserError
from peftcli.protocol.method import MethodInfo
from peftcli.recipe.params import MethodParams

ENTRY_POINT_GROUP = "peftcli.methods"

_MODULES: dict[str, str] = {
    "lora": "peftcli.methods.lora",
    "qlora": "peftcli.methods.qlora",
    "adalora": "peftcli.methods.adalora",
    "vera": "peftcli.methods.vera",
    "ia3": "peftcli.methods.ia3",
    "prefix_tuning": "peftcli.methods.prefix_tuning",
    "prompt_tuning": "peftcli.methods.prompt_tuning",
    "adapter": "peftcli.methods.adapter",
    "parallel_adapter": "peftcli.methods.parallel_adapter",
    "compacter": "peftcli.methods.compacter",
    "bitfit": "peftcli.methods.bitfit",
    "mam": "peftcli.methods.mam",
    "unipelt": "peftcli.methods.unipelt",
    "compose": "peftcli.methods.compose",
    "full": "peftcli.methods.full",
    "freeze": "peftcli.methods.freeze",
}


class MethodRegistry:
    """The methods that exist; `recipe` receives one and knows no method itself."""

    def names(self) -> list[str]:
        """Return the built-in methods in the order of the documentation."""
        return list(_MODULES)

    def find(self, name: str) -> ModuleType | None:
        """Return the module of a built-in or plug-in method, or None."""
        return _find(name)

    def module(self, name: str) -> ModuleType:
        """Return the module of a method.

        Raises:
            UserError: no such method; names the nearest one.
        """
        module = _find(name)
        if module is None:
            raise UserError(f"there is no method {name!r}", suggestion=f"choose one of: {', '.join(self.names())}")
        return module

    def info(self, name: str) -> MethodInfo:
        """Return the record of a method."""
        info: MethodInfo = self.module(name).INFO
        return info

    def params_model(self, name: str) -> type[MethodParams] | None:
        """Return the hyper-parameters' model of a method, or None if there is no such method."""
        module = _find(name)
        return None if module is None else module.INFO.params


@cache
def _find(name: str) -> ModuleType | None:
    if name in _MODULES:
        return import_module(_MODULES[name])
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        module: ModuleType = entry.load()
        if module.INFO.name != name:
            raise UserError(
                f"the plug-in {entry.value} is registered as {name!r} but calls itself {module.INFO.name!r}"
            )
        return module
    return None


registry = MethodRegistry()
