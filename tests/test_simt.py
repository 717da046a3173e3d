"""The host model of CUDA catches what it says it catches, and every kernel passes under it and under the sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import simt_backend

build = simt_backend.build
PLANTED = {
    "divergent_barrier": "is divergent: others wait in the one at",
    "barrier_after_exit": "31 of 32 are in __syncthreads",
    "shuffle_from_inactive_lane": "reads lane 9, which is not in its mask",
    "lane_not_in_its_mask": "which is not in its mask",
    "lane_that_never_comes": "31 of 32 are in __shfl_sync",
    "masks_that_differ": "__ballot_sync",
    "different_collectives": "meets threads that wait in",
    "misaligned_load": "a load of 16 bytes is at an address that is no multiple of 16",
    "misaligned_store": "a store of 16 bytes is at an address that is no multiple of 16",
    "misaligned_copy": "the source of an asynchronous copy is at an address that is no multiple of 16",
    "copy_outside_shared": "an asynchronous copy goes outside the block's shared memory",
    "copy_of_too_many_bytes": "an asynchronous copy reads 8 bytes of 4",
    "copy_never_waited_for": "asynchronous copies that it has not waited for",
    "misaligned_ldmatrix": "a row of ldmatrix is at an address that is no multiple of 16",
    "ldmatrix_outside_shared": "a row of ldmatrix is outside the block's shared memory",
    "grid_barrier_without_cooperation": "grid_barrier needs a cooperative launch",
    "block_that_skips_the_grid_barrier": "32 of 64 are in grid_barrier",
    "named_barrier_id": "must be in 1..15, not 16",
    "named_barrier_count": "must be a multiple of 32 within the block, not 20",
    "too_many_threads": "at most 1024 threads, not 1025",
    "empty_grid": "a grid and a block must have threads",
    "too_much_shared_memory": "at most 227 KB",
    "read_before_the_copy_is_there": "reads poison",
}
OVERRUNS = {
    "dynamic_shared_overrun": "wrote to byte 256 of dynamic shared memory of 256 bytes",
    "static_shared_overrun": "wrote to byte 16 of static shared memory of 16 bytes",
}
RIGHT = (
    "shuffles_and_votes",
    "reductions_over_blocks",
    "barriers_and_atomics",
    "whole_grids",
    "copies",
    "matrix_products",
    "matrix_loads",
    "fresh_memory_is_poison",
)
RACES = ("removed_barrier", "missing_fence", "race_between_blocks")
CHECKS = ("core", "losses", "layers", "networks", "adam", "step")


def program(kind: str, name: str) -> Path:
    """A program of one kind of build, or a skip where this machine cannot build it."""
    if reason := simt_backend.unavailable_reason():
        if "simt" in os.environ.get("FASTGAN_REQUIRE_BACKENDS", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    return build.build(kind).with_name(name)


def run(file: Path, *arguments: str, engine: str = "threads") -> subprocess.CompletedProcess[str]:
    # A report must end the program, whatever the options this runs under.
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1 exitcode=66", "UBSAN_OPTIONS": ""}
    environment = {**os.environ, **options, "FASTGAN_SIMT_ENGINE": engine}
    return subprocess.run([file, *arguments], env=environment, capture_output=True, text=True, timeout=500)


def test_every_planted_fault_has_its_test() -> None:
    listed = run(program("plain", "faults"), "--list").stdout.split()
    assert set(listed[1::2]) == {*PLANTED, *OVERRUNS, *RIGHT, *RACES, "global_overrun"}


@pytest.mark.parametrize("engine", ["fibers", "threads"])
@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_run(engine: str, name: str) -> None:
    done = run(program("plain", "faults"), name, engine=engine)
    assert (done.returncode, done.stdout.strip()) == (0, "ran to its end"), done.stderr


@pytest.mark.parametrize("engine", ["fibers", "threads"])
@pytest.mark.parametrize("name", [*PLANTED, *OVERRUNS])
def test_planted_faults_are_caught(engine: str, name: str) -> None:
    sentence = run(program("plain", "faults"), name, engine=engine).stdout
    assert sentence.startswith("caught: simt: kernel k"), sentence
    assert {**PLANTED, **OVERRUNS}[name] in sentence
    assert sentence.endswith(".\n")


@pytest.mark.deep
@pytest.mark.parametrize("name", [*OVERRUNS, "global_overrun"])
def test_address_sanitizer_sees_overruns(name: str) -> None:
    done = run(program("address", "faults"), name)
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer" in done.stderr


@pytest.mark.deep
@pytest.mark.parametrize("name", RACES)
def test_thread_sanitizer_sees_races(name: str) -> None:
    done = run(program("thread", "faults"), name)
    assert done.returncode == 66
    assert "WARNING: ThreadSanitizer: data race" in done.stderr


@pytest.mark.deep
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("kind", ["address", "thread"])
def test_sanitizers_are_silent_on_right_kernels(kind: str, name: str) -> None:
    done = run(program(kind, "faults"), name)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("check", CHECKS)
def test_kernels(check: str) -> None:
    done = run(program("plain", "kernel_checks"), check, engine="fibers")
    assert done.returncode == 0, done.stdout


@pytest.mark.deep
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", ["address", "thread"])
def test_kernels_under_a_sanitizer(kind: str, check: str) -> None:
    done = run(program(kind, "kernel_checks"), "--few", check)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
