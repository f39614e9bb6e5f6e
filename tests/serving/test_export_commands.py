"""`peft export --to` a server: what is written, what is said, and what is refused with its remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.command_line import Cli
from tests.merging.runs import make_run
from tests.serving.served_models import LORA, Case, served_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served_run(tmp_path_factory.mktemp("served") / "case", Case("llama", LORA))


def test_a_model_and_an_adapter_for_llama_cpp(run: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("export", run, "-o", tmp_path / "model", "--to", "gguf", "--type", "q8_0", "--json")
    assert done.code == 0, done.err
    assert done.json["files"] == ["model-q8_0.gguf"] and done.json["type"] == "q8_0"
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model-q8_0.gguf"]
    file = tmp_path / "adapter.gguf"
    said = cli("export", run, "-o", file, "--to", "gguf-lora")
    assert said.code == 0 and file.is_file() and f"--lora {file}" in said.out
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    again = cli("export", run, "-o", file, "--to", "gguf-lora")
    assert again.code == 2 and "is a file" in again.err


def test_a_directory_for_ollama(run: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("export", run, "-o", tmp_path / "model", "--to", "ollama").code == 0
    text = (tmp_path / "model/Modelfile").read_text(encoding="utf-8")
    assert text.startswith("FROM ./model-f16.gguf\n") and (tmp_path / "model/model-f16.gguf").is_file()
    assert '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n' in text
    assert text.endswith('PARAMETER stop "<|end|>"\nPARAMETER stop "<|im_end|>"\n')
    said = cli("export", run, "-o", tmp_path / "adapter", "--to", "ollama", "--from", "llama3.2:1b")
    assert said.code == 0 and "ollama create run -f" in said.out
    text = (tmp_path / "adapter/Modelfile").read_text(encoding="utf-8")
    assert text.startswith("FROM llama3.2:1b\nADAPTER ./adapter-f32.gguf\n")
    assert (tmp_path / "adapter/adapter-f32.gguf").is_file()


def test_a_run_on_plain_text_is_not_served_with_the_template_of_its_base(run: Path, cli: Cli, tmp_path: Path) -> None:
    plain = shutil.copytree(run, tmp_path / "plain")
    recipe = (plain / "recipe.yaml").read_text(encoding="utf-8")
    assert recipe.count("chat_template: null") == 1
    (plain / "recipe.yaml").write_text(recipe.replace("chat_template: null", "chat_template: none"), encoding="utf-8")
    for name, more in (("model", ()), ("adapter", ("--from", "llama3.2:1b"))):
        said = cli("export", plain, "-o", tmp_path / name, "--to", "ollama", *more)
        assert said.code == 0, said.err
        assert "trained without a chat template" in said.err and "send it prompts" not in said.err
        assert 'TEMPLATE """{{ .Prompt }}"""' in (tmp_path / name / "Modelfile").read_text(encoding="utf-8")
    for to in ("gguf", "gguf-lora", "vllm"):
        said = cli("export", plain, "-o", tmp_path / to, "--to", to)
        assert said.code == 0 and said.err.count("so send it prompts to complete") == 1, said.err
        assert "send it prompts" not in cli("export", run, "-o", tmp_path / f"{to}-chat", "--to", to).err
    said = cli("merge", plain, "-o", tmp_path / "merged", "--no-verify")
    assert said.code == 0 and "so send it prompts to complete" in said.err, said.err


def test_a_base_of_ollama_that_is_a_file_is_named_by_its_whole_path(
    run: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ollama looks for a relative path beside the Modelfile, and the user means one from here."""
    monkeypatch.chdir(tmp_path)
    Path("base.gguf").touch()
    assert cli("export", run, "-o", "out", "--to", "ollama", "--from", "base.gguf").code == 0
    assert Path("out/Modelfile").read_text(encoding="utf-8").startswith(f"FROM {Path('base.gguf').resolve()}\n")
    gone = cli("export", run, "-o", "other", "--to", "ollama", "--from", "gone.gguf")
    assert gone.code == 2 and "--from gone.gguf: there is no such file" in gone.err
    assert not Path("other").exists()


def test_an_adapter_for_vllm(run: Path, cli: Cli, tmp_path: Path) -> None:
    said = cli("export", run, "-o", tmp_path / "plain", "--to", "vllm")
    assert said.code == 0, said.err
    assert f"vllm serve {run.parent / 'model'} --enable-lora --max-lora-rank 8 --lora-modules run=" in said.out
    assert json.loads((tmp_path / "plain/adapter_config.json").read_text())["r"] == 4


def test_several_ranks_and_alphas_become_one_for_vllm(cli: Cli, tmp_path: Path) -> None:
    """vLLM reads `r` and `lora_alpha` alone; the change of each matrix stays what it was."""
    method = LORA | {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}
    run = served_run(tmp_path / "case", Case("llama", method))
    assert cli("export", run, "-o", tmp_path / "out", "--to", "vllm").code == 0
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    before = load_file(run / "adapter/adapter_model.safetensors")
    after = load_file(tmp_path / "out/adapter_model.safetensors")
    for name, a in before.items():
        if name.endswith("lora_A.weight"):
            other = name.replace("lora_A", "lora_B")
            alpha = 3 if "v_proj" in name else 8
            wanted = alpha / len(a) * before[other] @ a
            found = config["lora_alpha"] / config["r"] * after[other] @ after[name]
            assert len(after[name]) == config["r"] == 4
            assert (wanted - found).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("family", "task", "method", "to", "words"),
    [
        ("llama", "causal_lm", {"name": "lora", "use_dora": True}, "gguf-lora", ("use_dora", "--to gguf")),
        ("llama", "causal_lm", {"name": "lora", "use_dora": True}, "vllm", ("use_dora", "peft merge")),
        ("llama", "causal_lm", {"name": "ia3"}, "vllm", ("loads LoRA", "--to lora --rank")),
        ("llama", "causal_lm", {"name": "prefix_tuning"}, "gguf-lora", ("loads LoRA", "peft predict")),
        ("llama", "causal_lm", {"name": "prefix_tuning"}, "gguf", ("cannot be merged",)),
        ("gpt_neo", "causal_lm", {"name": "lora"}, "gguf-lora", ("family gpt_neo", "llama, mistral, qwen2")),
        ("gpt_neo", "causal_lm", {"name": "lora"}, "gguf", ("family gpt_neo", "peft merge")),
        ("llama", "sequence_classification", {"name": "lora"}, "gguf", ("sequence_classification", "peft merge")),
        ("llama", "sequence_classification", {"name": "lora"}, "vllm", ("sequence_classification", "peft predict")),
    ],
)
def test_what_a_server_cannot_take_is_refused(
    family: str, task: str, method: dict, to: str, words: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "case", family, task, method, base_class="causal_lm")
    found = cli("export", run, "-o", tmp_path / "out", "--to", to)
    assert found.code == 2 and all(word in found.err for word in words), found.err
    assert not (tmp_path / "out").exists()


def test_added_tokens_are_in_the_model_and_refused_beside_the_base(cli: Cli, tmp_path: Path) -> None:
    """The base's GGUF file has no rows for them."""
    import gguf

    run = served_run(tmp_path / "case", Case("llama", LORA), new_special_tokens=["<call>"])
    found = cli("export", run, "-o", tmp_path / "out", "--to", "gguf-lora")
    assert found.code == 2 and "added tokens" in found.err and "--to gguf" in found.err
    assert cli("export", run, "-o", tmp_path / "model.gguf", "--to", "gguf").code == 0
    tokens = gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.tokens"].contents()
    assert "<call>" in tokens


def test_vllm_gets_the_tokenizer_of_added_tokens_where_its_base_has_rows_for_them(cli: Cli, tmp_path: Path) -> None:
    """Without it vLLM would read the new tokens as ordinary text."""
    few = served_run(tmp_path / "few", Case("llama", LORA), new_special_tokens=["<call>"])
    said = cli("export", few, "-o", tmp_path / "out", "--to", "vllm")
    assert said.code == 0 and f"--tokenizer {tmp_path / 'out'}" in said.out, said.err
    assert (tmp_path / "out/tokenizer.json").is_file()
    many = served_run(tmp_path / "many", Case("llama", LORA), new_special_tokens=[f"<call{n}>" for n in range(40)])
    found = cli("export", many, "-o", tmp_path / "other", "--to", "vllm")
    assert found.code == 2 and "added tokens" in found.err and "peft merge" in found.err
    assert not (tmp_path / "other").exists()


def test_all_ends_of_an_answer_are_in_a_gguf_file_or_told(cli: Cli, tmp_path: Path) -> None:
    """`peft predict` stops at those of the base's generation_config.json, too."""
    import gguf

    run = served_run(tmp_path / "case", Case("llama", LORA))
    file = run.parent / "model" / "generation_config.json"
    for ends, more in (([2, 60], ""), ([2, 60, 61, 62], "further ones")):
        file.write_text(json.dumps({"eos_token_id": ends}), encoding="utf-8")
        output = tmp_path / f"{len(ends)}.gguf"
        said = cli("export", run, "-o", output, "--to", "gguf")
        assert said.code == 0 and (more in said.err if more else "further ones" not in said.err), said.err
        fields = gguf.GGUFReader(output).fields
        written = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eot", "eom")]
        assert 60 in written and len(set(written)) == 2


def test_options_that_do_not_go_together_are_refused(run: Path, cli: Cli, tmp_path: Path) -> None:
    for options, words in (
        (("--to", "ggufs"), "did you mean gguf"),
        (("--to", "gguf", "--type", "q4_0"), "q4_0 is none of: f32, f16, q8_0"),
        (("--to", "vllm", "--type", "f16"), "--type is for --to gguf-lora, gguf, ollama"),
        (("--to", "gguf", "--rank", "4"), "--rank is for --to lora"),
        (("--to", "gguf", "--from", "llama3.2"), "--from is for --to ollama"),
        (("--to", "gguf", "--checkpoint", "step-9"), "no checkpoint"),
    ):
        found = cli("export", run, "-o", tmp_path / "out", *options)
        assert found.code == 2 and words in found.err, found.err
