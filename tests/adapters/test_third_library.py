"""A third library is one class and one line in the table: it is exported to, imported from and loaded at once."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from peftcli.adapters.adapter_files import read_json, read_tensors, write_json, write_tensors
from peftcli.adapters.base_shape import BaseName
from peftcli.adapters.format import AdapterMeta, SavedAdapter
from peftcli.adapters.library import Library
from peftcli.adapters.library_table import LIBRARIES
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.transfer import export_run, import_adapter
from peftcli.atomic import new_directory
from peftcli.errors import UserError
from peftcli.methods.lora import LoraParams
from tests.adapters.test_adapterhub import run_of
from tests.tiny import tiny_model

_ABOUT, _WEIGHTS = "kohya.json", "lora.safetensors"


class Kohya(Library):
    """LoRA alone."""

    name = "kohya"
    title = "kohya-ss"
    files = "those of kohya-ss"
    lacks = "kohya-ss has LoRA only"

    def methods(self) -> Collection[str]:
        """Return LoRA."""
        return ("lora",)

    def recognises(self, directory: Path) -> bool:
        """Tell by the file's name."""
        return (directory / _WEIGHTS).is_file()

    def base_of(self, directory: Path) -> BaseName:
        """Return what the note beside the file says."""
        return BaseName(read_json(directory / _ABOUT).get("base"))

    def read(self, directory: Path, base: BaseName | None) -> SavedAdapter:
        """Read one rank and one alpha."""
        tensors, about = read_tensors(directory / _WEIGHTS), read_json(directory / _ABOUT)
        modules = [key.removesuffix(".lora_down.weight") for key in tensors if key.endswith(".lora_down.weight")]
        names = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
        state = {f"{m}.{ours}": tensors[f"{m}.{theirs}"] for m in modules for theirs, ours in names.items()}
        rank = len(tensors[f"{modules[0]}.lora_down.weight"])
        params = LoraParams(r=rank, lora_alpha=float(tensors[f"{modules[0]}.alpha"]), target_modules=modules)
        return SavedAdapter(params, state, AdapterMeta(task=about["task"]))

    def write(
        self, saved: SavedAdapter, source: Path, output: Path, *, base: str | None, instead: str | None
    ) -> tuple[str, ...]:
        """Write whole modules."""
        assert isinstance(saved.params, LoraParams)
        tensors = {}
        for target in saved.meta.targets:
            if target.slice is not None:
                raise UserError(f"{source}: {target.role} is a slice", suggestion="use --to hf-peft")
            tensors[f"{target.key}.lora_down.weight"] = saved.state[f"{target.key}.lora_A.weight"]
            tensors[f"{target.key}.lora_up.weight"] = saved.state[f"{target.key}.lora_B.weight"]
            tensors[f"{target.key}.alpha"] = torch.tensor(float(saved.params.lora_alpha))
        with new_directory(output) as partial:
            write_tensors(partial / _WEIGHTS, tensors)
            write_json(partial / _ABOUT, {"base": base or saved.meta.base["name"], "task": saved.meta.task})
        return ()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the library into the table, and return a directory of base models."""
    monkeypatch.setitem(LIBRARIES, Kohya.name, Kohya())
    for family in ("llama", "gpt2"):
        tiny_model(family, "causal_lm").save_pretrained(tmp_path / "models" / family)
    return tmp_path / "models"


def test_an_adapter_goes_out_and_comes_back(models: Path, tmp_path: Path) -> None:
    run_of(models, tmp_path / "run", "lora", "llama", "causal_lm", {"r": 3})
    assert export_run(tmp_path / "run", tmp_path / "out", to="kohya").kind == "kohya"
    done = import_adapter(tmp_path / "out", tmp_path / "back")
    assert (done.method, done.task, done.base) == ("lora", "causal_lm", str(models / "llama"))
    ours = load_adapter(tmp_path / "run/adapter").state
    for place in ("back/adapter", "out"):
        found = load_adapter(tmp_path / place)
        assert isinstance(found.params, LoraParams) and found.params.r == 3
        torch.testing.assert_close(found.state, ours, atol=0, rtol=0)


def test_its_base_is_checked_like_that_of_the_others(models: Path, tmp_path: Path) -> None:
    run_of(models, tmp_path / "run", "lora", "llama", "causal_lm", {"r": 3})
    export_run(tmp_path / "run", tmp_path / "out", to="kohya")
    with pytest.raises(UserError, match=r"does not fit .*no module is named"):
        import_adapter(tmp_path / "out", tmp_path / "back", base=str(models / "gpt2"))


def test_what_it_cannot_hold_is_refused(models: Path, tmp_path: Path) -> None:
    run_of(models, tmp_path / "slices", "lora", "gpt2", "causal_lm", {"target_modules": ["attn.q"]})
    with pytest.raises(UserError, match=r"attn\.q is a slice"):
        export_run(tmp_path / "slices", tmp_path / "out", to="kohya")
    run_of(models, tmp_path / "ia3", "ia3", "llama", "causal_lm", {})
    with pytest.raises(UserError, match=r"kohya-ss has LoRA only\n +export it for HF peft: --to hf-peft"):
        export_run(tmp_path / "ia3", tmp_path / "out", to="kohya")
    with pytest.raises(UserError, match="--as lora is for --to hf-peft"):
        export_run(tmp_path / "ia3", tmp_path / "out", to="kohya", instead="lora")
    assert not (tmp_path / "out").exists()
