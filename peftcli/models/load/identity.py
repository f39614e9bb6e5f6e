"""What a run remembers of its base: enough to find it again and to notice that it changed. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from peftcli.models.weights.tensor_header import header_bytes, read_header

_SAMPLES = 16
_SAMPLE_BYTES = 4096
_BUDGET, _LEAST, _MOST = 2**26, 2**12, 2**16
"""Bytes that are read of all tensors together, and of one at least and at most."""
# Keys that saving rewrites without changing the model.
_VOLATILE_CONFIG = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")


@dataclass(frozen=True)
class BaseIdentity:
    """The base model of a run.

    Args:
        name: as the recipe names it.
        revision: commit of the hub, or None.
        fingerprint: hash of the weight files' headers, sizes and sampled bytes, and of the config; see `fingerprint`.
        quantization: such as `bitsandbytes nf4 double bfloat16`, or None.
        dtype: of the frozen weights in memory.
        model_type: of the config.
        versions: of the libraries that loaded it.
        shape: hidden_size, layers and vocab_size.
        source: `safetensors`, `gguf`, or `config` (no weights were read).
        tensors: hash of samples of every tensor; see `tensors_fingerprint`. None of GGUF, and in earlier versions'
            records.
        loader: transformers' class that loads it, where that is not the one of the task but one for models in which a
            part does the task.
    """

    name: str
    revision: str | None
    fingerprint: str
    quantization: str | None
    dtype: str
    model_type: str
    versions: dict[str, str]
    shape: dict[str, int] = field(default_factory=dict)
    source: str = "safetensors"
    tensors: str | None = None
    loader: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BaseIdentity:
        """Return the identity that `as_dict` gave; keys of a later version are ignored."""
        known = {item.name for item in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    def same_files(self, other: BaseIdentity) -> bool:
        """Return whether two bases have the same weights and config, as far as both records tell."""
        tensors = None in (self.tensors, other.tensors) or self.tensors == other.tensors
        return self.fingerprint == other.fingerprint and tensors

    def misfits(self, other: BaseIdentity) -> list[str]:
        """Return why an adapter trained on `self` cannot belong to `other`: architecture, width, depth, vocabulary."""
        found = []
        if self.model_type != other.model_type:
            found.append(f"architecture {other.model_type} instead of {self.model_type}")
        for key, value in self.shape.items():
            if key in other.shape and other.shape[key] != value:
                found.append(f"{key} {other.shape[key]} instead of {value}")
        return found


def fingerprint(path: str | Path) -> str:
    """Return a cheap hash of a model on disk, `sha256:...`: it reads headers and samples, never whole weight files.

    Two copies of one checkpoint agree wherever they lie. A weight changed in place is found if it touches a header, the
    size, or one of the samples, which are spread over each file.

    Args:
        path: a directory with safetensors files and a config.json, or one GGUF file.
    """
    path = Path(path)
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else _weight_files(path):
        digest.update(file.name.encode() if path.is_dir() else b"gguf")
        _add_file(digest, file)
    config = path / "config.json"
    if path.is_dir() and config.is_file():
        digest.update(_stable_config(config))
    return f"sha256:{digest.hexdigest()[:32]}"


def both_fingerprints(of_files: str, of_tensors: str | None) -> str:
    """Return what `fingerprint` and `tensors_fingerprint` gave as one text."""
    return " ".join(filter(None, (of_files, of_tensors)))


def tensors_fingerprint(path: Path) -> str | None:
    """Return a hash of both ends of every tensor of a model, `sha256:...`; of small tensors, of the whole.

    A tensor that was changed as a whole is found, however many there are. At most 64 MB are read, or 4 kB a tensor.

    Args:
        path: a directory with safetensors files; None is returned for a GGUF file, and where a header is damaged.
    """
    if path.is_file():
        return None
    try:
        entries = [(file, entry) for file in _weight_files(path) for entry in read_header(file).values()]
    except ValueError:
        return None
    half = max(_LEAST, min(_MOST, _BUDGET // max(1, len(entries)))) // 2
    digest = hashlib.sha256()
    for file, own in groupby(entries, key=itemgetter(0)):
        with file.open("rb") as stream:
            for _, entry in own:
                stream.seek(entry.start)
                digest.update(stream.read(min(half, entry.nbytes)))
                tail = min(half, entry.nbytes - min(half, entry.nbytes))
                stream.seek(entry.end - tail)
                digest.update(stream.read(tail))
    return f"sha256:{digest.hexdigest()[:32]}"


def _weight_files(directory: Path) -> list[Path]:
    return sorted(file for file in directory.glob("*.safetensors") if not file.name.startswith("adapter_"))


def _add_file(digest: hashlib._Hash, file: Path) -> None:
    size = file.stat().st_size
    digest.update(str(size).encode())
    if file.suffix == ".safetensors":
        with suppress(ValueError):  # samples identify a damaged file, too; loading reports the damage
            digest.update(header_bytes(file))
    with file.open("rb") as stream:
        for i in range(_SAMPLES):
            stream.seek(max(0, (size - _SAMPLE_BYTES) * i // (_SAMPLES - 1)))
            digest.update(stream.read(_SAMPLE_BYTES))


def _stable_config(file: Path) -> bytes:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return file.read_bytes()
    kept = {key: value for key, value in values.items() if key not in _VOLATILE_CONFIG}
    return json.dumps(kept, sort_keys=True).encode()
