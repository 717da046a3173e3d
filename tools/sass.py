"""The machine code of CUDA kernels, from nvdisasm: accesses by width, tensor-core instructions, chains of loads.

nvdisasm comes with the CUDA toolkit, and as the Python package nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .ptxas import _TORCH_FLAGS, NvccError, nvcc_flags

# Accesses of global memory (asynchronous copies, LDGSTS, last), then of shared memory, by bits a thread.
WIDTHS = {
    "LDG": (32, 64, 128),
    "STG": (32, 64, 128),
    "LDGSTS": (32, 64, 128),
    "LDS": (32, 64, 128),
    "STS": (32, 64, 128),
}
TENSOR = ("HMMA", "HGMMA", "QGMMA", "IMMA", "DMMA")
# A chain that goes round a loop has no end: it is cut off here.
LONGEST_CHAIN = 50

_FUNCTION = re.compile(r"^\.text\.(\S+):\s*$")
_LABEL = re.compile(r"^(\.L_x_\d+|\$\S+):\s*$")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"\.L_x_\d+|\$[\w$]+")
_REGISTER = re.compile(r"\b(U?R\d+)(\.64)?\b|\b(U?P\d)\b")
_DOUBLE = re.compile(r"^D[A-Z]")  # arithmetic whose registers are pairs
_WIDE = re.compile(r"\.WIDE|^[A-Z0-9]+\.F64")  # whose result is a pair, and of a sum what it is added to


@dataclass
class Instruction:
    """One instruction: its guard (a predicate register or none), name with modifiers, and operands as text."""

    guard: str
    name: str
    operands: str

    @property
    def base(self) -> str:
        """Its name without modifiers."""
        return self.name.split(".")[0]

    @property
    def bits(self) -> int:
        """How much a thread moves by it; 32 where it is less."""
        parts = self.name.split(".")
        return 128 if "128" in parts else 64 if "64" in parts else 32


@dataclass
class Kernel:
    """Straight runs of instructions by their labels, in their order, and where each goes on to."""

    runs: dict[str, list[Instruction]] = field(default_factory=dict)
    next: dict[str, list[str]] = field(default_factory=dict)
    functions: dict[str, set[str]] = field(default_factory=dict)  # its own subroutines: the registers that each writes

    @property
    def instructions(self) -> list[Instruction]:
        """All of them."""
        return [one for run in self.runs.values() for one in run]


def parse(text: str) -> dict[str, Kernel]:
    """What `nvdisasm -c` prints, by mangled kernel name."""
    kernels: dict[str, Kernel] = {}
    kernel, run, function = None, "", ""
    for line in text.splitlines():
        if named := _FUNCTION.match(line):
            kernel, run, function = kernels.setdefault(named[1], Kernel()), "start", ""
            kernel.runs[run] = []
        elif kernel is None:
            continue
        elif label := _LABEL.match(line):
            function = label[1] if label[1].startswith("$") else function
            kernel.next.setdefault(run, []).append(label[1])
            run = label[1]
            kernel.runs[run] = []
        elif found := _INSTRUCTION.match(line):
            one = Instruction((found[1] or "").lstrip("!"), found[2], found[3])
            kernel.runs[run].append(one)
            if function:
                kernel.functions.setdefault(function, set()).update(_reads_and_writes(one)[1])
            if one.base not in ("BRA", "BRX", "EXIT", "RET"):
                continue
            kernel.next.setdefault(run, []).extend(_TARGET.findall(line))
            after = f"{run}+"  # what follows a jump is a run of its own
            if one.guard:
                kernel.next[run].append(after)
            run = after
            kernel.runs[run] = []
    for kernel in kernels.values():
        kernel.next = {name: [n for n in after if n in kernel.runs] for name, after in kernel.next.items()}
    return kernels


def _registers(text: str, pairs: bool) -> list[str]:
    names = []
    for number, wide, predicate in _REGISTER.findall(text):
        if predicate:
            names.append(predicate)
            continue
        names.append(number)
        if wide or pairs:
            kind = number.rstrip("0123456789")
            names.append(f"{kind}{int(number[len(kind) :]) + 1}")
    return names


def _reads_and_writes(one: Instruction) -> tuple[list[str], list[str]]:
    """Registers that an instruction reads, its guard too, and those that it writes; as far as its text says."""
    parts = re.split(r",\s*(?![^\[]*\])", one.operands) if one.operands else []
    guard = [one.guard] if one.guard else []
    if one.base in ("STG", "STS", "ST", "STL", "LDGSTS", "RED", "BAR", "BRA", "EXIT"):
        return guard + _registers(one.operands, one.bits >= 64), []
    written = 1
    if len(parts) > 1 and all(re.fullmatch(r"U?P(\d|T)", part) for part in parts[:2]):  # ISETP P0, PT, ...
        written = 2
    elif parts and re.fullmatch(r"U?R\d+", parts[0]):
        while written < min(3, len(parts)) and re.fullmatch(r"U?P\d", parts[written]):  # IADD3 R5, P0, P1, ...
            written += 1
    is_load = one.base in ("LDG", "LDS", "LD", "LDL", "LDC", "LDSM", "ATOMG", "ULDC")
    double, wide = (pattern.search(one.name) is not None for pattern in (_DOUBLE, _WIDE))
    targets = _registers(", ".join(parts[:written]), double or wide)
    if is_load and targets and targets[0] not in ("RZ", "URZ"):
        kind = targets[0].rstrip("0123456789")
        count = 4 if one.base == "LDSM" and one.name.endswith(".4") else one.bits // 32
        first = int(targets[0][len(kind) :])
        targets = [f"{kind}{first + i}" for i in range(count)]
    read = _registers(", ".join(parts[written:]), double)
    return guard + read + (_registers(parts[-1], True) if wide and len(parts) > written else []), targets


def chain(kernel: Kernel) -> int:
    """The longest chain of global loads each of whose addresses, or guards, needs the one before.

    Through registers and predicates, over all paths; not through memory, not by which way a branch goes, and not
    through subroutines (divisions, mostly of places). A loop that goes on from what it has loaded counts as
    LONGEST_CHAIN, and so does one of which this cannot tell.
    """
    effects = {name: [(one, *_reads_and_writes(one)) for one in run] for name, run in kernel.runs.items()}
    states: dict[str, dict[str, int]] = {next(iter(kernel.runs), ""): {}}
    waiting, longest = list(states), 0
    while waiting:
        run = waiting.pop()
        depth = dict(states[run])
        for one, reads, writes in effects.get(run, ()):
            if one.base == "CALL":
                for name in kernel.functions.get(one.operands.strip("`()"), ()):
                    depth.pop(name, None)
                continue
            most = max((depth.get(name, 0) for name in reads), default=0)
            if one.base in ("LDG", "LD", "ATOMG"):
                most = min(most + 1, LONGEST_CHAIN)
                longest = max(longest, most)
            for name in writes:
                depth[name] = most  # of a guarded one too: what reads it has the same guard
        for after in kernel.next.get(run, ()):
            before = states.get(after)
            joined = dict(before or {})
            for name, value in depth.items():
                if value > joined.get(name, 0):
                    joined[name] = value
            if before is None or joined != before:
                states[after] = joined
                if after not in waiting:
                    waiting.append(after)
    return longest


def counts(kernel: Kernel) -> dict[str, int]:
    """How many instructions there are, of each kind that the table has, and the longest chain of loads."""
    of = {"instructions": len(kernel.instructions)}
    of |= {f"{name}.{bits}": 0 for name, all_bits in WIDTHS.items() for bits in all_bits}
    of |= {"LDSM": 0, "tensor": 0, "FMA": 0}
    for one in kernel.instructions:
        if one.base in WIDTHS:
            of[f"{one.base}.{one.bits}"] += 1
        elif one.base == "LDSM":
            of["LDSM"] += 1
        elif one.base in TENSOR:
            of["tensor"] += 1
        elif one.base in ("FFMA", "DFMA"):
            of["FMA"] += 1
    return of | {"chain": chain(kernel)}


def nvdisasm() -> str:
    """Where it is: on PATH, or of the Python package in this environment.

    Raises:
        NvccError: there is none.
    """
    folder = Path(sysconfig.get_path("purelib")) / "nvidia"
    for place in (shutil.which("nvdisasm"), *map(str, sorted(folder.glob("*/bin/nvdisasm")))):
        if place is not None:
            return place
    raise NvccError("nvdisasm is neither on PATH nor in this environment: pip install nvidia-cuda-nvdisasm")


def disassemble(source: Path, architecture: str) -> dict[str, Kernel]:
    """Compile one file for one architecture as setup.py does, and read its machine code.

    Raises:
        NvccError: nvcc or nvdisasm refused it; the message holds what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder) / "kernels.cubin")
        _run(["nvcc", *_TORCH_FLAGS, *nvcc_flags(), f"-arch={architecture}", "-cubin", str(source), "-o", cubin])
        return parse(_run([nvdisasm(), "-c", cubin]))


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NvccError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
