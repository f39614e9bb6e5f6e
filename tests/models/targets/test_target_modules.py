"""From the entries of `target_modules` to projections."""

from __future__ import annotations

import pytest
import torch

from peftcli.errors import UserError
from peftcli.models.read_anatomy import read_anatomy
from peftcli.models.targets.target import Target, summarise_targets
from peftcli.models.targets.target_modules import resolve_targets
from tests.models.inputs import task_of
from tests.tiny import FAMILIES, LAYERS, tiny_model


def _resolve(family: str, targets: list[str] | str, task: str | None = None, **options: object) -> list[Target]:
    with torch.device("meta"):
        model = tiny_model(family, task or task_of(family))
    return resolve_targets(model, read_anatomy(model), targets, **options)  # type: ignore[arg-type]  # test keywords


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_and_values_can_be_targeted_alone(family: str) -> None:
    targets = _resolve(family, ["attn.q", "attn.v"])
    assert {target.role for target in targets} == {"attn.q", "attn.v"}
    assert len({target.key for target in targets}) == len(targets)
    blocks = {(target.stack, target.layer) for target in targets}
    assert len(targets) == 2 * len(blocks)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_linear_of_the_blocks_and_nothing_else(family: str) -> None:
    targets = _resolve(family, "all-linear")
    modules = {target.module for target in targets}
    assert all(target.slice is None and target.layer is not None for target in targets)
    assert {target.kind for target in targets} <= {"linear", "conv1d"}
    assert not any(name.endswith(("lm_head", "classifier", "score", "pooler.dense", "mlp.gate")) for name in modules)
    with torch.device("meta"):
        model = tiny_model(family, task_of(family))
    anatomy = read_anatomy(model)
    assert {linear.module for linear in anatomy.linears} <= modules


def test_a_fused_module_by_name_is_whole_and_by_role_a_slice() -> None:
    whole = _resolve("gpt2", ["c_attn"])
    assert [(t.key, t.slice, t.kind, t.role) for t in whole] == [
        (f"transformer.h.{i}.attn.c_attn", None, "conv1d", None) for i in range(LAYERS)
    ]
    slices = _resolve("gpt2", ["attn.v", "attn.q"])
    assert [t.key for t in slices[:2]] == ["transformer.h.0.attn.c_attn.q", "transformer.h.0.attn.c_attn.v"]
    assert [t.slice.start for t in slices[:2] if t.slice] == [0, 64]


def test_a_slice_goes_into_its_whole_module() -> None:
    assert _resolve("gpt2", ["attn.q", "c_attn"]) == _resolve("gpt2", ["c_attn"])


def test_a_branch_is_all_its_linears() -> None:
    assert {t.role for t in _resolve("llama", ["ffn"])} == {"ffn.gate", "ffn.up", "ffn.down"}
    assert {t.module.split(".", 3)[3] for t in _resolve("gpt2", ["attn"])} == {"attn.c_attn", "attn.c_proj"}


@pytest.mark.parametrize(
    ("entry", "count"),
    [("q_proj", LAYERS), ("self_attn.q_proj", LAYERS), ("model.layers.0.self_attn.q_proj", 1), ("lm_head", 1)],
)
def test_names_match_on_dots_only(entry: str, count: int) -> None:
    assert len(_resolve("llama", [entry])) == count
    with pytest.raises(UserError, match="no module is named"):
        _resolve("llama", [entry[1:]])


def test_a_string_is_one_regular_expression_over_whole_paths() -> None:
    targets = _resolve("llama", r".*layers\.1\..*(q|v)_proj")
    assert [t.module for t in targets] == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    with pytest.raises(UserError, match="matches no linear or embedding module's whole path"):
        _resolve("llama", r"layers\.1\..*q_proj")
    with pytest.raises(UserError, match=r"write a list: \[q_proj\]"):
        _resolve("llama", "q_proj")
    with pytest.raises(UserError, match=r"no regular expression"):
        _resolve("llama", r"(q_proj")


def test_embeddings_by_role_and_by_name() -> None:
    by_role, by_name = _resolve("gpt2", ["embeddings"]), _resolve("gpt2", ["wte"])
    assert by_role == by_name
    assert (by_role[0].kind, by_role[0].layer) == ("embedding", None)
    assert _resolve("bart", ["embeddings"])[0].module == "model.encoder.embed_tokens"


def test_the_head_by_role() -> None:
    targets = _resolve("roberta", ["head"], "sequence_classification")
    assert [t.module for t in targets] == ["classifier.dense", "classifier.out_proj"]


def test_layers_to_transform() -> None:
    assert {t.layer for t in _resolve("llama", ["attn.q"], layers=[1])} == {1}
    assert {t.layer for t in _resolve("llama", ["attn.q", "lm_head"], layers=0)} == {0}
    with pytest.raises(UserError, match=r"blocks 0 to 1, not 5"):
        _resolve("llama", ["attn.q"], layers=[0, 5])
    with pytest.raises(UserError, match=r"none of the targets is in these blocks"):
        _resolve("llama", ["lm_head"], layers=[0])


def test_exclude_modules() -> None:
    assert {t.role for t in _resolve("llama", ["attn"], exclude=["o_proj", "attn.k"])} == {"attn.q", "attn.v"}
    kept = _resolve("llama", "all-linear", exclude=r".*layers\.0\..*")
    assert {t.layer for t in kept} == {1}
    with pytest.raises(UserError, match=r"exclude_modules: no module is named 'q_prj'"):
        _resolve("llama", ["attn"], exclude=["q_prj"])
    with pytest.raises(UserError, match="leaves no target"):
        _resolve("llama", ["attn.q"], exclude=["attn"])


def test_an_excluded_role_leaves_the_other_roles_of_a_fused_module() -> None:
    kept = _resolve("gpt2", ["c_attn"], exclude=["attn.k"])
    assert {t.role for t in kept} == {"attn.q", "attn.v"}
    assert all(t.slice is not None for t in kept)


def test_all_wrong_entries_are_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        _resolve("gpt2", ["q_proj", "ffn.gate", "attn", "mlp"])
    first, second, third = caught.value.problems
    assert "no module is named 'q_proj'" in first.message and "c_proj" in (first.suggestion or "")
    assert "attn.q, attn.k, attn.v, attn.o, ffn.up, ffn.down" in (first.suggestion or "")
    assert second.message == "this gpt2 model has no ffn.gate"
    assert "'mlp' is a GPT2MLP" in third.message and "c_fc" in (third.suggestion or "")
    assert all(problem.key == "method.target_modules" for problem in caught.value.problems)


def test_experts_and_routers_are_refused_with_their_reason() -> None:
    with pytest.raises(UserError, match=r"a 3-D parameter that holds all experts, and this method"):
        _resolve("mixtral", ["experts"])
    with pytest.raises(UserError, match=r"no ffn \(.*router"):
        _resolve("mixtral", ["ffn"])


def test_sites_of_methods_are_no_targets() -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
        anatomy = read_anatomy(model)
        before = resolve_targets(model, anatomy, "all-linear")
        model.model.layers[0].self_attn.q_proj.add_module("peft_site", torch.nn.Linear(2, 2))
    assert resolve_targets(model, anatomy, "all-linear") == before


def test_the_summary_counts_roles_and_layers() -> None:
    assert summarise_targets(_resolve("llama", ["attn.q", "attn.v"])) == "attn.q x 2, attn.v x 2 (2 layers matched)"
    assert (
        summarise_targets(_resolve("gpt2", ["c_attn", "wte"]))
        == "transformer.wte x 1, attn.c_attn x 2 (2 layers matched)"
    )
    assert summarise_targets(_resolve("t5", ["cross_attn.q"])) == "cross_attn.q x 2 (2 layers matched)"
    assert summarise_targets(_resolve("t5", ["attn.q"])) == "attn.q x 4 (4 layers matched)"
