"""Jinja templates of strangers with limits: on the work of one rendering, on what it makes, and on its time.

A chat template comes from a model's directory. Jinja's sandbox keeps it from Python's insides, not from `"x" * 10**9`,
a loop for ever, or a list that holds itself twice, forty times over. Here a template is compiled so that each step of a
loop, each text that is written and each value that is made is charged to an account before or when it is made; the
operations whose result can be far larger than what they get (`Guards`) are charged by the size of the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from jinja2 import TemplateRuntimeError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from peftcli.data.chat.template_guards import CALL_GUARDS, FILTER_GUARDS, REFUSED, binary, format_fields

ACCOUNT = 50_000_000
"""Characters and values that one rendering may make, besides `EACH` for each character and value of its messages."""
EACH = 100
STEP = 500
"""What one step of a loop or one call of a macro is charged, in characters."""
SECONDS = 15.0
"""Longest time of one rendering: thousands of times what real templates need on a slow machine."""
LARGEST = 20_000_000
"""Longest `weight` of a list or mapping, besides that of the messages."""


_TEXTS = (str, bytes)
_COLLECTIONS = (list, tuple, dict, set, frozenset)


class TemplateLimit(TemplateRuntimeError):
    """A template wants more work, text or time than a conversation can need."""


def weight(value: Any, most: int = LARGEST) -> int:
    """Return the characters of a value written out, and 64 for each value in it; above `most` it stops counting."""
    total, rest = 0, [value]
    while rest and total <= most:
        one = rest.pop()
        total += 64
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, Mapping):
            rest += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            rest += one
        elif isinstance(one, Namespace):
            rest += one._Namespace__attrs.values()  # it offers no other way
        elif isinstance(one, int):
            total += one.bit_length() // 8
    return total


class Account:
    """What one rendering may still do.

    Args:
        given: returns the size of what the template was given; asked only when the account is used up.
    """

    def __init__(self, given: Callable[[], int]) -> None:
        self._given = given
        self._asked = False
        self._left = ACCOUNT
        self._until = time.monotonic() + SECONDS

    def charge(self, size: int) -> None:
        """Take `size` characters or values from the account.

        Raises:
            TemplateLimit: they are not there.
        """
        self._left -= size
        if self._left < 0:
            if not self._asked:
                self._asked = True
                self.charge(-EACH * self._given())
                return
            raise TemplateLimit(f"it makes more than {ACCOUNT:,} characters and steps for one conversation")

    def check(self, value: Any) -> None:
        """Refuse a list or mapping that stands for more than it may."""
        size = weight(value)
        self.charge(size // 8)  # looking at it takes time, too
        if size > LARGEST and weight(value, LARGEST + 4 * self._given()) > LARGEST + 4 * self._given():
            raise TemplateLimit(f"it makes a value that expands to more than {LARGEST:,} characters and values")

    def step(self) -> None:
        """Charge a step of a loop, and look at the clock."""
        self.charge(STEP)
        if time.monotonic() > self._until:
            raise TemplateLimit(f"it takes longer than {SECONDS:.0f} s for one conversation")


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """An environment whose templates have limits; `account` is that of the rendering at hand.

    The methods without an underscore from `step` on are called by compiled templates.
    """

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__()
        self.account = Account(lambda: 0)

    @classmethod
    def like(cls, other: ImmutableSandboxedEnvironment) -> LimitedEnvironment:
        """Return an environment with the settings, filters, globals and extensions of another one."""
        made = cls()
        made.__dict__.update({**other.__dict__, "account": made.account, "cache": None})
        made.code_generator_class = _Generator
        made.extensions = {name: extension.bind(made) for name, extension in other.extensions.items()}
        made.filters = {name: made._limited(name, function) for name, function in other.filters.items()}
        made.globals = {**other.globals, "lipsum": _refused("the function lipsum")}
        return made

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Charged().visit(super()._parse(source, name, filename))
        return tree

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that is charged for what it makes."""
        if name in REFUSED:
            return _refused(f"the filter {name}")
        guard = FILTER_GUARDS.get(name)
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # a context comes before the value

        @wraps(function)
        def run(*arguments: Any, **keywords: Any) -> Any:
            if guard is not None:
                arguments = (*arguments[:first], *guard(self.account.charge, list(arguments[first:]), keywords))
            return self.made(function(*arguments, **keywords))

        return run

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`."""
        if operator == "+" and type(left) is str and type(right) is str:  # what templates do most
            self.account.charge(2 * (len(left) + len(right)))  # what it looks at, and what it makes
            return left + right
        binary(self.account.charge, operator, left, right)
        return self.made(self.binop_table[operator](left, right))

    def call(self, context: Context, function: Any, /, *arguments: Any, **keywords: Any) -> Any:
        """Call what a template calls."""
        guard = CALL_GUARDS.get(getattr(function, "__name__", ""))
        if guard is not None:
            arguments = tuple(guard(self.account.charge, getattr(function, "__self__", ""), list(arguments), keywords))
        return self.made(super().call(context, function, *arguments, **keywords))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return a sandboxed `str.format`, or None for another value; its widths are charged."""
        safe = super().wrap_str_format(value)
        if safe is None:
            return None
        charge = self.account.charge

        def run(*arguments: Any, **keywords: Any) -> str:
            format_fields(charge, value.__self__)
            return safe(*arguments, **keywords)

        return run

    def step(self) -> str:
        """Charge a step of a loop or a call of a macro."""
        self.account.step()
        return ""

    def charge(self, size: int) -> str:
        """Charge text of the template itself."""
        self.account.charge(size)
        return ""

    def made(self, value: Any) -> Any:
        """Charge a value that was made, and return it."""
        if isinstance(value, _TEXTS):
            self.account.charge(len(value))
        elif isinstance(value, _COLLECTIONS):
            self.account.check(value)
        return value

    def shown(self, value: Any) -> Any:
        """Charge a value that is written, and return it."""
        self.account.charge(len(value) if isinstance(value, _TEXTS) else weight(value))
        return value

    def joined(self, *values: Any) -> str:
        """Return `a ~ b ~ c`."""
        for value in values:
            self.shown(value)
        return "".join(map(str, values))


def _refused(what: str) -> Callable[..., Any]:
    def refuse(*_arguments: Any, **_keywords: Any) -> Any:
        raise TemplateLimit(f"it uses {what}, which chat templates do not need")

    return refuse


def _call(name: str, *arguments: nodes.Expr, line: int) -> nodes.Call:
    """Return the node of a call of a method of the environment."""
    call = nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)
    call.set_lineno(line)
    return call


class _Charged(NodeTransformer):
    """Puts the charges into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Charge each step of a loop."""
        return self._with_step(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        """Charge each call of a macro."""
        return self._with_step(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        """Charge each call of a block's body."""
        return self._with_step(node)

    def _with_step(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("step", line=node.lineno)).set_lineno(node.lineno))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node | list[nodes.Node]:
        """Charge what is written."""
        fixed = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        self.generic_visit(node)
        node.nodes = [
            part if isinstance(part, nodes.TemplateData) else _call("shown", part, line=part.lineno)
            for part in node.nodes
        ]
        if not fixed:
            return node
        charge = _call("charge", nodes.Const(fixed), line=node.lineno)
        return [nodes.ExprStmt(charge).set_lineno(node.lineno), node]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """Charge `a ~ b`."""
        self.generic_visit(node)
        return _call("joined", *node.nodes, line=node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """Charge `a[1:2]`."""
        self.generic_visit(node)
        return _call("made", node, line=node.lineno) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        """Charge a list that holds more than constants."""
        return self._literal(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        """Charge a tuple that is no target of an assignment."""
        return self._literal(node, node.items) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        """Charge a mapping."""
        return self._literal(node, [pair.value for pair in node.items])

    def _literal(self, node: nodes.Expr, values: list[nodes.Expr]) -> nodes.Node:
        self.generic_visit(node)
        constant = all(isinstance(value, nodes.Const) for value in values)
        return node if constant else _call("made", node, line=node.lineno)


class _Generator(CodeGenerator):
    """Writes the calls of `_Charged` as plain calls, without what the sandbox adds to a template's own."""

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        """Write a call."""
        if not isinstance(node.node, nodes.EnvironmentAttribute):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        self.write(f"environment.{node.node.name}(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")
