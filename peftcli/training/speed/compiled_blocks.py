"""`torch_compile: true`: every block compiled by itself, for training; evaluations run the blocks as they are.

Block by block, because blocks of equal shape share what was compiled: the cost is that of one block. Shapes that vary
are compiled once more, with their sizes left open, and no further. Evaluations would need code of their own (without
gradients, and for generation with a cache that differs in every block) that few runs are long enough to pay back.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from peftcli.errors import Problem
from peftcli.models.anatomy import Anatomy

RECOMPILE_LIMIT = 32
"""Variants of a block: kinds of blocks x (input with gradient or without) x (fixed, open length, open batch size).

Torch's own limit of 8 is passed by a model with two kinds of blocks; what comes after the limit is not compiled.
"""
NOTE = "torch_compile: the blocks are compiled in the first steps, which takes from one to several minutes"


def compile_problems(wanted: bool, device_type: str) -> list[Problem]:
    """Return what torch.compile lacks on this machine, before anything is loaded for it."""
    if not wanted:
        return []
    missing = _missing_for_cuda() if device_type == "cuda" else _missing_for_cpu()
    remedy = f"install {missing}, or remove training.torch_compile"
    message = f"torch.compile needs {missing}, which is not here"
    return [Problem(message, key="training.torch_compile", suggestion=remedy)] if missing else []


def _missing_for_cpu() -> str | None:
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX") or default
    if shutil.which(compiler) is None and shutil.which(compiler.split()[0]) is None:
        return f"a C++ compiler ({compiler}; the environment variable CXX names another)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "the headers of Python (Debian and Ubuntu: python3-dev)"
    return None


def _missing_for_cuda() -> str | None:
    if find_spec("triton") is None:
        return "the package triton"
    if not os.environ.get("CC") and not any(shutil.which(name) for name in ("gcc", "clang", "cc")):
        return "a C compiler (gcc; the environment variable CC names another)"
    return None


def tracing_settings() -> dict[str, int | bool]:
    """Return the settings of torch's tracing that a run with compiled blocks needs."""
    import torch._dynamo

    return {
        "recompile_limit": max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT),
        # a gate over the sequence reads the padding mask from a module; the mask's length varies with the input's
        "force_nn_module_property_static_shapes": False,
        # parts store what a gate in their block reads before the block ends: recomputation need not store it again
        "skip_fwd_side_effects_in_bwd_under_checkpoint": True,
    }


def compile_blocks(model: nn.Module, anatomy: Anatomy) -> None:
    """Compile the blocks of every stack; their names, weights and hooks stay as they are."""
    for path in (path for stack in anatomy.layers.values() for path in stack):
        model.get_submodule(path).compile()
