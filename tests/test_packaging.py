"""What setup.py builds and installs, without compiling: the choices of FASTGAN_BUILD, the sdist, the bare install."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.deep
PARTS = ("csrc", "fastgan", "tests", "bench", "tools", "examples", "docs")
FILES = ("pyproject.toml", "setup.py", "README.md", "MANIFEST.in", "Makefile", "constraints.txt", "LICENSE")
FILES += ("CHANGELOG.md", "CONTRIBUTING.md", "mkdocs.yml")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources without anything built."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    unbuilt = shutil.ignore_patterns("*.so", "__pycache__", "_build_facts.json", "results")
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=unbuilt)
    for file in FILES:
        shutil.copy(ROOT / file, folder / file)
    return folder


def run(arguments: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_install_without_compiled_module(checkout: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-build-isolation",
        "--no-deps",
        "--target",
        str(target),
        ".",
    ]
    result = run(pip, checkout, FASTGAN_BUILD="none")
    assert result.returncode == 0, result.stderr
    assert not list((target / "fastgan").glob("_C*"))
    for source in ((checkout / "fastgan").rglob("*.py"), [checkout / "fastgan/py.typed"]):
        assert not [file for file in source if not (target / file.relative_to(checkout)).exists()]
    code = (
        "import torch, fastgan; print(fastgan.__file__); "
        "print(fastgan.functional.generator_loss(torch.zeros(3)).item()); print(fastgan.info()['backends']['cpu'])"
    )
    result = run(["-c", code], tmp_path, PYTHONPATH=str(target), FASTGAN_BACKEND="auto")
    assert result.returncode == 0, result.stderr
    file, loss, reason = result.stdout.splitlines()
    assert Path(file).is_relative_to(target)
    assert float(loss) == pytest.approx(0.6931472, rel=1e-6)
    assert reason == "the compiled module was not built"
    assert result.stderr.count("RuntimeWarning") == 1
    assert "Rebuild" in result.stderr
    result = run(["-m", "fastgan", "bench", "--help"], tmp_path, PYTHONPATH=str(target), FASTGAN_BACKEND="reference")
    assert result.returncode == 0, result.stderr
    assert "usage: fastgan bench" in result.stdout
    # The benchmark is installed, with none of its records; what contributors run is not.
    assert {path.name for path in target.iterdir() if path.suffix != ".dist-info"} <= {"fastgan", "bin"}
    installed = {path.name for path in (target / "fastgan" / "bench").iterdir() if path.name != "__pycache__"}
    assert installed == {path.name for path in (ROOT / "bench").glob("*.py")}


def test_sdist_holds_what_a_build_needs(checkout: Path) -> None:
    result = run(["setup.py", "--quiet", "sdist"], checkout, FASTGAN_BUILD="none")
    assert result.returncode == 0, result.stderr
    (archive,) = (checkout / "dist").glob("fastgan-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {Path(*Path(name).parts[1:]).as_posix() for name in tar.getnames()}
    wanted = {p.relative_to(checkout).as_posix() for p in (checkout / "csrc").rglob("*") if p.is_file()}
    wanted |= {p.relative_to(checkout).as_posix() for p in (checkout / "fastgan").rglob("*.py")}
    wanted |= {p.relative_to(checkout).as_posix() for p in (checkout / "tools").iterdir()}
    wanted |= {p.relative_to(checkout).as_posix() for p in (checkout / "docs").rglob("*") if p.is_file()}
    assert wanted | {*FILES} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_unknown_build_mode_is_refused(checkout: Path) -> None:
    result = run(["setup.py", "--quiet", "--version"], checkout, FASTGAN_BUILD="gpu")
    assert result.returncode != 0
    assert "FASTGAN_BUILD must be one of auto, cuda, cpu, none, not 'gpu'" in result.stderr


def test_forced_cuda_build_says_what_is_missing(checkout: Path) -> None:
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this PyTorch is a CUDA build")
    result = run(["setup.py", "--quiet", "--version"], checkout, FASTGAN_BUILD="cuda")
    assert result.returncode != 0
    assert "FASTGAN_BUILD=cuda cannot be done" in result.stderr
    assert "is a build without CUDA" in result.stderr


def test_automatic_build_without_compiler_compiles_nothing(checkout: Path, tmp_path: Path) -> None:
    result = run(
        ["setup.py", "--quiet", "--version"],
        checkout,
        FASTGAN_BUILD="auto",
        CXX="no-such-compiler",
        PATH=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert "nothing is compiled: there is no C++ compiler (no-such-compiler)" in result.stderr


@pytest.fixture
def setup_functions() -> dict[str, Any]:
    """What setup.py defines, before it builds anything."""
    source, _, rest = (ROOT / "setup.py").read_text().partition("\nmode = choose_mode()")
    assert rest
    names: dict[str, Any] = {"__file__": str(ROOT / "setup.py"), "__name__": "setup"}
    exec(compile(source, "setup.py", "exec"), names)
    return names


def test_flags_of_each_platform(setup_functions: dict[str, Any]) -> None:
    """OpenMP on Linux alone: Apple's clang has none, and `omp simd` needs none."""
    flags = {name: setup_functions["compile_flags"](name) for name in ("linux", "darwin")}
    assert set(flags["linux"]) ^ set(flags["darwin"]) == {"-fopenmp", "-fopenmp-simd"}
    assert setup_functions["link_flags"]("linux") == ["-Wl,-s"]
    assert setup_functions["link_flags"]("darwin") == ["-Wl,-x"]
    compilers = [found for name in ("g++", "clang++") if (found := shutil.which(name))]
    if not compilers:
        pytest.skip("there is no g++ or clang++")
    for compiler in compilers:
        for name, has_openmp in (("linux", True), ("darwin", False)):
            command = [compiler, *flags[name], "-x", "c++", "-dM", "-E", os.devnull]
            said = subprocess.run(command, capture_output=True, text=True, check=True)
            assert ("#define _OPENMP" in said.stdout) == has_openmp, (compiler, name)


def test_windows_compiles_nothing(setup_functions: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("FASTGAN_BUILD", "auto")
    assert setup_functions["choose_mode"]() == "none"
    monkeypatch.setenv("FASTGAN_BUILD", "cpu")
    with pytest.raises(SystemExit, match="FASTGAN_BUILD=cpu cannot be done: PyTorch's builds on Windows run cl, which"):
        setup_functions["choose_mode"]()


def requirements(folder: Path) -> tuple[str, str]:
    """The version and the PyTorch that the metadata in a folder name."""
    (file,) = [*folder.glob("*.dist-info/METADATA"), *folder.glob("*.egg-info/PKG-INFO")]
    facts = email.message_from_string(file.read_text())
    (torchs,) = [line for line in facts.get_all("Requires-Dist") if line.startswith("torch")]
    return facts["Version"], torchs


@pytest.mark.parametrize("mode", ["cpu", "none"])
def test_a_compiled_wheel_names_its_pytorch(mode: str, checkout: Path, tmp_path: Path) -> None:
    """In its requirements, and with FASTGAN_WHEEL=1 in its version; what is compiled later, from an sdist, does not."""
    import torch

    release = torch.__version__.partition("+")[0]
    for wheel, named in (("", ""), ("1", f"+torch{release}.cpu")):
        out = tmp_path / f"metadata{wheel}"
        out.mkdir()
        words = ["setup.py", "--quiet", "dist_info", "--output-dir", str(out)]
        result = run(words, checkout, FASTGAN_BUILD=mode, FASTGAN_WHEEL=wheel)
        assert result.returncode == 0, result.stderr
        compiled = mode == "cpu"
        wanted = f"torch=={release}" if compiled else "torch>=2.8"
        assert requirements(out) == (f"0.1.0{named if compiled else ''}", wanted)
    result = run(["setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)], checkout, FASTGAN_BUILD=mode)
    assert result.returncode == 0, result.stderr
    assert requirements(tmp_path) == ("0.1.0", "torch>=2.8")
