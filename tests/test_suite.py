"""The suite itself: how its tests compare, what it takes from the environment, what a selection leaves out."""

from __future__ import annotations

import ast
import itertools
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import warm
from conftest import BACKENDS
from coverings import covering

HERE = Path(__file__).parent
SAMPLE = HERE / "test_engine_adam.py"  # each of its tests is there for every backend, and none is deep
ROOT = HERE.parent


def is_zero(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value == 0


def calls(tree: ast.AST, *names: str) -> list[ast.Call]:
    """The calls of functions of these names of any module's."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return [call for call in found if call.func.attr in names]


@pytest.mark.parametrize("file", sorted(HERE.rglob("*.py")), ids=lambda file: file.stem)
def test_no_comparison_has_a_tolerance_of_its_own(file: Path) -> None:
    """Two float32 paths differ by what the processor makes of them: conformance.py has comparisons that hold on all."""
    found = []
    tree = ast.parse(file.read_text())
    for call in calls(tree, "assert_close", "assert_allclose"):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if not (is_zero(given.get("rtol")) and is_zero(given.get("atol"))):
            found.append(call.lineno)
    for node in ast.walk(tree):  # that two are not close may be asserted
        if isinstance(node, ast.Assert) and not (
            isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
        ):
            found += [call.lineno for call in calls(node, "allclose", "isclose")]
    assert not found, f"{file.name}, lines {found}: compare by assert_within_bound, in float64 or exactly"


def test_no_file_changes_the_path_of_imports() -> None:
    """What is imported does not hang on who imported first: pytest, `python -m` and PYTHONPATH set the path."""
    rooms = [ROOT / room for room in ("fastgan", "bench", "tools", "tests", "examples", "csrc")]
    files = [*ROOT.glob("*.py"), *(file for room in rooms for file in room.rglob("*.py"))]
    assert len(files) > 100
    surgery = re.compile(r"sys\.path\.(insert|append|extend)|sys\.path\[|noqa: *E402")
    found = [file.relative_to(ROOT).as_posix() for file in files if surgery.search(file.read_text(encoding="utf-8"))]
    assert found == ["tests/warm.py"]  # which does for a forked process what PYTHONPATH does for a new one


def collect(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What pytest would run of SAMPLE."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FASTGAN_", "PYTEST_"))}
    words = ["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments, "test_engine_adam.py"]
    return warm.run(words, HERE, {**inherited, "FASTGAN_TESTS": "full", **environment}, ("hypothesis",), 200)


@pytest.mark.deep
def test_a_selection_of_backends_says_what_it_leaves_out() -> None:
    # What the caller's shell has chosen for itself is no matter of the tests.
    done = collect(FASTGAN_TEST_BACKENDS="cpu,auto", FASTGAN_BACKEND="no such backend")
    assert done.returncode == 0, done.stdout + done.stderr
    tests = [line for line in done.stdout.splitlines() if "::" in line]
    assert {name for name in ("cpu", "simt", "auto", "cuda") if any(f"[{name}" in test for test in tests)} == {
        "cpu",
        "auto",
    }
    left = len(tests) // 2 * (len(BACKENDS) - 2)  # on one backend as on another
    assert f"{left} by FASTGAN_TEST_BACKENDS=cpu,auto: {SAMPLE.name} {left}" in done.stdout


@pytest.mark.deep
def test_a_selection_of_nothing_is_an_error() -> None:
    assert collect("-m", "deep", FASTGAN_TEST_BACKENDS="cpu").returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    done = collect(FASTGAN_TEST_BACKENDS="cpu,tpu")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "FASTGAN_TEST_BACKENDS must name backends of reference, cpu, simt, auto" in done.stderr
    assert "FASTGAN_TESTS must be full or not set, not 'few'" in collect(FASTGAN_TESTS="few").stderr


@pytest.mark.deep
def test_what_is_above_the_kernels_is_not_run_again_on_other_instructions() -> None:
    for isa, is_there in (("", True), ("avx2", False)):
        done = collect("test_compile.py", FASTGAN_ISA=isa, FASTGAN_TEST_BACKENDS="auto")
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("test_compile.py::" in done.stdout) == is_there
        assert f"{SAMPLE.name}::" in done.stdout
        assert ("FASTGAN_ISA=avx2: test_compile.py " in done.stdout) != is_there
    # On the backend `cpu` it has not run before.
    assert "test_compile.py::" in collect("test_compile.py", FASTGAN_ISA="avx2", FASTGAN_TEST_BACKENDS="cpu").stdout


@pytest.mark.deep
def test_fewer_than_all_combinations_run() -> None:
    found = []
    for extent in ("full", ""):
        done = collect("test_mlp.py", FASTGAN_TESTS=extent)
        found.append({line for line in done.stdout.splitlines() if "::test_stack[" in line})
        assert ("what FASTGAN_TESTS=full has beside: " in done.stdout) == (extent == "")
    assert found[1] < found[0]
    assert len(found[1]) > 50


def test_what_covers_a_product() -> None:
    cases = {f"{a}{b}{c}": {"a": a, "b": b, "c": c} for a, b, c in itertools.product(range(4), range(5), "xyz")}

    def combinations(names: Iterable[str], strength: int) -> set[Any]:
        return {found for name in names for found in itertools.combinations(cases[name].items(), strength)}

    for strength, most in ((1, 12), (2, 40)):
        kept = covering(cases.items(), strength)
        assert combinations(kept, strength) == combinations(cases, strength)
        assert len(kept) <= most
        assert covering(cases.items(), strength) == kept != covering(cases.items(), strength, "another setting")
    assert covering(cases.items(), 3) == cases.keys()
    assert covering([("without parameters", {})], 2) == {"without parameters"}
