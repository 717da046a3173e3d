"""What adding a kind of something takes: an activation, two source files; a layer, what the compiler asks for."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import mish
import pytest
import torch
from conformance import assert_close_in_float64

from fastgan import reference

ROOT = Path(__file__).parent.parent
TABLES = {"fastgan/reference.py", "csrc/core/activation.h"}
# Those that have another part too: no activation; kernels and readers of their own; the loss's; BCELoss's.
SPECIAL = ("identity", "relu", "leaky_relu", "tanh", "sigmoid")


def code_of(file: Path) -> str:
    """The text of a source file without comments and docstrings."""
    text = file.read_text()
    if file.suffix != ".py":
        return re.sub(r"//.*|/\*.*?\*/", "", text)
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno):
                lines[number] = "\n"
    tokens = tokenize.generate_tokens(io.StringIO("".join(lines)).readline)
    return " ".join(token.string for token in tokens if token.type != tokenize.COMMENT)


def sources() -> list[Path]:
    found = [file for kind in ("*.h", "*.cpp", "*.cu") for file in (ROOT / "csrc").rglob(kind)]
    return sorted([*found, *(ROOT / "fastgan").rglob("*.py"), ROOT / "setup.py"])


def test_two_source_files_name_an_activation() -> None:
    kinds = {name: a.module.__name__ for name, a in reference.ACTIVATIONS.items() if name not in SPECIAL}
    assert len(kinds) >= 4
    for words in kinds.items():
        named = re.compile(rf"\b({'|'.join(words)})\b")
        assert {str(f.relative_to(ROOT)) for f in sources() if named.search(code_of(f))} == TABLES, words


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources without anything built."""
    unbuilt = shutil.ignore_patterns("*.so", "__pycache__", "_build_facts.json")
    for part in ("csrc", "fastgan", "bench"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=unbuilt)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path


def run(arguments: list[str], checkout: Path, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), **environment},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def changed(checkout: Path) -> set[str]:
    files = (str(file.relative_to(ROOT)) for file in sources())
    return {file for file in files if (ROOT / file).read_bytes() != (checkout / file).read_bytes()}


@pytest.mark.deep
def test_an_activation_is_added_in_two_source_files(checkout: Path) -> None:
    """Without the compiled module, which the next test builds."""
    mish.add_to(checkout)
    assert changed(checkout) == TABLES
    run([mish.__file__, "reference"], checkout, FASTGAN_BACKEND="reference")


PROGRAM = """
#include <cstdio>

#include "csrc/core/activation.h"

int main() {
  using Mish = fastgan::Act<fastgan::Activation::mish>;
  for (int i = -12; i <= 12; ++i)
    std::printf("%.17g %.17g %.17g\\n", Mish::value(i / 2.0, 0.0), Mish::d(i / 2.0, 0.0), Mish::dd(i / 2.0, 0.0));
}
"""


@pytest.mark.deep
def test_each_kernel_takes_an_activation_of_two_source_files(checkout: Path) -> None:
    """Its formulas by themselves, and that what is made of all activations compiles; the next test builds it all."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    mish.add_to(checkout)
    kernels = [str(checkout / "csrc" / "cpu" / f"{name}.cpp") for name in ("baseline", "linear", "mlp", "step")]
    flags = ["-std=c++20", "-Wno-attributes", "-Werror=switch"]
    subprocess.run(["g++", *flags, "-fopenmp", "-fsyntax-only", *kernels], check=True)
    (checkout / "mish.cpp").write_text(PROGRAM)
    subprocess.run(["g++", *flags, "-I.", "mish.cpp", "-o", "mish"], cwd=checkout, check=True)
    said = subprocess.run([checkout / "mish"], check=True, capture_output=True, text=True).stdout
    z = (torch.arange(-12, 13, dtype=torch.float64) / 2).requires_grad_()
    value = torch.nn.functional.mish(z)
    (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), z)
    found = torch.tensor([list(map(float, line.split())) for line in said.splitlines()], dtype=torch.float64)
    assert_close_in_float64(found, torch.stack([value, slope, bend], dim=1).detach(), 1e-12)


@pytest.mark.deep
@pytest.mark.full
def test_an_activation_is_added_in_two_source_files_and_compiled(checkout: Path) -> None:
    mish.add_to(checkout)
    assert changed(checkout) == TABLES
    # Quickly compiled: what is asked is whether it does and is right, not how fast it runs.
    setup = checkout / "setup.py"
    text = setup.read_text()
    assert text.count('"-O3"') == 1
    setup.write_text(text.replace('"-O3"', '"-O0"'))
    run(["setup.py", "--quiet", "build_ext", "--inplace"], checkout, FASTGAN_BUILD="cpu")
    assert changed(checkout) == {*TABLES, "setup.py"}
    run(["-W", "error::RuntimeWarning", mish.__file__, "auto"], checkout)


@pytest.mark.deep
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_new_kind_of_layer_does_not_compile_until_each_pass_knows_it(checkout: Path, device: str) -> None:
    """Memory, forward, backward and its sums, tangent, and update on the CPU; memory, whether rows go by themselves,
    forward, backward, which updates, and tangent on CUDA."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    header = checkout / "csrc" / "core" / "step.h"
    mish.insert(header, " X(layer_norm)", before="\n", after="#define FASTGAN_LAYER_KINDS(X)")
    if device == "cpu":
        flags = ["-fopenmp", *(str(checkout / "csrc" / "cpu" / name) for name in ("step.cpp", "baseline.cpp"))]
    else:
        file = checkout / "csrc" / "cuda" / "step.cu"
        flags = ["-DFASTGAN_SIMT", f"-I{ROOT / 'tests' / 'simt'}", "-x", "c++", str(file)]
    command = ["g++", "-std=c++20", "-fsyntax-only", "-Wno-attributes", "-Werror=switch", *flags]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    places = set(re.findall(r"([\w.]+:\d+):\d+: error: enumeration value .layer_norm. not handled in switch", said))
    assert len(places) == {"cpu": 6, "cuda": 5}[device], said[-3000:]


def test_every_build_refuses_a_switch_that_leaves_something_out() -> None:
    for file in ("setup.py", "csrc/cuda/nvcc-flags.txt", "tests/simt/build.py"):
        assert "-Werror=switch" in (ROOT / file).read_text(), file
    with_default = {f.name for f in sources() if f.suffix != ".py" and re.search(r"\bdefault:", code_of(f))}
    assert with_default == {"common.h"}  # of torch's dtypes
