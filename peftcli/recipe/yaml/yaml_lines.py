"""Read YAML as plain data, with the line of every key and list element.

PyYAML parses. Its own construction of values is replaced because it keeps no lines, takes the last of duplicate keys
without a word, and follows YAML 1.1 (see `scalars`). Refused, each with its line: duplicate keys, several documents,
tags other than those of the core schema, merge keys, keys that are not scalars, aliases that refer to themselves or
exceed `MAX_NODES` values, and nesting deeper than `MAX_DEPTH`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from peftcli.recipe.yaml.environment_variables import MissingVariable, expand, names_in
from peftcli.recipe.yaml.scalars import read_scalar
from peftcli.recipe.yaml.yaml_errors import YamlProblem, explain_yaml_error
from peftcli.shown_text import hide

MAX_NODES = 20_000  # a recipe has tens of values; aliases of aliases grow exponentially ("billion laughs")
CHARACTERS_A_NODE = 50  # what counts as one more value of a long text
MAX_DEPTH = 40  # a recipe nests four deep

Key = tuple[str | int, ...]

_TAGS = {f"tag:yaml.org,2002:{name}": name for name in ("str", "int", "float", "bool", "null", "map", "seq")}


@dataclass(frozen=True)
class Remark:
    """A problem after which reading goes on: a duplicate key, a missing environment variable (`unset`)."""

    key: Key
    line: int
    message: str
    suggestion: str | None = None
    unset: bool = False


@dataclass
class Document:
    """The data of a YAML text, the 1-based line of every key and element, and the problems.

    Args:
        references: the text of each value that names environment variables, as it was written.
    """

    data: Any
    lines: dict[Key, int] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    references: dict[Key, str] = field(default_factory=dict)


def parse_yaml(text: str, environ: Mapping[str, str]) -> Document:
    """Read one YAML document.

    Args:
        text: the document.
        environ: variables for `${NAME}`.

    Raises:
        YamlProblem: the text is not YAML, or uses what is refused here.
    """
    composer = _Composer(text, environ)
    try:
        composer.document.data = composer.read_document()
    except yaml.YAMLError as error:
        raise explain_yaml_error(error, text) from error
    except RecursionError as error:
        raise YamlProblem("nested too deeply", None, "a recipe nests about four deep") from error
    return composer.document


def line_of(event: Event) -> int:
    """Return the 1-based line on which an event starts."""
    assert event.start_mark is not None  # the scanner marks every event
    return event.start_mark.line + 1


def _joined(text: str) -> str:
    """Return text in which the two halves that JSON writes for a character beyond the first 65,536 are one."""
    return text if _is_unicode(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded; an escape such as `\\ud800` is half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass
class _Anchored:
    value: Any
    size: int
    references: list[tuple[Key, str]]


class _Composer:
    """Builds data from PyYAML's events. They come one by one, so that the limits stop a hostile text early."""

    def __init__(self, text: str, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.document = Document(None)
        self.events: Iterator[Event] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self.anchors: dict[str, _Anchored | None] = {}  # None while the anchored collection is still open
        self.nodes = 0
        self.referred: list[tuple[Key, str]] = []  # `document.references` in the order of the text

    def read_document(self) -> Any:
        next(self.events)  # stream start
        first = next(self.events)
        if isinstance(first, StreamEndEvent):
            return None
        value = self.read(next(self.events), (), 0)
        next(self.events)  # document end
        after = next(self.events)
        if not isinstance(after, StreamEndEvent):
            raise YamlProblem(
                "a second document starts here", line_of(after), "a recipe is one document: remove the '---'"
            )
        return value

    def read(self, event: Event, key: Key, depth: int) -> Any:
        if isinstance(event, AliasEvent):
            return self.alias(event, key)
        self.count(1, event)
        if depth > MAX_DEPTH:
            raise YamlProblem(f"nested more than {MAX_DEPTH} deep", line_of(event), "a recipe nests about four deep")
        anchor = getattr(event, "anchor", None)
        before, referred = self.nodes, len(self.referred)
        if anchor is not None:
            self.anchors[anchor] = None
        if isinstance(event, CollectionStartEvent):
            value = self.collection(event, key, depth)
        else:
            value = self.scalar(event, key)
        if anchor is not None:
            inner = [(place[len(key) :], text) for place, text in self.referred[referred:]]
            self.anchors[anchor] = _Anchored(value, self.nodes - before + 1, inner)
        return value

    def count(self, nodes: int, event: Event) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            message = f"more than {MAX_NODES} values once aliases are filled in"
            raise YamlProblem(message, line_of(event), "a recipe has tens of values")

    def alias(self, event: AliasEvent, key: Key) -> Any:
        name = event.anchor
        if name not in self.anchors:
            raise YamlProblem(
                f"*{name} refers to an anchor that is not defined above",
                line_of(event),
                "quote the value if it is text",
            )
        anchored = self.anchors[name]
        if anchored is None:
            raise YamlProblem(f"*{name} refers to itself", line_of(event), "write the value out")
        self.count(anchored.size, event)
        for place, text in anchored.references:
            self.refer((*key, *place), text)
        return copy.deepcopy(anchored.value)  # a copy, so that an override changes one place only

    def collection(self, event: CollectionStartEvent, key: Key, depth: int) -> Any:
        self.tag(event, ("map",) if isinstance(event, MappingStartEvent) else ("seq",))
        if isinstance(event, SequenceStartEvent):
            return self.sequence(key, depth)
        return self.mapping(key, depth)

    def sequence(self, key: Key, depth: int) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            place = (*key, len(values))
            self.document.lines[place] = line_of(event)
            values.append(self.read(event, place, depth + 1))
        return values

    def mapping(self, key: Key, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            name = self.unescaped(self.name(event), key, line_of(event))
            place = (*key, name)
            if name in values:
                first = self.document.lines[place]
                self.remark(place, line_of(event), f"given twice (first on line {first})", "keep one of the two")
            else:
                self.document.lines[place] = line_of(event)
            value = self.read(next(self.events), place, depth + 1)
            values.setdefault(name, value)
        return values

    def name(self, event: Event) -> str:
        if not isinstance(event, ScalarEvent):
            raise YamlProblem("a key is not a plain name", line_of(event), "keys are words, such as `learning_rate:`")
        if event.value == "<<" and event.style is None:
            message = "the merge key `<<` is not read here"
            raise YamlProblem(message, line_of(event), "write the keys out (it left YAML in version 1.2)")
        self.count(1, event)
        name = _joined(str(event.value))
        if not _is_unicode(name):
            raise YamlProblem("a key with a character that is not Unicode", line_of(event), "remove it")
        return name

    def unescaped(self, name: str, block: Key, line: int) -> str:
        """Return a key with `${` for `$${`, as in values; environment variables are replaced in values only."""
        try:
            return expand(name, {})
        except MissingVariable:
            remedy = "write the key out; $${ is the text ${"
            self.remark((*block, name), line, "`${NAME}` in a key is not replaced by an environment variable", remedy)
            return name

    def scalar(self, event: Event, key: Key) -> Any:
        assert isinstance(event, ScalarEvent)  # the only node event left
        tag = self.tag(event, ("str", "int", "float", "bool", "null"))
        text = self.expanded(_joined(str(event.value)), key, line_of(event))
        self.count(len(text) // CHARACTERS_A_NODE, event)  # a long text is repeated by aliases, too
        if "\0" in text or not _is_unicode(text):
            raise YamlProblem("a control character, or one that is not Unicode", line_of(event), "remove it")
        plain = event.style is None
        if tag == "str" or (tag is None and not plain):
            return text
        try:
            return read_scalar(text)
        except ValueError as error:
            remedy = "write a smaller number, or quote it as text"
            raise YamlProblem(f"{error}: no recipe needs one", line_of(event), remedy) from error

    def expanded(self, text: str, key: Key, line: int) -> str:
        try:
            value = expand(text, self.environ)
            for name in names_in(text):
                self.refer(key, text)
                hide(name, self.environ[name])
            return value
        except MissingVariable as error:
            self.document.remarks.append(Remark(key, line, error.message, error.suggestion, unset=True))
            return text

    def refer(self, key: Key, text: str) -> None:
        self.document.references[key] = text
        self.referred.append((key, text))

    def tag(self, event: Event, allowed: tuple[str, ...]) -> str | None:
        tag = getattr(event, "tag", None)
        if tag is None or tag == "!":
            return "str" if tag == "!" and "str" in allowed else None
        name = _TAGS.get(tag)
        if name not in allowed:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            raise YamlProblem(f"the tag {shown} is not read here", line_of(event), "write the plain value")
        return name

    def remark(self, key: Key, line: int, message: str, suggestion: str | None) -> None:
        self.document.remarks.append(Remark(key, line, message, suggestion))
