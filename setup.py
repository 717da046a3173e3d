"""Builds fastgan._C, the compiled module, with torch.utils.cpp_extension.

FASTGAN_BUILD chooses what is built:
  auto (default)  with CUDA where nvcc and a CUDA build of PyTorch of the same major version are found, else for the
                  CPU, else (no PyTorch or no C++ compiler in the build environment) nothing: it then runs on PyTorch
  cuda, cpu       that, or an error that says what is missing
  none            nothing
TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS and CXX are respected, as torch.utils.cpp_extension documents them. Without
TORCH_CUDA_ARCH_LIST the kernels are compiled for the GPUs of this machine or, where it has none, for every generation
from compute capability 8.0 on. Ninja compiles on every core, through ccache where there is one.

A compiled wheel runs with the PyTorch that it was built with, and requires it: its Requires-Dist is torch==2.13.0 where
that of the sources is torch>=2.8. With FASTGAN_WHEEL=1, for wheels that are given to others, the version says it too,
as in 0.1.0+torch2.13.0.cpu and 0.1.0+torch2.13.0.cu13: one wheel for each PyTorch and each major version of CUDA.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
MODES = ("auto", "cuda", "cpu", "none")
OLDEST_TORCH = "2.8"
# The commands, pip's and build's among them, whose metadata is that of what was compiled here.
OF_A_BUILD = ("bdist_wheel", "dist_info", "editable_wheel")
# Folders in which distributions keep compilers' names as links to ccache.
CCACHE_LINKS = ("/usr/lib/ccache", "/usr/lib64/ccache", "/usr/lib/ccache/bin", "/opt/homebrew/opt/ccache/libexec")
# The kernels need cp.async and bfloat16 on tensor cores. Code for x.0 runs on every later x.y.
OLDEST = (8, 0)
EVERY_GENERATION = "8.0;9.0;10.0;12.0+PTX"
EVERY_GENERATION_BEFORE_12_8 = "8.0;9.0+PTX"  # what an older nvcc knows


def say(sentence: str) -> None:
    print(f"fastgan build: {sentence}", file=sys.stderr)


def compiler_missing() -> str | None:
    """Why nothing can be compiled here, in a sentence; None where it can."""
    if sys.platform == "win32":
        # torch.utils.cpp_extension runs cl there, whatever CXX says. csrc/cpu is written with the vectors and the
        # attributes of g++ and clang.
        return "PyTorch's builds on Windows run cl, which lacks the vector extensions of g++ and clang"
    # torch.utils.cpp_extension runs $CXX, or g++ (which setuptools may find under the name c++).
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX", "").strip() else ["g++", "c++", "clang++"]
    return None if any(map(shutil.which, names)) else f"there is no C++ compiler ({' or '.join(names)})"


def cuda_missing() -> str | None:
    """Why no CUDA build can be made here, in a sentence; None where one can."""
    import torch
    from torch.utils import cpp_extension

    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is a build without CUDA"
    if cpp_extension.CUDA_HOME is None:
        return "no CUDA toolkit is found (nvcc on PATH, or CUDA_HOME)"
    nvcc = Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc"
    if not nvcc.exists():
        return f"CUDA_HOME is {cpp_extension.CUDA_HOME}, which has no bin/nvcc"
    release = nvcc_release()
    if release is None:
        return f"{nvcc} does not say its version"
    if str(release[0]) != torch.version.cuda.split(".")[0]:
        return f"nvcc is CUDA {release[0]}.{release[1]}, PyTorch was built with CUDA {torch.version.cuda}"
    return architecture_missing()


def nvcc_release() -> tuple[int, int] | None:
    """The toolkit's release, such as (13, 0); None where nvcc does not say."""
    from torch.utils import cpp_extension

    nvcc = Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc"
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    return (int(release[1]), int(release[2])) if release else None


def architecture_missing() -> str | None:
    """Why the kernels cannot be compiled for what is asked for, or for the GPUs here; None where they can."""
    import torch

    needed = f"fastgan's kernels need {OLDEST[0]}.{OLDEST[1]} or later"
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    for major, minor in re.findall(r"(\d+)\.(\d+)", listed):
        if (int(major), int(minor)) < OLDEST:
            return f"TORCH_CUDA_ARCH_LIST names compute capability {major}.{minor}, and {needed}"
    if not listed.strip():
        for i in range(torch.cuda.device_count()):
            if torch.cuda.get_device_capability(i) < OLDEST:
                major, minor = torch.cuda.get_device_capability(i)
                return f"{torch.cuda.get_device_name(i)} has compute capability {major}.{minor}, and {needed}"
    return None


def choose_mode() -> str:
    mode = os.environ.get("FASTGAN_BUILD", "auto").strip().lower() or "auto"
    if mode not in MODES:
        raise SystemExit(f"FASTGAN_BUILD must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "none":
        return mode
    try:
        import torch.utils.cpp_extension  # noqa: F401
    except ImportError as error:
        missing = f"PyTorch cannot be imported ({error}); install it first and use pip's --no-build-isolation"
    else:
        missing = compiler_missing()
    if missing:
        if mode == "auto":
            say(f"nothing is compiled: {missing}")
            return "none"
        raise SystemExit(f"FASTGAN_BUILD={mode} cannot be done: {missing}")
    if mode == "cpu":
        return mode
    missing = cuda_missing()
    if missing is None:
        return "cuda"
    if mode == "cuda":
        raise SystemExit(f"FASTGAN_BUILD=cuda cannot be done: {missing}")
    say(f"for the CPU only: {missing}")
    return "cpu"


def nvidia_package_paths() -> tuple[list[str], list[str]]:
    """Include and library folders inside the nvidia packages PyTorch installs: some toolkits lack these headers."""
    roots = {Path(p) / "nvidia" for p in [*site.getsitepackages(), site.getusersitepackages()]}
    folders = [f for root in sorted(roots) if root.is_dir() for f in sorted(root.iterdir())]
    return (
        [str(f / "include") for f in folders if (f / "include").is_dir()],
        [str(f / "lib") for f in folders if (f / "lib").is_dir()],
    )


def shared_runtime() -> list[str]:
    """The C++ runtime that PyTorch has loaded, to be linked where the compiler would put another one into the module.

    Some toolchains link libstdc++ statically. An exception that one copy of it throws crashes the process where it
    passes code that was linked with another, and every error that a user is to read is such an exception.
    """
    compiler = shlex.split(os.environ.get("CXX", "").strip() or "g++")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "throws.cpp", Path(folder) / "throws.so"
        source.write_text("void throws() { throw 1; }\n")
        command = [*compiler, "-shared", "-fPIC", str(source), "-o", str(library)]
        if subprocess.run(command, capture_output=True).returncode != 0 or b"libstdc++.so" in library.read_bytes():
            return []
    import torch  # noqa: F401, loads it

    for line in Path("/proc/self/maps").read_text().splitlines():
        file = line.split(maxsplit=5)[5] if line.count("/") else ""
        if Path(file).name.startswith("libstdc++.so"):
            say(f"{compiler[0]} links the C++ runtime statically; the module is linked to PyTorch's, {file}")
            return [file]
    return []


def bindings() -> list[str]:
    """The bindings as sources that include them: each alone would take 8 of its 11 seconds to read PyTorch's headers.

    On one or two cores, which have the other sources meanwhile, it is one source: two take 92 seconds of a processor,
    one 66.
    """
    units = 1 if int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1) <= 2 else 2
    files = sorted((ROOT / "csrc" / "bindings").glob("*.cpp"), key=lambda file: (file.stat().st_size, file.name))
    sources = []
    for i in range(units):
        source = ROOT / "build" / f"bindings_{i + 1}_of_{units}.cpp"
        text = "".join(f'#include "../csrc/bindings/{file.name}"\n' for file in files[i::units])
        if not source.exists() or source.read_text() != text:  # else what was compiled is up to date
            source.parent.mkdir(exist_ok=True)
            source.write_text(text)
        sources.append(str(source.relative_to(ROOT)))
    return sources


def compile_flags(platform: str) -> list[str]:
    """The C++ compiler's, of g++ and clang, for what sys.platform is."""
    flags = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wno-attributes"]
    flags.append("-Werror=switch")  # a new kind of layer must be told everywhere what becomes of it
    if platform.startswith("linux"):
        # Compiled for OpenMP but not linked to a runtime: its symbols are found in the one that PyTorch has loaded.
        return [*flags, "-fopenmp"]
    # Apple's clang has no OpenMP, but heeds `omp simd`; threads are the standard library's (csrc/cpu/threads.cpp).
    return [*flags, "-fopenmp-simd"]


def link_flags(platform: str) -> list[str]:
    """Without symbols: ld64 leaves them out by -x, where -s is obsolete."""
    return ["-Wl,-s"] if platform.startswith("linux") else ["-Wl,-x"] if platform == "darwin" else []


def extension(mode: str):
    from torch.utils import cpp_extension

    def sources(folder: str, ending: str) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc" / folder).glob(ending))]

    files = bindings() + sources("cpu", "*.cpp") + sources("cpu/panels", "*.cpp")
    cxx, link = compile_flags(sys.platform), link_flags(sys.platform)
    # As system headers, whose warnings are theirs: a switch of PyTorch's may leave something out.
    cxx += [word for folder in cpp_extension.include_paths() for word in ("-isystem", folder)]
    if sys.platform.startswith("linux"):
        link += shared_runtime()
    if mode == "cpu":
        return cpp_extension.CppExtension("fastgan._C", files, extra_compile_args={"cxx": cxx}, extra_link_args=link)
    include, library = nvidia_package_paths()
    # Searched last, so that they only fill gaps: the toolkit's own headers are the ones that fit its compiler.
    host_gaps = [word for folder in include for word in ("-idirafter", folder)]
    device_gaps = [word for folder in include for word in ("-Xcompiler", f"-idirafter,{folder}")]
    return cpp_extension.CUDAExtension(
        "fastgan._C",
        files + sources("cuda", "*.cu"),
        library_dirs=library,
        define_macros=[("FASTGAN_WITH_CUDA", "1")],
        extra_compile_args={
            "cxx": cxx + host_gaps,
            # In a file of their own, because tools/resources.py measures the kernels as compiled with the same.
            "nvcc": [*(ROOT / "csrc" / "cuda" / "nvcc-flags.txt").read_text().split(), *device_gaps],
        },
        extra_link_args=link,
    )


def build_command():
    from torch.utils import cpp_extension

    class Build(cpp_extension.BuildExtension):
        """Builds, then writes down for which PyTorch: fastgan reads it before it loads the module."""

        def run(self) -> None:
            super().run()
            import torch

            folder = ROOT / "fastgan" if self.inplace else Path(self.build_lib) / "fastgan"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_build_facts.json").write_text(json.dumps({"torch": torch.__version__}) + "\n")

    return Build


def choose_architectures() -> None:
    """Set TORCH_CUDA_ARCH_LIST where it is not set and no GPU tells."""
    import torch

    if not os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() and torch.cuda.device_count() == 0:
        new = (nvcc_release() or (0, 0)) >= (12, 8)
        os.environ["TORCH_CUDA_ARCH_LIST"] = EVERY_GENERATION if new else EVERY_GENERATION_BEFORE_12_8


def use_ccache() -> None:
    """Have compilers run through ccache, where it is installed and CXX does not say otherwise.

    PyTorch does so itself from 2.13 on. Paths count from this folder: the same sources elsewhere are found, too.
    """
    if not shutil.which("ccache") or os.environ.get("CXX", "").strip():
        return
    links = next((folder for folder in CCACHE_LINKS if Path(folder, "g++").exists()), None)
    if links is not None and links not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([links, os.environ.get("PATH", "")])
    os.environ.setdefault("CCACHE_BASEDIR", str(ROOT.resolve()))
    os.environ.setdefault("CCACHE_NOHASHDIR", "1")


def metadata(mode: str) -> dict:
    """The arguments of setup that name PyTorch: which one is required, and what is added to the version."""
    if mode == "none" or not any(command in sys.argv for command in OF_A_BUILD):
        return {"install_requires": [f"torch>={OLDEST_TORCH}", "numpy"]}
    import torch

    release = torch.__version__.partition("+")[0]
    given: dict = {"install_requires": [f"torch=={release}", "numpy"]}
    if os.environ.get("FASTGAN_WHEEL", "").strip() == "1":
        kind = f"cu{torch.version.cuda.partition('.')[0]}" if mode == "cuda" else "cpu"
        given["options"] = {"egg_info": {"tag_build": f"+torch{release}.{kind}"}}
    return given


mode = choose_mode()
if mode == "cuda":
    choose_architectures()
if mode == "none":
    setup(**metadata(mode))
else:
    say(f"compiling for {'CPU and CUDA' if mode == 'cuda' else 'the CPU'}")
    use_ccache()
    setup(ext_modules=[extension(mode)], cmdclass={"build_ext": build_command()}, **metadata(mode))
