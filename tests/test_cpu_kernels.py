"""The CPU's kernels against plain loops, without torch: on this machine, and for 64-bit ARM under an emulator."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cpu_kernels import build
from extent import FULL, rest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.deep


def program(kind: str) -> list[str]:
    """The command that runs the checks of a kind."""
    if lacking := build.missing(kind):
        pytest.skip(lacking)
    emulator = [str(build.emulator())] if kind == "aarch64" else []
    return [*emulator, str(build.build(kind))]


def run(command: list[str], isa: str, threads: int = 3) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FASTGAN_ISA": isa, "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("kind", "isa"),
    [("native", "baseline"), ("native", "avx2"), ("native", ""), rest("aarch64", "baseline"), ("aarch64", "neon")],
)
def test_each_kernel_against_its_plain_loop(kind: str, isa: str) -> None:
    done = run(program(kind), isa)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *checks = done.stdout.splitlines()
    assert kind == "native" or first == f"instructions: {isa}"
    assert [check.partition(":")[0] for check in checks] == [
        "threads",
        "losses",
        "layers",
        "thin",
        "networks",
        "segmented",
        "step",
    ]


def test_threads_of_the_standard_library(tmp_path: Path) -> None:
    """What builds without OpenMP have, under ThreadSanitizer."""
    if lacking := build.missing("native"):
        pytest.skip(lacking)
    sources = [
        build.HERE / "threads_alone.cpp",
        build.HERE / "check_threads.cpp",
        ROOT / "csrc" / "cpu" / "threads.cpp",
    ]
    flags = [*build.CHECKS.split(), "-fopenmp-simd", "-fsanitize=thread"]
    checks = tmp_path / "threads"
    subprocess.run(["g++", *flags, *sources, "-pthread", "-o", checks], check=True)
    environment = {**os.environ, "TSAN_OPTIONS": "die_after_fork=0"}
    done = subprocess.run([checks], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "602 compared, 0 failed\n"


def test_a_wrong_lane_is_found(tmp_path: Path) -> None:
    """The product of NEON with the second element of a sum taken for the first."""
    command = program("aarch64")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    changed = tmp_path / "csrc" / "cpu" / "panels" / "product_neon.h"
    right, wrong = "multiply_add_lane<1>(from, c0, other[0])", "multiply_add_lane<0>(from, c0, other[0])"
    assert changed.read_text().count(right) == 1
    changed.write_text(changed.read_text().replace(right, wrong))
    compiler, folder = build.COMPILERS["aarch64"], build.FOLDER / "aarch64"
    flags = build.KERNELS.replace("-O3", "-Og").split()
    source, compiled = tmp_path / "csrc" / "cpu" / "neon.cpp", tmp_path / "neon.o"
    subprocess.run([compiler, *flags, build.FLAGS["aarch64"], "-c", source, "-o", compiled], check=True)
    rest = [file for file in sorted(folder.glob("*.o")) if file.name != "neon.o"]
    subprocess.run([compiler, compiled, *rest, *build.LINK["aarch64"].split(), "-o", tmp_path / "checks"], check=True)
    done = run([command[0], str(tmp_path / "checks")], "neon")
    assert done.returncode == 1, done.stderr
    assert "FAILED: float network" in done.stdout
    assert re.search(r"^step: \d+ compared, [1-9]", done.stdout, re.MULTILINE)
    assert re.search(r"^losses: \d+ compared, 0 failed", done.stdout, re.MULTILINE)
    if FULL:
        assert run([command[0], str(tmp_path / "checks")], "baseline").returncode == 0  # which has products of its own


def innermost_loops(disassembly: str) -> Iterator[list[str]]:
    """The instructions of each loop of a function that has no other in it, from objdump's words."""
    found = re.findall(r"^ +([0-9a-f]+):\t(.*)$", disassembly, re.MULTILINE)
    places = {int(place, 16): i for i, (place, _) in enumerate(found)}
    loops = []
    for i, (_, text) in enumerate(found):
        target = re.match(r"(?:b\.\w+|t?bn?z|cbn?z|b)\s.*?([0-9a-f]+) <", text)
        start = places.get(int(target[1], 16)) if target else None
        if start is not None and start < i:
            loops.append((start, i))
    for start, end in loops:
        if not any((a, b) != (start, end) and start <= a and b <= end for a, b in loops):
            yield [text for _, text in found[start : end + 1]]


def test_products_of_neon_multiply_by_lane() -> None:
    """In the loops of a whole tile: nothing but fused multiply-adds by lane, what they load, and a few to count."""
    program("aarch64")
    tool = shutil.which("aarch64-linux-gnu-objdump")
    if tool is None:
        pytest.skip("there is no aarch64-linux-gnu-objdump (Debian's package binutils-aarch64-linux-gnu)")
    words = [tool, "-d", "-C", "--no-show-raw-insn", str(build.FOLDER / "aarch64" / "neon.o")]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    tiles = [part for part in said.split("\n\n") if re.search(r"multiply_tile<(?:float|double), 12, .*>:", part)]
    assert len(tiles) == 6  # of two types and three ways to store an operand
    for tile in tiles:
        main = [loop for loop in innermost_loops(tile) if sum("fmla" in text for text in loop) == 48]
        assert main, tile[:100]
        for loop in main:
            multiplied = [text for text in loop if text.startswith("fmla")]
            assert all(re.search(r"\.[sd]\[[0-3]\]", text) for text in multiplied), loop
            kinds = Counter(text.split()[0] for text in loop)
            assert not kinds.keys() & {"dup", "ins", "ld1r", "fmul", "fadd"}, kinds
            assert len(loop) <= 76, kinds
            # Of panels, g++ 12 keeps two registers in memory in one of its two loops.
            assert sum("[sp" in text for text in loop) <= 4, kinds
