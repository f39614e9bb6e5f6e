"""peftcli.json, the record beside an adapter: written with hashes, and read into typed values or refused by key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError, create_model

from peftcli import __version__
from peftcli.adapters.adapter_files import SIDECAR, WEIGHTS, json_ready
from peftcli.adapters.format import FORMAT_VERSION, AdapterMeta
from peftcli.data.store.labels import LabelSpec
from peftcli.deliverables.carried_files import tokenizer_files
from peftcli.deliverables.checksums import DIGESTS, changed, file_digest, refuse_changed_files, value_digest
from peftcli.deliverables.learnt_texts import LearntTexts
from peftcli.errors import Problem, UserError
from peftcli.models.load.identity import BaseIdentity
from peftcli.protocol.registry import MethodRegistry
from peftcli.recipe.aliases import renamed_keys
from peftcli.recipe.method_params import MethodParams
from peftcli.recipe.schema import DTypeName
from peftcli.tasks.task_table import TASKS
from peftcli.typed_record import read_object, record_of

_AGAIN = "copy the adapter again, or train again"
_WIDEST = 2**31


@dataclass(frozen=True)
class AdapterRecord:
    """What peftcli.json says.

    Args:
        params: the method's hyper-parameters.
        meta: how the adapter was made.
        layout: how the tensors are named.
        digests: hashes of the files beside it, and of its own parts; empty in files of earlier versions.
    """

    params: MethodParams
    meta: AdapterMeta
    layout: str
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sidecar:
    """The parts of the file; `peftcli_version` is for people."""

    method: dict[str, Any]
    meta: dict[str, Any]
    layout: str
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _NamedBase:
    """A base of which another library's files told the name."""

    name: str | None = None
    revision: str | None = None


def sidecar_of(directory: Path, params: MethodParams, meta: AdapterMeta, layout: str) -> dict[str, Any]:
    """Return what peftcli.json holds, with the hashes of the files that are in the adapter's directory already."""
    parts = {"method": params.model_dump(mode="json"), "meta": meta.as_dict(), "layout": layout}
    files = {WEIGHTS, *(file.as_posix() for file in tokenizer_files(directory))}
    digests = {name: file_digest(directory / name) for name in sorted(files)} | _own_digests(json_ready(parts))
    return {"format_version": FORMAT_VERSION, "peftcli_version": __version__, **parts, DIGESTS: digests}


def _own_digests(parts: Mapping[str, Any]) -> dict[str, str]:
    """Return the hashes of the record's own parts: a later version may add some, so each has its own."""
    found = {key: value_digest(value) for key, value in parts.items() if key != "meta"}
    return found | {f"meta.{key}": value_digest(value) for key, value in parts["meta"].items()}


def read_adapter_record(directory: Path, methods: MethodRegistry) -> AdapterRecord:
    """Read peftcli.json.

    Raises:
        UserError: it is damaged, of another format version, or not what was written; names the file and each key.
    """
    path = directory / SIDECAR
    data = read_object(path, suggestion=_AGAIN)
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        reason = f"the file is of format version {str(version)[:40]}, this peftcli reads {FORMAT_VERSION}"
        remedy = f"install the peftcli that wrote it: {str(data.get('peftcli_version', 'unknown'))[:40]}"
        raise UserError(Problem(reason, str(path), key="format_version", suggestion=remedy))
    sidecar = record_of(_Sidecar, data, path, suggestion=_AGAIN)
    record = AdapterRecord(_params(sidecar.method, path, methods), meta_of(sidecar.meta, path, "meta"), sidecar.layout)
    _refuse_changed_parts(sidecar, path)
    return AdapterRecord(record.params, record.meta, record.layout, sidecar.digests)


def refuse_changed_carried(directory: Path, names: list[str]) -> None:
    """Refuse files about texts beside an adapter that are not those that were written.

    Args:
        names: of the files that are about to be used.

    Raises:
        UserError: as `refuse_changed_files`, or peftcli.json is damaged.
    """
    path = directory / SIDECAR
    if path.is_file():
        digests = record_of(_Sidecar, read_object(path, suggestion=_AGAIN), path, suggestion=_AGAIN).digests
        refuse_changed_files(directory, names, digests, path)


def _refuse_changed_parts(sidecar: _Sidecar, path: Path) -> None:
    own = _own_digests({"method": sidecar.method, "layout": sidecar.layout, "meta": sidecar.meta})
    kept = {key: known for key, known in sidecar.digests.items() if key in ("method", "layout") or _is_of_meta(key)}
    wrong = [key for key, known in kept.items() if own.get(key) != known]
    if wrong:
        raise UserError([changed(f"{path}: {key} is not what was written", key, path) for key in wrong])


def _is_of_meta(key: str) -> bool:
    return key.startswith("meta.")


def _params(method: dict[str, Any], path: Path, methods: MethodRegistry) -> MethodParams:
    """Return the hyper-parameters of the method that a record names."""
    name = method.get("name")
    if not isinstance(name, str):
        raise UserError(Problem("it names no method", str(path), key="method.name", suggestion=_AGAIN))
    upgraded = {"method": dict(method)}
    _, gone = renamed_keys.upgrade_(upgraded, renamed_keys.CHANGES)
    if gone:
        raise UserError([Problem(f"{path}: {one.message}", suggestion=one.remedy) for one in gone])
    try:
        kind = methods.info(name).params
    except UserError as error:
        found = [Problem(p.message, str(path), key="method.name", suggestion=p.suggestion) for p in error.problems]
        raise UserError(found) from None
    try:
        # as JSON: strict parameters then take lists for tuples
        return kind.model_validate_json(json.dumps(upgraded["method"]))
    except ValidationError as error:
        raise _invalid_params(error, path, name, "method.") from None


def check_kinds(
    kinds: Mapping[str, Any], required: Iterable[str], data: Mapping[str, Any], path: Path, *, key: str = ""
) -> None:
    """Check the values of another library's file, of which this project keeps no record of its own.

    Args:
        kinds: the types of the keys that are read; others are passed over.
        required: those of them that are always there.
        data: of the file, or a part of it.
        path: the file.
        key: of `data` in it, if it is a part.

    Raises:
        UserError: names the file and each key.
    """
    needed = frozenset(required)
    members: dict[str, Any] = {name: (kind, ... if name in needed else None) for name, kind in kinds.items()}
    record_of(create_model("Record", **members), data, path, key=key, suggestion="copy or download the adapter again")


@contextmanager
def explained_params(path: Path) -> Iterator[None]:
    """Turn what hyper-parameters made of another library's file lack into an error that names the file and the keys."""
    try:
        yield
    except ValidationError as error:
        raise _invalid_params(error, path, error.title) from None


def _invalid_params(error: ValidationError, path: Path, method: str, prefix: str = "") -> UserError:
    problems = [
        Problem(
            f"the parameters of {method} are not valid: {each['msg']}",
            file=str(path),
            key=prefix + ".".join(map(str, each["loc"])),
            suggestion=_AGAIN,
        )
        for each in error.errors(include_url=False, include_context=False)
    ]
    return UserError(problems[:5])


def meta_of(data: Mapping[str, Any], path: Path, place: str) -> AdapterMeta:
    """Return the record of how an adapter was made (`AdapterMeta.as_dict`), each part of it checked.

    Args:
        data: of a file.
        path: the file.
        place: the key of `data` in it.

    Raises:
        UserError: a value is missing or of another kind; names the file and the key.
    """
    meta = record_of(AdapterMeta, data, path, key=place, suggestion=_AGAIN)
    identified = "model_type" in meta.base or "fingerprint" in meta.base
    record_of(BaseIdentity if identified else _NamedBase, meta.base, path, key=f"{place}.base", suggestion=_AGAIN)
    for kind, part, key in ((LabelSpec, meta.labels, "labels"), (LearntTexts, meta.texts, "texts")):
        if part is not None:
            record_of(kind, part, path, key=f"{place}.{key}", suggestion=_AGAIN)
    problems = []
    if meta.task not in TASKS:
        problems.append(("task", f"{meta.task[:40]!r} is none of {', '.join(TASKS)}"))
    dtype = meta.base.get("dtype")
    if dtype is not None and dtype not in get_args(DTypeName):
        problems.append(("base.dtype", f"{dtype[:40]!r} is none of {', '.join(get_args(DTypeName))}"))
    for number, target in enumerate(meta.targets):
        if target.slice is not None and not _is_slice(target.slice):
            problems.append((f"targets.{number}.slice", f"{target.slice} is no part of a projection"))
    if problems:
        raise UserError([Problem(text, str(path), key=f"{place}.{key}", suggestion=_AGAIN) for key, text in problems])
    return meta


def _is_slice(numbers: tuple[int, int, int, int]) -> bool:
    groups, width, start, size = numbers
    return 0 < groups < _WIDEST and start >= 0 and size > 0 and start + size <= width and groups * width < _WIDEST
