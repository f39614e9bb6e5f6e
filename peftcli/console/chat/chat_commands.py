"""What a line of a chat that begins with a slash does. Knows no terminal: answers are returned as lines to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from peftcli.errors import UserError
from peftcli.inference.chat.chat_session import Chat, ChatSettings
from peftcli.suggestions import did_you_mean, nearest

HELP: Mapping[str, str] = {
    "/system [TEXT]": "set (without TEXT: remove) the system turn; starts a new chat",
    "/reset": "start a new conversation with the same system turn",
    "/base": "ask the base the last question, too, and show both answers",
    "/adapter [NAME]": "let another run answer; without NAME, list them",
    "/set KEY VALUE": "temperature, top_p, top_k, max_new_tokens, seed; /set shows all",
    "/help": "show this",
    "/exit": "leave; Ctrl-D does so, too",
}
"""The commands, in the order of `/help`."""

LEAVE = ("/exit", "/quit", "/bye")


class ChatCommands:
    """Runs the commands of a chat that change it or show what it is; `/base` and `/exit` are the screen's."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._known: dict[str, Callable[[str], list[str]]] = {
            "/system": self._system,
            "/reset": self._reset,
            "/adapter": self._adapter,
            "/set": self._set,
            "/help": self._help,
        }

    def run(self, line: str) -> list[str]:
        """Run a command; return lines to show.

        Raises:
            UserError: there is no such command, or its value is wrong.
        """
        name, _, rest = line.partition(" ")
        if name not in self._known:
            names = [*self._known, "/base", *LEAVE]
            raise UserError(f"there is no command {name}", suggestion=did_you_mean(nearest(name, names), "see /help"))
        return self._known[name](rest.strip())

    def _help(self, _rest: str) -> list[str]:
        width = max(map(len, HELP))
        return [f"{name:{width}}  {what}" for name, what in HELP.items()]

    def _system(self, text: str) -> list[str]:
        self._chat.settings = replace(self._chat.settings, system=text or None)
        self._chat.reset()
        return [
            "the system turn is set; this is a new conversation"
            if text
            else "no system turn; this is a new conversation"
        ]

    def _reset(self, _rest: str) -> list[str]:
        self._chat.reset()
        return ["the chat begins anew"]

    def _adapter(self, name: str) -> list[str]:
        if name:
            return [*self._chat.switch(name), f"{name} answers now"]
        return [f"{'*' if each == self._chat.name else ' '} {each}" for each in self._chat.models.names()]

    def _set(self, rest: str) -> list[str]:
        key, _, value = rest.partition(" ")
        if key:
            self._chat.settings = changed(self._chat.settings, key, value.strip())
        return shown(self._chat.settings)


def shown(settings: ChatSettings) -> list[str]:
    """Return the settings as lines."""
    decoding = settings.decoding
    how = (
        f"temperature {decoding.temperature:g}, top_p {decoding.top_p:g}, top_k {decoding.top_k}, seed {settings.seed}"
    )
    chosen = how if decoding.samples else "greedy (temperature 0)"
    return [f"{chosen}; answers of at most {settings.max_new_tokens} tokens"]


def changed(settings: ChatSettings, key: str, value: str) -> ChatSettings:
    """Return the settings with another value for one of `SETTINGS`.

    Raises:
        UserError: there is no such key, or the value is out of its range.
    """
    if key not in SETTINGS:
        choice = did_you_mean(nearest(key, SETTINGS), f"choose from: {', '.join(SETTINGS)}")
        raise UserError(f"there is nothing called {key!r} to set", suggestion=choice)
    kind, least, most = SETTINGS[key]
    try:
        number = kind(value)
    except ValueError:
        number = None
    if number is None or not least <= number <= most:
        raise UserError(f"{key} is {value!r}", suggestion=f"a number from {least:g} to {most:g}")
    value_of: dict[str, Any] = {key: number}
    if key in ("max_new_tokens", "seed"):
        return replace(settings, **value_of)
    decoding = settings.decoding
    if key == "temperature" and not number:  # greedy: what belongs to sampling goes with it
        return replace(settings, decoding=replace(decoding, temperature=0.0, top_p=1.0, top_k=0))
    return replace(settings, decoding=replace(decoding, **value_of))


SETTINGS: Mapping[str, tuple[Callable[[str], float], float, float]] = {
    "temperature": (float, 0.0, 100.0),
    "top_p": (float, 1e-6, 1.0),
    "top_k": (int, 0, 10**6),
    "max_new_tokens": (int, 1, 10**6),
    "seed": (int, 0, 2**32 - 1),
}
"""What `/set` sets: how its value is read, and the least and greatest one."""
