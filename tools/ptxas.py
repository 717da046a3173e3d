"""What a CUDA kernel takes, from nvcc and ptxas: registers, shared memory, stack and spills, by readable kernel names.

Needs nvcc but no GPU, and neither torch nor fastgan.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "csrc" / "cuda"
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")

# What torch.utils.cpp_extension adds to setup.py's own: without them a conversion that the build refuses would pass.
_TORCH_FLAGS = (
    "-std=c++17",
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "--expt-relaxed-constexpr",
)

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


class NvccError(RuntimeError):
    """nvcc is missing or refused a file; the message is for the user."""


@dataclass(frozen=True)
class Usage:
    """What a kernel takes on one architecture: registers a thread, the others in bytes."""

    registers: int = 0
    shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0


@dataclass(frozen=True)
class Compiled:
    """One file for one architecture: what its kernels take, by mangled name, and how long nvcc took."""

    seconds: float
    kernels: dict[str, Usage]


def nvcc_version() -> str:
    """Such as 13.0.88.

    Raises:
        NvccError: there is no nvcc, or it does not say its version.
    """
    if shutil.which("nvcc") is None:
        raise NvccError("nvcc is not on PATH; add the CUDA toolkit's bin folder")
    said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    version = re.search(r"\bV(\d+(?:\.\d+)+)", said)
    if version is None:
        raise NvccError(f"nvcc --version does not say its version, but {said!r}")
    return version[1]


def nvcc_flags() -> list[str]:
    """The flags of the kernels; setup.py reads the same file."""
    return (KERNELS / "nvcc-flags.txt").read_text().split()


def measure(source: Path, architecture: str, extra: Sequence[str] = ()) -> Compiled:
    """Compile one file for one architecture as setup.py does.

    Raises:
        NvccError: nvcc refused it; the message holds what nvcc said.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "kernels.o")
        flags = [*_TORCH_FLAGS, *nvcc_flags(), *extra, "-Xptxas", "-v"]
        part = "-c" if architecture == ARCHITECTURES[0] else "-cubin"  # the host's part is the same for all of them
        command = ["nvcc", *flags, f"-arch={architecture}", part, str(source), "-o", output]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = process.stdout.read()
        # The processor's time, of nvcc and all that it runs: a busy machine does not add to it.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
    if process.returncode:
        raise NvccError(f"{source.name} does not compile for {architecture}:\n{said}")
    return Compiled(usage.ru_utime + usage.ru_stime, parse(said))


def parse(report: str) -> dict[str, Usage]:
    """What `ptxas -v` reports, by mangled kernel name.

    The stack and the spills of a function that was not inlined are counted to the kernel that it is reported after.
    """
    kernels: dict[str, Usage] = {}
    name = None
    for line in report.splitlines():
        if entry := _ENTRY.search(line):
            name = entry[1]
            kernels[name] = Usage()
        elif name is None:
            continue
        elif frame := _FRAME.search(line):
            stack, stores, loads = map(int, frame.groups())
            known = kernels[name]
            kernels[name] = replace(
                known,
                stack=max(known.stack, stack),
                spill_stores=known.spill_stores + stores,
                spill_loads=known.spill_loads + loads,
            )
        elif used := _USED.search(line):
            shared = _SHARED.search(line)
            kernels[name] = replace(kernels[name], registers=int(used[1]), shared=int(shared[1]) if shared else 0)
    return kernels


def demangle(names: Sequence[str]) -> list[str]:
    """The C++ names, by c++filt, which comes with g++, or CUDA's cu++filt."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        raise NvccError("neither c++filt (of binutils) nor cu++filt is on PATH: kernels cannot be named")
    if not names:
        return []
    done = subprocess.run([tool], input="\n".join(names) + "\n", capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def shorten(name: str) -> str:
    """A demangled kernel name without return type, parameters, fastgan's namespaces and types of template values.

    `void fastgan::cuda::(anonymous namespace)::k<float, (int)4>(float*)` becomes `k<float, 4>`.
    """
    name = re.sub(r"(\(anonymous namespace\)|<unnamed>|_NV_ANON_NAMESPACE)::", "", name)
    name = re.sub(r"\bfastgan::(?:[a-z_]\w*::)*", "", name)
    name = name.removeprefix("void ")
    depth = 0
    for i, letter in enumerate(name):
        if letter == "(" and depth == 0:
            name = name[:i]
            break
        depth += (letter == "<") - (letter == ">")
    name = re.sub(r"\([\w: ]+\)(?=-?\d)", "", name)
    return re.sub(r"\b__(nv_bfloat16|half)\b", lambda m: m[1].removeprefix("nv_"), name)


def readable(kernels: Mapping[str, Usage]) -> dict[str, Usage]:
    """The same by short names; by whole ones where two kernels of a file would have the same short one."""
    full = demangle(list(kernels))
    short = [shorten(name) for name in full]
    names = [a if short.count(a) == 1 else b for a, b in zip(short, full, strict=True)]
    return dict(zip(names, kernels.values(), strict=True))
