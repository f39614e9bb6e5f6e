"""What a method adds to a model is told from the model's own by its name, in one place."""

from __future__ import annotations

from pathlib import Path

import torch

from peftcli.layers.added_modules import ADDED, is_added
from peftcli.layers.site import base_parameters, input_site, output_site


def test_what_lies_below_an_added_module_is_added() -> None:
    assert is_added("layers.0.q_proj.peft_site.parts.0.lora_A") and is_added("peft_phm_rule_0")
    assert not is_added("layers.0.q_proj.weight") and not is_added("layers.0.not_peft_.weight")


def test_every_kind_of_site_has_the_name() -> None:
    host, entry = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for site in (output_site(host), output_site(host, entry), input_site(host)):
        site.register_parameter("own", torch.nn.Parameter(torch.zeros(1)))
    names = [name for name, _ in host.named_parameters()]
    assert len(names) == 5 and sum(map(is_added, names)) == 3
    assert set(base_parameters(host)) == {"weight", "bias"}


def test_nobody_else_spells_the_prefix() -> None:
    package = Path(__file__).resolve().parents[2] / "peftcli"
    files = sorted(package.rglob("*.py"))
    assert len(files) > 20
    spelt = [path.name for path in files if f'"{ADDED}"' in path.read_text(encoding="utf-8")]
    assert spelt == ["added_modules.py"]
