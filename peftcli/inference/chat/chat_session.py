"""A chat: its turns, how answers are made, and the model that makes them. Knows no terminal."""

from __future__ import annotations

from dataclasses import dataclass, field

from peftcli.errors import UserError
from peftcli.inference.chat.chat_models import ChatModels
from peftcli.inference.chat.chat_prompt import PromptMaker, Round
from peftcli.inference.opened_run import OpenedRun
from peftcli.stop_signals import interrupted_by_keyboard
from peftcli.tasks.decoding import GREEDY, Decoding, OnText
from peftcli.tasks.generation import decoding_note

_DRAWN = Decoding(temperature=1.0)
"""What a turn can be: the temperature is set in a chat."""


@dataclass(frozen=True)
class Answer:
    """An answer.

    Args:
        finish_reason: `stop`, `length` where it reached the limit, or `interrupted` by Ctrl-C.
        left_out: how many of the oldest rounds were not part of the prompt.
    """

    text: str
    finish_reason: str
    left_out: int = 0


@dataclass
class ChatSettings:
    """How answers are made.

    Args:
        max_new_tokens: longest answer in tokens.
        seed: of sampling; each turn draws from it and its own number.
    """

    system: str | None = None
    max_new_tokens: int = 512
    decoding: Decoding = GREEDY
    seed: int = 0


@dataclass
class Chat:
    """A conversation with one of several models.

    Attributes:
        name: of the model that answers.
        rounds: what was said so far.
    """

    models: ChatModels
    settings: ChatSettings = field(default_factory=ChatSettings)
    rounds: list[Round] = field(default_factory=list)
    name: str = ""
    _makers: dict[str, PromptMaker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.name or self.models.names()[0]

    def open(self) -> list[str]:
        """Load the model that answers; return what the user should know of it."""
        run = self.models.use(self.name)
        drawn = decoding_note(run.model, self.settings.decoding if self.settings.decoding.samples else _DRAWN)
        return [*run.notes, *self._maker(self.name, run).notes(), *([drawn] if drawn else [])]

    def switch(self, name: str) -> list[str]:
        """Let another model answer from now on; the turns so far stay. Return what the user should know of it.

        Raises:
            UserError: there is no such model, or it cannot be loaded; the one before goes on answering.
        """
        before, self.name = self.name, self.models.target(name).name
        try:
            return self.open()
        except UserError:
            self.name = before
            raise

    def reset(self) -> None:
        """Forget the turns; the system turn stays."""
        self.rounds.clear()

    def ask(self, text: str, on_text: OnText) -> Answer:
        """Return the answer to a turn of the user, which becomes a part of the chat.

        An interrupt (Ctrl-C) ends the answer, and what there is of it counts.

        Args:
            on_text: receives the answer piece by piece.

        Raises:
            UserError: the turn is too long, or the chat template refuses the conversation; the chat stays as it was.
        """
        rounds = [*self.rounds, Round(text)]
        answer = self._answer(self.models.use(self.name), self.name, rounds, on_text)
        self.rounds = [*self.rounds, Round(text, answer.text)]
        return answer

    def ask_base(self, on_text: OnText) -> Answer:
        """Return what the model without its adapter answers to the last question; the chat stays as it is.

        Raises:
            UserError: nothing was asked yet, or the model has no adapter.
        """
        target = self.models.target(self.name)
        if target.found is None:
            raise UserError(f"{self.name} is used as it is: there is no adapter to leave out")
        if not self.rounds:
            raise UserError(
                "nothing was asked yet", suggestion="ask something first; /base then asks the base the same"
            )
        rounds = [*self.rounds[:-1], Round(self.rounds[-1].asked)]
        return self._answer(self.models.use(self.name, without_adapter=True), self.name, rounds, on_text)

    def _answer(self, run: OpenedRun, name: str, rounds: list[Round], on_text: OnText) -> Answer:
        maker, settings = self._maker(name, run), self.settings
        prompt = maker.prompt(rounds, settings.system, settings.max_new_tokens)
        room = max(1, min(settings.max_new_tokens, maker.longest - len(prompt.row.input_ids)))
        pieces: list[str] = []

        def hear(piece: str) -> None:
            pieces.append(piece)
            on_text(piece)

        task = run.task.generating(maker.stop_ids, settings.decoding, hear, room)
        with interrupted_by_keyboard() as interrupt:
            try:
                made = run.complete(prompt.row, task, seed=settings.seed + len(rounds))
            except KeyboardInterrupt:
                if not interrupt.requested:
                    raise
                return Answer("".join(pieces), "interrupted", prompt.left_out)
        return Answer(made["prediction"], made["finish_reason"], prompt.left_out)

    def _maker(self, name: str, run: OpenedRun) -> PromptMaker:
        """Return what makes the prompts of a model, and of its base: both are asked in the same words."""
        if name not in self._makers:
            self._makers[name] = PromptMaker(run)
        return self._makers[name]
