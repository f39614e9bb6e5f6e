"""Fixtures for the worked example of CONTRIBUTING.md: its module, installed as a plug-in, whole or changed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peftcli.protocol import registry as registry_module
from tests.docs.pages import ROOT


@pytest.fixture
def body() -> str:
    """Return the module of the plug-in: the example."""
    (text,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S)
    return text


WritePlugin = Callable[[str], None]
"""Installs a module with this text."""


@pytest.fixture
def write_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritePlugin]:
    """Install a module as a package of its own, as pip would: the module and its metadata on the path."""

    def write(text: str) -> None:
        (entry,) = re.findall(
            r"^```toml\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M | re.S
        )
        (tmp_path / "gain_method.py").write_text(text, encoding="utf-8")
        metadata = tmp_path / "gain_method-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: gain-method\nVersion: 1.0\n", encoding="utf-8")
        points = entry.replace('[project.entry-points."peftcli.methods"]', "[peftcli.methods]").replace('"', "")
        (metadata / "entry_points.txt").write_text(points, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")

    registry_module._find.cache_clear()
    yield write
    registry_module._find.cache_clear()
    sys.modules.pop("gain_method", None)


@pytest.fixture
def plugin(body: str, write_plugin: WritePlugin) -> None:
    """Install the example."""
    write_plugin(body)
