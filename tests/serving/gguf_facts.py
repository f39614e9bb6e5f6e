"""What is in a GGUF file, as facts that can be stored; and what llama.cpp's converters write, stored in golden.json.

To record them anew, with the sources of llama.cpp (such as those in `pip download --no-deps llama-cpp-python`):

    python -m tests.serving.gguf_facts make DIR          # the models, adapters and merged models of CASES
    python -m tests.serving.convert_by_llama_cpp LLAMA_CPP DIR
    python -m tests.serving.gguf_facts record DIR
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import gguf

GOLDEN = Path(__file__).with_name("golden.json")
KINDS = ("f32", "f16", "q8_0")
_NOT_OURS = ("general.", "GGUF.", "tokenizer.")
"""Keys that are compared by other tests, or say how a file was made."""


def facts(path: Path) -> dict[str, Any]:
    """Return keys with their values, and tensors with shape, type and a hash of their bytes.

    Of a file in another type than f32, one hash stands for all tensors, to keep golden.json small.
    """
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith(_NOT_OURS)}
    kept = ("general.architecture", "general.type", "general.file_type")
    keys |= {name: reader.fields[name].contents() for name in kept if name in reader.fields}
    tensors = {
        tensor.name: [
            "x".join(str(size) for size in tensor.shape),
            tensor.tensor_type.name,
            hashlib.sha256(tensor.data.tobytes()).hexdigest()[:12],
        ]
        for tensor in reader.tensors
    }
    if path.name.endswith("f32.gguf"):
        return {"keys": keys, "tensors": tensors}
    text = json.dumps(sorted(tensors.items()))
    return {"keys": keys, "tensors": hashlib.sha256(text.encode()).hexdigest()[:16]}


def vocabulary(path: Path) -> dict[str, Any]:
    """Return the keys of the tokenizer; long lists as a hash."""
    reader = gguf.GGUFReader(path)
    found = {}
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            value = field.contents()
            text = json.dumps(value, ensure_ascii=False)
            found[name] = value if len(text) < 60 else hashlib.sha256(text.encode()).hexdigest()[:12]
    return found


def _make(directory: Path) -> None:
    from peftcli.merging.merge_run import merge_run
    from tests.serving.served_models import CASES, served_run

    for name, case in CASES.items():
        run = served_run(directory / name, case)
        merge_run(run, directory / name / "merged", dtype="float32", verify=False, use_alone=False)


def _record(directory: Path) -> None:
    found: dict[str, Any] = {}
    for folder in sorted(path for path in directory.iterdir() if path.is_dir()):
        files = {path.name.removesuffix(".gguf"): path for path in sorted(folder.glob("theirs-*.gguf"))}
        found[folder.name] = {name.removeprefix("theirs-"): facts(path) for name, path in files.items()}
        found[folder.name]["vocabulary"] = vocabulary(files["theirs-gguf-f32"])
    lines = json.dumps(found, separators=(",", ":"), ensure_ascii=False).replace('"gguf', '\n"gguf')
    GOLDEN.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    {"make": _make, "record": _record}[sys.argv[1]](Path(sys.argv[2]))
