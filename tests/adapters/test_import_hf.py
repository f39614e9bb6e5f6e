"""What HF peft itself saved, imported: the same logits here; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from peftcli.adapters.loading import load_adapter
from peftcli.adapters.transfer import export_run, import_adapter
from peftcli.errors import UserError
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.tasks.task_table import task_info
from tests.adapters.test_hf_methods import CAUSAL, SEQ_CLS, hf_load, logits
from tests.tiny import tiny_model

CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "lora": ("LoraConfig", "llama", CAUSAL, {"r": 3, "target_modules": ["q_proj"]}),
    "lora with a head": ("LoraConfig", "bert", SEQ_CLS, {"r": 3, "target_modules": ["query", "value"]}),
    "dora and rslora": (
        "LoraConfig",
        "llama",
        CAUSAL,
        {"target_modules": ["q_proj"], "use_dora": True, "use_rslora": True},
    ),
    "biases": ("LoraConfig", "bert", SEQ_CLS, {"target_modules": ["query"], "bias": "all"}),
    "embedding": ("LoraConfig", "bert", SEQ_CLS, {"target_modules": ["word_embeddings", "query"]}),
    "whole modules": ("LoraConfig", "llama", CAUSAL, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "patterns of conv1d": (
        "LoraConfig",
        "gpt2",
        CAUSAL,
        {"target_modules": ["c_attn", "c_fc"], "rank_pattern": {"c_fc": 3}, "alpha_pattern": {"h.0.attn.c_attn": 5}},
    ),
    # HF peft compares patterns with the parameter's path: `gate_proj` alone matches nothing there
    "a module named by its weight": (
        "LoraConfig",
        "llama",
        CAUSAL,
        {
            "r": 3,
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
            "rank_pattern": {"gate_proj.weight": 2},
            "alpha_pattern": {"gate_proj.weight": 5, "up_proj": 7},
        },
    ),
    "adalora": (
        "AdaLoraConfig",
        "llama",
        CAUSAL,
        {"init_r": 4, "target_r": 2, "total_step": 10, "target_modules": ["q_proj", "up_proj"], "lora_alpha": 7},
    ),
    "vera": ("VeraConfig", "llama", CAUSAL, {"r": 8, "target_modules": ["q_proj"], "save_projection": True}),
    "vera without its matrices": (
        "VeraConfig",
        "gpt2",
        CAUSAL,
        {
            "r": 8,
            "target_modules": ["c_attn"],
            "save_projection": False,
            "projection_prng_key": 3,
            "fan_in_fan_out": True,
        },
    ),
    "ia3": (
        "IA3Config",
        "llama",
        CAUSAL,
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "ia3, no feed-forward": ("IA3Config", "bert", SEQ_CLS, {"target_modules": ["key"], "feedforward_modules": []}),
    "ln_tuning": ("LNTuningConfig", "llama", CAUSAL, {"target_modules": ["norm", "input_layernorm"]}),
    "ln_tuning with a head": ("LNTuningConfig", "bert", SEQ_CLS, {"target_modules": ["LayerNorm"]}),
    "oft": ("OFTConfig", "llama", CAUSAL, {"oft_block_size": 8, "target_modules": ["q_proj", "embed_tokens"]}),
    "coft": (
        "OFTConfig",
        "bert",
        SEQ_CLS,
        {"r": 8, "oft_block_size": 0, "target_modules": ["query"], "coft": True},
    ),
    "miss": ("MissConfig", "llama", CAUSAL, {"r": 7, "target_modules": ["q_proj"]}),
    "miss, bat": ("MissConfig", "bert", SEQ_CLS, {"r": 8, "target_modules": ["query"], "init_weights": "bat"}),
    "hira": ("HiraConfig", "llama", CAUSAL, {"r": 3, "target_modules": ["q_proj", "embed_tokens"]}),
    "hira of conv1d": ("HiraConfig", "gpt2", CAUSAL, {"r": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "lokr": (
        "LoKrConfig",
        "llama",
        CAUSAL,
        {
            "r": 2,
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"up_proj": 1},
            "alpha_pattern": {"q_proj": 3},
        },
    ),
    "shira": ("ShiraConfig", "bert", SEQ_CLS, {"r": 3, "target_modules": ["query"], "random_seed": 2}),
    "prefix": ("PrefixTuningConfig", "llama", CAUSAL, {"num_virtual_tokens": 3}),
    "prefix from its network": (
        "PrefixTuningConfig",
        "gpt2",
        CAUSAL,
        {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 8},
    ),
    "prefix with a head": ("PrefixTuningConfig", "gpt2", SEQ_CLS, {"num_virtual_tokens": 3}),
    "prompt": ("PromptTuningConfig", "llama", CAUSAL, {"num_virtual_tokens": 3}),
    "prompt of t5": ("PromptTuningConfig", "t5", "seq2seq_lm", {"num_virtual_tokens": 3}),
    "prompt with a head": ("PromptTuningConfig", "bert", SEQ_CLS, {"num_virtual_tokens": 3}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with every base by family and task."""
    path = tmp_path_factory.mktemp("models")
    for family, task in {(case[1], case[2]) for case in CASES.values()}:
        tiny_model(family, task).save_pretrained(path / f"{family}-{task}")
    return path


def hf_adapter(models: Path, out: Path, kind: str, family: str, task: str, options: dict[str, Any]) -> nn.Module:
    """Save a moved adapter of HF peft, and return it as HF peft loads it."""
    import peft

    config = getattr(peft, kind)(task_type=task_info(task).hf_task_type, **options)
    theirs = peft.get_peft_model(tiny_model(family, task), config).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.save_pretrained(str(out))
    path = out / "adapter_config.json"  # a model made from a config has no name
    saved = json.loads(path.read_text()) | {"base_model_name_or_path": str(models / f"{family}-{task}")}
    path.write_text(json.dumps(saved))
    return hf_load(out, family, task)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_an_import_gives_hf_pefts_logits(case: str, models: Path, tmp_path: Path) -> None:
    kind, family, task, options = CASES[case]
    theirs = logits(hf_adapter(models, tmp_path / "hf", kind, family, task, options))
    assert (theirs - logits(tiny_model(family, task))).abs().max() > 1e-3
    done = import_adapter(tmp_path / "hf", tmp_path / "run")
    # HF peft saves the embedding table itself beside its adapter
    notes = [note for note in done.notes if "copy of the base's own embedding" not in note]
    # and it saves no names of labels
    unnamed = ["names of the labels are unknown" in note for note in notes]
    assert unnamed == ([True] if task_info(task).has_labels else [])
    assert done.task == task
    saved = load_adapter(tmp_path / "run/adapter")
    assert saved.meta.family == family and saved.meta.base["shape"]["vocab_size"] == 128
    model = tiny_model(family, task)
    attachment = apply_method(model, read_anatomy(model), saved.params, masters=False)
    attachment.load_state_dict(saved.state)
    torch.testing.assert_close(logits(model.eval(), attachment), theirs, atol=1e-5, rtol=1e-5)
    export_run(tmp_path / "run", tmp_path / "back", to="hf-peft")
    torch.testing.assert_close(logits(hf_load(tmp_path / "back", family, task)), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_another_base_is_refused_before_its_weights_are_read(models: Path, tmp_path: Path) -> None:
    hf_adapter(models, tmp_path / "hf", *CASES["lora"])
    wide = tiny_model("llama", CAUSAL).config
    wide.hidden_size, wide.intermediate_size = 64, 96
    wide.save_pretrained(tmp_path / "wide")  # a config and no weights at all
    with pytest.raises(UserError, match=r"does not fit .*has shape \(3, 32\), expected \(3, 64\)"):
        import_adapter(tmp_path / "hf", tmp_path / "run", base=str(tmp_path / "wide"))
    with pytest.raises(UserError, match=r"does not fit .*no module is named"):
        import_adapter(tmp_path / "hf", tmp_path / "run", base=str(models / f"gpt2-{CAUSAL}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["lora", "adalora", "vera", "ia3", "oft", "hira"])
def test_missing_unexpected_and_misshapen_tensors(case: str, models: Path, tmp_path: Path) -> None:
    hf_adapter(models, tmp_path / "hf", *CASES[case])
    weights = tmp_path / "hf/adapter_model.safetensors"
    whole = load_file(weights)
    key = next(key for key in whole if "layers.0" in key)

    def refused(tensors: dict[str, torch.Tensor], message: str) -> None:
        save_file(tensors, weights)
        with pytest.raises(UserError, match=message) as caught:
            import_adapter(tmp_path / "hf", tmp_path / "run")
        assert str(tmp_path / "hf") in str(caught.value)
        assert not (tmp_path / "run").exists()

    refused({**whole, key: whole[key].new_zeros(2, 3)}, r"has shape|the scale is not known")
    refused({**whole, "base_model.model.model.nothing": torch.zeros(1)}, r"unexpected model\.nothing")
    refused({**whole, "model.other": torch.zeros(1)}, "does not begin with")
    if case not in ("ia3", "oft"):  # their one tensor per place: without it the place is not adapted
        refused({name: tensor for name, tensor in whole.items() if name != key}, "missing")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("adalora", {"bias": "all"}, "bias"),
        ("vera", {"projection_prng_key": 9}, "not those of projection_prng_key 9"),
        ("prefix", {"num_layers": 3}, "of which this base has 2"),
        ("prefix", {"num_virtual_tokens": None}, "num_virtual_tokens is None"),
        ("prompt", {"num_virtual_tokens": 9}, "has shape"),
        ("lora", {"base_model_name_or_path": None}, "does not name its base model"),
        ("prompt", {"base_model_name_or_path": None}, "does not name its base model"),
        ("lora", {"peft_type": "P_TUNING"}, "peft_type 'P_TUNING'"),
    ],
)
def test_what_cannot_be_imported(case: str, change: dict[str, Any], message: str, models: Path, tmp_path: Path) -> None:
    hf_adapter(models, tmp_path / "hf", *CASES[case])
    path = tmp_path / "hf/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        import_adapter(tmp_path / "hf", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_prefix_of_an_encoder_is_refused(models: Path, tmp_path: Path) -> None:
    hf_adapter(models, tmp_path / "hf", *CASES["prefix with a head"])
    with pytest.raises(UserError, match="has an encoder"):
        import_adapter(tmp_path / "hf", tmp_path / "run", base=str(models / f"bert-{SEQ_CLS}"))


@pytest.mark.filterwarnings("ignore")
def test_a_prefix_that_would_have_distances_is_refused(models: Path, tmp_path: Path) -> None:
    hf_adapter(models, tmp_path / "hf", *CASES["prefix"])
    tiny_model("bloom", CAUSAL).config.save_pretrained(tmp_path / "bloom")
    with pytest.raises(UserError, match="by their distance"):
        import_adapter(tmp_path / "hf", tmp_path / "run", base=str(tmp_path / "bloom"))


@pytest.mark.filterwarnings("ignore")
def test_without_the_base_shapes_are_not_checked_and_that_is_said(models: Path, tmp_path: Path) -> None:
    hf_adapter(models, tmp_path / "hf", *CASES["lora"])
    path = tmp_path / "hf/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(tmp_path / "gone")}))
    done = import_adapter(tmp_path / "hf", tmp_path / "run")
    assert "shapes were not checked" in done.notes[0]
    assert load_adapter(tmp_path / "run/adapter").params.name == "lora"


@pytest.mark.filterwarnings("ignore")
def test_rotations_of_an_older_series_are_told(models: Path, tmp_path: Path) -> None:
    hf_adapter(models, tmp_path / "hf", *CASES["oft"])
    path = tmp_path / "hf/adapter_config.json"
    config = json.loads(path.read_text())
    for version, told in ((config["peft_version"], False), ("0.17.1", True), (None, True)):
        path.write_text(json.dumps(config | {"peft_version": version}))
        notes = load_adapter(tmp_path / "hf").notes
        assert any("before 0.18" in note for note in notes) == told
