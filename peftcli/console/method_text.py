"""A method on the command line: `NAME:key=value,...`, lists in brackets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftcli.errors import UserError
from peftcli.recipe.yaml.scalars import parts_at_commas

if TYPE_CHECKING:
    from peftcli.recipe.method_params import MethodParams


def method_params(option: str, text: str) -> MethodParams:
    """Return the checked hyper-parameters of a method without a recipe.

    Args:
        option: that the text was given to, for messages.
        text: `NAME:key=value,...`.

    Raises:
        UserError: there is no such method, or a key or value is wrong.
    """
    from peftcli.names import NAMES
    from peftcli.protocol.registry import registry
    from peftcli.recipe.load_recipe import recipe_from_overrides
    from peftcli.tasks.task_table import GOES_ON

    method = registry.find(text.partition(":")[0])
    served = method.info.tasks if method is not None else ()
    task = GOES_ON if not served or GOES_ON in served else min(served)
    changes = ["model.name_or_path=a-tiny-model", f"task={task}", *method_overrides(text)]
    return recipe_from_overrides(f"{option} {text}", changes, NAMES).recipe.method


def method_overrides(text: str) -> list[str]:
    """Return `NAME:key=value,...` as changes of a recipe: `lora:r=8` is `method.name=lora`, `method.r=8`."""
    name, _, settings = text.partition(":")
    return [f"method.name={name}", *(f"method.{setting}" for setting in split_outside_brackets(settings))]


def split_methods(text: str) -> list[str]:
    """Return the methods of a list; a part with `=` and no `:` before it is a setting of the method before.

    >>> split_methods("lora,lora:r=32,target_modules=[attn.q,attn.v],bitfit")
    ['lora', 'lora:r=32,target_modules=[attn.q,attn.v]', 'bitfit']

    Raises:
        UserError: it starts with a setting, or names nothing, or a method twice.
    """
    methods: list[str] = []
    for part in split_outside_brackets(text):
        if "=" not in part or ":" in part.partition("=")[0]:
            methods.append(part)
        elif methods:
            methods[-1] += f"{',' if ':' in methods[-1] else ':'}{part}"
        else:
            raise UserError(f"--methods {text}: {part} is a setting without a method", suggestion=f"NAME:{part}")
    if not methods:
        raise UserError("--methods names no method", suggestion='such as --methods lora,adalora,"lora:r=32"')
    twice = sorted({one for one in methods if methods.count(one) > 1})
    if twice:
        raise UserError(f"--methods names {', '.join(twice)} twice", suggestion="name each once")
    return methods


def changed_method(text: str, own: str) -> list[str]:
    """Return `NAME:key=value,...` as changes of a recipe that has a method.

    Args:
        own: that method; where it is the one named, the recipe's other settings of it stay.
    """
    name, *settings = method_overrides(text)
    return [f"method={{name: {text.partition(':')[0]}}}", *settings] if name != f"method.name={own}" else settings


def split_outside_brackets(text: str) -> list[str]:
    """Split at the commas that stand in no brackets, braces or quotes; spaces around a part and empty parts go.

    >>> split_outside_brackets("r=8,target_modules=[attn.q,attn.v]")
    ['r=8', 'target_modules=[attn.q,attn.v]']
    """
    return [part.strip() for part in parts_at_commas(text) if part.strip()]
