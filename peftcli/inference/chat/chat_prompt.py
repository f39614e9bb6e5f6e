"""The turns of a chat as the row that a model goes on from, in the form in which it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftcli.data.chat.conversations import Conversation
from peftcli.data.chat.stop_tokens import end_of_turn, stop_tokens
from peftcli.data.encode.causal import CausalEncoder
from peftcli.data.encode.encoded import TRUNCATED, Outcome
from peftcli.data.encode.recipe_settings import recipe_settings
from peftcli.data.plain_texts import format_of_training, prompts_are_texts
from peftcli.data.read.records import RowError
from peftcli.data.recognition.examples import check_characters
from peftcli.data.recognition.format_table import ASKED_ALONE
from peftcli.data.rows.row_set import Row
from peftcli.errors import UserError
from peftcli.inference.opened_run import OpenedRun


@dataclass(frozen=True)
class Round:
    """What a user said, and what the model answered; None while it has not."""

    asked: str
    answer: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A row to go on from, and how many of the oldest rounds had to be left out of it."""

    row: Row
    left_out: int = 0


class PromptMaker:
    """Makes prompts for one model.

    Attributes:
        stop_ids: tokens that end an answer, besides the model's own.
        keeps_rounds: whether earlier rounds are part of a prompt.
        longest: tokens that prompt and answer may have together.
    """

    def __init__(self, run: OpenedRun) -> None:
        data, task = run.recipe.data, run.recipe.task
        self._format, self._template = run.trained_format, run.data_spec.template
        self.longest = _positions(run)
        settings = recipe_settings(
            run.data_spec.model_copy(update={"overflow": "truncate"}),
            task,
            run.tokenizer,
            self.longest,
            predicting=True,
        )
        self._chat = settings.template
        self._encoder = CausalEncoder(run.tokenizer, settings)
        self.stop_ids = stop_tokens(run.tokenizer, end_of_turn(run.tokenizer, self._chat))
        self.keeps_rounds = True
        if self._chat is None:
            self._format = self._format or format_of_training(data, task)  # of a recipe
            self.keeps_rounds = (
                self._format not in {known.name for known in ASKED_ALONE} or prompts_are_texts(data, task) is False
            )

    def notes(self) -> list[str]:
        """Return what a user should know before the first turn."""
        if self._template is not None:
            return ["this run makes its prompts with data.template; here, the line that you type is the whole prompt"]
        if self.keeps_rounds:
            return []
        return [f"trained on {self._format} rows without a chat template: each turn is answered on its own"]

    def prompt(self, rounds: Sequence[Round], system: str | None, room: int) -> Prompt:
        """Return the prompt of the last round; the oldest ones are left out where it would be too long.

        Args:
            rounds: the last one has no answer yet.
            system: text of a system turn.
            room: tokens to leave for the answer, if that only costs earlier rounds.

        Raises:
            UserError: the last turn alone is too long, or the chat template refuses the conversation.
        """
        kept = list(rounds) if self.keeps_rounds else [rounds[-1]]
        whole = len(kept)
        while True:
            made = self._encode(self._conversation(kept, system))
            (row,) = made.rows
            wanted = min(room, self.longest // 2) if len(kept) > 1 else 1
            if made.status != TRUNCATED and len(row.ids) + wanted <= self.longest:
                return Prompt(Row(row.ids, None, "chat", len(rounds)), whole - len(kept))
            if len(kept) == 1:
                raise UserError(
                    f"this turn has {made.tokens:,} tokens; the model has room for {self.longest:,}, with the answer",
                    suggestion="ask a shorter question",
                )
            del kept[0]

    def _encode(self, conversation: Conversation) -> Outcome:
        try:
            check_characters(conversation)  # what a terminal or an option gives in another encoding
            (made,) = self._encoder.encode([conversation])
        except RowError as error:
            made = error
        if isinstance(made, RowError):
            raise UserError(str(made), suggestion="/reset starts a new conversation; /system changes the system turn")
        return made

    def _conversation(self, rounds: Sequence[Round], system: str | None) -> Conversation:
        asked = rounds[-1].asked
        before = [(each.asked, each.answer or "") for each in rounds[:-1]]
        if self._chat is None and not self.keeps_rounds:
            line = f"{asked}\n" if self._format == "question_answer" and self._template is None else asked
            return Conversation.single(asked, None, (f"{system}\n\n{line}" if system else line, None))
        if self._chat is None and self._format == "alpaca":
            return Conversation.alpaca(asked, "", None, system or "", before)
        messages = [{"role": "system", "content": system}] if system else []
        for question, answer in before:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": asked})
        return Conversation(tuple(messages), (None,) * len(messages))


def _positions(run: OpenedRun) -> int:
    """Return how many tokens the model can place: its positions where they are known, else the recipe's max_length."""
    own = run.task.settings.positions or getattr(run.base.config.get_text_config(), "max_position_embeddings", None)
    return own if isinstance(own, int) and own > 0 else run.data_spec.max_length
