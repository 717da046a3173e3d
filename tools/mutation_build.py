"""Builds mutants and runs the checks of the kernels on them: see tools/mutation.py.

Most mutants are compiled together: at each place stands a choice, made at run time by the number in FASTGAN_MUTANT,
between what the source says and the mutant. One that must be constant when it is compiled, or does not compile as such
a choice, is compiled alone. Both in a copy of the sources, with its own tests/simt/build.py.
"""

from __future__ import annotations

import importlib.util
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tools.mutation_sites import Mutant, Node, Site, sites

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "mutation"
SWITCH = """// Which mutant runs: see tools/mutation.py.
#pragma once
#include <cstdlib>
namespace fastgan_mutation {
inline const int chosen = std::getenv("FASTGAN_MUTANT") ? std::atoi(std::getenv("FASTGAN_MUTANT")) : -1;
template <int number>
inline __attribute__((always_inline)) bool is() { return chosen == number; }
}  // namespace fastgan_mutation
"""
ERROR = re.compile(r"^(?P<path>[^\s:]+):(?P<line>\d+):(?:\d+:)? (?P<what>(?:fatal )?error:|  required from)", re.M)
COMPLAINT = re.compile(
    r"^FAILED.*|simt: kernel.*|.*(?:ERROR: AddressSanitizer|runtime error:).*"
)  # of the checks, the host model, or pytest
# Kinds of the program of checks that find what changes no number, and the engine each runs on: the detector of races,
# and AddressSanitizer with UndefinedBehaviorSanitizer.
LATER = {"race": "fibers", "address": "threads"}
SECONDS_ALONE = {"plain": 60.0, "race": 200.0, "address": 300.0}  # that the checks may take of one compiled alone
MEMORY = 8 << 30  # bytes that a mutant may take


class Unbuildable(Exception):
    """The sources do not compile; the message is the compiler's."""


@dataclass(frozen=True)
class Verdict:
    status: str  # killed, survived, uncompiled
    how: str  # what killed it
    alone: bool  # it was compiled on its own


def replaced(site: Site) -> Node:
    """The smallest part of the source that is an expression or a statement and holds all that the mutant changes."""
    mutant, node = site.mutant, site.node
    if mutant.kind == "condition":
        condition = node.child_by_field_name("condition")
        assert condition is not None
        return condition.child_by_field_name("value") or condition
    if mutant.kind in ("name", "extreme"):
        if node.type == "field_identifier" and node.parent is not None:
            node = node.parent
        if node.parent is not None and node.parent.type == "call_expression":
            if node.parent.child_by_field_name("function") == node:
                node = node.parent
    return node


def together(source: str, numbered: Sequence[tuple[int, Site]]) -> str:
    """The source with a choice at run time at each place of `numbered`, all of which are of this file."""
    data = source.encode()
    places: dict[tuple[int, int, str], list[tuple[int, Mutant]]] = {}
    nodes: dict[int, Node] = {}
    for number, site in numbered:
        node = replaced(site)
        places.setdefault((node.start_byte, node.end_byte, node.type), []).append((number, site.mutant))
        root = node
        while root.parent is not None:
            root = root.parent
        nodes[root.id] = root

    def text(node: Node) -> str:
        at, parts = node.start_byte, []
        for child in node.children:
            parts += [data[at : child.start_byte].decode(), text(child)]
            at = child.end_byte
        now = "".join(parts) + data[at : node.end_byte].decode()
        for number, mutant in places.pop((node.start_byte, node.end_byte, node.type), ()):
            chosen = f"::fastgan_mutation::is<{number}>()"
            if mutant.kind in ("sync", "statement"):
                now = f"{{ if (!{chosen}) {now} }}"
                continue
            whole = data[node.start_byte : mutant.start] + mutant.new.encode() + data[mutant.end : node.end_byte]
            # A comment would hide what follows, and lines must keep their numbers.
            other = " ".join(re.sub(r"//[^\n]*", "", whole.decode()).split())
            now = f"({chosen} ? ({other}) : ({now}))"
        return now

    (root,) = nodes.values()
    return data[: root.start_byte].decode() + text(root) + data[root.end_byte :].decode()


class Tree:
    """A copy of the sources under build/mutation/, built by its own tests/simt/build.py."""

    def __init__(self, name: str, flags: str | None = None, jobs: int = 1) -> None:
        self.root, self.here, self.jobs = ROOT, FOLDER / name, jobs
        for folder in ("csrc", "tests/simt"):
            for path in sorted((ROOT / folder).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    self.write(str(path.relative_to(ROOT)), path.read_text())
        self.write("switch.h", SWITCH)
        self.builder = self._builder()
        self.builder.COMMON += f" -include {self.here / 'switch.h'}"
        self.builder.FLAGS["probe"] = "-O0 -g0"  # which errors there are, in half the time
        if flags is not None:
            self.builder.FLAGS["plain"] = flags

    def _builder(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"mutated_build_{id(self)}", self.here / "tests/simt/build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def write(self, file: str, text: str) -> None:
        """Where it changes: so only what depends on it is compiled again."""
        path = self.here / file
        if path.exists() and path.read_text() == text:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def build(self, kind: str) -> Path:
        """What tests/simt/build.py builds, all errors at once.

        Raises:
            Unbuildable: it does not compile.
        """
        target = self.builder.target(kind)
        file = target.parent / "build.ninja"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = self.builder.ninja_file(kind)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        ninja = [sys.executable, "-m", "ninja", "-f", str(file), "-k", "0", "-j", str(self.jobs), str(target)]
        done = subprocess.run(ninja, capture_output=True, text=True, cwd=file.parent)
        if done.returncode != 0:
            raise Unbuildable(done.stdout + done.stderr)
        return target

    def later_kinds(self) -> list[str]:
        """What judges the survivors of the plain checks, of LATER."""
        return [kind for kind in LATER if kind in self.builder.FLAGS]


def blamed(output: str, tree: Path, numbered: Sequence[tuple[int, Site]]) -> set[int]:
    """The mutants at the lines that the compiler complains of, or through which it came to what it complains of."""
    lines = {(os.path.normpath(match["path"]), int(match["line"])) for match in ERROR.finditer(output)}
    found = set()
    for number, site in numbered:
        node, path = replaced(site), str(tree / site.mutant.file)
        if any((path, line + 1) in lines for line in range(node.start_point[0], node.end_point[0] + 1)):
            found.add(number)
    return found


def build_together(tree: Tree, numbered: Sequence[tuple[int, Site]], kinds: Sequence[str]) -> set[int]:
    """Builds all mutants in one program; returns those that are left out, because they do not compile so."""
    left_out: set[int] = set()
    files = sorted({site.mutant.file for _, site in numbered})
    while True:
        kept = [(number, site) for number, site in numbered if number not in left_out]
        for file in files:
            own = [(number, site) for number, site in kept if site.mutant.file == file]
            source = (tree.root / file).read_text()
            tree.write(file, together(source, own) if own else source)
        try:
            for kind in kinds:
                tree.build(kind)
            return left_out
        except Unbuildable as error:
            bad = blamed(str(error), tree.here, kept)
            if not bad:
                raise
            left_out |= bad


def run(
    command: Sequence[str | Path], number: int, seconds: float, kind: str = "plain", where: Path | None = None
) -> str | None:
    """Runs checks on one mutant; what killed it, or None. It runs for at most so many seconds."""

    def limit() -> None:
        if kind not in LATER:  # a sanitizer reserves more than there is
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    environment = {**os.environ, "FASTGAN_MUTANT": str(number), "OMP_NUM_THREADS": "1"}
    environment["FASTGAN_SIMT_ENGINE"] = LATER.get(kind, "fibers")
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=limit,
        cwd=where,
    )
    assert process.stdout is not None
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, stop)
    timer.start()
    try:
        for line in process.stdout:  # the first complaint is enough
            if (complaint := COMPLAINT.search(line)) is not None:
                return complaint[0][:200]
        code = process.wait()
        if late.is_set():
            return f"ran for {seconds:.0f} s"
        return None if code == 0 else f"ended with {code}"
    finally:
        timer.cancel()
        process.kill()
        process.wait()


class Judge:
    """Runs a program of checks on its mutants: first few, then all; a sanitized one few only."""

    def __init__(self, program: Path, kind: str) -> None:
        self.kind = kind
        self.stages: list[tuple[list[str | Path], float]] = []
        for arguments in (["--few"], *([[]] if kind == "plain" else [])):
            begun = time.monotonic()
            if (why := run([program, *arguments], -1, 600, kind)) is not None:
                raise RuntimeError(f"the checks fail without a mutant ({kind}): {why}")
            self.stages.append(([program, *arguments], 10 + 10 * (time.monotonic() - begun)))

    def __call__(self, number: int) -> str | None:
        for command, seconds in self.stages:
            if (why := run(command, number, seconds, self.kind)) is not None:
                return why
        return None


def alone(tree: Tree, mutant: Mutant, kinds: Sequence[str]) -> Verdict:
    """Compiles and judges one mutant on its own, by each kind in turn; the tree's file is as it was afterwards."""
    source = (tree.root / mutant.file).read_text()
    data = source.encode()
    tree.write(mutant.file, (data[: mutant.start] + mutant.new.encode() + data[mutant.end :]).decode())
    try:
        for kind in kinds:
            program = tree.build(kind)
            for arguments in (["--few"], *([[]] if kind == "plain" else [])):
                if (why := run([program, *arguments], -1, SECONDS_ALONE[kind], kind)) is not None:
                    return Verdict("killed", why, True)
        return Verdict("survived", "", True)
    except Unbuildable:
        return Verdict("uncompiled", "", True)
    finally:
        tree.write(mutant.file, source)


def sites_of(root: Path) -> list[Site]:
    """Every mutant of csrc/core and csrc/cuda."""
    paths = [path for folder in ("core", "cuda") for path in sorted((root / "csrc" / folder).iterdir())]
    files = [path for path in paths if path.suffix in (".h", ".cu") and path.name != "crossover.h"]  # measured figures
    return [site for path in files for site in sites(str(path.relative_to(root)), path.read_text())]
