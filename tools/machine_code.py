"""Accesses by width and chains of loads in the machine code of every CUDA kernel: `python -m tools.machine_code`.

Needs nvcc and nvdisasm (the Python package nvidia-cuda-nvdisasm, or the CUDA toolkit's own) but no GPU, and neither
torch nor fastgan. The table csrc/cuda/machine_code.tsv is what was last accepted, of sm_90a: where a change of the
sources makes four accesses of one, or one load wait for another, it shows so. Files whose sources have not changed
since are skipped, as tools/resources.py does.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import ptxas, resources, sass
from .ptxas import KERNELS, ROOT, NvccError, demangle, nvcc_version, shorten

ARCHITECTURE = "sm_90a"
TABLE = KERNELS / "machine_code.tsv"
COLUMNS = (
    "instructions",
    *(f"{name}.{bits}" for name, all_bits in sass.WIDTHS.items() for bits in all_bits),
    *("LDSM", "tensor", "FMA", "chain"),
)
HEADER = ("file", "kernel", *COLUMNS)
Row = tuple[str, ...]


def rows_of(source: Path) -> list[Row]:
    """The rows of one file, compiled now."""
    kernels = sass.disassemble(source, ARCHITECTURE)
    full = demangle(list(kernels))
    short = [shorten(name) for name in full]
    names = [a if short.count(a) == 1 else b for a, b in zip(short, full, strict=True)]
    rows = []
    for name, kernel in zip(names, kernels.values(), strict=True):
        of = sass.counts(kernel)
        rows.append((source.name, name, *(str(of[column]) for column in COLUMNS)))
    return sorted(rows)


def digest(source: Path, rows: Iterable[Row]) -> str:
    """As that of the resources, of what reads machine code."""
    return resources.digest(source, rows, (ptxas.__file__, sass.__file__))


def write_table(version: str, rows: Sequence[Row], sources: Iterable[Path]) -> None:
    """Write the table: nvcc's version, the digest of each file, the header, the rows."""
    lines = [f"# nvcc {version} for {ARCHITECTURE}; python -m tools.machine_code --write"]
    lines += [f"# {s.name} {digest(s, [row for row in rows if row[0] == s.name])}" for s in sorted(sources)]
    lines += ["\t".join(row) for row in (HEADER, *sorted(rows))]
    TABLE.write_text("\n".join(lines) + "\n")


def read_table() -> tuple[str, dict[str, str], list[Row]]:
    """nvcc's version, the digests, and the rows; an empty version where there is no table or it has other columns."""
    if not TABLE.exists():
        return "", {}, []
    text = TABLE.read_text()
    version = re.match(rf"# nvcc ([\d.]+) for {ARCHITECTURE};", text)
    header, *rows = [tuple(line.split("\t")) for line in text.splitlines() if not line.startswith("#")] or [()]
    if version is None or header != HEADER:
        return "", {}, []
    return version[1], dict(re.findall(r"^# (\S+\.cu) (\w+)$", text, re.MULTILINE)), rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile what has changed, then check or write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.machine_code", description=__doc__.split("\n")[0])
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="fail where the table does not hold (the default)")
    action.add_argument("--write", action="store_true", help="write what is found to csrc/cuda/machine_code.tsv")
    parser.add_argument("--all", action="store_true", help="compile also the files that have not changed since")
    parser.add_argument("--jobs", type=int, default=2, help="nvcc calls at a time, at least 1 (default: 2)")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {options.jobs}")
    try:
        version = nvcc_version()
        known, digests, committed = read_table()
        sources = sorted(KERNELS.glob("*.cu"))
        kept = [
            s
            for s in sources
            if not options.all
            and known == version
            and digests.get(s.name) == digest(s, [row for row in committed if row[0] == s.name])
        ]
        if len(kept) < len(sources):
            sass.nvdisasm()
        with ThreadPoolExecutor(options.jobs) as pool:
            measured = list(pool.map(rows_of, [s for s in sources if s not in kept]))
    except NvccError as error:
        print(f"tools.machine_code: {error}", file=sys.stderr)
        return 2
    names = {source.name for source in kept}
    rows = [row for row in committed if row[0] in names] + [row for some in measured for row in some]
    if kept:
        print(f"{len(kept)} files have not changed since they were looked at; --all compiles them too")
    if options.write:
        write_table(version, rows, sources)
        print(f"{len(rows)} kernels in {TABLE.relative_to(ROOT)}")
        return 0
    if known and known != version:
        print(f"note: the table is of nvcc {known} and this is {version}, whose code differs; nothing is compared")
        return 0
    sentences = resources.difference_sentences(committed, rows, TABLE.name, HEADER)
    if sentences:
        sentences.append("where these changes are meant: python -m tools.machine_code --write")
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    if not sentences:
        print(f"{len(rows)} kernels in {len(sources)} files, as the table says")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
