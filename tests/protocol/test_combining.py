"""A composition answers every hook for all its parts; by reflection, so that a hook added later is tested, too."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from peftcli.errors import UserError
from peftcli.methods.compose import METHOD, ComposeParams
from peftcli.methods.lora import LoraParams
from peftcli.methods.unipelt import METHOD as UNIPELT
from peftcli.methods.unipelt import UniPeltParams
from peftcli.protocol import combining
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.combining import answers_for_parts, combined, every, hooks_of
from peftcli.protocol.composite_attachment import CompositeAttachment
from peftcli.protocol.composite_method import CompositeMethod
from peftcli.protocol.method import Method
from peftcli.protocol.registry import registry
from tests.methods import harness

LORA, ADALORA = LoraParams(r=2), {"name": "adalora", "init_r": 4, "target_r": 2, "target_modules": ["ffn.up"]}


def public(base: type) -> list[str]:
    return [name for name, value in inspect.getmembers(base, inspect.isfunction) if not name.startswith("_")]


@pytest.mark.parametrize(("base", "composite"), [(Method, CompositeMethod), (Attachment, CompositeAttachment)])
def test_every_hook_has_a_rule_or_an_answer_of_the_composition(base: type, composite: type) -> None:
    assert len(public(base)) > 5
    assert set(public(base)) == set(hooks_of(base))
    for name, rule in hooks_of(base).items():
        if rule is combining.inherited:
            assert getattr(composite, name) is getattr(base, name)
        else:
            assert name in vars(composite), f"{composite.__name__} leaves {name} to its base class"


def test_a_hook_without_a_rule_stops_the_composition_s_class() -> None:
    class Base:
        def asked(self) -> bool:
            return True

    with pytest.raises(TypeError, match=r"Base\.asked has no rule"):

        @answers_for_parts(Base)
        class Forgetful(Base):
            pass

    @answers_for_parts(Base)
    class Explicit(Base):
        def asked(self) -> bool:
            return False

    assert not Explicit().asked()


def forwarded(base: type) -> list[str]:
    return [name for name, rule in hooks_of(base).items() if rule not in (None, combining.inherited)]


class _Recorder:
    """Stands in for a hook of one part and keeps what it was asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.append((*args, *kwargs.values()))
        return self.answer


ANSWERS: dict[Callable[..., Any], Any] = {
    combining.each: None,
    combining.every: True,
    combining.total: 3,
    combining.in_turn: {"rows": 3},
    combining.by_label: {"a": 1},
    combining.joined: ["a reason"],
    combining.merged: {"key": 1},
    combining.largest: {"key": 1},
}
"""By rule, what a part answers."""

WHOLE: dict[Callable[..., Any], Any] = {
    combining.each: None,
    combining.every: True,
    combining.total: 6,
    combining.in_turn: {"rows": 3},
    combining.by_label: {"lora": {"a": 1}, "adalora": {"a": 1}},
    combining.joined: ["lora: a reason", "adalora: a reason"],
    combining.merged: {"lora:key": 1, "adalora:key": 1},
    combining.largest: {"key": 1},
}
"""By rule, what a composition of two such parts answers."""


def arguments(hook: Callable[..., Any], **given: Any) -> list[Any]:
    """Return an argument for each parameter of a hook: what is given, else its own name."""
    return [given.get(name, name) for name in list(inspect.signature(hook).parameters)[1:]]


def hybrid() -> ComposeParams:
    return ComposeParams.model_validate({"parts": [LORA, ADALORA]})


@pytest.mark.parametrize("name", forwarded(Method))
def test_a_composite_method_asks_every_part_with_its_own_parameters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = hooks_of(Method)[name]
    assert rule is not None
    recorders = {part: _Recorder(ANSWERS[rule]) for part in ("lora", "adalora")}
    for part, recorder in recorders.items():
        monkeypatch.setattr(registry.method(part), name, recorder, raising=True)
    params = hybrid()
    hook = getattr(METHOD, name)
    assert hook(*arguments(getattr(Method, name), params=params)) == WHOLE[rule]
    for own, recorder in zip(params.parts, recorders.values(), strict=True):
        assert recorder.asked == [tuple(arguments(getattr(Method, name), params=own))]


def composed(**params: Any) -> CompositeAttachment:
    model, anatomy = harness.frozen("llama")
    attachment = harness.attach("compose", model, anatomy, **params)
    assert isinstance(attachment, CompositeAttachment)
    return attachment


@pytest.mark.parametrize("name", forwarded(Attachment))
def test_a_composite_attachment_asks_every_part(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = hooks_of(Attachment)[name]
    assert rule is not None
    attachment = composed(parts=[LORA, ADALORA])
    recorders = [_Recorder(ANSWERS[rule]) for _ in attachment.parts]
    for part, recorder in zip(attachment.parts.values(), recorders, strict=True):
        monkeypatch.setattr(part, name, recorder, raising=True)
    hook = getattr(Attachment, name)
    keywords = {p.name: p.name for p in inspect.signature(hook).parameters.values() if p.kind is p.KEYWORD_ONLY}
    positional = [value for value in arguments(hook) if value not in keywords]
    assert getattr(attachment, name)(*positional, **keywords) == WHOLE[rule]
    assert all(len(recorder.asked) == 1 and len(recorder.asked[0]) == len(arguments(hook)) for recorder in recorders)


def test_a_composition_is_settled_once_all_its_parts_are() -> None:
    attachment = composed(parts=[LORA, {**ADALORA, "tinit": 1, "tfinal": 3, "deltaT": 2}])
    assert [step for step in range(1, 11) if attachment.settled(step, 10)] == [8, 9, 10]
    assert composed(parts=[LORA]).settled(1, 10)


def test_an_answer_that_no_part_gives_is_none() -> None:
    assert composed(parts=[LORA]).extra_loss() is None
    assert composed(parts=[LORA, ADALORA]).extra_loss() is not None


def test_every_is_true_only_of_all() -> None:
    class Base:
        @combined(every)
        def done(self) -> bool:
            return True

    @answers_for_parts(Base)
    class Whole(Base):
        def __init__(self, *answers: bool) -> None:
            self.answers = answers

        def asks(self, hook: str) -> dict[str, Callable[[], bool]]:
            return {str(index): _Recorder(answer) for index, answer in enumerate(self.answers)}

    assert Whole(True, True).done() and not Whole(True, False).done()


@pytest.mark.parametrize("name", registry.names())
def test_what_merges_has_rules_and_what_does_not_says_why(name: str) -> None:
    method = registry.method(name)
    assert isinstance(method, Method) and method.info.name == name
    has_rules = type(method).merge_rules is not Method.merge_rules
    assert has_rules if method.info.unmergeable is None else method.info.unmergeable


def test_unipelt_without_gates_merges_what_its_lora_changes() -> None:
    params = UniPeltParams(adapter=None, prefix=None, gates=False)
    model, anatomy = harness.frozen("llama")
    state = UNIPELT.attach(model, anatomy, params).state_dict()
    assert set(UNIPELT.merge_rules(anatomy, params, state)) == {
        f"model.layers.{layer}.self_attn.{role}_proj.weight" for layer in range(2) for role in "qv"
    }


def test_a_name_that_is_no_method_is_refused() -> None:
    with pytest.raises(UserError, match="there is no method 'lorra'"):
        registry.method("lorra")
