"""What the rest of the program asks about a task. No torch here: `peft validate` reads it.

Nothing outside this room compares a task's name: it asks the task's record, so that a new task is a new record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from peftcli.recipe.schema import TaskName

RowKind = Literal["text", "pairs", "labelled", "tagged", "preferences"]
"""What a row of a task is, and with it how rows are read, encoded and padded:

- `text`: one sequence of tokens. Its labels are its own tokens where they are learnt, -100 elsewhere; a generated text
  goes on where the prompt ends.
- `pairs`: an input and a target. The labels are the target's tokens, a sequence with a length of its own.
- `labelled`: a text, or two, with one label: a class, several classes, or a number.
- `tagged`: words with a tag each. The labels are as long as the tokens: a word's tag at its first token, else -100.
- `preferences`: two sequences of tokens behind each other, each as in a row of `text`: a prompt with the chosen answer,
  and the same prompt with the rejected one.
"""

LabelKind = Literal["single_label", "multi_label", "regression", "token"]
"""A class, several classes or a number for each row, or a tag for each word."""

ModelKind = Literal["encoder", "decoder", "encoder_decoder"]
"""What a model's stacks are; an encoder's attention sees later tokens."""


@dataclass(frozen=True)
class Refusal:
    """Why a kind of model cannot do a task (a clause that starts with "it is"), and what to do instead."""

    reason: str
    remedy: str


@dataclass(frozen=True)
class TaskInfo:
    """One task.

    What serves which question:

    - Rows: `rows` chooses the row formats that fit, the encoder, whether a chat template applies, the shape of the
      labels in a batch, the side on which prompts are padded, and what an inspection shows. `packs`, `why_not_split`
      and `label_kind` (labels are counted before training, so that a task with labels cannot stream) answer the rest.
    - Model: `auto_class`, `mapping`, `whole_class`, `whole_mapping` and `refused`; `label_kind` says whether the model
      gets a head of its own.
    - Evaluation: `predictions` and `generates`.
    - Files for others: `pipeline_tag`, `hf_task_type`, `hf_prompt_copies`, `adapterhub_classes`.

    Args:
        name: as in the recipe.
        summary: what the model is trained to predict, for the documentation.
        auto_class: transformers' class that loads a model for it.
        mapping: transformers' table of the model classes behind that one.
        whole_class, whole_mapping: likewise of models in which a part does the task: text models with towers beside
            them. Such a model is loaded whole, so that nothing of it is lost.
        rows: what a row is.
        predictions: the metrics that are computed unasked, by kind of prediction (`tasks.metric_table` has the
            metrics of each kind). Where there are several kinds, `model.problem_type` or the labels choose one.
        hf_task_type: HF peft's `task_type`; of several tasks with the same, an import takes the first of the table.
        refused: kinds of model that cannot do it.
        generates: whether a prediction is a generated text.
        packs: whether several rows can be packed into one.
        why_not_split: why a long row cannot become several (a clause after "it would"), None where it can.
        pipeline_tag: of a model card, None where the hub has none.
        hf_prompt_copies: how many prompts HF peft keeps in one file, one for each stack that it could be put before.
        adapterhub_classes: how the names of the model classes end that AdapterHub's library has for it; likewise.
    """

    name: TaskName
    summary: str
    auto_class: str
    mapping: str
    rows: RowKind
    predictions: Mapping[str, tuple[str, ...]]
    hf_task_type: str
    refused: Mapping[ModelKind, Refusal]
    generates: bool = False
    packs: bool = False
    why_not_split: str | None = None
    pipeline_tag: str | None = None
    hf_prompt_copies: int = 1
    adapterhub_classes: tuple[str, ...] = ()
    whole_class: str | None = None
    whole_mapping: str | None = None

    @property
    def reads(self) -> RowKind:
        """What the model reads at once: a row, or of `preferences` one of its sequences, which is a row of `text`."""
        return "text" if self.rows == "preferences" else self.rows

    @property
    def sequences(self) -> int:
        """Sequences of one row that the model reads; each is as long as `data.max_length` at most."""
        return 2 if self.rows == "preferences" else 1

    @property
    def label_kind(self) -> LabelKind | None:
        """The kind of its labels where nothing says more; None for a task without labels and without a head."""
        kinds: dict[RowKind, LabelKind] = {"labelled": "single_label", "tagged": "token"}
        return kinds.get(self.rows)

    @property
    def has_labels(self) -> bool:
        """Whether rows have labels by name, which a head of the model's own predicts."""
        return self.label_kind is not None

    @property
    def labels_tokens(self) -> bool:
        """Whether the labels of a row belong to its tokens, one to each."""
        return self.reads in ("text", "tagged")
