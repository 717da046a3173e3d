"""Which module imports which and which source includes which, read off the sources, and the rooms that must hold.

    python tests/arrows.py [CHECKOUT]     files and lines of each folder, circles, and arrows that point the wrong way

The exit code is 1 where there is a circle or a wrong arrow.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Room(NamedTuple):
    """Sources that depend on those of the rooms below alone.

    Attributes:
        files: patterns, below a checkout.
        below: the rooms right below; those that are below these are too.
        needs: the packages that it may import, or the folders of system headers that it may include.
    """

    files: str
    below: str = ""
    needs: str = ""


# core <- cpu, cuda <- bindings; reference <- functional <- nn <- engine <- step <- training <- cli.
ROOMS = {
    "core": Room("csrc/core/**/*.h"),
    "cpu": Room("csrc/cpu/**/*.h csrc/cpu/**/*.cpp", "core", "sys"),
    "cuda": Room("csrc/cuda/**/*.h csrc/cuda/**/*.cu", "core"),
    "bindings": Room("csrc/bindings/**/*.h csrc/bindings/**/*.cpp", "cpu cuda", "torch ATen c10 pybind11"),
    "reference": Room("fastgan/reference.py", "", "torch"),
    "base": Room(
        "fastgan/checks.py fastgan/backend.py fastgan/build_info.py fastgan/choices.py fastgan/device_cache.py "
        "fastgan/gate.py "
        "fastgan/version.py",
        "reference",
        "torch",
    ),
    "functional": Room("fastgan/functional.py", "reference base", "torch"),
    "nn": Room("fastgan/nn.py fastgan/loss_modules.py fastgan/layers.py fastgan/other_tools.py", "functional", "torch"),
    "engine": Room(
        "fastgan/engine.py fastgan/plan_*.py fastgan/step_options.py fastgan/statistics.py fastgan/processes.py "
        "fastgan/shared_memory.py",
        "nn",
        "torch",
    ),
    "step": Room(
        "fastgan/step.py fastgan/discriminator_step.py fastgan/planned.py fastgan/composed.py fastgan/step_inputs.py "
        "fastgan/labels.py fastgan/condition.py "
        "fastgan/tuning*.py fastgan/discriminator_output.py",
        "engine",
        "torch",
    ),
    "metrics": Room("fastgan/metrics/*.py fastgan/distances.py", "base", "torch numpy sklearn"),
    "data": Room(
        "fastgan/data/*.py fastgan/dataset.py fastgan/units.py", "base", "torch numpy PIL sklearn threadpoolctl"
    ),
    "integrations": Room("fastgan/integrations/*.py", "step", "torch numpy joblib pandas"),
    "verification": Room("fastgan/verification*.py", "step", "torch"),
    "library": Room("fastgan/__init__.py", "step verification metrics data"),
    "output": Room("fastgan/output.py"),
    "training": Room(
        "fastgan/training/*.py fastgan/trainer.py fastgan/config.py fastgan/sampling.py",
        "step data metrics output",
        "torch numpy PIL matplotlib rich safetensors sklearn tomlkit typing_extensions onnxruntime",
    ),
    "evaluation": Room("fastgan/evaluation/*.py", "library training", "torch"),
    "bench": Room(
        "bench/*.py",
        "library integrations training",
        "torch numpy matplotlib rich jax apex tinycudann trainkernel ctgan pandas sklearn",
    ),
    "cli": Room("fastgan/cli.py fastgan/__main__.py", "evaluation bench", "torch typer"),
}
# What the library imports when it is first asked for, by name.
LAZY = {("fastgan/__init__.py", "fastgan/training/trainer.py")}
# The host model of CUDA (tests/simt), which stands in for the toolkit's headers.
HOST_MODEL = ("simt.h", "simt_ptx.h")
PACKAGES = {"fastgan": "fastgan", "fastgan.bench": "bench"}  # as in pyproject.toml


class Arrow(NamedTuple):
    """A source uses another (a path below the checkout), or a package or system header (its name, not a path)."""

    source: str
    line: int
    target: str
    is_source: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.line} uses {self.target}"


def sources(root: Path) -> dict[str, str]:
    """The room of each source, by path; where no room has it, that is empty."""
    patterns = ("fastgan/**/*.py", "bench/**/*.py", *(f"csrc/**/*.{ending}" for ending in ("h", "cpp", "cu")))
    found = {path.relative_to(root).as_posix(): "" for pattern in patterns for path in root.glob(pattern)}
    for name, room in ROOMS.items():
        for pattern in room.files.split():
            found.update({path.relative_to(root).as_posix(): name for path in root.glob(pattern)})
    return found


def arrows(root: Path) -> list[Arrow]:
    """All arrows of a checkout: imports for type checkers, inside functions and by a name in a string among them."""
    known = sources(root)
    modules = {name: path for path in known if path.endswith(".py") for name in [module_name(path)]}
    found: list[Arrow] = []
    for path in known:
        text = (root / path).read_text(encoding="utf-8")
        if path.endswith(".py"):
            found += python_arrows(path, text, tuple(modules.items()))
        else:
            found += includes(root, path, text, known)
    return sorted(set(found))


def module_name(path: str) -> str:
    folder, _, rest = path.removesuffix(".py").partition("/")
    package = next(name for name, place in PACKAGES.items() if place == folder)
    return f"{package}.{rest.replace('/', '.')}".removesuffix(".__init__")


@functools.lru_cache(maxsize=1024)
def python_arrows(path: str, text: str, modules: tuple[tuple[str, str], ...]) -> list[Arrow]:
    """As python_arrows_of, once for the same text: the tests change one file of many."""
    return list(python_arrows_of(path, text, dict(modules)))


def python_arrows_of(path: str, text: str, modules: Mapping[str, str]) -> Iterator[Arrow]:
    """What a module imports: the modules of `modules` (name to path), and other packages but Python's own."""
    own = module_name(path)
    package = own if path.endswith("__init__.py") else own.rpartition(".")[0]
    tree = ast.parse(text)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (above, node.module)))
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules else base for name in inner]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("fastgan."):
            names = [node.value] if node.value in modules else []
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            if node.args and isinstance(node.args[0], ast.JoinedStr) and "fastgan." in ast.unparse(node.args[0]):
                yield Arrow(path, node.lineno, "a name put together at run time", False)
        for name in names:
            if name.partition(".")[0] == "fastgan":
                # A name of what is compiled, or is no module, comes from the package that has it.
                yield Arrow(path, node.lineno, modules.get(name, name), name in modules)
            elif (top := name.partition(".")[0]) not in sys.stdlib_module_names:
                yield Arrow(path, node.lineno, top, False)


def includes(root: Path, path: str, text: str, known: Mapping[str, str]) -> Iterator[Arrow]:
    """What a C++ or CUDA source includes: sources, and system headers that are in folders, as those of torch are."""
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r"\s*#\s*include\s+(?:\"([^\"]+)\"|<([^>]+)>)", line)
        if match is None:
            continue
        if match[2] is not None:
            folder = match[2].rpartition("/")[0]
            if folder or match[2].startswith("Python"):
                yield Arrow(path, number, match[2], False)
            continue
        target = os.path.relpath((root / path).parent / match[1], root)
        yield Arrow(path, number, target if target in known else match[1], target in known)


def circles(found: Iterable[Arrow]) -> list[list[str]]:
    """The largest sets of sources of which each leads to each other (strongly connected components: Tarjan 1972)."""
    uses: dict[str, set[str]] = {}
    for arrow in found:
        if arrow.is_source:
            uses.setdefault(arrow.source, set()).add(arrow.target)
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    result: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in sorted(uses.get(node, ())):
            if other not in index:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], index[other])
        if lowest[node] == index[node]:
            at = stack.index(node)
            members = stack[at:]
            del stack[at:]
            if len(members) > 1 or node in uses.get(node, ()):
                result.append(sorted(members))

    for node in sorted(uses):
        if node not in index:
            visit(node)
    return result


def rooms_below(name: str) -> set[str]:
    """A room and all that are below it."""
    return {name}.union(*map(rooms_below, ROOMS[name].below.split()))


def wrong(root: Path, found: Iterable[Arrow]) -> list[str]:
    """A sentence for each arrow that points the wrong way, and for each source that has no room."""
    room_of = sources(root)
    faults = [f"{path} is in no room" for path, room in room_of.items() if not room]
    for arrow in found:
        room = room_of[arrow.source]
        if not room:
            continue
        if arrow.is_source:
            below = room_of[arrow.target]
            if below not in rooms_below(room) and (arrow.source, arrow.target) not in LAZY:
                faults.append(f"{arrow}, but {room} is not above {below or 'a source without a room'}")
        elif arrow.target not in HOST_MODEL or room != "cuda":
            needs = ROOMS[room].needs.split()
            if arrow.target.partition("/")[0] not in needs:
                faults.append(f"{arrow}, but {room} needs only {', '.join(needs) or 'nothing'}")
    return faults


def sizes(root: Path) -> dict[str, tuple[int, int]]:
    """The sources of each folder and their lines."""
    endings = (".py", ".h", ".cpp", ".cu", ".sh")
    result: dict[str, tuple[int, int]] = {}
    for top in ("csrc", "fastgan", "bench", "tools", "examples", "tests"):
        for path in sorted((root / top).rglob("*")):
            if path.suffix in endings and "__pycache__" not in path.parts:
                folder = path.parent.relative_to(root).as_posix()
                files, lines = result.get(folder, (0, 0))
                result[folder] = files + 1, lines + path.read_text(encoding="utf-8").count("\n")
    return dict(sorted(result.items()))


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT).resolve()
    print(f"{'room':<20} files  lines")
    for folder, (files, lines) in sizes(root).items():
        print(f"{folder + '/':<20} {files:5d} {lines:6d}")
    found = arrows(root)
    round_trips, faults = circles(found), wrong(root, found)
    print(f"circles: {len(round_trips)}", *map(" <-> ".join, round_trips), sep="\n  ")
    print(f"wrong arrows: {len(faults)}", *faults, sep="\n  ")
    return 1 if round_trips or faults else 0


if __name__ == "__main__":
    sys.exit(main())
