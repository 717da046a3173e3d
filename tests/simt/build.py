"""Builds the CUDA sources against the host model: `python tests/simt/build.py [KIND ...]`.

Kinds: `module`, the Python module behind the backend `simt`; `device`, the same with the kernels of `race`; `count`,
the same with those and counters in place of the race detector (count.cpp), and the program `counted`; and the program
of kernel checks, without torch: `plain`, `race` (with the race detector of race.cpp), `address` (with AddressSanitizer
and UndefinedBehaviorSanitizer), `thread` (with ThreadSanitizer) and `coverage` (counting branches).
Everything goes to build/simt/, and only what changed is compiled again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FOLDER = ROOT / "build" / "simt"
ENGINE = ("engine", "fibers", "threads", "ptx", "memory", "race", "count", "count_text", "tsan")
WATCHED = "-fsanitize=thread --param=tsan-instrument-func-entry-exit=0"  # whose calls are answered by tsan.cpp
FLAGS = {
    "device": "",  # is linked of what the two others compile
    "count": "-O2 -fPIC -DFASTGAN_COUNT",  # the same, but for the engine
    "module": "-O2 -fPIC -fvisibility=hidden -fopenmp",
    "plain": "-O2",
    "address": "-Og -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer",
    "thread": "-O1 -fsanitize=thread",
    "race": f"-O2 -fPIC {WATCHED} -DFASTGAN_RACE",
    "coverage": "-O0 --coverage -DFASTGAN_INLINE=inline",
}
LINK = {kind: "-pthread -shared" for kind in ("module", "device")} | {"race": "-pthread"}
# Calls of at::mm, at::mm_out and at::addmm go through count_library.cpp.
LIBRARY = ("2mm4callERKNS_6TensorES4_", "6mm_out4callERKNS_6TensorES4_RS2_")
LIBRARY += ("5addmm4callERKNS_6TensorES4_S4_RKN3c106ScalarES8_",)
LINK["count"] = "-pthread -shared" + "".join(f" -Wl,--wrap=_ZN2at4_ops{name}" for name in LIBRARY)
COMMON = "-std=c++20 -g1 -pthread -DFASTGAN_SIMT -Wno-attributes -Werror=switch"


def kernel_sources() -> list[Path]:
    """The CUDA sources with kernels: all but the build facts."""
    return [path for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu")) if path.name != "device.cu"]


def is_module(kind: str) -> bool:
    return kind in ("module", "device", "count")


def target(kind: str) -> Path:
    suffix = sysconfig.get_config_var("EXT_SUFFIX") if is_module(kind) else ""
    return FOLDER / kind / (f"_simt{suffix}" if is_module(kind) else "kernel_checks")


def bindings() -> Path:
    """The bindings as one source that includes them: each alone would read PyTorch's headers again."""
    files = [HERE / "module.cpp", HERE / "device.cpp"]
    files += [path for path in sorted((ROOT / "csrc" / "bindings").glob("*.cpp")) if path.name != "module.cpp"]
    source, text = FOLDER / "module" / "bindings.cpp", "".join(f'#include "{file}"\n' for file in files)
    if not source.exists() or source.read_text() != text:
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(text)
    return source


def torch_flags() -> str:
    import torch
    from torch.utils import cpp_extension

    includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    flags = "".join(f" -isystem {path}" for path in includes)
    return flags + f" -DFASTGAN_LIBRARY=fastgan_simt -D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"


def torch_libraries() -> str:
    import torch

    return f" -L{Path(torch.__file__).parent / 'lib'} -lc10 -ltorch -ltorch_cpu -ltorch_python"


def ninja_file(kind: str) -> str:
    """What to compile and link, in ninja's words."""
    flags, link = f"{COMMON} {FLAGS[kind]} -I{HERE}", LINK.get(kind, f"-pthread {FLAGS[kind]}")
    second: list[Path] = []  # sources of a second program
    if is_module(kind):
        link += torch_libraries()
    # Of an inline function the linker takes the first it meets: those that a sanitizer has been through.
    sources = [*kernel_sources(), *(HERE / f"{name}.cpp" for name in ENGINE)]
    if kind in ("device", "count"):
        sources.append(bindings())
        sources += [HERE / "count_library.cpp"] if kind == "count" else []
        second = [HERE / "counted.cpp"] if kind == "count" else []
    elif kind == "module":
        flags += torch_flags()
        sources.insert(0, bindings())  # which takes longest
    else:
        sources += sorted(HERE.glob("check_*.cpp"))
        second = sorted(HERE.glob("faults*.cpp")) if kind != "coverage" else []
    engine = [source for source in sources if source.stem in ENGINE and source.parent == HERE]
    # What this kind compiles itself, and not another.
    own = {"device": [], "count": [*engine, *sources[-1:], *second]}.get(kind, [*sources, *second])
    lines = [
        f"builddir = {FOLDER / kind}",
        f"how = {link}",
        "rule compile",
        f"  command = g++ {flags} $more -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        "  command = g++ $in $how -o $out",
    ]

    def objects(of: list[Path]) -> str:
        return " ".join(
            str(FOLDER / (kind if source in own else "module" if source.stem == "bindings" else "race"))
            + f"/{source.stem}.{source.parent.name}.o"
            for source in of
        )

    for source in own:
        lines.append(f"build {objects([source])}: compile {source}")
        if source.name == "bindings.cpp":  # which compute nothing
            lines.append("  more = -O1 -g0")
        if kind == "race" and source.stem in ENGINE and source.parent == HERE:
            lines.append("  more = -fno-sanitize=thread")
        if kind == "race" and source.stem.startswith("check_"):  # which need not be fast, as the kernels do
            lines.append("  more = -O1")
        if source.stem == "counted":
            lines.append(f"  more = {WATCHED}")
        if source.stem == "count_library":
            lines.append(f"  more ={torch_flags()}")
    lines.append(f"build {target(kind)}: link {objects(sources)}")
    if second:
        name = "counted" if kind == "count" else "faults"
        lines.append(f"build {target(kind).with_name(name)}: link {objects([*second, *engine])}")
        if is_module(kind):
            lines.append("  how = -pthread")
    return "\n".join(lines) + "\n"


def build(kind: str) -> Path:
    """Builds one kind and returns what was built.

    Raises:
        RuntimeError: it does not compile or link; the message is the compiler's.
    """
    if kind in ("device", "count"):
        build_at_once(["module", "race"])
    file = FOLDER / kind / "build.ninja"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = ninja_file(kind)
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    with open(file.with_name("lock"), "w") as lock:  # several test processes may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        ninja = [sys.executable, "-m", "ninja", "-j", str(os.cpu_count() or 2), "-f", str(file)]
        done = subprocess.run(ninja, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{kind} does not build:\n{done.stdout[-4000:]}{done.stderr[-1000:]}")
    return target(kind)


def build_at_once(kinds: Sequence[str]) -> list[Path]:
    """Builds several kinds side by side: a core that one kind has no work for takes another's.

    Raises:
        RuntimeError: as `build` does.
    """
    with ThreadPoolExecutor(len(kinds)) as pool:
        return list(pool.map(build, kinds))


def build_changed(file: str, before: str, after: str, source: str, folder: Path) -> Path:
    """Kernel checks of the kind `race` in which one source of csrc/cuda/ is compiled from a copy of the sources.

    Args:
        file: the file to change, of csrc/cuda/.
        before: text that it holds once.
        after: what takes its place.
        source: the file to compile again, of csrc/cuda/; of inline functions, the program has its versions.
        folder: where to put the copy and the program.

    Raises:
        RuntimeError: it does not compile or link; the message is the compiler's.
    """
    program = build("race")
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copytree(HERE, folder / "tests" / "simt", ignore=shutil.ignore_patterns("*.cpp", "__pycache__"))
    changed = folder / "csrc" / "cuda" / file
    text = changed.read_text()
    if text.count(before) != 1:
        raise ValueError(f"{file} must hold the text to change once, not {text.count(before)} times: {before!r}")
    changed.write_text(text.replace(before, after))
    compiled, rest = folder / "changed.o", sorted(FOLDER.joinpath("race").glob("*.o"))
    engine = {f"{name}.simt.o" for name in ENGINE}
    rest = [o for o in rest if o.name not in {f"{Path(source).stem}.cuda.o"} and not o.name.startswith("faults")]
    rest.sort(key=lambda o: o.name in engine)
    flags = [*COMMON.split(), *FLAGS["race"].split(), f"-I{folder / 'tests' / 'simt'}"]
    for command in (
        ["g++", *flags, "-x", "c++", "-c", folder / "csrc" / "cuda" / source, "-o", compiled],
        ["g++", compiled, *rest, *LINK["race"].split(), "-o", folder / program.name],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{source} with a change does not build:\n{done.stderr[-4000:]}")
    return folder / program.name


if __name__ == "__main__":
    kinds = sys.argv[1:] or ["module"]
    if unknown := [kind for kind in kinds if kind not in FLAGS]:
        sys.exit(f"kinds are {', '.join(FLAGS)}, not {unknown[0]!r}")
    print(*build_at_once(kinds), sep="\n")
