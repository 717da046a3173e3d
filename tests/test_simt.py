"""The host model of CUDA catches what it says it catches, and every kernel passes under it and under the sanitizers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import simt_backend
from extent import one_in, rest

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
    "shared_memory_unasked": "has 49156 bytes of shared memory, over 48 KB, and has not asked for so much",
    "too_much_shared_memory": "at most 227 KB",
    "read_before_the_copy_is_there": "reads poison",
    "cluster_of_nine_blocks": "a cluster may have at most 8 blocks",
    "cluster_in_a_grid_with_z": "along y of a grid without z",
    "cluster_barrier_without_clusters": "cluster_barrier needs a launch of clusters",
    "cluster_barrier_of_one_block": "32 of 64 are in cluster_barrier",
    "cluster_arrive_without_clusters": "cluster_arrive needs a launch of clusters",
    "cluster_wait_alone": "cluster_wait comes without cluster_arrive",
    "cluster_arrive_twice": "cluster_arrive comes again before cluster_wait",
    "cluster_barrier_within": "cluster_barrier comes between cluster_arrive and cluster_wait",
    "peer_after_cluster_arrive": "peer_shared comes after cluster_arrive",
    "end_without_cluster_wait": "ends between cluster_arrive and cluster_wait",
    "peer_without_clusters": "peer_shared needs a launch of clusters",
    "peer_that_is_none": "asks for block 2 of a cluster of 2",
    "peer_of_no_shared_memory": "asks for what does not lie in dynamic shared memory",
    "peer_past_its_shared_memory": "asks for what does not lie in dynamic shared memory",
    "peer_that_has_ended": "the shared memory of block 0 of its cluster, which has ended",
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
# What the race detector says, and ThreadSanitizer sees as well.
RACES = {
    "removed_barrier": "a static shared variable of 256 bytes",
    "missing_fence": "reads global memory at",
    "race_between_blocks": "writes global memory at",
}
# What orders the accesses of a kernel, and the sentence where it is left out.
ORDERED = {
    "fences_on_both_sides": {
        "no_fence_of_the_reader": "which thread 32 of block",
        "no_fence_of_the_writer": "which thread 32 of block",
        "fence_of_the_block_alone": "which thread 32 of block",
    },
    "barrier_before_reuse": {"no_barrier_before_reuse": "a static shared variable of 256 bytes"},
    "lanes_with_syncwarp": {"lanes_without_syncwarp": "a static shared variable of 128 bytes"},
    "copy_read_after_a_barrier": {"copy_read_without_a_barrier": "dynamic shared memory, 4 bytes"},
    "copy_over_after_a_barrier": {"copy_over_what_is_read": "dynamic shared memory, 4 bytes"},
    "ldmatrix_after_a_barrier": {"ldmatrix_without_a_barrier": "dynamic shared memory, 4 bytes"},
    "halves_of_one_word": {"the_same_half_of_a_word": ", 2 bytes"},
    "named_barrier_of_the_reader": {"named_barrier_of_others": "a static shared variable of 128 bytes"},
    "count_read_by_an_atomic": {"plain_read_beside_an_atomic": "atomically changes"},
    "grid_barrier_between": {"no_grid_barrier_between": "global memory at"},
    "launches_between": {"no_launch_between": "global memory at"},
    "cluster_halves_at_the_end": {"no_cluster_wait_at_the_end": "whether threads of block"},
    "cluster_barriers_around": {
        "no_cluster_barrier_before": "of dynamic shared memory",
        "no_cluster_barrier_before_the_end": "whether threads of block",
    },
    "cluster_barrier_before_reuse": {"no_cluster_barrier_before_reuse": "of dynamic shared memory"},
}
UNORDERED = {name: sentence for pairs in ORDERED.values() for name, sentence in pairs.items()}
CHECKS = ("core", "losses", "layers", "networks", "adam", "penalties", "segmented", "step", "step_options")


def program(kind: str, name: str) -> Path:
    """A program of one kind of build, or a skip where this machine cannot build it."""
    if reason := simt_backend.unavailable_reason():
        if "simt" in os.environ.get("FASTGAN_REQUIRE_BACKENDS", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    return build.build(kind).with_name(name)


def run(file: Path, *arguments: str, engine: str = "threads", races: bool = False) -> subprocess.CompletedProcess[str]:
    # A report must end the program, whatever the options this runs under.
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1 exitcode=66", "UBSAN_OPTIONS": ""}
    options["FASTGAN_SIMT_RACE"] = str(int(races))
    environment = {**os.environ, **options, "FASTGAN_SIMT_ENGINE": engine}
    return subprocess.run([file, *arguments], env=environment, capture_output=True, text=True, timeout=500)


def test_every_planted_fault_has_its_test() -> None:
    listed = run(program("race", "faults"), "--list").stdout.split()
    assert set(listed[1::2]) == {*PLANTED, *OVERRUNS, *RIGHT, *RACES, *ORDERED, *UNORDERED, "global_overrun"}


@pytest.mark.parametrize("engine", ["fibers", "threads"])
@pytest.mark.parametrize("name", [*RIGHT, *ORDERED])
def test_right_kernels_run(engine: str, name: str) -> None:
    done = run(program("race", "faults"), name, engine=engine)
    assert (done.returncode, done.stdout.strip()) == (0, "ran to its end"), done.stderr


@pytest.mark.parametrize("engine", ["fibers", "threads"])
@pytest.mark.parametrize("name", [*PLANTED, *OVERRUNS])
def test_planted_faults_are_caught(engine: str, name: str) -> None:
    sentence = run(program("race", "faults"), name, engine=engine).stdout
    assert sentence.startswith("caught: simt: kernel k"), sentence
    assert {**PLANTED, **OVERRUNS}[name] in sentence
    assert sentence.endswith(".\n")


# The blocks of a launch run one after the other here, in either order: what they race for is seen in both.
@pytest.mark.parametrize("order", [(), ("--descending",)])
@pytest.mark.parametrize("name", [*RACES, *UNORDERED])
def test_the_detector_finds_races_in_any_order(name: str, order: tuple[str, ...]) -> None:
    sentence = run(program("race", "faults"), name, *order, engine="fibers", races=True).stdout
    assert re.match(r"caught: simt: kernel k, block \([01],[012],0\), thread \d+: a race: it ", sentence), sentence
    assert {**RACES, **UNORDERED}[name] in sentence
    # Both accesses with who and where, each with its line.
    assert re.search(r"which thread \d+ of block \([01],[012],0\)", sentence)
    lines = 1 if "whether threads" in sentence else 2  # the end of a thread has none
    assert len(re.findall(r"\bfaults_races\.cpp:\d+", sentence)) >= lines
    assert sentence.endswith("and nothing orders the two.\n")


def test_the_detector_sees_what_a_copy_still_writes() -> None:
    sentence = run(program("race", "faults"), "read_before_the_copy_is_there", engine="fibers", races=True).stdout
    assert "where an asynchronous copy that thread 0 of block (0,0,0) started" in sentence


@pytest.mark.parametrize("order", [(), ("--descending",)])
@pytest.mark.parametrize("name", [*RIGHT, *ORDERED])
def test_the_detector_is_silent_on_right_kernels(name: str, order: tuple[str, ...]) -> None:
    done = run(program("race", "faults"), name, *order, engine="fibers", races=True)
    assert (done.returncode, done.stdout.strip()) == (0, "ran to its end"), done.stderr


# In the kernels themselves, in short selections: what is left out, and what the detector then says.
LEFT_OUT = {
    "the fence between the ticket and what the others wrote": (
        "reduce.h",
        "  if (is_last) __threadfence();",
        "logits_loss.cu",
        "losses",
        "kernel logits_loss_sum, block",
    ),
    "the fence between what is written and the ticket": (
        "reduce.h",
        "  __threadfence();  // this thread's writes come before the block's ticket\n",
        "linear.cu",
        "layers",
        "kernel linear, block",
    ),
    "the barrier before a sum's place is used again": (
        "reduce.h",
        "  __syncthreads();  // partial may be used again\n",
        "step_loss.cu",
        "step",
        "kernel step_head, block",
    ),
    "the barrier of a cluster before its sums are read": (
        "product.h",
        "    cluster_barrier();\n",
        "linear.cu",
        "layers",
        "kernel linear, block",
    ),
    "the barrier of a cluster before a block ends": (
        "product.h",
        "  if (p.clustered) cluster_wait();  // the others have read what is here\n",
        "linear.cu",
        "layers",
        "kernel linear, block",
    ),
    "the barrier before a column sum's place is used again": (
        "batch_norm.cu",
        "  __syncthreads();  // the place may be used again\n",
        "batch_norm.cu",
        "step",
        "kernel batch_norm_forward, block",
    ),
    "the barrier before a row's weight takes what the penalty adds": (
        "step_penalty.cu",
        "    meet<of_row>();  // all have read the row's weight\n",
        "step_penalty.cu",
        "penalties",
        "kernel penalty_start, block",
    ),
    "the barrier of the grid between the tangents and the weight gradients": (
        "mlp_tangent.cu",
        "  grid_barrier();\n",
        "mlp_tangent.cu",
        "step_options",
        "kernel mlp_tangent, block",
    ),
}


@pytest.mark.deep
@pytest.mark.parametrize("what", one_in(3, LEFT_OUT))  # each has a kernel compiled
def test_the_detector_finds_what_is_left_out_of_a_kernel(what: str, tmp_path: Path) -> None:
    file, text, source, check, kernel = LEFT_OUT[what]
    program("race", "kernel_checks")
    changed = build.build_changed(file, text, "", source, tmp_path)
    done = run(changed, "--few", check, engine="fibers", races=True)
    assert done.returncode != 0
    assert kernel in done.stderr
    assert "a race: it" in done.stderr


@pytest.mark.parametrize("check", CHECKS)
def test_kernels_have_no_races(check: str) -> None:
    done = run(program("race", "kernel_checks"), "--few", check, engine="fibers", races=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Those that take as long as all others together have the detector here in the full extent alone, and without it below;
# of each the test above has a few.
LONG = ("layers", "step_options")


@pytest.mark.deep
@pytest.mark.parametrize("check", [rest(check) if check in LONG else check for check in CHECKS])
def test_kernels_have_no_races_in_any_check(check: str) -> None:
    done = run(program("race", "kernel_checks"), check, engine="fibers", races=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ThreadSanitizer, which has a build of its own, looks for what test_kernels_have_no_races looks for in the same checks.
SANITIZERS = ["address", rest("thread")]


@pytest.mark.deep
@pytest.mark.parametrize("name", [*OVERRUNS, "global_overrun"])
def test_address_sanitizer_sees_overruns(name: str) -> None:
    done = run(program("address", "faults"), name)
    assert done.returncode != 0
    assert "ERROR: AddressSanitizer" in done.stderr


@pytest.mark.deep
@pytest.mark.full
@pytest.mark.parametrize("name", RACES)
def test_thread_sanitizer_sees_races(name: str) -> None:
    done = run(program("thread", "faults"), name)
    assert done.returncode == 66
    assert "WARNING: ThreadSanitizer: data race" in done.stderr


@pytest.mark.deep
@pytest.mark.parametrize("name", [*RIGHT, *ORDERED])
@pytest.mark.parametrize("kind", SANITIZERS)
def test_sanitizers_are_silent_on_right_kernels(kind: str, name: str) -> None:
    done = run(program(kind, "faults"), name)
    assert (done.returncode, done.stderr) == (0, "")


# The others have passed test_kernels_have_no_races_in_any_check, which compares the same.
@pytest.mark.deep
@pytest.mark.parametrize("check", [check if check in LONG else rest(check) for check in CHECKS])
def test_kernels(check: str) -> None:
    done = run(program("race", "kernel_checks"), check, engine="fibers")
    assert done.returncode == 0, done.stdout


@pytest.mark.deep
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("kind", SANITIZERS)
def test_kernels_under_a_sanitizer(kind: str, check: str) -> None:
    done = run(program(kind, "kernel_checks"), "--few", check)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
