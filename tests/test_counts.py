"""The host model's counter counts what is known of planted kernels, and the bindings' products of the library."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
import simt_backend

build = simt_backend.build

NOTHING = {"instructions": [0, 0, 0], "requested": 0, "needed": 0, "split": 0}


def traffic(instructions: list[int], requested: int, needed: int, split: int | None = None) -> dict[str, Any]:
    return {"instructions": instructions, "requested": requested, "needed": needed, "split": split or requested}


ONE = traffic([1, 0, 0], 4, 4)  # a warp's 32 floats side by side: 128 bytes, 4 sectors
STRIDED = {"trips": [1, 0], "written": ONE}
SHARED = {"written": ONE, "barriers": [1, 0], "shared_trips": [1, 0], "shared_accesses": 2}
COPY = {"fills": 1, "steps": 1, "copies": [0, 32], "accesses": [0, 2], "shared_accesses": 1, "ways": 1}
# What a launch has beside zeros: counted by hand from tests/simt/counted.cpp.
EXPECTED: dict[str, dict[str, Any]] = {
    "coalesced": {**STRIDED, "read": ONE},
    "every other": {**STRIDED, "read": traffic([1, 0, 0], 8, 4)},
    "a sector each": {**STRIDED, "read": traffic([1, 0, 0], 32, 4)},
    "written a sector each": {"trips": [1, 0], "read": ONE, "written": traffic([1, 0, 0], 32, 4)},
    "vectors": {"trips": [1, 0], "read": traffic([0, 0, 1], 16, 16, 64), "written": traffic([0, 0, 1], 16, 16, 64)},
    "no conflict": {**SHARED, "ways": 1, "wavefronts": [2, 0], "least": [2, 0]},
    "one word": {**SHARED, "ways": 1, "wavefronts": [2, 0], "least": [2, 0]},
    "two ways": {**SHARED, "ways": 2, "wavefronts": [4, 0], "least": [2, 0]},
    "all ways": {**SHARED, "ways": 32, "wavefronts": [64, 0], "least": [2, 0]},
    # A store, which goes by halves of 256 bytes, two wavefronts each; reads of a place a half, and of sixteen.
    "vectors of halves": {**SHARED, "ways": 1, "shared_accesses": 3, "wavefronts": [4 + 2 + 4, 0], "least": [10, 0]},
    "vectors in conflict": {**SHARED, "ways": 8, "wavefronts": [2 * 16 + 1, 0], "least": [4 + 1, 0]},
    "chain of three": {"trips": [3, 0], "accesses": [4, 0]},
    "three at once": {"trips": [1, 0], "read": traffic([3, 0, 0], 12, 12), "written": ONE},
    "three in turn": {"trips": [3, 0], "read": traffic([3, 0, 0], 12, 12), "written": traffic([3, 0, 0], 12, 12)},
    "twenty": {"trips": [3, 0], "read": traffic([20, 0, 0], 80, 80), "written": ONE},
    "tickets": {"atomics": 1, "fences": 1, "written": traffic([2, 0, 0], 5, 5)},
    "pipeline": {
        "fills": 1,
        "steps": 4,
        "barriers": [0, 8],
        "shared_trips": [0, 4],
        "copies": [4 * 32, 4 * 32],
        "copied": traffic([4, 0, 4], 4 * 4 + 4 * 16, 80),
        "written": ONE,
        "vectors": 4 * 32,
        "accesses": [1, 4 * 2 * 2 + 4],  # each copy has two sides
        "wavefronts": [0, 4 * (16 + 4) + 4 * (4 + 1) + 4 * 4],  # sectors and lines of the copies; what is read
        "least": [0, 116],
        "copy_wavefronts": 4 * (20 + 5),
        "ways": 1,
    },
    # As an H200 was asked to: 18 wavefronts, and 31. The second's places in shared memory differ by 80 bytes.
    "two rows": {**COPY, "copied": traffic([0, 0, 1], 16, 16), "wavefronts": [0, 16 + 4], "copy_wavefronts": 20},
    "eight rows": {**COPY, "copied": traffic([0, 0, 1], 20, 16), "wavefronts": [0, 20 + 11], "copy_wavefronts": 31},
    "products": {
        "products": {"mma.m16n8k8.tf32": 2, "mma.m16n8k16.bf16": 1},
        "collectives": [5, 0],
        "barriers": [1, 0],
        "written": traffic([1, 0, 0], 1, 1),
    },
    "grid": {"grid_barriers": 2, "cooperative": True, "written": traffic([6, 0, 0], 24, 24)},
    "cluster": {
        "cluster": 2,
        "cluster_barriers": 2,
        "remote_accesses": 1,
        "remote_trips": 1,
        "remote_bytes": 2 * 32 * 4,
        "written": traffic([2, 0, 0], 8, 8),
    },
    "cluster in halves": {"cluster": 2, "cluster_barriers": 1, "cluster_waits": 1, "written": traffic([2, 0, 0], 8, 8)},
}
# On branches: the number of each launch's, and what it waits for.
BRANCHES = {
    "before": (0, ["cluster in halves"]),
    "branch": (1, ["before"]),
    "beside": (0, ["before"]),
    "branch goes on": (1, ["branch"]),
    "other branch": (2, ["beside"]),
    "waits through the step": (1, ["beside", "branch goes on", "other branch"]),
    "joined": (0, ["beside", "branch goes on", "other branch"]),
}
MEGABYTE, SIXTY = (1 << 20) // 32, (60 << 20) // 32  # sectors
# Of the second-level cache: sectors asked for, read from the device's memory, and written back to it.
CACHED = {
    "a megabyte": (MEGABYTE, MEGABYTE, 0),
    "the same": (MEGABYTE, 0, 0),
    # 50 MB stay; what makes place for the last of it is this launch's own beginning, and clean lines before that.
    "sixty written": (SIXTY, 0, SIXTY - (50 << 20) // 32),
    "what it took the place of": (MEGABYTE, MEGABYTE, MEGABYTE),
}


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, Any]]:
    if reason := simt_backend.unavailable_reason():
        if "simt" in os.environ.get("FASTGAN_REQUIRE_BACKENDS", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    program = build.build("count").with_name("counted")
    done = subprocess.run([program], capture_output=True, text=True, timeout=100, check=True)
    return {launch["name"]: launch for launch in json.loads(done.stdout)}


def test_every_planted_kernel_is_counted(counted: dict[str, dict[str, Any]]) -> None:
    assert list(counted) == [*EXPECTED, *BRANCHES, *CACHED]


@pytest.mark.parametrize("name", BRANCHES)
def test_what_a_launch_waits_for(counted: dict[str, dict[str, Any]], name: str) -> None:
    names = list(counted)
    branch, after = BRANCHES[name]
    assert (counted[name]["branch"], [names[place] for place in counted[name]["after"]]) == (branch, after)


def test_launches_of_one_stream_wait_for_the_one_before(counted: dict[str, dict[str, Any]]) -> None:
    chain = [launch["after"] for name, launch in counted.items() if name not in BRANCHES]
    first = len(EXPECTED)
    assert chain[:first] == [[], *([place] for place in range(first - 1))]
    assert chain[first] == [first + len(BRANCHES) - 1]


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_planted_is_counted(counted: dict[str, dict[str, Any]], name: str) -> None:
    launch, expected = counted[name], EXPECTED[name]
    if name == "chain of three":  # whose loads are of one thread: the trips are what is asked
        expected = {**launch, **expected}
    zeros = {
        "trips": [0, 0],
        "shared_trips": [0, 0],
        "barriers": [0, 0],
        "collectives": [0, 0],
        "atomics": 0,
        "fences": 0,
    }
    zeros |= {"fills": 0, "steps": 0, "grid_barriers": 0, "read": NOTHING, "written": NOTHING, "copied": NOTHING}
    zeros |= {"cluster_barriers": 0, "cluster_waits": 0, "remote_accesses": 0, "remote_trips": 0, "remote_bytes": 0}
    zeros |= {"products": {}, "cooperative": False, "cluster": 0, "ways": 1}
    wanted = {**zeros, **expected}
    assert {key: launch[key] for key in wanted} == wanted


@pytest.mark.parametrize("name", CACHED)
def test_the_cache_of_fifty_megabytes(counted: dict[str, dict[str, Any]], name: str) -> None:
    launch = counted[name]
    found = launch["l2"], launch["hbm_read"], launch["hbm_written"]
    # The few lines that the kernels before have written make place too.
    assert found[:2] == CACHED[name][:2]
    assert 0 <= found[2] - CACHED[name][2] < 400
