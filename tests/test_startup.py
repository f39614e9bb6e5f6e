"""What a command loads, in a fresh process: nothing heavy for an answer at once, nothing unused for a run.

How many CPU seconds that takes is measured by `python -m benchmarks.startup`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.startup import one_step

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "datasets", "accelerate", "sklearn", "numpy", "pandas", "matplotlib", "bitsandbytes")
UNUSED = (
    "bitsandbytes", "datasets", "evaluate", "matplotlib", "mlflow", "pandas", "peft",
    "pyarrow", "sacrebleu", "seqeval", "sklearn", "tensorboard", "torchaudio", "torchvision", "transformers.pipelines",
    "transformers.trainer", "trl", "wandb",
)  # fmt: skip
"""What a run of LoRA on rows of token ids never needs. (accelerate, scipy and torch._dynamo come with transformers.)"""

PROBE = """
import sys
sys.argv = ["peft", *{arguments!r}]
{before}
from peftcli.cli.app import main
try:
    main()
except SystemExit as stop:
    code = stop.code
print(f"code={{code or 0}} loaded={{sorted(name for name in {unwanted!r} if name in sys.modules)}}", file=sys.stderr)
"""


def loaded(arguments: list[str], unwanted: tuple[str, ...], before: str = "") -> str:
    """Return the exit code of `peft ARGUMENTS` in a fresh process, and which unwanted modules it loaded.

    Args:
        before: Python that runs first.
    """
    probe = PROBE.format(arguments=arguments, unwanted=unwanted, before=before)
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["--version"], ["train", "--help"], ["validate", "configs/lora.yaml"], ["schema"], ["methods"]),
        ["runs", "recipes"],
    ],
    ids=" ".join,
)
def test_loads_nothing_heavy(arguments: list[str]) -> None:
    assert loaded(arguments, HEAVY) == "code=0 loaded=[]"


def test_the_first_questions_come_before_anything_heavy() -> None:
    """The model is answered, then a file that is not there, then the input ends."""
    typed = "import io; from peftcli.console.starting_views import questions; questions.can_ask = lambda: True\n"
    typed += "sys.stdin = io.StringIO('org/name' + chr(10) + 'gone.jsonl' + chr(10))\n"
    assert loaded(["init", "-o", "gone.yaml"], HEAVY, before=typed) == "code=130 loaded=[]"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]], ids=" ".join)
def test_help_loads_no_schema(arguments: list[str]) -> None:
    """pydantic and the recipe's models take longer than all the rest of `peft --help`."""
    assert loaded(arguments, (*HEAVY, "pydantic", "yaml")) == "code=0 loaded=[]"


def test_training_loads_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    recipe = one_step(tmp_path)
    assert loaded(["train", str(recipe), "--quiet"], UNUSED) == "code=0 loaded=[]"
