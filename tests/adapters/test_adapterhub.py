"""AdapterHub's files: keys and shapes as its table has them, its forward pass written out, and the way back.

The library itself pins an older transformers and cannot be installed beside this one: `hub_forward` repeats, from its
sources (methods/bottleneck.py, methods/modeling.py, 1.3), what it computes in a BERT block.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from peftcli.adapters.format import describe
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.saving import save_adapter
from peftcli.adapters.transfer import export_run, import_adapter
from peftcli.errors import UserError
from peftcli.models.load.load_model import identify
from peftcli.models.load.model_files import find_source
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.recipe.schema import ModelSpec
from tests.adapters.test_hf_methods import CAUSAL, SEQ_CLS, logits
from tests.tiny import tiny_model

PLAIN = {"train_layer_norm": False}
CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "houlsby": ("adapter", "bert", SEQ_CLS, {"bottleneck_size": 6, **PLAIN}),
    "pfeiffer": ("adapter", "bert", SEQ_CLS, {"placement": "pfeiffer", "bottleneck_size": 8}),
    "parallel": ("parallel_adapter", "bert", SEQ_CLS, {"bottleneck_size": 8}),
    "parallel, both": (
        "parallel_adapter",
        "bert",
        SEQ_CLS,
        {"bottleneck_size": 5, "placement": "both", "scaling": 2.0},
    ),
    "compacter": ("compacter", "bert", SEQ_CLS, {"bottleneck_size": 8, "phm_rank": 2, **PLAIN}),
    "compacter++": ("compacter", "bert", SEQ_CLS, {"bottleneck_size": 8, "placement": "ffn", **PLAIN}),
    "lora": ("lora", "bert", SEQ_CLS, {"r": 3, "target_modules": ["attn.q", "attn.v", "ffn.up"]}),
    "rslora": ("lora", "bert", SEQ_CLS, {"r": 4, "use_rslora": True}),
    "pissa": ("lora", "bert", SEQ_CLS, {"r": 2, "init_lora_weights": "pissa"}),
    "distilbert": ("adapter", "distilbert", SEQ_CLS, {"bottleneck_size": 6, **PLAIN}),
    "llama": ("adapter", "llama", CAUSAL, {"placement": "pfeiffer", "bottleneck_size": 8}),
    "llama lora": ("lora", "llama", CAUSAL, {"r": 3, "target_modules": ["attn.q", "ffn.up"]}),
    "gpt2": ("adapter", "gpt2", CAUSAL, {"bottleneck_size": 8, **PLAIN}),
    "gpt2 lora": ("lora", "gpt2", CAUSAL, {"r": 3, "target_modules": ["attn.q", "attn.v"]}),
    "gpt2 lora, one layer": ("lora", "gpt2", CAUSAL, {"r": 3, "layers_to_transform": [1]}),
    "t5": ("adapter", "t5", "seq2seq_lm", {"bottleneck_size": 8, **PLAIN}),
    "t5 compacter": ("compacter", "t5", "seq2seq_lm", {"bottleneck_size": 8, **PLAIN}),
    "t5 lora": ("lora", "t5", "seq2seq_lm", {"target_modules": ["attn.q", "cross_attn.q"], "r": 2}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with every base; only its config is needed, and its name."""
    path = tmp_path_factory.mktemp("models")
    for family, task in {(case[1], case[2]) for case in CASES.values()} | {("bloom", CAUSAL)}:
        tiny_model(family, task).save_pretrained(path / family)
    return path


def run_of(
    models: Path, out: Path, name: str, family: str, task: str, options: dict[str, Any]
) -> tuple[nn.Module, Attachment]:
    """Leave a moved adapter as a run leaves it, and return the model that has it."""
    model = tiny_model(family, task)
    params, anatomy = registry.info(name).params(**options), read_anatomy(model)
    attachment = apply_method(model, anatomy, params)
    attachment.initialise(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in attachment.trainable_parameters().values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    base = str(models / family)
    identity = identify(find_source(base), model, torch.float32, None, ModelSpec(name_or_path=base))
    labels = {"problem": "single_label", "names": ["no", "maybe", "yes"]} if task == SEQ_CLS else None
    meta = describe(attachment, anatomy, task=task, base=identity, labels=labels)
    save_adapter(out / "adapter", attachment_state=attachment.state_dict(), params=params, meta=meta)
    (out / "recipe.yaml").touch()  # what tells a run from another directory
    return model.eval(), attachment


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_the_same_adapter(case: str, models: Path, tmp_path: Path) -> None:
    name, family, task, options = CASES[case]
    model, attachment = run_of(models, tmp_path / "run", name, family, task, options)
    export_run(tmp_path / "run", tmp_path / "hub", to="adapterhub")
    done = import_adapter(tmp_path / "hub", tmp_path / "back")
    saved = load_adapter(tmp_path / "back/adapter")
    assert saved.params.name == name == done.method
    if task == SEQ_CLS:
        assert saved.meta.labels == {"problem": "single_label", "names": ["no", "maybe", "yes"]}
    again = tiny_model(family, task)
    restored = apply_method(again, read_anatomy(again), saved.params, masters=False)
    restored.load_state_dict(saved.state)
    exact = {"atol": 1e-6, "rtol": 1e-6} if case == "pissa" else {"atol": 0, "rtol": 0}  # a product of another rank
    torch.testing.assert_close(logits(again.eval(), restored), logits(model, attachment), **exact)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in load_file(path).items()}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            "houlsby",
            {
                "bert.encoder.layer.0.output.adapters.peftcli.adapter_down.0.weight": (6, 32),
                "bert.encoder.layer.0.output.adapters.peftcli.adapter_down.0.bias": (6,),
                "bert.encoder.layer.0.output.adapters.peftcli.adapter_up.weight": (32, 6),
                "bert.encoder.layer.1.attention.output.adapters.peftcli.adapter_up.bias": (32,),
            },
        ),
        (
            "compacter",
            {
                "bert.encoder.layer.0.output.adapters.peftcli.adapter_down.0.W_left": (4, 8, 2),
                "bert.encoder.layer.0.output.adapters.peftcli.adapter_down.0.W_right": (4, 2, 2),
                "bert.encoder.layer.0.output.adapters.peftcli.adapter_down.0.b": (8,),
                "bert.encoder.layer.0.attention.output.adapters.peftcli.adapter_up.W_left": (4, 2, 2),
                "bert.shared_parameters.peftcli.phm_rule": (4, 4, 4),
            },
        ),
        ("t5", {"encoder.block.0.layer.0.adapters.peftcli.adapter_up.weight": (32, 8)}),
        ("t5", {"decoder.block.1.layer.2.adapters.peftcli.adapter_down.0.weight": (8, 32)}),
        ("llama", {"model.layers.0.output_adapters.adapters.peftcli.adapter_down.0.weight": (8, 32)}),
        ("gpt2", {"transformer.h.1.attention_adapters.adapters.peftcli.adapter_up.bias": (32,)}),
        ("lora", {"bert.encoder.layer.0.attention.self.query.loras.peftcli.lora_A": (3, 32)}),
        ("lora", {"bert.encoder.layer.0.intermediate.dense.loras.peftcli.lora_B": (48, 3)}),
        ("gpt2 lora", {"transformer.h.0.attn.c_attn.loras.peftcli.lora_A": (6, 32)}),
        ("gpt2 lora", {"transformer.h.0.attn.c_attn.loras.peftcli.lora_B": (64, 3)}),
        ("t5 compacter", {"shared_parameters.peftcli.phm_rule": (4, 4, 4)}),
    ],
)
def test_keys_and_shapes_are_the_librarys(case: str, expected: Any, models: Path, tmp_path: Path) -> None:
    run_of(models, tmp_path / "run", *CASES[case])
    export_run(tmp_path / "run", tmp_path / "hub", to="adapterhub")
    found = shapes(tmp_path / "hub/adapter.safetensors")
    assert {key: found.get(key) for key in expected} == expected
    config = json.loads((tmp_path / "hub/adapter_config.json").read_text())
    assert config["name"] == "peftcli" and config["version"] == "adapters.1.3.0" and config["hidden_size"] == 32
    assert {"model_class", "model_name", "model_type", "config"} <= config.keys()
    head = (tmp_path / "hub/model_head.safetensors").is_file()
    assert head == (CASES[case][2] == SEQ_CLS)


def test_options_say_where_adapters_are(models: Path, tmp_path: Path) -> None:
    def inner(case: str) -> dict[str, Any]:
        out = tmp_path / case.replace("+", "p")
        run_of(models, out / "run", *CASES[case])
        export_run(out / "run", out / "hub", to="adapterhub")
        found: dict[str, Any] = json.loads((out / "hub/adapter_config.json").read_text())["config"]
        return found

    houlsby, pfeiffer, parallel = inner("houlsby"), inner("pfeiffer"), inner("parallel")
    assert (houlsby["mh_adapter"], houlsby["output_adapter"], houlsby["original_ln_before"]) == (True, True, False)
    assert int(32 // houlsby["reduction_factor"]) == 6 and "architecture" not in houlsby
    assert (pfeiffer["mh_adapter"], pfeiffer["output_adapter"], pfeiffer["original_ln_before"]) == (False, True, True)
    assert pfeiffer["non_linearity"] == "relu" and houlsby["non_linearity"] == "gelu"
    assert parallel["is_parallel"] and parallel["scaling"] == 2.0
    assert not inner("llama")["original_ln_before"], "no norm follows the sum there: the adapter sees the branch"
    lora = inner("llama lora")
    assert (lora["attn_matrices"], lora["intermediate_lora"], lora["output_lora"]) == (["q"], False, True)
    assert inner("gpt2 lora, one layer")["leave_out"] == [0]
    assert inner("rslora")["alpha"] == pytest.approx(16 * 2)


def hub_forward(model: nn.Module, directory: Path) -> None:
    """Make a BERT compute what AdapterHub's library computes from these files."""
    config = json.loads((directory / "adapter_config.json").read_text())["config"]
    tensors = load_file(directory / "adapter.safetensors")
    rule = tensors.get("bert.shared_parameters.peftcli.phm_rule")
    act = {"relu": functional.relu, "gelu": functional.gelu}.get(
        config["non_linearity"], lambda x: functional.gelu(x, approximate="tanh")
    )

    def project(x: Tensor, key: str) -> Tensor:
        if rule is None:
            return functional.linear(x, tensors[f"{key}.weight"], tensors[f"{key}.bias"])
        weight = tensors[f"{key}.W_left"] @ tensors[f"{key}.W_right"]
        full = torch.stack([torch.kron(a, b) for a, b in zip(rule, weight, strict=True)]).sum(0)
        return x @ full + tensors[f"{key}.b"]

    def install(path: str) -> None:
        host: Any = model.get_submodule(path)
        key = f"{path}.adapters.peftcli"

        def forward(hidden: Tensor, input_tensor: Tensor) -> Tensor:
            hidden = host.dense(hidden)
            seen = input_tensor if config["is_parallel"] else hidden
            if config["original_ln_before"] and not config["is_parallel"]:
                seen = host.LayerNorm(hidden + input_tensor)
            change = project(act(project(seen, f"{key}.adapter_down.0")), f"{key}.adapter_up") * config["scaling"]
            out: Tensor = host.LayerNorm(hidden + change + input_tensor)
            return out

        host.forward = forward

    for number in range(2):
        if config["mh_adapter"]:
            install(f"bert.encoder.layer.{number}.attention.output")
        if config["output_adapter"]:
            install(f"bert.encoder.layer.{number}.output")


@pytest.mark.parametrize("case", ["houlsby", "pfeiffer", "parallel", "parallel, both", "compacter", "compacter++"])
def test_their_forward_pass_gives_our_logits(case: str, models: Path, tmp_path: Path) -> None:
    model, attachment = run_of(models, tmp_path / "run", *CASES[case])
    export_run(tmp_path / "run", tmp_path / "hub", to="adapterhub")
    theirs = tiny_model("bert", SEQ_CLS).eval()
    plain = logits(theirs)
    hub_forward(theirs, tmp_path / "hub")
    theirs.load_state_dict(load_file(tmp_path / "hub/model_head.safetensors"), strict=False)
    ours = logits(model, attachment)
    assert (ours - plain).abs().max() > 1e-2
    torch.testing.assert_close(logits(theirs), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "family", "task", "options", "message"),
    [
        ("adapter", "bert", SEQ_CLS, {}, "train_layer_norm: false"),
        ("adapter", "bert", SEQ_CLS, {"placement": "pfeiffer", "norm_before": False}, "norm_before"),
        ("parallel_adapter", "llama", CAUSAL, {}, "not equivalent"),
        ("adapter", "bloom", CAUSAL, PLAIN, "puts adapters in a bloom model"),
        ("bitfit", "bert", SEQ_CLS, {}, "bitfit cannot be exported"),
        ("lora", "bert", SEQ_CLS, {"use_dora": True}, "use_dora"),
        ("lora", "bert", SEQ_CLS, {"rank_pattern": {"attn.q": 2}}, "one rank"),
        ("lora", "bert", SEQ_CLS, {"target_modules": ["attn.o"]}, "no option for attn.o"),
        ("lora", "t5", "seq2seq_lm", {"target_modules": ["attn.q"]}, "cross-attention with self-attention"),
        ("lora", "llama", CAUSAL, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_it_cannot_express_is_refused(
    name: str, family: str, task: str, options: dict[str, Any], message: str, models: Path, tmp_path: Path
) -> None:
    run_of(models, tmp_path / "run", name, family, task, options)
    with pytest.raises(UserError, match=message):
        export_run(tmp_path / "run", tmp_path / "hub", to="adapterhub")
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"original_ln_before": False}}, "its adapters see the branch alone"),
        ({"config": {"inv_adapter": "nice"}}, "inv_adapter"),
        ({"config": {"use_gating": True}}, "use_gating"),
        ({"config": {"leave_out": [0]}}, "leave_out"),
        ({"config": {"scaling": "learned"}}, "scaling"),
        ({"config": {"architecture": "prefix_tuning"}}, "'prefix_tuning' of AdapterHub"),
        ({"model_class": "BertAdapterModel"}, "flexible heads"),
        ({"model_type": "roberta"}, "made for a roberta model"),
        ({"name": "other"}, "unexpected bert"),
    ],
)
def test_what_has_no_equal_here_is_refused(change: dict[str, Any], message: str, models: Path, tmp_path: Path) -> None:
    run_of(models, tmp_path / "run", *CASES["pfeiffer"])
    export_run(tmp_path / "run", tmp_path / "hub", to="adapterhub")
    path = tmp_path / "hub/adapter_config.json"
    config = json.loads(path.read_text())
    inner = {**config["config"], **change.get("config", {})}
    path.write_text(json.dumps({**config, **change, "config": inner}))
    with pytest.raises(UserError, match=message):
        import_adapter(tmp_path / "hub", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_pickles_are_not_read(models: Path, tmp_path: Path) -> None:
    run_of(models, tmp_path / "run", *CASES["pfeiffer"])
    export_run(tmp_path / "run", tmp_path / "hub", to="adapterhub")
    (tmp_path / "hub/adapter.safetensors").rename(tmp_path / "hub/pytorch_adapter.bin")
    with pytest.raises(UserError, match="is a pickle"):
        import_adapter(tmp_path / "hub", tmp_path / "back")


def test_a_missing_key_and_a_missing_head_are_told(models: Path, tmp_path: Path) -> None:
    run_of(models, tmp_path / "run", *CASES["pfeiffer"])
    export_run(tmp_path / "run", tmp_path / "hub", to="adapterhub")
    (tmp_path / "hub/model_head.safetensors").unlink()
    with pytest.raises(UserError, match=r"missing classifier\.weight"):
        import_adapter(tmp_path / "hub", tmp_path / "back")
    weights = tmp_path / "hub/adapter.safetensors"
    tensors = load_file(weights)
    tensors.pop("bert.encoder.layer.0.output.adapters.peftcli.adapter_up.bias")
    save_file(tensors, weights)
    with pytest.raises(UserError, match=r"missing bert\.encoder\.layer\.0\.output"):
        import_adapter(tmp_path / "hub", tmp_path / "back")


def test_old_loras_keep_the_scale_that_they_were_trained_with(models: Path, tmp_path: Path) -> None:
    run_of(models, tmp_path / "run", *CASES["lora"])
    export_run(tmp_path / "run", tmp_path / "hub", to="adapterhub")
    path = tmp_path / "hub/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "adapters.1.0.1"}))
    done = import_adapter(tmp_path / "hub", tmp_path / "back")
    assert "ignored alpha" in done.notes[0]
    params: Any = load_adapter(tmp_path / "back/adapter").params
    assert params.lora_alpha == params.r == 3
