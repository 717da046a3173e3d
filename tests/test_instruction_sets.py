"""What is compiled for one instruction set is found under its name alone."""

from __future__ import annotations

import platform
import shutil
import subprocess

import pytest
from cpu_kernels import build


@pytest.mark.deep
@pytest.mark.parametrize("name", ["avx512", "avx512_bf16", "amx"])
def test_no_code_of_an_instruction_set_can_serve_another(name: str) -> None:
    """Of functions that several files define the linker keeps one, and all of them run it."""
    if shutil.which("g++") is None or platform.machine() != "x86_64":
        pytest.skip("no g++ for x86-64")
    compiled = build.build("native").with_name(f"{name}.o")
    said = subprocess.run(["nm", "-C", "--defined-only", str(compiled)], check=True, capture_output=True, text=True)
    symbols = [line.split(maxsplit=2)[1:] for line in said.stdout.splitlines()]
    assert sum(f"fastgan::cpu::{name}::" in symbol for _, symbol in symbols) > 10
    shared = [symbol for kind, symbol in symbols if kind in "Ww"]
    assert not [symbol for symbol in shared if f"fastgan::cpu::{name}::" not in symbol]
