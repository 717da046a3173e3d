"""Registers, shared memory and spills of every CUDA kernel, from ptxas: `python -m bench.resources`.

Needs nvcc but no GPU, and neither torch nor fastgan. The table csrc/cuda/resources.tsv is what was last accepted: where
a kernel suddenly needs more registers, and so has fewer warps on a multiprocessor, the change that caused it shows so.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "csrc" / "cuda"
TABLE = FOLDER / "resources.tsv"
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a")
HEADER = ("file", "kernel", "shared", "stack", "spills", *ARCHITECTURES)

# Longest that one file may take for one architecture: a user who builds for three waits that long three times.
SECONDS_LIMIT = 30.0

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
_TORCH_INCLUDE = re.compile(r"^\s*#\s*include\s*[<\"]((?:torch|ATen|c10)/[^>\"]*)", re.MULTILINE)


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


def nvcc_flags() -> list[str]:
    """The flags of the kernels; setup.py reads the same file."""
    return (FOLDER / "nvcc-flags.txt").read_text().split()


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


def table_rows(file: str, usages: Mapping[str, Mapping[str, Usage]]) -> list[tuple[str, ...]]:
    """The rows of one file: registers for each architecture, the others' maximum over the architectures.

    Args:
        file: its name.
        usages: architecture to readable kernel name to what it takes.
    """
    rows = []
    for kernel in sorted({name for kernels in usages.values() for name in kernels}):
        each = {architecture: kernels[kernel] for architecture, kernels in usages.items() if kernel in kernels}
        most = (
            max(usage.shared for usage in each.values()),
            max(usage.stack for usage in each.values()),
            max(usage.spill_stores + usage.spill_loads for usage in each.values()),
        )
        registers = (str(each[a].registers) if a in each else "-" for a in ARCHITECTURES)
        rows.append((file, kernel, *map(str, most), *registers))
    return rows


def spill_sentences(file: str, usages: Mapping[str, Mapping[str, Usage]]) -> list[str]:
    """A sentence for each kernel and architecture where registers were spilled to local memory."""
    return [
        f"{file}: {kernel} spills on {architecture}: {usage.spill_stores} bytes of stores and {usage.spill_loads} of "
        f"loads, with {usage.registers} registers; give it fewer live values, or fewer threads a block"
        for architecture, kernels in usages.items()
        for kernel, usage in sorted(kernels.items())
        if usage.spill_stores or usage.spill_loads
    ]


def difference_sentences(committed: Iterable[tuple[str, ...]], measured: Iterable[tuple[str, ...]]) -> list[str]:
    """A sentence for each row that one table has and the other has not, or has otherwise."""
    old, new = ({row[:2]: row for row in rows} for rows in (committed, measured))
    sentences = []
    for key in sorted({*old, *new}):
        where = f"{TABLE.name}: {key[0]} {key[1]}"
        if key not in new:
            sentences.append(f"{where} is in the table, but there is no such kernel")
        elif key not in old:
            sentences.append(f"{where} is not in the table")
        elif old[key] != new[key]:
            changes = (
                f"{column} {a} in the table, {b} measured"
                for column, a, b in zip(HEADER, old[key], new[key], strict=True)
                if a != b
            )
            sentences.append(f"{where}: {'; '.join(changes)}")
    return sentences


def write_table(path: Path, version: str, rows: Iterable[tuple[str, ...]]) -> None:
    """Write the table: a comment with nvcc's version, the header, the rows."""
    lines = ["\t".join(row) for row in (HEADER, *sorted(rows))]
    path.write_text(f"# nvcc {version}; python -m bench.resources --write\n" + "\n".join(lines) + "\n")


def read_table(path: Path) -> tuple[str, list[tuple[str, ...]]]:
    """nvcc's version and the rows of a table; an empty version where there is none or it has other columns."""
    if not path.exists():
        return "", []
    comment, *lines = path.read_text().splitlines() or [""]
    version = re.match(r"# nvcc ([\d.]+)", comment)
    header, *rows = [tuple(line.split("\t")) for line in lines] or [()]
    if version is None or header != HEADER or any(len(row) != len(HEADER) for row in rows):
        return "", []
    return version[1], rows


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


def torch_includes() -> list[str]:
    """A sentence for each torch header that a kernel or the scalar mathematics includes: it adds half a minute."""
    return [
        f"{path.relative_to(ROOT)} includes {header}; only csrc/bindings/ may include torch headers"
        for folder in (FOLDER, ROOT / "csrc" / "core")
        for path in sorted(folder.iterdir())
        if path.suffix in (".h", ".cuh", ".cu", ".cpp")
        for header in _TORCH_INCLUDE.findall(path.read_text())
    ]


def compile_all(sources: Sequence[Path], jobs: int) -> tuple[list[tuple[str, ...]], list[str]]:
    """Compile every file for every architecture, and print the seconds.

    Returns:
        The table's rows, and a sentence for each thing that is wrong: an error, a spill, a slow file.
    """
    rows: list[tuple[str, ...]] = []
    sentences: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        work = {source: {a: pool.submit(measure, source, a) for a in ARCHITECTURES} for source in sources}
        for source, futures in work.items():
            compiled: dict[str, Compiled] = {}
            for architecture, future in futures.items():
                try:
                    compiled[architecture] = future.result()
                except NvccError as error:
                    sentences.append(str(error))
            print(f"{source.name}: " + ", ".join(f"{a} {c.seconds:.1f} s" for a, c in compiled.items()), flush=True)
            sentences += [
                f"{source.name} takes {c.seconds:.0f} s of a processor for {a}, more than {SECONDS_LIMIT:.0f}: split it"
                for a, c in compiled.items()
                if c.seconds > SECONDS_LIMIT
            ]
            usages = {a: readable(c.kernels) for a, c in compiled.items()}
            sentences += spill_sentences(source.name, usages)
            rows += table_rows(source.name, usages)
    return rows, sentences


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print the seconds, then check or write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.resources", description=__doc__.split("\n")[0])
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="fail on spills, differences, slow files (the default)")
    action.add_argument("--write", action="store_true", help="write what is measured to csrc/cuda/resources.tsv")
    parser.add_argument("--jobs", type=int, default=2, help="nvcc calls at a time, at least 1 (default: 2)")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {options.jobs}")

    try:
        version = nvcc_version()
        sources = sorted(FOLDER.glob("*.cu"))
        rows, sentences = compile_all(sources, options.jobs)
    except NvccError as error:
        print(f"bench.resources: {error}", file=sys.stderr)
        return 2
    sentences = torch_includes() + sentences
    if options.write:
        write_table(TABLE, version, rows)
        print(f"{len(rows)} kernels in {TABLE.relative_to(ROOT)}")
    else:
        committed_version, committed = read_table(TABLE)
        if not committed_version:
            sentences.append(
                f"{TABLE.relative_to(ROOT)} is missing or has other columns: python -m bench.resources --write"
            )
        elif committed_version != version:
            print(
                f"note: the table is of nvcc {committed_version} and this is {version}, whose register counts differ; "
                "only spills and times are checked"
            )
        else:
            changes = difference_sentences(committed, rows)
            sentences += changes
            if changes:
                sentences.append("where these changes are meant: python -m bench.resources --write")
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    if not sentences:
        print(f"{len(rows)} kernels in {len(sources)} files, none spills")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
