"""How the model lies in the processes: the recipe's word, Accelerate's, and what has no effect is said."""

from __future__ import annotations

import pytest

from peftcli.distributed.strategy import USE_FSDP, Strategy, choose_strategy
from peftcli.errors import UserError
from peftcli.names import NAMES
from peftcli.recipe.load_recipe import load_recipe
from peftcli.recipe.schema import DistributedSpec


def test_auto_is_ddp_unless_accelerate_asks_for_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_strategy(DistributedSpec(), 2, "cpu") == Strategy("ddp")
    monkeypatch.setenv(USE_FSDP, "true")
    assert choose_strategy(DistributedSpec(), 2, "cpu") == Strategy("fsdp")
    assert choose_strategy(DistributedSpec(strategy="ddp"), 2, "cpu") == Strategy("ddp")


def test_what_has_no_effect_is_said() -> None:
    alone = choose_strategy(DistributedSpec(strategy="fsdp"), 1, "cuda")
    assert not alone.sharded and "one process" in str(alone.note)
    offloading = DistributedSpec(strategy="fsdp", cpu_offload=True, reshard_after_forward=False)
    on_gpu, on_cpu = (choose_strategy(offloading, 2, device) for device in ("cuda", "cpu"))
    assert on_gpu == Strategy("fsdp", cpu_offload=True, reshard_after_forward=False)
    assert not on_cpu.cpu_offload and "has no effect" in str(on_cpu.note)
    assert "has no effect" in str(choose_strategy(DistributedSpec(cpu_offload=True), 2, "cuda").note)


@pytest.mark.parametrize("method", NAMES.methods.names())
def test_a_method_that_trains_the_base_takes_no_offload_and_no_optimizer_of_bitsandbytes(method, tmp_path) -> None:
    parts = ", parts: [{name: lora}]" if method == "compose" else ""
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "model: {name_or_path: org/model}\ntask: causal_lm\ndata: {path: rows.jsonl}\n"
        f"method: {{name: {method}{parts}}}\ntraining: {{optim: adamw_8bit}}\n"
        "distributed: {strategy: fsdp, cpu_offload: true}\n"
    )
    if NAMES.methods.info(method).artifact == "adapter":
        assert load_recipe(file, [], NAMES).recipe.distributed.cpu_offload
        return
    with pytest.raises(UserError) as refused:
        load_recipe(file, [], NAMES)
    assert {problem.key for problem in refused.value.problems} == {"distributed.cpu_offload", "distributed.strategy"}
