"""What travels with an adapter besides its numbers: the names of its labels, and whether two tables are tied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftcli.adapters.label_names import LABELS
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.transfer import export_run, import_adapter
from peftcli.errors import UserError
from peftcli.record.listing.run_entry import run_entry
from peftcli.training.run import train
from tests.tiny import HIDDEN, VOCAB, save_tiny

ROWS = [{"text": f"the cat {i}", "label": ("sport", "politics")[i % 2]} for i in range(8)]


@pytest.mark.parametrize("library", ["hf-peft", "adapterhub"])
def test_label_names_survive_export_and_import(library: str, recipe, tmp_path: Path) -> None:
    loaded = recipe("bert", "sequence_classification", ROWS, training__max_steps=1,
                    method__target_modules=["attn.q"])  # fmt: skip
    train(loaded)
    export_run(Path(loaded.recipe.output_dir), tmp_path / "exported", to=library)
    assert json.loads((tmp_path / "exported" / LABELS).read_text()) == {
        "names": ["politics", "sport"],
        "problem": "single_label",
    }
    done = import_adapter(tmp_path / "exported", tmp_path / "imported", base=loaded.recipe.model.name_or_path)
    assert not [note for note in done.notes if "label" in note]
    labels = load_adapter(tmp_path / "imported" / "adapter").meta.label_spec
    assert labels is not None
    assert labels.names == ("politics", "sport")
    entry = run_entry(tmp_path / "imported")
    assert (entry.state, entry.method, entry.reason) == ("imported", "lora", None)


def test_names_that_are_nowhere_are_said_to_be_unknown_or_taken_from_the_base(recipe, tmp_path: Path) -> None:
    loaded = recipe("bert", "sequence_classification", ROWS, training__max_steps=1)
    train(loaded)
    export_run(Path(loaded.recipe.output_dir), tmp_path / "exported", to="hf-peft")
    (tmp_path / "exported" / LABELS).unlink()
    done = import_adapter(tmp_path / "exported", tmp_path / "imported")
    assert [note for note in done.notes if "names of the labels are unknown" in note and LABELS in note]
    save_tiny(tmp_path / "named", "bert", "base", id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    done = import_adapter(tmp_path / "exported", tmp_path / "again", base=str(tmp_path / "named"))
    assert [note for note in done.notes if "those of the base's config are used, no, yes" in note]
    (tmp_path / "exported" / LABELS).write_text('{"names": ["a", "b"]}')
    with pytest.raises(UserError, match=r"labels\.json: problem: field required"):
        import_adapter(tmp_path / "exported", tmp_path / "third")


def _tied_adapter(where: Path, base: Path, whole: dict[str, torch.Tensor]) -> None:
    where.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": 2,
              "lora_alpha": 4, "target_modules": ["q_proj"], "modules_to_save": [*whole]}  # fmt: skip
    (where / "adapter_config.json").write_text(json.dumps(config))
    key = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    tensors = {key.format(i, "A"): torch.randn(2, HIDDEN) for i in range(2)}
    tensors |= {key.format(i, "B"): torch.randn(HIDDEN, 2) for i in range(2)}
    save_file(tensors | {f"base_model.model.{name}.weight": value for name, value in whole.items()},
              where / "adapter_model.safetensors")  # fmt: skip


def test_two_tables_for_tied_ones_are_refused_and_equal_ones_are_read(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama", tie_word_embeddings=True)
    one, two = torch.randn(VOCAB, HIDDEN), torch.randn(VOCAB, HIDDEN)
    _tied_adapter(tmp_path / "untied", base, {"model.embed_tokens": one, "lm_head": two})
    with pytest.raises(UserError, match=r"model.embed_tokens.weight and lm_head.weight are one table") as error:
        import_adapter(tmp_path / "untied", tmp_path / "first")
    assert "tie_word_embeddings" in str(error.value.problems[0].suggestion)
    _tied_adapter(tmp_path / "half", base, {"lm_head": two})
    with pytest.raises(UserError, match="changes one of them alone"):
        import_adapter(tmp_path / "half", tmp_path / "second")
    _tied_adapter(tmp_path / "equal", base, {"model.embed_tokens": one, "lm_head": one.clone()})
    import_adapter(tmp_path / "equal", tmp_path / "third")
    kept = load_file(tmp_path / "third" / "adapter" / "adapter_model.safetensors")
    assert torch.equal(kept["base_model.model.lm_head.weight"], one)
