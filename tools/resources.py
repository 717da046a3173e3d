"""Registers, shared memory and spills of every CUDA kernel, from ptxas: `python -m tools.resources`.

Needs nvcc but no GPU, and neither torch nor fastgan. The table csrc/cuda/resources.tsv is what was last accepted: where
a kernel suddenly needs more registers, and so has fewer warps on a multiprocessor, the change that caused it shows so.
It also holds a digest of what each file's rows were measured of. nvcc makes the same code of the same sources, so that
only files are compiled whose sources, flags or rows have changed since, or all of them under another nvcc.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import ptxas
from .ptxas import ARCHITECTURES, KERNELS, ROOT, Compiled, NvccError, Usage, measure, nvcc_version, readable

TABLE = KERNELS / "resources.tsv"
HEADER = ("file", "kernel", "shared", "stack", "spills", *ARCHITECTURES)

# Longest that one file may take for one architecture: a user who builds for three waits that long three times.
SECONDS_LIMIT = 30.0

_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_TORCH_INCLUDE = re.compile(r"^\s*#\s*include\s*[<\"]((?:torch|ATen|c10)/[^>\"]*)", re.MULTILINE)


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


def kept_spills(rows: Iterable[tuple[str, ...]], files: Collection[str]) -> list[str]:
    """A sentence for each kernel of some files that spills by the table."""
    return [
        f"{row[0]}: {row[1]} spills {row[HEADER.index('spills')]} bytes by {TABLE.name}"
        for row in rows
        if row[0] in files and row[HEADER.index("spills")] != "0"
    ]


def difference_sentences(
    committed: Iterable[tuple[str, ...]],
    measured: Iterable[tuple[str, ...]],
    table: str = TABLE.name,
    header: Sequence[str] = HEADER,
) -> list[str]:
    """A sentence for each row that one table has and the other has not, or has otherwise.

    Args:
        committed: rows, which begin with file and kernel.
        measured: likewise.
        table: its name.
        header: the names of its columns.
    """
    old, new = ({row[:2]: row for row in rows} for rows in (committed, measured))
    sentences = []
    for key in sorted({*old, *new}):
        where = f"{table}: {key[0]} {key[1]}"
        if key not in new:
            sentences.append(f"{where} is in the table, but there is no such kernel")
        elif key not in old:
            sentences.append(f"{where} is not in the table")
        elif old[key] != new[key]:
            changes = (
                f"{column} {a} in the table, {b} measured"
                for column, a, b in zip(header, old[key], new[key], strict=True)
                if a != b
            )
            sentences.append(f"{where}: {'; '.join(changes)}")
    return sentences


def sources_of(source: Path) -> list[Path]:
    """A file and all that it includes by relative paths, whatever the conditions around its includes; sorted."""
    found, left = {source}, [source]
    while left:
        file = left.pop()
        named = ((file.parent / name).resolve() for name in _INCLUDE.findall(file.read_text()))
        new = {path for path in named if path.is_file()} - found
        found |= new
        left += new
    return sorted(found)


def digest(source: Path, rows: Iterable[tuple[str, ...]], readers: Iterable[str] = (ptxas.__file__,)) -> str:
    """Of all that decides a file's rows but nvcc's version: sources, flags, how it is measured; and of the rows.

    Args:
        source: the file.
        rows: its own.
        readers: the modules that measure, by their files.
    """
    state = hashlib.sha256(b"".join(Path(reader).read_bytes() for reader in readers))
    state.update((KERNELS / "nvcc-flags.txt").read_bytes())
    for file in sources_of(source):
        state.update(f"\0{file.name}\0".encode() + file.read_bytes())
    for row in sorted(rows):
        state.update(("\0" + "\t".join(row)).encode())
    return state.hexdigest()[:16]


def write_table(path: Path, version: str, rows: Sequence[tuple[str, ...]], sources: Iterable[Path] = ()) -> None:
    """Write the table: a comment with nvcc's version and one with the digest of each file, the header, the rows."""
    digests = (f"# {s.name} {digest(s, [row for row in rows if row[0] == s.name])}" for s in sorted(sources))
    lines = [*digests, *("\t".join(row) for row in (HEADER, *sorted(rows)))]
    path.write_text(f"# nvcc {version}; python -m tools.resources --write\n" + "\n".join(lines) + "\n")


def read_table(path: Path) -> tuple[str, list[tuple[str, ...]]]:
    """nvcc's version and the rows of a table; an empty version where there is none or it has other columns."""
    if not path.exists():
        return "", []
    comment, *lines = path.read_text().splitlines() or [""]
    version = re.match(r"# nvcc ([\d.]+)", comment)
    header, *rows = [tuple(line.split("\t")) for line in lines if not line.startswith("#")] or [()]
    if version is None or header != HEADER or any(len(row) != len(HEADER) for row in rows):
        return "", []
    return version[1], rows


def unchanged(path: Path, version: str, sources: Iterable[Path]) -> list[Path]:
    """The files whose rows of the table are what this nvcc would give again: the digests are still the same."""
    known, rows = read_table(path)
    if known != version:
        return []
    digests = dict(re.findall(r"^# (\S+\.cu) (\w+)$", path.read_text(), re.MULTILINE))
    return [s for s in sources if digests.get(s.name) == digest(s, [row for row in rows if row[0] == s.name])]


def torch_includes() -> list[str]:
    """A sentence for each torch header that a kernel or the scalar mathematics includes: it adds half a minute."""
    return [
        f"{path.relative_to(ROOT)} includes {header}; only csrc/bindings/ may include torch headers"
        for folder in (KERNELS, ROOT / "csrc" / "core")
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
    parser = argparse.ArgumentParser(prog="python -m tools.resources", description=__doc__.split("\n")[0])
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="fail on spills, differences, slow files (the default)")
    action.add_argument("--write", action="store_true", help="write what is measured to csrc/cuda/resources.tsv")
    parser.add_argument("--all", action="store_true", help="compile also the files that have not changed since")
    parser.add_argument("--jobs", type=int, default=2, help="nvcc calls at a time, at least 1 (default: 2)")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {options.jobs}")

    try:
        version = nvcc_version()
        sources = sorted(KERNELS.glob("*.cu"))
        committed_version, committed = read_table(TABLE)
        kept = [] if options.all else unchanged(TABLE, version, sources)
        rows, sentences = compile_all([source for source in sources if source not in kept], options.jobs)
    except NvccError as error:
        print(f"tools.resources: {error}", file=sys.stderr)
        return 2
    names = {source.name for source in kept}
    rows += [row for row in committed if row[0] in names]
    sentences = torch_includes() + kept_spills(committed, names) + sentences
    if kept:
        print(f"{len(kept)} files have not changed since they were measured; --all compiles them too")
    if options.write:
        write_table(TABLE, version, rows, sources if not sentences else ())  # what is wrong is found again next time
        print(f"{len(rows)} kernels in {TABLE.relative_to(ROOT)}")
    else:
        if not committed_version:
            sentences.append(
                f"{TABLE.relative_to(ROOT)} is missing or has other columns: python -m tools.resources --write"
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
                sentences.append("where these changes are meant: python -m tools.resources --write")
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    if not sentences:
        print(f"{len(rows)} kernels in {len(sources)} files, none spills")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
