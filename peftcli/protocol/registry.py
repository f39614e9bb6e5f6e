"""From a method's name to the method. Only the named module is imported; plug-ins only for a name that is not ours."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from peftcli.errors import UserError
from peftcli.protocol.method import Method, MethodInfo
from peftcli.recipe.method_params import MethodParams

ENTRY_POINT_GROUP = "peftcli.methods"

_BUILT_IN = (
    "lora",
    "qlora",
    "adalora",
    "vera",
    "ia3",
    "oft",
    "miss",
    "hira",
    "lokr",
    "shira",
    "prefix_tuning",
    "prompt_tuning",
    "adapter",
    "parallel_adapter",
    "compacter",
    "loreft",
    "bitfit",
    "ln_tuning",
    "mam",
    "unipelt",
    "compose",
    "full",
    "freeze",
)
"""A name for each module in `peftcli/methods`, in the order of the documentation."""


class MethodRegistry:
    """The methods that exist; `recipe` receives one and knows no method itself."""

    def names(self) -> list[str]:
        """Return the built-in methods in the order of the documentation."""
        return list(_BUILT_IN)

    def find(self, name: str) -> Method[Any] | None:
        """Return a built-in or plug-in method, or None."""
        return _find(name)

    def method(self, name: str) -> Method[Any]:
        """Return a method.

        Raises:
            UserError: there is none of this name.
        """
        method = _find(name)
        if method is None:
            raise UserError(f"there is no method {name!r}", suggestion=f"choose one of: {', '.join(self.names())}")
        return method

    def info(self, name: str) -> MethodInfo:
        """Return the record of a method.

        Raises:
            UserError: there is none of this name.
        """
        return self.method(name).info

    def params_model(self, name: str) -> type[MethodParams] | None:
        """Return the hyper-parameters' model of a method, or None if there is no such method."""
        method = _find(name)
        return None if method is None else method.info.params


@cache
def _find(name: str) -> Method[Any] | None:
    if name in _BUILT_IN:
        return _method_in(import_module(f"peftcli.methods.{name}"))
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _method_of_plugin(entry)
    return None


def _method_in(module: ModuleType) -> Method[Any]:
    """Return the instance that a method's module ends in.

    Raises:
        TypeError: the module has no `METHOD`, or it is no `Method`.
    """
    method = vars(module).get("METHOD")
    if not isinstance(method, Method):
        raise TypeError(f"{module.__name__} has no METHOD that is an instance of {Method.__module__}.Method")
    return method


def _method_of_plugin(entry: EntryPoint) -> Method[Any]:
    """Return the method of an entry point, which names a module.

    Raises:
        UserError: the module cannot be imported, holds no method, or the method has another name.
    """
    plugin = f"the plug-in {entry.value}, which offers the method {entry.name!r},"
    try:
        method = _method_in(import_module(entry.module))
    except ImportError as error:
        raise UserError(f"{plugin} cannot be imported: {error}", suggestion="install it again, or remove it") from error
    except TypeError as error:
        remedy = "end the module in METHOD = ..., see `Adding a method` in CONTRIBUTING.md"
        raise UserError(f"{plugin} holds no method: {error}", suggestion=remedy) from error
    if method.info.name != entry.name:
        raise UserError(f"{plugin} calls itself {method.info.name!r}", suggestion="give both the same name")
    return method


registry = MethodRegistry()
