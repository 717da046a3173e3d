"""FASTGAN_BACKEND and FASTGAN_ISA, and what happens where the compiled module is missing or does not load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from conformance import assert_within_bound

import fastgan
from fastgan import backend as backends
from fastgan.backend import REBUILD, unavailable_reason

PACKAGE = Path(fastgan.__file__).parent
REPORT = "import json, fastgan; print(json.dumps(fastgan.info()))"
NO_CUDA = unavailable_reason("cuda") or ""


def python(code: str, package: Path = PACKAGE, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own that imports fastgan from the given folder."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FASTGAN_") and k != "PYTHONWARNINGS"}
    return warm.run(["-c", code], package.parent, {**inherited, "PYTHONPATH": str(package.parent), **environment})


def answer(result: subprocess.CompletedProcess[str]) -> dict:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("value", ["reference", " AUTO ", "", None])
def test_backends_that_are_always_there(value) -> None:
    result = python(REPORT, **({} if value is None else {"FASTGAN_BACKEND": value}))
    info = answer(result)
    assert info["backend"] == (value or "auto").strip().lower()
    assert info["backends"]["reference"] == "available"
    assert info["fastgan"] == fastgan.__version__
    assert info["torch"] == torch.__version__
    if info["build"] is not None:
        assert result.stderr == ""


def test_cpu_by_environment(compiled: None) -> None:
    code = "import fastgan, torch; print(fastgan.functional.generator_loss(torch.zeros(2)).item());" + REPORT
    result = python(code, FASTGAN_BACKEND="cpu")
    info = answer(result)
    assert info["backend"] == "cpu"
    assert info["backends"]["cpu"] == "available"
    assert info["rebuild"] is None
    assert torch.__version__.startswith(info["build"]["torch"])
    assert result.stderr == ""


@pytest.mark.parametrize("value", ["gpu", "cpu,cuda"])
def test_an_unknown_backend_in_the_environment_is_refused(value) -> None:
    result = python("import fastgan", FASTGAN_BACKEND=value)
    assert result.returncode == 1
    message = f"FASTGAN_BACKEND must be one of auto, reference, cpu, cuda, not '{value}'"
    assert result.stderr.strip().splitlines()[-1] == f"ValueError: {message}"


# Calls each function and prints the errors, one a line.
ASK = """
import torch, fastgan
from fastgan import functional as f
x, w = torch.zeros(1, 2), torch.zeros(3, 2)
for call in (
    lambda: f.generator_loss(x),
    lambda: f.discriminator_loss(x, x),
    lambda: f.binary_cross_entropy_with_logits(x, x),
    lambda: f.linear_act(x, w),
    lambda: fastgan.nn.MLP([2, 3])(x),
):
    try:
        call()
        print("ran")
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.skipif(not NO_CUDA, reason="CUDA runs here")
def test_cuda_that_cannot_run_says_why() -> None:
    result = python(ASK, FASTGAN_BACKEND="cuda")
    assert result.stdout.splitlines() == [f"FASTGAN_BACKEND=cuda cannot run here: {NO_CUDA}."] * 5


# The package with a compiled module that cannot be used, and what the warning then says.


def remove_module(package: Path) -> None:
    for file in (*package.glob("_C*"), package / "_build_facts.json"):
        file.unlink()


def remove_module_alone(package: Path) -> None:
    (file,) = package.glob("_C*.so")
    file.unlink()


def cut_module(package: Path) -> None:
    (file,) = package.glob("_C*.so")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def module_of_text(package: Path) -> None:
    (file,) = package.glob("_C*.so")
    file.write_text("no library" * 100)


def facts(content: bytes) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        (package / "_build_facts.json").write_bytes(content)

    return damage


OTHER_TORCH = f"the compiled module was built for PyTorch 1.0.0, and this is {torch.__version__}"
OTHER_KIND = torch.__version__.partition("+")[0] + "+cu118"  # of the same release
UNREADABLE = "the build facts beside the compiled module are unreadable ("
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing built": (remove_module, "the compiled module was not built"),
    "module removed": (remove_module_alone, "the compiled module does not load (its file is missing)"),
    "module cut": (cut_module, "the compiled module does not load (its file is cut short)"),
    "module of text": (module_of_text, "the compiled module does not load ("),
    "another torch": (facts(b'{"torch": "1.0.0"}'), OTHER_TORCH),
    "another kind of torch": (
        facts(f'{{"torch": "{OTHER_KIND}"}}'.encode()),
        f"the compiled module was built for PyTorch {OTHER_KIND}, and this is {torch.__version__}",
    ),
    "facts cut": (facts(b'{"torch": '), UNREADABLE),
    "facts without torch": (facts(b"{}"), UNREADABLE),
    "facts of another kind": (facts(b"[1]"), UNREADABLE),
    "facts no text": (facts(b"\xff\xfe\x00"), UNREADABLE),
}

# Every public function once, forward and backward; prints the sum of the gradients.
EXERCISE = """
import json, torch, fastgan
from fastgan import functional as f
torch.manual_seed(0)
x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
w = torch.randn(2, 3, dtype=torch.float64)
critic = fastgan.nn.fuse(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))).double()
losses = [
    f.binary_cross_entropy_with_logits(x, torch.full_like(x, 0.3)),
    f.discriminator_loss(x, x),
    f.generator_loss(x, kind="minimax"),
    f.linear_act(x, w, None, "gelu").sum(),
    f.mlp(x, [w], None, ["silu"]).sum(),
    fastgan.nn.MLP([3, 4, 1], dtype=torch.float64)(x).sum(),
    critic(x).sum(),
]
total = torch.autograd.grad(sum(losses), x)[0].sum()
penalty = f.gradient_penalty(critic, x, -x) + f.r1_penalty(critic, x)
slope = torch.autograd.grad(penalty, critic[0].weight)[0].sum()
print(json.dumps({"total": total.item(), "slope": slope.item(), "info": fastgan.info()}))
"""


@pytest.fixture(scope="module")
def expected() -> dict:
    """What the package as it is here computes."""
    return answer(python(EXERCISE))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, compiled module and all."""
    if unavailable_reason("cpu"):
        pytest.skip("nothing is compiled here")
    folder = tmp_path / "fastgan"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.parametrize(
    ("built_for", "running", "fits"),
    [
        ("2.13.0+cpu", "2.13.0+cpu", True),
        ("2.13.0+cu130", "2.13.0+cu132", True),  # CUDA of one major version
        ("2.13.0+cu126", "2.13.0+cu130", False),
        ("2.13.0+cpu", "2.13.0+cu130", False),
        ("2.13.0+cu130", "2.13.0+cpu", False),
        ("2.13.0+cu130", "2.13.1+cu130", False),
        ("2.13.0+cu130", "2.14.0+cu130", False),
        ("2.13.0", "2.13.0+cu130", False),
        ("2.13.0a0+git1", "2.13.0a0+git2", False),
        ("2.13.0a0+git1", "2.13.0a0+git1", True),
    ],
)
def test_which_pytorch_a_module_may_be_loaded_into(built_for: str, running: str, fits: bool) -> None:
    assert backends.fits(built_for, running) is fits


def test_the_copied_package_loads(package: Path) -> None:
    assert answer(python(REPORT, package))["backends"]["cpu"] == "available"


def few_quick(faults: Iterable[str]) -> list[Any]:
    """Each is a process that imports PyTorch: the rarer ones are deep."""
    rare = (
        "another kind of torch",
        "module of text",
        "facts cut",
        "facts without torch",
        "facts of another kind",
        "facts no text",
    )
    return [pytest.param(fault, marks=pytest.mark.deep if fault in rare else ()) for fault in faults]


@pytest.mark.deep
@pytest.mark.parametrize("fault", few_quick(FAULTS))
def test_a_module_that_cannot_be_used_is_done_without(fault, package: Path, expected: dict) -> None:
    damage, reason = FAULTS[fault]
    damage(package)
    result = python(EXERCISE, package)
    found = answer(result)
    for name in ("total", "slope"):
        assert found[name] == pytest.approx(expected[name], rel=1e-12)
    assert result.stderr.count("Warning") == 1
    assert result.stderr.count(f"RuntimeWarning: fastgan runs on plain PyTorch, correct but slower: {reason}") == 1
    assert REBUILD in result.stderr
    info = found["info"]
    assert info["backend"] == "auto"
    assert info["build"] is None
    assert info["rebuild"] == REBUILD
    assert info["backends"]["reference"] == "available"
    for name in ("cpu", "cuda"):
        assert info["backends"][name].startswith(reason)
    assert "\n" not in info["backends"]["cpu"]


@pytest.mark.parametrize("fault", few_quick(["nothing built", "module cut", "another torch", "facts cut"]))
def test_the_reference_asked_for_needs_no_warning(fault, package: Path) -> None:
    FAULTS[fault][0](package)
    result = python(EXERCISE, package, FASTGAN_BACKEND="reference")
    assert answer(result)["info"]["backend"] == "reference"
    assert result.stderr == ""


def test_a_compiled_backend_asked_for_but_missing_is_an_error_at_each_call(package: Path) -> None:
    remove_module(package)
    result = python(ASK, package, FASTGAN_BACKEND="cpu")
    message = "FASTGAN_BACKEND=cpu cannot run here: the compiled module was not built."
    assert result.stdout.splitlines() == [message] * 5
    assert result.stderr.count("Warning") == 1


@pytest.mark.parametrize("name", ["gpu", "CPU", "", None, 3])
def test_unknown_names_are_refused(name) -> None:
    before = fastgan.current_backend()
    with pytest.raises(ValueError, match="backend must be one of auto, reference, cpu, cuda, not"):
        fastgan.set_backend(name)
    with pytest.raises(ValueError, match=f"not {name!r}"), fastgan.use_backend(name):
        pytest.fail("the block must not run")
    assert fastgan.current_backend() == before


@pytest.mark.skipif(not NO_CUDA, reason="CUDA runs here")
def test_a_backend_that_cannot_run_is_refused_with_the_reason() -> None:
    with fastgan.use_backend("reference"):
        with pytest.raises(RuntimeError, match="backend 'cuda' cannot run here") as raised:
            fastgan.set_backend("cuda")
        assert NO_CUDA in str(raised.value)
        assert (REBUILD in str(raised.value)) == (backends.module is None)
        assert fastgan.current_backend() == "reference"


def test_use_backend_restores_what_was_there() -> None:
    before = fastgan.current_backend()
    with fastgan.use_backend("reference"):
        with fastgan.use_backend("auto"):
            assert fastgan.current_backend() == "auto"
        assert fastgan.current_backend() == "reference"
        assert fastgan.info()["backend"] == "reference"
    assert fastgan.current_backend() == before
    with pytest.raises(IndexError), fastgan.use_backend("reference"):
        [][0]
    assert fastgan.current_backend() == before


def test_the_backend_in_force_decides_what_runs(compiled: None) -> None:
    logits = torch.zeros(3, requires_grad=True)
    nodes = {}
    for name in ("reference", "cpu", "auto"):
        with fastgan.use_backend(name):
            nodes[name] = type(fastgan.functional.generator_loss(logits).grad_fn).__name__
    assert nodes["reference"] == "BinaryCrossEntropyWithLogitsBackward0"
    assert nodes["cpu"] == nodes["auto"] != nodes["reference"]


# Results in a dtype, saved to a file, of many sizes, so that every vector width has full vectors and remainders.
KERNELS = """
import torch, fastgan
from fastgan import functional as f, reference
torch.manual_seed(0)
results = []
for n in (1, 7, 8, 15, 16, 33, 1000):
    x = (4 * torch.randn(n, 5)).to(dtype).requires_grad_()
    target = torch.rand(n, 5).to(dtype)
    w, b = torch.randn(n, 5).to(dtype), torch.randn(n).to(dtype)
    values = [f.binary_cross_entropy_with_logits(x, target, reduction="none"), f.discriminator_loss(x, 1 - x)]
    values += [f.linear_act(x, w, b, name) for name in reference.ACTIVATIONS]
    for value in values:
        results += [value.detach(), *torch.autograd.grad(value.square().sum(), x)]
for n in (*range(1, 18), 33, 65):  # inputs, hidden units and outputs
    shapes = [(41, n), (33, n), (33,), (n, 33), (n,), (3, n), (3,)]
    x, *parameters = ((torch.randn(shape) / shape[-1] ** 0.5).to(dtype).requires_grad_() for shape in shapes)
    value = f.mlp(x, parameters[::2], parameters[1::2], ["relu", "tanh", "identity"])
    results += [value.detach(), *torch.autograd.grad(value.square().mean(), [x, *parameters])]
torch.save(results, file)
"""


@pytest.mark.deep
@pytest.mark.full  # make check runs the tests of the kernels on these sets
def test_every_instruction_set_is_as_exact_as_torch(compiled: None, tmp_path: Path) -> None:
    file, of_torch = tmp_path / "results", []
    with fastgan.use_backend("reference"):
        for dtype in (torch.float32, torch.float64):
            exec(KERNELS, {"file": file, "dtype": dtype})
            of_torch.append(torch.load(file))
    # A whole network at once, and layer by layer with torch's products.
    both = f"""
import fastgan, torch
for path in ("tiled", "library"):
    fastgan.backend.module.set_layer_path(path)
    exec({KERNELS!r}, {{"file": {str(file)!r} + path, "dtype": torch.float32}})
{REPORT}"""
    sets = {}
    for isa in ("", "baseline", "avx2"):
        sets[isa] = answer(python(both, FASTGAN_BACKEND="cpu", FASTGAN_ISA=isa))["build"]["cpu_instructions"]
        for path in ("tiled", "library"):
            assert_within_bound(torch.load(f"{file}{path}"), *of_torch)
    assert sets["baseline"] == "baseline"
    assert sets["avx2"] in ("avx2", "baseline")  # what the processor has sets the limit
