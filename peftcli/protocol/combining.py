"""How a composition answers for its parts: by one rule for each hook, named where the hook is defined.

A hook of `Method` or `Attachment` is a public function that the rest of the program calls. Above it stands the rule
by which a composition combines its parts' answers:

    @combined(every)
    def settled(self, step: int, total_steps: int) -> bool: ...

`answers_for_parts` gives the class of a composition one function for each hook: it asks every part and combines the
answers. A hook without a rule must be defined by the composition's class itself, else that class cannot be made. So a
hook that is added later reaches the parts, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from types import FunctionType
from typing import Any, Protocol, TypeVar

Ask = Callable[..., Any]
"""Asks one part: takes a hook's arguments and returns the part's answer."""


class Composition(Protocol):
    """What the rules need of a composition."""

    def asks(self, hook: str, *args: Any, **kwargs: Any) -> Mapping[str, Ask]:
        """Return a function for each part, by label and in order, that asks it this hook.

        The hook's arguments are given because a method finds its parts in them: in its hyper-parameters.
        """

    def named(self, label: str, text: str) -> str:
        """Return a part's text (a key, a reason) as it stands in the composition's answer."""


Rule = Callable[..., Any]
"""Called with a composition, a hook's name and the hook's arguments; returns the answer for all parts."""

Hook = TypeVar("Hook", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)

_RULES: dict[Callable[..., Any], Rule] = {}


def combined(rule: Rule) -> Callable[[Hook], Hook]:
    """Declare by which rule a composition combines its parts' answers to the hook below."""

    def declare(hook: Hook) -> Hook:
        _RULES[hook] = rule
        return hook

    return declare


def hooks_of(base: type) -> dict[str, Rule | None]:
    """Return the names of a class's own public functions, each with its rule."""
    public = {name: value for name, value in vars(base).items() if not name.startswith("_")}
    return {name: _RULES.get(value) for name, value in public.items() if isinstance(value, FunctionType)}


def answers_for_parts(base: type) -> Callable[[Class], Class]:
    """Give a composition's class an answer to every hook of `base` that it does not define itself.

    Raises:
        TypeError: a hook has no rule, and the class does not define it.
    """

    def complete(composition: Class) -> Class:
        for hook, rule in hooks_of(base).items():
            if hook in vars(composition) or rule is inherited:
                continue
            if rule is None:
                raise TypeError(f"{base.__name__}.{hook} has no rule: put @combined(...) above it, see {__name__}")
            setattr(composition, hook, _answer(hook, rule))
        return composition

    return complete


def _answer(hook: str, rule: Rule) -> Callable[..., Any]:
    def answer(self: Composition, *args: Any, **kwargs: Any) -> Any:
        return rule(self, hook, *args, **kwargs)

    answer.__name__ = hook
    return answer


def inherited(_whole: Composition, hook: str, *_args: Any, **_kwargs: Any) -> Any:
    """The base class's own definition serves a composition as well, because it rests on other hooks."""
    raise TypeError(f"{hook} is inherited: no rule applies")


def each(whole: Composition, hook: str, *args: Any, **kwargs: Any) -> None:
    """Every part is told, in order; there is no answer."""
    for ask in whole.asks(hook, *args, **kwargs).values():
        ask(*args, **kwargs)


def every(whole: Composition, hook: str, *args: Any, **kwargs: Any) -> bool:
    """True if it is true of every part."""
    return all(ask(*args, **kwargs) for ask in whole.asks(hook, *args, **kwargs).values())


def total(whole: Composition, hook: str, *args: Any, **kwargs: Any) -> Any:
    """The sum of the parts' answers that are not None; None if all are."""
    answers = [ask(*args, **kwargs) for ask in whole.asks(hook, *args, **kwargs).values()]
    given = [answer for answer in answers if answer is not None]
    return reduce(add, given) if given else None


def in_turn(whole: Composition, hook: str, value: Any, *args: Any, **kwargs: Any) -> Any:
    """The first argument goes through every part, in order; each receives what the one before it returned."""
    for ask in whole.asks(hook, value, *args, **kwargs).values():
        value = ask(value, *args, **kwargs)
    return value


def by_label(whole: Composition, hook: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Each part's answer by its label."""
    return {label: ask(*args, **kwargs) for label, ask in whole.asks(hook, *args, **kwargs).items()}


def joined(whole: Composition, hook: str, *args: Any, **kwargs: Any) -> list[str]:
    """The parts' lists of texts one after the other, each text named as its part's."""
    answers = by_label(whole, hook, *args, **kwargs)
    return [whole.named(label, text) for label, texts in answers.items() for text in texts]


def largest(whole: Composition, hook: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The parts' dictionaries as one; of a key that several have, the largest value."""
    found: dict[str, Any] = {}
    for own in by_label(whole, hook, *args, **kwargs).values():
        found.update({key: max(value, found.get(key, value)) for key, value in own.items()})
    return found


def merged(whole: Composition, hook: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The parts' dictionaries as one, each key named as its part's."""
    answers = by_label(whole, hook, *args, **kwargs)
    return {whole.named(label, key): value for label, own in answers.items() for key, value in own.items()}
