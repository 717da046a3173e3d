"""The backend `simt`: the CUDA kernels and their bindings, run on CPU tensors by the host model of tests/simt/."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
from collections.abc import Iterator
from types import ModuleType

import torch
from simt import build

from fastgan import backend, functional, gate


@functools.cache
def unavailable_reason() -> str | None:
    """Why the backend cannot run here, in a sentence; None where it can."""
    if os.environ.get("FASTGAN_SKIP_SIMT"):
        return "FASTGAN_SKIP_SIMT is set"
    if shutil.which("g++") is None:
        return "there is no g++ to build the host model with"
    if importlib.util.find_spec("ninja") is None:
        return "the Python package ninja, which builds the host model, is not installed"
    return None


@functools.cache
def module() -> ModuleType:
    """The compiled module, built where its sources changed."""
    path = build.build("module")
    spec = importlib.util.spec_from_file_location("_simt", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    loaded.build_facts = lambda: {"compiler": "the host model of CUDA", "cuda": None}
    return loaded


def verify_beforehand(device: torch.device) -> None:
    """Have every family of kernels of the module in force verified, so that no test meets its first use.

    Raises:
        RuntimeError: one fails; the tests would run what serves in its place.
    """
    for family in gate.FAMILIES:
        for dtype in backend._dtypes:
            key = gate.Key(backend.module, family, device, dtype)
            if key not in gate.known and not gate._first_use(family, device, dtype):
                raise RuntimeError(f"{key}: {gate.faults[key]}")


@contextlib.contextmanager
def use_simt() -> Iterator[None]:
    """In a `with` block, fastgan.functional's compiled ops are those of the host model."""
    compiled = module()
    before = backend.module, backend.ops, backend._device_types, backend._name
    backend.module, backend.ops = compiled, torch.ops.fastgan_simt
    backend._device_types, backend._name = frozenset(compiled.device_types()), "cpu"
    functional.ACTIVATION.update({name: number for number, name in enumerate(compiled.activations())})
    try:
        verify_beforehand(torch.device("cpu"))
        yield
    finally:
        backend.module, backend.ops, backend._device_types, backend._name = before
