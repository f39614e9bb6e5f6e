"""HF peft as the oracle for AdaLoRA, VeRA, (IA)3, prefix and prompt tuning, both ways."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftcli.adapters.format import describe
from peftcli.adapters.loading import load_adapter
from peftcli.adapters.saving import save_adapter
from peftcli.adapters.transfer import export_run
from peftcli.errors import UserError
from peftcli.models.load.identity import BaseIdentity
from peftcli.models.read_anatomy import read_anatomy
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from peftcli.recipe.method_params import MethodParams
from tests.models.structure.small_models import small_model
from tests.tiny import tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9, 2], [11, 12, 13, 14, 2, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
IDENTITY = BaseIdentity("tiny", None, "sha256:0", None, "float32", "any", {})

CAUSAL, SEQ_CLS = "causal_lm", "sequence_classification"

CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "adalora": ("adalora", "llama", CAUSAL, {"init_r": 4, "target_r": 2}),
    "adalora of conv1d": ("adalora", "gpt2", CAUSAL, {"init_r": 4, "target_r": 2, "target_modules": ["c_attn"]}),
    "adalora with a head": ("adalora", "bert", SEQ_CLS, {"init_r": 3, "target_r": 3, "lora_alpha": 7.0, "tinit": 5}),
    "vera": ("vera", "llama", CAUSAL, {"r": 16, "projection_prng_key": 7}),
    "vera of a large seed": ("vera", "llama", CAUSAL, {"r": 4, "projection_prng_key": 2**40}),
    "vera of conv1d": ("vera", "gpt2", CAUSAL, {"r": 8, "target_modules": ["c_attn", "c_fc"]}),
    "vera with a head": ("vera", "bert", SEQ_CLS, {"r": 8, "target_modules": "all-linear"}),
    "ia3": ("ia3", "llama", CAUSAL, {}),
    "ia3 of bert": ("ia3", "bert", SEQ_CLS, {}),
    "ia3 of t5": ("ia3", "t5", "seq2seq_lm", {}),
    "ia3 of conv1d": ("ia3", "gpt2", CAUSAL, {"target_modules": ["c_attn", "mlp.c_proj"]}),
    "ia3, no feed-forward": ("ia3", "qwen2", CAUSAL, {"target_modules": ["attn.v", "attn.o"]}),
    "ln_tuning": ("ln_tuning", "llama", CAUSAL, {}),
    "ln_tuning with a head": ("ln_tuning", "bert", SEQ_CLS, {}),
    "ln_tuning, saved whole": ("ln_tuning", "llama", CAUSAL, {"modules_to_save": ["lm_head"]}),
    "ln_tuning of t5": ("ln_tuning", "t5", "seq2seq_lm", {}),
    "oft": ("oft", "llama", CAUSAL, {"oft_block_size": 8}),
    "oft with a head": ("oft", "bert", SEQ_CLS, {"r": 4, "oft_block_size": 0, "use_cayley_neumann": False}),
    "oft of a table": ("oft", "llama", CAUSAL, {"oft_block_size": 4, "target_modules": ["embed_tokens", "attn.q"]}),
    "miss": ("miss", "llama", CAUSAL, {"r": 7}),
    "miss, bat": ("miss", "bert", SEQ_CLS, {"r": 8, "init_weights": "bat"}),
    "miss, mini": ("miss", "llama", CAUSAL, {"r": 8, "init_weights": "mini", "mini_r": 4}),
    "hira": ("hira", "llama", CAUSAL, {"r": 3, "target_modules": ["attn.q", "embed_tokens"]}),
    "hira of conv1d": ("hira", "gpt2", CAUSAL, {"r": 3, "target_modules": ["c_attn"]}),
    "hira, ranks": ("hira", "bert", SEQ_CLS, {"r": 3, "rank_pattern": {"attn.q": 5}}),
    "lokr": ("lokr", "llama", CAUSAL, {"r": 2, "rank_pattern": {"attn.q": 1}, "alpha_pattern": {"v_proj": 3}}),
    "lokr with a head": ("lokr", "bert", SEQ_CLS, {"r": 1, "decompose_both": True, "decompose_factor": 4}),
    "shira": ("shira", "llama", CAUSAL, {"r": 3, "mask_type": "magnitude"}),
    "shira of a large seed": ("shira", "llama", CAUSAL, {"r": 3, "random_seed": 2**40}),
    "shira with a head": ("shira", "bert", SEQ_CLS, {"r": 3, "random_seed": 4}),
    "prefix": ("prefix_tuning", "llama", CAUSAL, {"num_virtual_tokens": 3, "prefix_projection": False}),
    "prefix from its network": ("prefix_tuning", "gpt2", CAUSAL, {"num_virtual_tokens": 4, "encoder_hidden_size": 8}),
    "prefix with a head": ("prefix_tuning", "gpt2", SEQ_CLS, {"num_virtual_tokens": 2, "prefix_projection": False}),
    "prefix of wide heads": ("prefix_tuning", "qwen3", CAUSAL, {"num_virtual_tokens": 3, "prefix_projection": False}),
    "prompt": ("prompt_tuning", "llama", CAUSAL, {"num_virtual_tokens": 3}),
    "prompt of gpt2": ("prompt_tuning", "gpt2", CAUSAL, {"num_virtual_tokens": 3}),
    "prompt of t5": ("prompt_tuning", "t5", "seq2seq_lm", {"num_virtual_tokens": 3}),
    "prompt of bert": ("prompt_tuning", "bert", SEQ_CLS, {"num_virtual_tokens": 3, "prompt_position": "front"}),
}


def logits(model: nn.Module, attachment: Attachment | None = None) -> Tensor:
    """Return the logits of the fixed batch, without those of virtual tokens and padding."""
    batch: dict[str, Any] = {"input_ids": IDS, "attention_mask": MASK}
    if getattr(model.config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = IDS[:, :3]
    if attachment is not None:
        batch = attachment.prepare_inputs(batch)
    with torch.no_grad(), hf_prefix_cache(model):
        found: Tensor = model(**batch).logits
    if found.ndim == 3 and "decoder_input_ids" not in batch:
        return found[:, -IDS.shape[1] :][MASK.bool()]
    return found


@contextmanager
def hf_prefix_cache(model: nn.Module) -> Iterator[None]:
    """Let HF peft find the argument that its prefix goes to: 0.21 asks a classifier for `past_key_values` by name,
    which transformers 5.24 calls `cache` (and still takes under the old name)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else None
    parameters = inspect.signature(base.forward).parameters if isinstance(base, nn.Module) else {}
    if base is None or "cache" not in parameters:
        yield
        return
    forward = base.forward

    def with_the_old_name(past_key_values: Any = None, **kwargs: Any) -> Any:
        return forward(cache=past_key_values, **kwargs)

    base.forward = with_the_old_name
    try:
        yield
    finally:
        del base.forward


def trained(name: str, family: str, task: str, options: dict[str, Any]) -> tuple[nn.Module, Attachment, MethodParams]:
    """Return a model whose adapter has moved."""
    model, params = tiny_model(family, task), registry.info(name).params(**options)
    attachment = apply_method(model, read_anatomy(model), params)
    attachment.initialise(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in attachment.trainable_parameters().items():
            parameter.add_(0.3 * torch.randn_like(parameter))
            if key.endswith("lora_E"):  # one place loses every rank, the others their second one
                parameter[1] = 0.0
                parameter.mul_(0.0 if ".1." in key and "v_proj" in key else 1.0)
    return model.eval(), attachment, params


def save(directory: Path, task: str, parts: tuple[nn.Module, Attachment, MethodParams]) -> None:
    """Save as a run does."""
    model, attachment, params = parts
    meta = describe(attachment, read_anatomy(model), task=task, base=IDENTITY)
    save_adapter(directory, attachment_state=attachment.state_dict(), params=params, meta=meta)


def hf_load(directory: Path, family: str, task: str) -> nn.Module:
    """Load in HF peft; any warning about the adapter is an error, but for its false alarms."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.|transformers\.")
        # AdaLoRA's rank_pattern has other keys than LoRA's, which 0.21 checks it against
        warnings.filterwarnings("ignore", message=r".*rank_pattern")
        # it looks for a width, which a norm of Llama has under no name that it knows
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        # VeRA's matrices are drawn from the seed: that is the choice, and the test shows that they are the same
        warnings.filterwarnings("ignore", message=r".*vera_A and vera_B")
        return PeftModel.from_pretrained(tiny_model(family, task), str(directory)).eval()


def assert_in_hf_layout(directory: Path) -> None:
    assert json.loads((directory / "adapter_config.json").read_text())["peft_type"] != "PEFTCLI"


@pytest.mark.parametrize("case", CASES)
def test_hf_peft_gives_our_logits(case: str, tmp_path: Path) -> None:
    name, family, task, options = CASES[case]
    parts = trained(name, family, task, options)
    ours = logits(parts[0], parts[1])
    assert (ours - logits(tiny_model(family, task))).abs().max() > 1e-3, "the adapter does nothing: an empty comparison"
    save(tmp_path / "adapter", task, parts)
    assert_in_hf_layout(tmp_path / "adapter")
    theirs = logits(hf_load(tmp_path / "adapter", family, task))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_a_prompt_loads_on_a_base_whose_config_has_names_of_its_own(tmp_path: Path) -> None:
    """HF peft asks the config for the number of heads, which a prompt has no use for; MPT's name of it is `n_heads`."""
    from peft import PeftModel

    model, params = small_model("mpt", meta=False), registry.info("prompt_tuning").params(num_virtual_tokens=3)
    attachment = apply_method(model, read_anatomy(model), params)
    attachment.initialise(model)
    save(tmp_path / "adapter", CAUSAL, (model, attachment, params))
    theirs = PeftModel.from_pretrained(small_model("mpt", meta=False), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(theirs), logits(model, attachment), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_we_read_back_exactly_what_we_saved(case: str, tmp_path: Path) -> None:
    name, family, task, options = CASES[case]
    parts = trained(name, family, task, options)
    save(tmp_path / "adapter", task, parts)
    saved = load_adapter(tmp_path / "adapter")
    assert saved.params == parts[2]
    torch.testing.assert_close(saved.state, parts[1].state_dict(), atol=0, rtol=0)
    model = tiny_model(family, task)
    attachment = apply_method(model, read_anatomy(model), saved.params, masters=False)
    attachment.load_state_dict(saved.state)
    torch.testing.assert_close(attachment.state_dict(), parts[1].state_dict(), atol=0, rtol=0)
    # AdaLoRA puts kept ranks first, so that sums are added in another order
    exact = {"atol": 1e-6, "rtol": 1e-6} if name == "adalora" else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(logits(model, attachment), logits(parts[0], parts[1]), **exact)


@pytest.mark.parametrize("case", [case for case in CASES if "adalora" in case])
def test_adalora_as_lora_is_equal(case: str, tmp_path: Path) -> None:
    name, family, task, options = CASES[case]
    parts = trained(name, family, task, options)
    save(tmp_path / "adapter", task, parts)
    export_run(tmp_path / "adapter", tmp_path / "lora", to="hf-peft", instead="lora")
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    theirs = logits(hf_load(tmp_path / "lora", family, task))
    torch.testing.assert_close(theirs, logits(parts[0], parts[1]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "instead"),
    [
        ("adalora", {"init_r": 4, "target_r": 2, "target_modules": ["attn.q", "attn.v", "ffn.up"]}, "lora"),
        ("ia3", {}, None),
        ("ia3", {"target_modules": ["attn.q", "ffn.up"]}, None),
    ],
)
def test_slices_of_fused_projections_are_exported(
    name: str, options: dict[str, Any], instead: Any, tmp_path: Path
) -> None:
    parts = trained(name, "gpt2", CAUSAL, options)
    save(tmp_path / "adapter", CAUSAL, parts)
    export_run(tmp_path / "adapter", tmp_path / "hf", to="hf-peft", instead=instead)
    theirs = logits(hf_load(tmp_path / "hf", "gpt2", CAUSAL))
    torch.testing.assert_close(theirs, logits(parts[0], parts[1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "family", "task", "options", "message"),
    [
        ("adalora", "gpt2", CAUSAL, {"init_r": 4, "target_r": 2, "target_modules": ["attn.q"]}, "--as lora"),
        ("vera", "gpt2", CAUSAL, {"r": 4}, "slices of a fused projection"),
        ("oft", "gpt2", CAUSAL, {"target_modules": ["attn.q"]}, "slices of a fused projection"),
        ("oft", "gpt2", CAUSAL, {"target_modules": ["c_attn"]}, "Conv1D"),
        ("hira", "gpt2", CAUSAL, {"r": 2, "target_modules": ["attn.q"]}, "slices of a fused projection"),
        ("miss", "gpt2", CAUSAL, {"r": 8, "target_modules": ["c_attn"]}, "Conv1D"),
        ("lokr", "gpt2", CAUSAL, {"target_modules": ["c_attn"]}, "Conv1D"),
        ("shira", "gpt2", CAUSAL, {"r": 2, "target_modules": ["c_attn"]}, "Conv1D"),
        ("prefix_tuning", "t5", "seq2seq_lm", {"num_virtual_tokens": 2}, "an encoder-decoder"),
        ("prefix_tuning", "bert", SEQ_CLS, {"num_virtual_tokens": 2}, "an encoder"),
        ("prefix_tuning", "llama", CAUSAL, {"num_virtual_tokens": 2, "shift_positions": False}, "shift_positions"),
        ("prefix_tuning", "bloom", CAUSAL, {"num_virtual_tokens": 2}, "by their distance"),
        ("prefix_tuning", "gpt_neo", CAUSAL, {"num_virtual_tokens": 2}, "by their distance"),
        ("prompt_tuning", "bert", SEQ_CLS, {"num_virtual_tokens": 2}, "prompt_position: front"),
        ("bitfit", "bert", SEQ_CLS, {}, "HF peft has no such method"),
        ("adapter", "bert", SEQ_CLS, {}, "--to adapterhub"),
    ],
)
def test_what_hf_peft_cannot_express_is_ours_alone(
    name: str, family: str, task: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(tmp_path / "adapter", task, trained(name, family, task, options))
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["peft_type"] == "PEFTCLI"
    assert load_adapter(tmp_path / "adapter").state
    with pytest.raises(UserError, match=message):
        export_run(tmp_path / "adapter", tmp_path / "hf", to="hf-peft")
    assert not (tmp_path / "hf").exists()
