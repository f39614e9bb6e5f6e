"""Fixtures of the data tests: a cache of their own, and a small byte-level tokenizer with the usual chat tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.tools import chat_tokenizer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTCLI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tokenizer() -> Any:
    return chat_tokenizer()
