"""The contracts of a method: this project's own keep them all, and a plug-in that breaks one is told which."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftcli.analysis.method_contracts import check_contracts
from peftcli.analysis.output_effects import difference
from peftcli.protocol.registry import registry
from tests.command_line import Cli
from tests.docs.worked_example import WritePlugin

COMPLETE: dict[str, dict[str, Any]] = {
    "compose": {"parts": [{"name": "lora", "r": 2}, {"name": "prefix_tuning"}]},
    "miss": {"r": 8},
    "shira": {"r": 4},
}
"""Hyper-parameters of the methods that have no complete defaults, or whose defaults are for wider models."""


@pytest.mark.parametrize("name", registry.names())
def test_our_own_methods_keep_every_contract(name: str) -> None:
    findings = check_contracts(registry.info(name).params.model_validate(COMPLETE.get(name, {})))
    assert [finding for finding in findings if not finding.holds] == []
    assert sum(finding.skipped is None for finding in findings) > 12


SITE = "            attachment.place(target.key, part, output_site(view.module).parts)\n"
FAULTS = {
    "changes nothing of the base that it does not list": (
        SITE,
        SITE + "            view.module.weight.data.mul_(1.01)\n",
    ),
    "makes the same tensors on the meta device": (
        "Rescale(view.out_features,",
        'Rescale(1 if view.device.type == "meta" else view.out_features,',
    ),
    "starts as the base, or says why not": (SITE, SITE + "            part.ia3_l.data.fill_(2.0)\n"),
    "every trained tensor has a gradient": (SITE, SITE.replace("output_site(view.module).parts", "[]")),
    "what it saves is all there is, and strict": (
        "        return attachment\n",
        "        attachment.load_state_dict = lambda state: None\n        return attachment\n",
    ),
    "comes off without a trace": (
        "        return attachment\n",
        "        attachment.detach = lambda: None\n        return attachment\n",
    ),
    "switched off, it is the base": (
        "        return attachment\n",
        "        attachment.enable = lambda on=True: None\n        return attachment\n",
    ),
    "merges as it says": ("folding.change_weight(key, factor.mul)", "folding.change_weight(key, factor.add)"),
    "importing it imports no torch": ('"""Gain: y * g', 'import torch\n"""Gain: y * g'),
    "each hyper-parameter has a sentence": (
        '    """Roles, module names, `all-linear`, or one regular expression (a string)."""\n',
        "",
    ),
    "continues from its state bit for bit": (
        "        return attachment\n",
        "        seen = []\n"
        "        attachment.extra_loss = lambda: seen.append(1) or sum(\n"
        "            p.sum() * len(seen) for p in attachment.trainable_parameters().values())\n"
        "        return attachment\n",
    ),
}
"""The contract that a change of the worked example breaks: what to replace, and by what."""


def test_the_worked_example_keeps_every_contract(cli: Cli, plugin: None) -> None:
    done = cli("methods", "--check", "gain:target_modules=[attn.v]", "--json")
    assert done.code == 0, done.err
    assert {finding["model"] for finding in done.json} >= {"llama", "gpt2", "bert", "t5"}
    assert all(finding["holds"] for finding in done.json)


@pytest.mark.parametrize("broken", FAULTS)
def test_a_broken_contract_is_named(
    broken: str,
    body: str,
    write_plugin: WritePlugin,
    cli: Cli,
) -> None:
    old, new = FAULTS[broken]
    assert old in body
    write_plugin(body.replace(old, new))
    done = cli("methods", "--check", "gain", "--json")
    assert done.code == 2
    assert "do not hold" in done.err
    assert broken in {finding["contract"] for finding in done.json if not finding["holds"]}


def test_an_unknown_method_is_answered_before_anything_is_tried(cli: Cli) -> None:
    done = cli("methods", "--check", "lorra")
    assert done.code == 2
    assert "lora" in done.err


def test_outputs_that_are_no_numbers_differ_from_all_others() -> None:
    """A comparison with NaN is false, so that "larger than the limit" would let them pass."""
    ours, broken = torch.ones(2, 3), torch.tensor([[1.0, float("nan"), 1.0]] * 2)
    assert difference(ours, broken) == difference(broken, ours) == difference(broken, broken) == float("inf")
    assert difference(ours, ours) == 0


def test_a_method_of_another_task_is_tried_on_the_models_of_that_task(
    body: str, write_plugin: WritePlugin, cli: Cli
) -> None:
    served = "        learning_rate=1e-2,\n"
    assert served in body
    write_plugin(body.replace(served, f'{served}        tasks=frozenset({{"sequence_classification"}}),\n'))
    done = cli("methods", "--check", "gain:target_modules=[attn.v]", "--json")
    assert done.code == 0, done.err
    tried = {finding["model"] for finding in done.json if finding["model"] and not finding["skipped"]}
    assert tried == {"bert"}
