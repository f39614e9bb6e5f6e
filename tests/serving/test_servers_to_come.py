"""Before training it is said which servers will load the result, by the rules that an export goes by."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftcli.adapters.servers import servers_to_come
from peftcli.errors import UserError
from peftcli.protocol.registry import registry
from peftcli.serving.asked_export import Asked
from peftcli.serving.export_to_server import export_to_server
from tests.merging.runs import make_run

ALL = ["vllm", "llama.cpp", "hf peft"]
METHODS = [
    ({"name": "lora"}, ALL),
    ({"name": "lora", "use_rslora": True, "rank_pattern": {"q_proj": 2}}, ALL),
    ({"name": "lora", "use_dora": True}, ["hf peft"]),
    ({"name": "lora", "bias": "lora_only"}, ["hf peft"]),
    ({"name": "adalora", "init_r": 4, "target_r": 2}, ALL),
    ({"name": "ia3"}, ["hf peft"]),
    ({"name": "adapter"}, []),
]


@pytest.mark.parametrize(("method", "servers"), METHODS, ids=lambda value: str(value)[:40])
def test_the_servers_that_are_said_are_those_that_an_export_reaches(
    method: dict, servers: list[str], tmp_path: Path
) -> None:
    params = registry.info(method["name"]).params.model_validate(method)
    assert servers_to_come(params, "causal_lm") == servers
    run = make_run(tmp_path / "case", "llama", "causal_lm", method, base_class="causal_lm")
    for name, to in (("vllm", "vllm"), ("llama.cpp", "gguf-lora")):
        asked = Asked(run, tmp_path / to, kind="f32")
        if name in servers:
            assert export_to_server(to, asked).tensors
        else:
            with pytest.raises(UserError, match="loads"):
                export_to_server(to, asked)


def test_what_methods_say_of_hf_pefts_files_is_what_is_written() -> None:
    from peftcli.adapters.hf.hf_format import HfFormat
    from peftcli.adapters.hf.hf_table import FORMATS

    for name in registry.names():
        info, known = registry.info(name), FORMATS.get(name)
        assert info.hf_type == (None if known is None else known.peft_type), name
        assert info.plain_lora == (known is not None and type(known).as_lora is not HfFormat.as_lora), name


def test_no_server_of_texts_takes_a_classifier() -> None:
    params = registry.info("lora").params.model_validate({"name": "lora"})
    assert servers_to_come(params, "sequence_classification") == ["hf peft"]
