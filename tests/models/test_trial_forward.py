"""What `all-linear` leaves out is found by a forward pass without values, and a real backward pass agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from peftcli.assembly.outline import outline
from peftcli.errors import UserError
from peftcli.methods.ia3 import IA3Params
from peftcli.methods.lora import LoraParams
from peftcli.models import trial_forward
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.structure import norms_and_biases
from peftcli.models.targets import target_search
from peftcli.models.trial_forward import passed_over, without_gradient
from peftcli.protocol.apply_method import apply_method
from peftcli.protocol.attachment import Attachment
from peftcli.protocol.registry import registry
from tests.tiny import tiny_model, tiny_tokenizer

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
MORE = {**SMALL, "intermediate_size": 48, "vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {**MORE, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
STATE = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2, "mamba_n_groups": 1}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 24}
GROUPS = {"embedding_size": 32, "intermediate_size": 48}
GATE = {"shared_expert_intermediate_size": 24}
SPARSE = {**LATENT, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
INDEX = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 4, "first_k_dense_replace": 1}
LLAMA4 = {**EXPERTS, "intermediate_size_mlp": 48, "num_experts_per_tok": 1, "head_dim": 8, "moe_layers": [0, 1]}
LONGCAT = {**MORE, **LATENT, "num_key_value_heads": 4, "num_layers": 2, "ffn_hidden_size": 48, "n_routed_experts": 4}
LONGCAT |= {"expert_ffn_hidden_size": 24, "moe_topk": 2, "zero_expert_num": 2, "head_dim": 8, "qk_head_dim": 24}
MARIAN = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
MARIAN |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 99}
MARIAN |= {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}

ROUTER, READ = "a router", "read without a call"
CASES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "Llama4Text": (LLAMA4, {"feed_forward.router": ROUTER}),
    "Phimoe": (EXPERTS, {"mlp.router": ROUTER}),
    "HunYuanMoEV1": ({**EXPERTS, "head_dim": 8, "moe_topk": 2}, {"mlp.gate.wg": ROUTER}),
    "LongcatFlash": (LONGCAT, {"mlp.router.classifier": READ}),
    "Qwen2Moe": ({**EXPERTS, **GATE}, {}),
    "Bamba": ({**MORE, **STATE, "attn_layer_indices": [1]}, {"mamba.out_proj": "mamba2_split_conv1d_scan_combined"}),
    "DeepseekV32": (
        {**EXPERTS, **SPARSE, **INDEX},
        dict.fromkeys(("indexer.wq_b", "indexer.wk"), "no gradient"),
    ),
    "Marian": (MARIAN, dict.fromkeys((f"encoder_attn.{x}_proj" for x in ("q", "k", "v", "out")), "does not call it")),
}


def _model(name: str, device: str = "cpu") -> PreTrainedModel:
    settings, _ = CASES[name]
    with torch.device(device):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**settings)
        model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config)
    return model


def _attached(model: PreTrainedModel, entries: list[str] | str = "all-linear", r: int = 2) -> Attachment:
    return apply_method(model, read_anatomy(model), LoraParams(r=r, target_modules=entries))


@pytest.mark.parametrize("name", ["Phimoe", "Bamba", "Qwen2Moe", "DeepseekV32"])
def test_blocks_that_are_alike_are_run_once_with_the_same_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = {"Bamba": {"attn_layer_indices": [2, 5]}}.get(name, {})
    config = getattr(transformers, f"{name}Config")(**{**CASES[name][0], "num_hidden_layers": 7, **deep})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    runs: list[int] = []
    run = trial_forward._Trial.run
    monkeypatch.setattr(trial_forward, "_TRIED", {})
    monkeypatch.setattr(trial_forward._Trial, "run", lambda self, n: runs.append(len(self.linears)) or run(self, n))
    short = passed_over(model)
    ran = max(runs)
    monkeypatch.setattr(trial_forward, "_TRIED", {})
    monkeypatch.setattr(trial_forward, "_with_one_block_of_each_kind", lambda model: None)
    assert passed_over(model) == short
    assert (ran < max(runs)) == (name != "DeepseekV32")  # what gets no gradient is tried with all blocks


def test_families_of_the_table_need_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_search, "passed_over", lambda model: 1 / 0)
    monkeypatch.setattr(norms_and_biases, "without_gradient", lambda model: 1 / 0)
    model = tiny_model("llama")
    assert _attached(model).placed


@pytest.mark.parametrize("name", CASES)
def test_all_linear_leaves_out_where_a_change_is_lost_and_everything_else_gets_a_gradient(name: str) -> None:
    model = _model(name)
    attachment = _attached(model)
    for placed in attachment.placed:
        torch.nn.init.normal_(placed.part.get_parameter("lora_B.weight"), std=0.1)
    ids = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    dead = [key for key, tensor in attachment.trainable_parameters().items() if tensor.grad is None]
    assert attachment.placed and dead == []

    targets = {target.module for target in attachment.targets}
    for ending, reason in CASES[name][1].items():
        assert not any(path.endswith(ending) for path in targets)
        assert any(ending in note and reason in note for note in attachment.notes)


@pytest.mark.parametrize("name", CASES)
def test_parameters_without_a_gradient_are_those_of_a_real_backward_pass(name: str) -> None:
    model = _model(name)
    ids = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, use_cache=False).logits.sum().backward()
    real = {each for each, tensor in model.named_parameters() if tensor.grad is None}
    experts = {each for each in real if ".experts." in each}  # which of them a text meets depends on the text
    assert {each for each in without_gradient(model) if ".experts." not in each} == real - experts


@pytest.mark.parametrize("name", ["XLNet", "SqueezeBert"])
def test_it_is_told_by_the_graph_where_no_backward_pass_runs_and_of_few_linears(name: str) -> None:
    """A step of XLNet has no gradient without values; SqueezeBERT has two linears, and one is not used."""
    sizes = {"XLNet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "SqueezeBert": {**MORE, **GROUPS}}
    config = getattr(transformers, f"{name}Config")(**{**sizes[name], "vocab_size": 99})
    model = transformers.AutoModelForTokenClassification.from_config(config)
    ids = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids).logits.sum().backward()
    real = {each for each, tensor in model.named_parameters() if tensor.grad is None}
    assert real and without_gradient(model) == real


@pytest.mark.parametrize("method", ["ln_tuning", "adapter", "compacter", "freeze", "full"])
def test_what_is_trained_in_place_has_a_gradient_or_is_left_out_with_a_note(method: str) -> None:
    model = _model("DeepseekV32", "meta")
    given = {"freeze": {"trainable": "norms"}, "compacter": {"phm_dim": 4}}.get(method, {})
    params = registry.info(method).params.model_validate({"name": method, **given})
    attachment = apply_method(model, read_anatomy(model), params)
    assert attachment.unfrozen and not any("indexer" in name for name in attachment.unfrozen)
    assert any("no gradient of a text" in note and "indexer.k_norm.weight" in note for note in attachment.notes)


@pytest.fixture(scope="module")
def cross_attending() -> PreTrainedModel:
    """Return a text model whose second block attends to images."""
    text = {**MORE, "num_hidden_layers": 3, "cross_attention_layers": [1], "intermediate_size": 48}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16, "intermediate_size": 48, "intermediate_layers_indices": [0]}
    with torch.device("meta"):
        return transformers.MllamaForConditionalGeneration(
            transformers.MllamaConfig(vision_config={**vision, "vision_output_dim": 64}, text_config=text)
        )


def test_a_block_that_text_does_not_reach_takes_no_part(cross_attending: PreTrainedModel) -> None:
    anatomy = read_anatomy(cross_attending)
    (idle,) = anatomy.idle
    assert idle.endswith("layers.1") and "cross_attn.q" not in anatomy.roles()
    assert {linear.layer for linear in anatomy.linears} == {block.layer for block in anatomy.blocks} == {0, 2}
    assert any("no gradient of a text reaches" in note and "cross_attn.q_proj" in note for note in anatomy.notes)
    with pytest.raises(UserError, match=r"no cross_attn.q \(.*cross_attn.q_proj: no gradient of a text reaches it"):
        _attached(cross_attending, ["cross_attn.q"])
    params = registry.info("loreft").params
    placed = apply_method(cross_attending, anatomy, params.model_validate({"name": "loreft"})).placed
    assert len(placed) == 2 and not any(idle in each.key for each in placed)
    with pytest.raises(UserError, match="layers: no gradient of a text reaches"):
        apply_method(cross_attending, anatomy, params.model_validate({"name": "loreft", "layers": [1]}))


def test_freezing_counts_the_blocks_that_text_reaches(cross_attending: PreTrainedModel) -> None:
    params = registry.info("freeze").params.model_validate({"name": "freeze", "num_layers": 2})
    trained = apply_method(cross_attending, read_anatomy(cross_attending), params).unfrozen
    assert {name.split("layers.")[1].split(".")[0] for name in trained} == {"0", "2"}


def test_bitfit_says_that_no_bias_has_a_gradient() -> None:
    model = _model("DeepseekV32", "meta")
    with pytest.raises(UserError, match="no bias terms that a gradient reaches"):
        apply_method(model, read_anatomy(model), registry.info("bitfit").params())


@pytest.mark.parametrize("name", ["Llama4Text", "Bamba"])
def test_the_answer_is_the_same_without_values_and_with_parts_in_the_model(name: str) -> None:
    model = _model(name)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        before = passed_over(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    _attached(model)
    assert before and passed_over(model) == before == passed_over(_model(name, "meta"))


def test_a_gate_of_one_row_is_left_out_with_a_note_at_any_rank_above_it() -> None:
    notes = _attached(_model("Qwen2Moe", "meta"), r=2).notes
    assert "target_modules leaves mlp.shared_expert_gate out (2 layers): rank 2 is above its 1 x 32" in notes


@pytest.mark.parametrize(("name", "entry"), [("Phimoe", "router"), ("Bamba", "mamba.out_proj")])
def test_what_no_change_fits_is_refused_by_name(name: str, entry: str) -> None:
    with pytest.raises(UserError, match=r"cannot be a target: it") as caught:
        _attached(_model(name, "meta"), [entry])
    assert caught.value.problems[0].key == "method.target_modules"


def test_a_method_with_places_of_its_own_has_nothing_to_leave_out() -> None:
    model = _model("Qwen2Moe", "meta")
    attachment = apply_method(model, read_anatomy(model), IA3Params())
    assert attachment.placed and not any("leaves mlp" in note for note in attachment.notes)


def test_an_expression_leaves_it_out_too() -> None:
    targets = _attached(_model("Phimoe", "meta"), r".*layers\.0\..*").targets
    assert targets and not any("router" in target.module for target in targets)


def test_a_model_that_cannot_run_without_values_keeps_all_its_linears() -> None:
    config = transformers.LlamaConfig(**MORE)

    class Stubborn(transformers.LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor, **words: Any) -> Any:
            raise ValueError("wants values")

    with torch.device("meta"):
        assert passed_over(Stubborn(config)) == {}


@pytest.mark.parametrize(("name", "named"), [("Phimoe", "mlp.router"), ("Qwen2Moe", "mlp.shared_expert_gate")])
def test_a_header_says_once_and_truly_what_takes_no_part(name: str, named: str, recipe: Any, tmp_path: Path) -> None:
    _model(name).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    loaded = recipe("llama", "causal_lm", model=str(tmp_path / "base"))  # r = 4, all-linear
    notes = [note for note in outline(loaded, torch.device("cpu")).notes if named in note]
    assert len(notes) == 1 and "leaves" in notes[0]
