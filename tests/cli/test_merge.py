"""`peft merge` from the outside: several runs, options that do not go together, JSON, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import Cli
from tests.merging.runs import make_run
from tests.merging.several.test_combine_runs import two_runs

DARE_TIES = ("--combination-type", "dare_ties", "--density", "0.5")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with a random LoRA adapter."""
    return make_run(
        tmp_path_factory.mktemp("merge"), "llama", "causal_lm", {"name": "lora", "r": 4}, base_class="causal_lm"
    )


def test_json_has_the_promised_keys_and_nothing_else_is_printed(cli: Cli, run: Path, tmp_path: Path) -> None:
    done = cli("merge", run, "-o", tmp_path / "merged", "--dtype", "bfloat16", "--json")
    assert done.code == 0, done.err
    report = done.json
    assert report["output"] == str(tmp_path / "merged") and report["dtype"] == "bfloat16" and report["verified"] is True
    assert 0 <= report["mean_abs_diff"] <= report["max_abs_diff"] <= report["tolerance"]
    assert 0.0 <= report["agreement"] <= 1.0 and report["quantization_agreement"] is None


def test_without_json_it_says_what_was_verified(cli: Cli, run: Path, tmp_path: Path) -> None:
    done = cli("merge", run, "-o", tmp_path / "merged", "--max-shard-size", "40KB")
    assert done.code == 0, done.err
    assert (
        "in float32, 4 of 21 tensors changed" in done.out
        and "verified on 6 rows: 100.0% of the predictions agree" in done.out
    )
    assert (tmp_path / "merged/model.safetensors.index.json").is_file()
    skipped = cli("merge", run, "-o", tmp_path / "unverified", "--no-verify")
    assert skipped.code == 0 and "not verified" in skipped.out


def test_several_runs(cli: Cli, tmp_path: Path) -> None:
    one, two, _ = two_runs(tmp_path, "llama", "causal_lm", {"r": 4}, {"r": 4})
    done = cli("merge", one, two, "-o", tmp_path / "merged", "--weights", "0.7,-0.3", "--rank", 4, "--json")
    assert done.code == 0, done.err
    assert done.json["verified"] is True and "cut to rank 4 by singular values" in done.json["notes"]
    ties = ("--weights", "0.7,0.3", "--combination-type", "ties", "--density", "0.5", "--adapter")
    adapter = cli("merge", one, two, "-o", tmp_path / "adapter", *ties)
    assert adapter.code == 0 and "a LoRA at 4 modules" in adapter.out and "verified on 6 rows" in adapter.out
    again = cli("merge", tmp_path / "adapter", "-o", tmp_path / "again", "--no-verify")
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "0.5"], "--weights: for several runs"),
        (["--rank", "4"], "--rank: for several runs"),
        (["--seed", "0"], "--seed: for several runs"),
        (["--adapter"], "--adapter: for several runs"),
        (["again", "--weights", "1,1", "--combination-type", "tie"], "did you mean ties?"),
        (["again", "--weights", "1,1", "--combination-type", "ties"], "add --density 0.5"),
        (["again", "--weights", "1,1", "--combination-type", "ties", "--density", "1.5"], "above 0 and at most 1"),
        (["again", "--weights", "1,1", "--density", "0.5"], "--density does not go with cat"),
        (["again", "--weights", "1,1", "--combination-type", "linear", "--rank", "4"], "does not go with linear"),
        (["again", "--weights", "1,1", "--seed", "4"], "--seed does not go with cat"),
        (["again", "--weights", "1,1", *DARE_TIES, "--majority-sign-method", "mean"], "neither total nor frequency"),
        (["again", "--weights", "1,1", "--adapter", "--dtype", "float16"], "--dtype does not go with --adapter"),
        (["again"], "add --weights 0.5,0.5"),
        (["--requantize", "--no-verify"], "--no-verify does not go with --requantize"),
        (["again", "--weights", "1,1", "--requantize"], "--requantize is for one run"),
        (["again", "--weights", "1,nan"], "weights must be numbers"),
        (["again", "--weights", "a,b"], "is not a list of numbers"),
        (["again", "--weights", "1,1,1"], "2 runs and 3 weights"),
        (["--dtype", "int8"], "none of: auto, float32, bfloat16, float16"),
        (["--max-shard-size", "big"], "is not a size"),
        (["--base", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_exit_with_2_and_leave_nothing(
    cli: Cli, run: Path, arguments: list[str], message: str, tmp_path: Path
) -> None:
    given = [str(run) if argument == "again" else argument for argument in arguments]
    done = cli("merge", run, *given, "-o", tmp_path / "merged")
    assert done.code == 2 and message in done.err and "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_a_failed_verification_exits_with_3(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from peftcli.merging import compare_outputs

    monkeypatch.setitem(compare_outputs.TOLERANCE, torch.float32, 0.0)
    monkeypatch.setattr(compare_outputs, "TIMES_ROUNDING", 0.0)
    done = cli("merge", run, "-o", tmp_path / "merged")
    assert done.code == 3 and "was not written" in done.err and not list(tmp_path.iterdir())
