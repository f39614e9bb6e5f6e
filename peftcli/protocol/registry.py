"""From a method's name to the method. Only the named module is imported; plug-ins only for a name that is not ours."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from peftcli.errors import UserError
from peftcli.protocol.method import Method, MethodInfo
from peftcli.recipe.entry_points import Plugin, plugin
from peftcli.recipe.method_params import MethodParams

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
        module = import_module(f"peftcli.methods.{name}")
        return _checked(vars(module).get("METHOD"), module.__name__)
    found = plugin("method", name, _BUILT_IN)
    return None if found is None else _method_of_plugin(found)


def _checked(method: Any, module: str) -> Method[Any]:
    """Return the instance that a method's module ends in.

    Raises:
        TypeError: the module has no `METHOD`, or it is no `Method`.
    """
    if not isinstance(method, Method):
        raise TypeError(f"{module} has no METHOD that is an instance of {Method.__module__}.Method")
    return method


def _method_of_plugin(found: Plugin) -> Method[Any]:
    """Return the method of a plug-in.

    Raises:
        UserError: the module cannot be imported, holds no method, or the method has another name.
    """
    try:
        method = _checked(found.held("METHOD"), found.entry.module)
    except TypeError as error:
        remedy = "end the module in METHOD = ..., see `Adding a method` in CONTRIBUTING.md"
        raise found.wrong(f"holds no method: {error}", remedy) from error
    if method.info.name != found.name:
        raise found.wrong(f"calls itself {method.info.name!r}", "give both the same name")
    return method


registry = MethodRegistry()
