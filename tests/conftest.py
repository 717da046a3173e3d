"""What the tests share: the backends that a test runs on, the seed, hypothesis's profile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
import simt_backend
import torch
from hypothesis import HealthCheck, settings

import fastgan
from fastgan import backend as fastgan_backend

# Backends whose absence is a failure, not a skip: FASTGAN_REQUIRE_BACKENDS=cpu,simt.
REQUIRED = tuple(filter(None, os.environ.get("FASTGAN_REQUIRE_BACKENDS", "").split(",")))

# A backend joins the conformance suite by an entry here. `simt` is the CUDA kernels and their bindings, run
# on the host model of tests/simt/; `cuda` is there where a GPU is, and its tests make their tensors on it (see run_on).
BACKENDS = ("reference", "cpu", "simt", *(("cuda",) if torch.cuda.is_available() or "cuda" in REQUIRED else ()))

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


def unavailable_reason(name: str) -> str | None:
    """Why a backend cannot run here, in a sentence; None where it can."""
    return simt_backend.unavailable_reason() if name == "simt" else fastgan_backend.unavailable_reason(name)


@contextlib.contextmanager
def run_on(name: str) -> Iterator[None]:
    """The backend in force and, for `cuda`, the GPU as the device of new tensors."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(simt_backend.use_simt() if name == "simt" else fastgan.use_backend(name))
        if name == "cuda":
            stack.enter_context(torch.device("cuda"))
        yield


@contextlib.contextmanager
def run_on_or_skip(name: str) -> Iterator[str]:
    """As run_on; where the backend cannot run, the test is skipped, or fails if the backend is required."""
    if reason := unavailable_reason(name):
        if name in REQUIRED:
            pytest.fail(f"backend {name} is required, but {reason}")
        pytest.skip(reason)
    with run_on(name):
        yield name


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on every backend."""
    with run_on_or_skip(request.param) as name:
        yield name


@pytest.fixture
def compiled() -> Iterator[None]:
    """For tests of what only the compiled ops have."""
    with run_on_or_skip("cpu"):
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
