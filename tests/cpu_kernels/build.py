"""Builds the checks of the CPU's kernels, without torch: `python tests/cpu_kernels/build.py [KIND ...]`.

Kinds: `native`, for this machine, as setup.py compiles it here; and `aarch64`, by Debian's cross-compiler and linked
statically, for 64-bit ARM under an emulator, without OpenMP, as Apple's clang compiles it. But for a few sources that
is so where FASTGAN_TESTS is full; else they are compiled more quickly. Everything goes to build/cpu_kernels/, and only
what changed is compiled again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FOLDER = ROOT / "build" / "cpu_kernels"
COMPILERS = {"native": "g++", "aarch64": "aarch64-linux-gnu-g++"}
FLAGS = {"native": "-fopenmp -fPIC", "aarch64": "-fopenmp-simd"}
LINK = {"native": "-fopenmp -pthread", "aarch64": "-static -pthread"}
# Those of setup.py; the checks themselves need not be fast.
KERNELS = "-std=c++20 -O3 -g0 -fno-math-errno -fno-trapping-math -Wno-attributes -Werror=switch"
CHECKS = "-std=c++20 -O1 -g0 -Wall -Wno-attributes -Wno-unknown-pragmas -Werror=switch"
# The sources of which tests look at the machine code. The others are compiled quickly where FASTGAN_TESTS is not full.
AS_INSTALLED = ("amx", "avx512", "avx512_bf16", "neon")
QUICKLY = "" if os.environ.get("FASTGAN_TESTS") == "full" else "-Og"


def kernels() -> list[Path]:
    return sorted([*(ROOT / "csrc" / "cpu").glob("*.cpp"), *(ROOT / "csrc" / "cpu" / "panels").glob("*.cpp")])


def ninja_file(kind: str) -> str:
    """What to compile and link, in ninja's words."""
    folder, objects = FOLDER / kind, []
    lines = [f"builddir = {folder}"]
    for rule, flags in (("kernel", KERNELS), ("check", CHECKS)):
        lines += [
            f"rule {rule}",
            f"  command = {COMPILERS[kind]} {flags} {FLAGS[kind]} $more -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
    lines += ["rule link", f"  command = {COMPILERS[kind]} $in {LINK[kind]} -o $out"]
    for rule, sources in (("kernel", kernels()), ("check", sorted(HERE.glob("check_*.cpp")))):
        for source in sources:
            objects.append(str(folder / f"{source.stem}.o"))
            lines.append(f"build {objects[-1]}: {rule} {source}")
            if rule == "kernel" and source.stem not in AS_INSTALLED:
                lines.append(f"  more = {QUICKLY}")
    lines.append(f"build {folder / 'kernel_checks'}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def missing(kind: str) -> str | None:
    """What the kind needs and this machine lacks, in words; None where there is nothing."""
    if shutil.which(COMPILERS[kind]) is None:
        package = "g++-aarch64-linux-gnu" if kind == "aarch64" else "g++"
        return f"there is no {COMPILERS[kind]} (Debian's package {package})"
    if kind == "aarch64" and emulator() is None:
        return "there is no qemu-aarch64 (Debian's package qemu-user)"
    return None


def emulator() -> str | None:
    """The program that runs others for 64-bit ARM here."""
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def build(kind: str) -> Path:
    """Builds one kind and returns the program.

    Raises:
        RuntimeError: it does not compile or link; the message is the compiler's.
    """
    file = FOLDER / kind / "build.ninja"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_name("lock"), "w") as lock:  # several test processes may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = ninja_file(kind)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 2)
        ninja = [sys.executable, "-m", "ninja", "-j", jobs, "-f", str(file)]
        done = subprocess.run(ninja, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{kind} does not build:\n{done.stdout[-4000:]}{done.stderr[-1000:]}")
    return FOLDER / kind / "kernel_checks"


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["native"]
    if unknown := [kind for kind in wanted if kind not in COMPILERS]:
        sys.exit(f"kinds are {', '.join(COMPILERS)}, not {unknown[0]!r}")
    for kind in wanted:
        if lacking := missing(kind):
            sys.exit(f"{kind}: {lacking}")
        print(build(kind))
