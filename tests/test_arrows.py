"""The rooms hold: nothing imports or includes upward, nothing goes in a circle, and fastgan needs torch and numpy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import arrows
import pytest
import warm

ROOT = Path(__file__).resolve().parent.parent


def test_nothing_points_upward_or_goes_in_a_circle() -> None:
    found = arrows.arrows(ROOT)
    assert arrows.circles(found) == []
    assert arrows.wrong(ROOT, found) == []


def test_the_table_speaks_of_what_is_there() -> None:
    for name, room in arrows.ROOMS.items():
        assert all(any(ROOT.glob(pattern)) for pattern in room.files.split()), name
    found = {(arrow.source, arrow.target) for arrow in arrows.arrows(ROOT)}
    assert found >= arrows.LAZY
    assert found >= {  # one of each kind: at the top, inside a function, by a name in a string, relative
        ("fastgan/step.py", "fastgan/engine.py"),
        ("fastgan/cli.py", "fastgan/training/trainer.py"),
        ("fastgan/__init__.py", "fastgan/metrics/__init__.py"),
        ("bench/step.py", "bench/timing.py"),
    }
    rooms = arrows.sources(ROOT)
    assert {("bindings", "cpu"), ("bindings", "cuda"), ("cpu", "core"), ("cuda", "core")} <= {
        (rooms[source], rooms[target]) for source, target in found if target in rooms
    }


@pytest.mark.parametrize("room", ["base", "functional", "nn", "engine", "step", "metrics", "data", "library"])
def test_the_library_is_not_above_training(room: str) -> None:
    assert not arrows.rooms_below(room) & {"training", "cli", "bench", "output"}


def test_the_order_of_the_rooms() -> None:
    """core <- cpu, cuda <- bindings; functional <- nn <- engine <- step <- training <- cli; reference uses none."""
    for order in (("core", "cpu", "bindings"), ("core", "cuda", "bindings")):
        assert arrows.rooms_below(order[-1]) == {"core", "cpu", "cuda", "bindings"}
        assert set(order[:2]) == arrows.rooms_below(order[1])
    order = ("reference", "functional", "nn", "engine", "step", "training", "cli")
    for i, room in enumerate(order):
        assert set(order[: i + 1]) <= arrows.rooms_below(room)
        assert not set(order[i + 1 :]) & arrows.rooms_below(room)
    assert arrows.rooms_below("reference") == {"reference"}


PARTS = ("csrc", "fastgan", "bench")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, bytes]]:
    """A copy of the sources, and what is in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("*.so", "__pycache__", "results"))
    return folder, contents(folder)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def checkout(copied: tuple[Path, dict[Path, bytes]]) -> Iterator[Path]:
    """The copy, to plant something in; afterwards it is as it was."""
    folder, before = copied
    yield folder
    for path, content in contents(folder).items():
        if path not in before:
            path.unlink()
        elif content != before[path]:
            path.write_bytes(before[path])


@pytest.mark.parametrize(
    ("pattern", "line", "sentence"),
    [
        ("fastgan/reference.py", "from fastgan import checks", "fastgan/checks.py, but reference is not above base"),
        ("fastgan/functional.py", "import fastgan.nn", "fastgan/nn.py, but functional is not above nn"),
        ("fastgan/nn.py", "if TYPE_CHECKING:\n    from fastgan.step import TrainStep", "nn is not above step"),
        ("fastgan/step.py", "def f():\n    import fastgan.training.trainer", "step is not above training"),
        ("fastgan/step.py", "from fastgan.training import config", "step is not above training"),
        ("fastgan/checks.py", "import fastgan", "fastgan/__init__.py, but base is not above library"),
        ("fastgan/engine.py", "import_module('fastgan.step')", "fastgan/step.py, but engine is not above step"),
        ("fastgan/engine.py", "import_module(f'fastgan.{x}')", "uses a name put together at run time"),
        ("fastgan/__init__.py", "import fastgan.training.report", "library is not above training"),
        ("fastgan/data/dataset.py", "from fastgan.functional import mlp", "data is not above functional"),
        ("fastgan/training/state.py", "from fastgan.cli import app", "training is not above cli"),
        ("bench/table.py", "from fastgan import cli", "bench is not above cli"),
        ("fastgan/metrics/modes.py", "def f():\n    import scipy.linalg", "uses scipy, but metrics needs only torch"),
        ("fastgan/step.py", "import rich", "uses rich, but step needs only torch"),
        ("fastgan/stray.py", "import torch", "fastgan/stray.py is in no room"),
        ("csrc/core/*.h", '#include "../cpu/simd.h"', "csrc/cpu/simd.h, but core is not above cpu"),
        ("csrc/cpu/*.cpp", '#include "../cuda/device.h"', "csrc/cuda/device.h, but cpu is not above cuda"),
        ("csrc/cuda/*.cu", '#  include "../bindings/common.h"', "common.h, but cuda is not above bindings"),
        ("csrc/cuda/*.cu", "#include <torch/library.h>", "uses torch/library.h, but cuda needs only nothing"),
        ("csrc/cpu/*.h", "#include <ATen/ATen.h>", "uses ATen/ATen.h, but cpu needs only sys"),
        ("csrc/core/*.h", "#include <Python.h>", "uses Python.h, but core needs only nothing"),
        ("csrc/bindings/*.cpp", "#include <cutlass/gemm.h>", "uses cutlass/gemm.h, but bindings needs only torch"),
        ("csrc/cpu/*.cpp", '#include "no_such.h"', "uses no_such.h, but cpu needs only sys"),
    ],
)
def test_a_wrong_arrow_is_noticed(checkout: Path, pattern: str, line: str, sentence: str) -> None:
    file = next(iter(sorted(checkout.glob(pattern))), checkout / pattern)
    before = file.read_text() if file.exists() else ""
    file.write_text(f"{before}\n{line}\n")
    (fault,) = arrows.wrong(checkout, arrows.arrows(checkout))
    assert sentence in fault
    number = before.count("\n") + 1 + len(line.splitlines())
    assert "in no room" in fault or fault.startswith(f"{file.relative_to(checkout)}:{number} uses ")


@pytest.mark.parametrize(
    ("first", "line", "second"),
    [
        ("fastgan/plan_layers.py", "from fastgan.engine import Plan", "fastgan/engine.py"),
        ("fastgan/plan_layers.py", "if TYPE_CHECKING:\n    from fastgan.engine import Plan", "fastgan/engine.py"),
        (
            "fastgan/training/batches.py",
            "def f():\n    from fastgan.training import state",
            "fastgan/training/state.py",
        ),
        ("csrc/core/scalar.h", '#include "activation.h"', "csrc/core/activation.h"),
        ("fastgan/reference.py", "import fastgan.reference", "fastgan/reference.py"),
    ],
)
def test_a_circle_is_noticed(checkout: Path, first: str, line: str, second: str) -> None:
    with (checkout / first).open("a") as file:
        file.write(f"\n{line}\n")
    (circle,) = arrows.circles(arrows.arrows(checkout))
    assert {first, second} <= set(circle)


def test_the_command(checkout: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, ROOT / "tests/arrows.py", checkout], capture_output=True, text=True, cwd=checkout
        )

    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^fastgan/training/ +\d+ +\d+$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("circles: 0\nwrong arrows: 0\n")
    with (checkout / "fastgan/engine.py").open("a") as file:
        file.write("import fastgan.step\n")
    done = run()
    assert done.returncode == 1
    circle = " <-> ".join(f"fastgan/{name}.py" for name in ("engine", "planned", "step", "tuning", "tuning_trial"))
    assert f"circles: 1\n  {circle}\nwrong arrows: 1\n" in done.stdout


# Packages that nothing but torch, numpy and what those need may come from are refused.
ALONE = """
import importlib.metadata as metadata
import re, sys
import numpy, torch

def needed(name, found):
    try:
        requirements = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return found
    if name not in found:
        found.add(name)
        for requirement in requirements:
            if "extra ==" not in requirement:
                needed(re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-"), found)
    return found

allowed = needed("torch", needed("numpy", set()))
owners = metadata.packages_distributions()

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        owner = [each.lower().replace("_", "-") for each in owners.get(top, [])]
        if top != "fastgan" and owner and not set(owner) & allowed:
            raise ImportError(f"{name} is no part of torch or numpy")

sys.meta_path.insert(0, Refuse())
try:
    import pytest
except ImportError:
    print("refused")
"""


def alone(code: str) -> subprocess.CompletedProcess[str]:
    return warm.run(["-c", ALONE + code], ROOT, os.environ)


def test_fastgan_needs_only_torch_and_numpy() -> None:
    """Where nothing else can be imported, all of the library is there, and says what the trainer lacks."""
    modules = [
        arrows.module_name(path)
        for path, room in arrows.sources(ROOT).items()
        if room in arrows.rooms_below("library") and path.endswith(".py")
    ]
    assert {"fastgan", "fastgan.step", "fastgan.data.tables"} <= set(modules)
    imports = "".join(f"import {name}\n" for name in modules)
    done = alone(
        f"{imports}print(len(fastgan.data.load('ring8')), fastgan.TrainStep.__name__, fastgan.metrics.__name__)"
    )
    assert done.stdout.splitlines() == ["refused", "25000 TrainStep fastgan.metrics"], done.stderr
    done = alone("import fastgan\nfastgan.Trainer")
    assert done.stdout == "refused\n"
    assert "is no part of torch or numpy" in done.stderr or "No module named" in done.stderr
