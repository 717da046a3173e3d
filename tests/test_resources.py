"""tools/resources.py and tools/ptxas.py: the parser on a stored report of ptxas, and nvcc itself where it is found."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import ptxas, resources
from tools.ptxas import Usage

ROOT = Path(__file__).parent.parent

# Of CUDA 13.0, with -maxrregcount 24: a kernel in shared memory, one with a function that was not inlined, one that
# spills.
REPORT = """\
ptxas info    : Overriding maximum register limit 256 for '_ZN7fastgan4cuda8spillingEPKfPfi' with  24 of maxrregcount
ptxas info    : 24 bytes gmem, 8 bytes cmem[4]
ptxas info    : Compiling entry function '_ZN7fastgan4cuda1kIfLi4EEEvPf' for 'sm_80'
ptxas info    : Function properties for _ZN7fastgan4cuda1kIfLi4EEEvPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 128 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 0.951 ms
ptxas info    : Compiling entry function '_ZN7fastgan4cuda5callsEPf' for 'sm_80'
ptxas info    : Function properties for _ZN7fastgan4cuda5callsEPf
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 0 barriers, 32 bytes cumulative stack size, 360 bytes cmem[0]
ptxas info    : Compile time = 4.496 ms
ptxas info    : Function properties for _ZN7fastgan4cuda4slowEfPf
    0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function '_ZN7fastgan4cuda8spillingEPKfPfi' for 'sm_80'
ptxas info    : Function properties for _ZN7fastgan4cuda8spillingEPKfPfi
    304 bytes stack frame, 608 bytes spill stores, 640 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers, 304 bytes cumulative stack size, 372 bytes cmem[0]
ptxas info    : Compile time = 12.071 ms
"""

# 40 values that live through a loop do not fit in 16 registers.
SPILLING = """
__global__ void spilling(const float* p, float* out, int n) {
  float v[40];
#pragma unroll
  for (int i = 0; i < 40; i++) v[i] = p[i * 32 + threadIdx.x];
  for (int j = 0; j < n; j++) {
#pragma unroll
    for (int i = 0; i < 40; i++) v[i] = v[i] * v[(i + 7) % 40] + p[j];
  }
#pragma unroll
  for (int i = 0; i < 40; i++) out[i * 32 + threadIdx.x] = v[i];
}
"""

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


def row(kernel: str, registers: str = "12") -> tuple[str, ...]:
    return ("a.cu", kernel, "128", "0", "0", *[registers] * len(ptxas.ARCHITECTURES))


def test_a_report_is_read_kernel_by_kernel() -> None:
    assert ptxas.parse(REPORT) == {
        "_ZN7fastgan4cuda1kIfLi4EEEvPf": Usage(12, 128, 0, 0, 0),
        "_ZN7fastgan4cuda5callsEPf": Usage(18, 0, 32, 8, 4),
        "_ZN7fastgan4cuda8spillingEPKfPfi": Usage(24, 0, 304, 608, 640),
    }
    assert ptxas.parse("nvcc warning : something else\n") == {}


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("fastgan::cuda::calls(float*)", "calls"),
        ("void fastgan::cuda::(anonymous namespace)::k<float, 4, true>(float const*, long)", "k<float, 4, true>"),
        ("void fastgan::cuda::<unnamed>::k<(int)-4, (bool)1>(T2 *, long)", "k<-4, 1>"),
        ("void fastgan::cuda::k<__nv_bfloat16, (fastgan::Activation)0>(__nv_bfloat16*)", "k<bfloat16, 0>"),
        ("void fastgan::cuda::each<fastgan::core::Relu<__half> >(__half*)", "each<Relu<half> >"),
        (
            "void fastgan::cuda::apply<fastgan::cuda::f(float*)::{lambda(int)#2}>(float*)",
            "apply<f(float*)::{lambda(int)#2}>",
        ),
    ],
)
def test_names_are_short(name: str, short: str) -> None:
    assert ptxas.shorten(name) == short


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="c++filt is not on PATH")
def test_names_are_demangled_and_stay_different() -> None:
    kernels = {"_ZN7fastgan4cuda1kIfLi4EEEvPf": Usage(1), "_Z1kPf": Usage(2), "_ZN7fastgan4cuda1kEPd": Usage(3)}
    assert ptxas.readable(kernels) == {
        "k<float, 4>": Usage(1),
        "k(float*)": Usage(2),
        "fastgan::cuda::k(double*)": Usage(3),
    }
    assert ptxas.readable({}) == {}


def test_a_spill_is_a_sentence() -> None:
    usages = {"sm_80": {"spilling": Usage(24, 0, 304, 608, 640), "k": Usage(12)}, "sm_90a": {"spilling": Usage(30)}}
    (sentence,) = resources.spill_sentences("a.cu", usages)
    assert sentence.startswith(
        "a.cu: spilling spills on sm_80: 608 bytes of stores and 640 of loads, with 24 registers"
    )


def test_a_row_holds_registers_by_architecture_and_the_rest_at_its_most() -> None:
    usages = {"sm_80": {"k": Usage(24, 16, 8, 1, 2), "old": Usage(4)}, "sm_90a": {"k": Usage(30, 32, 0, 0, 0)}}
    assert resources.table_rows("a.cu", usages) == [
        ("a.cu", "k", "32", "8", "3", "24", "-", "-", "30", "-", "-"),
        ("a.cu", "old", "0", "0", "0", "4", "-", "-", "-", "-", "-"),
    ]


def test_the_table_comes_back_as_written(tmp_path: Path) -> None:
    file = tmp_path / "resources.tsv"
    assert resources.read_table(file) == ("", [])
    resources.write_table(file, "13.0.88", [row("b"), row("a")])
    assert resources.read_table(file) == ("13.0.88", [row("a"), row("b")])
    file.write_text(file.read_text().replace("sm_80", "sm_75"))
    assert resources.read_table(file) == ("", [])


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Two files of kernels, a compiler that takes 12 registers for each, and what it was called for."""
    compiled: list[tuple[str, str]] = []

    def measure(source: Path, architecture: str) -> ptxas.Compiled:
        compiled.append((source.name, architecture))
        text = source.read_text()
        spilled = Usage(12, 0, 8, 4, 4) if "// spills" in text else Usage(12)
        return ptxas.Compiled(99.0 if "// slow" in text else 1.0, {f"k_{source.stem}": spilled})

    for name, text in {
        "cuda/a.cu": '#include "a.h"\n',
        "cuda/b.cu": "#include <cuda_runtime.h>\n",
        "cuda/a.h": '#if 0\n#include "../core/c.h"\n#endif\n',
        "core/c.h": '#pragma once\n#include "../cuda/a.h"\n',
        "cuda/nvcc-flags.txt": "-O3\n",
    }.items():
        file = tmp_path / "csrc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(resources, "ROOT", tmp_path)
    monkeypatch.setattr(resources, "KERNELS", tmp_path / "csrc" / "cuda")
    monkeypatch.setattr(resources, "TABLE", tmp_path / "csrc" / "cuda" / "resources.tsv")
    monkeypatch.setattr(resources, "nvcc_version", lambda: "13.0.88")
    monkeypatch.setattr(resources, "measure", measure)
    monkeypatch.setattr(resources, "readable", dict)
    return compiled


@pytest.mark.parametrize(
    ("file", "text", "again"),
    [
        ("cuda/b.cu", "int changed;", ["b.cu"]),
        ("cuda/a.h", "int changed;", ["a.cu"]),
        ("core/c.h", "int changed;", ["a.cu"]),
        ("core/other.h", "int included_by_none;", []),
        ("cuda/nvcc-flags.txt", "-O2", ["a.cu", "b.cu"]),
    ],
)
def test_only_what_has_changed_is_compiled(made_up, file: str, text: str, again: list[str]) -> None:
    assert resources.main(["--write"]) == 0
    assert sorted(made_up) == [(name, a) for name in ("a.cu", "b.cu") for a in sorted(ptxas.ARCHITECTURES)]
    made_up.clear()
    assert resources.main(["--check"]) == 0
    assert made_up == []
    with (resources.ROOT / "csrc" / file).open("a") as opened:
        opened.write(text)
    assert resources.main(["--check"]) == 0
    assert sorted(made_up) == [(name, a) for name in again for a in sorted(ptxas.ARCHITECTURES)]


def test_all_are_compiled_by_another_nvcc_and_where_it_is_asked_for(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resources.main(["--write"]) == 0
    for arguments, version in ((["--all"], "13.0.88"), (["--check"], "13.1.2")):
        monkeypatch.setattr(resources, "nvcc_version", lambda version=version: version)
        made_up.clear()
        assert resources.main(arguments) == 0
        assert len(made_up) == 2 * len(ptxas.ARCHITECTURES)


def test_a_row_that_was_not_measured_is_found(made_up, capsys: pytest.CaptureFixture[str]) -> None:
    assert resources.main(["--write"]) == 0
    resources.TABLE.write_text(resources.TABLE.read_text().replace("k_a\t0\t0\t0\t12", "k_a\t0\t0\t0\t10"))
    assert resources.main(["--check"]) == 1
    assert "a.cu k_a: sm_80 10 in the table, 12 measured" in capsys.readouterr().err


@pytest.mark.parametrize(("fault", "sentence"), [("// spills", "a.cu: k_a spills"), ("// slow", "a.cu takes 99 s")])
def test_what_is_wrong_is_said_again_though_nothing_has_changed(
    made_up, fault: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (resources.KERNELS / "a.cu").write_text(fault)
    for arguments in (["--write"], ["--check"], ["--check"]):
        assert resources.main(arguments) == 1
        assert sentence in capsys.readouterr().err
    resources.write_table(
        resources.TABLE, *resources.read_table(resources.TABLE), sorted(resources.KERNELS.glob("*.cu"))
    )
    if "spills" in fault:
        made_up.clear()
        assert resources.main(["--check"]) == 1
        assert "a.cu: k_a spills 8 bytes by resources.tsv" in capsys.readouterr().err
        assert made_up == []


def test_every_difference_is_named() -> None:
    assert resources.difference_sentences([row("same")], [row("same")]) == []
    sentences = resources.difference_sentences([row("gone"), row("k")], [row("k", "13"), row("new")])
    gone, changed, new = sentences
    assert gone == "resources.tsv: a.cu gone is in the table, but there is no such kernel"
    assert changed.startswith("resources.tsv: a.cu k: sm_80 12 in the table, 13 measured; sm_86 12")
    assert new == "resources.tsv: a.cu new is not in the table"


def test_the_committed_table_is_readable_and_has_every_kernel_file() -> None:
    version, rows = resources.read_table(resources.TABLE)
    assert version
    assert rows == sorted(rows)
    assert {file for file, *_ in rows} <= {source.name for source in ptxas.KERNELS.glob("*.cu")}
    with_kernels = {s.name for s in ptxas.KERNELS.glob("*.cu") if re.search(r"__global__", s.read_text())}
    assert with_kernels <= {file for file, *_ in rows}


def test_kernels_include_no_torch_header() -> None:
    assert resources.torch_includes() == []


def test_it_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import tools.resources"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["--check", "--write"], "not allowed with"),
    ],
)
def test_bad_options(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        resources.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_without_nvcc_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    assert resources.main([]) == 2
    assert "nvcc is not on PATH" in capsys.readouterr().err


@pytest.mark.deep
@needs_nvcc
def test_a_spilling_kernel_is_found_by_nvcc(tmp_path: Path) -> None:
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING)
    compiled = ptxas.measure(source, "sm_80", ["-maxrregcount", "16"])
    (sentence,) = resources.spill_sentences(source.name, {"sm_80": ptxas.readable(compiled.kernels)})
    assert sentence.startswith("spilling.cu: spilling spills on sm_80")
    roomy = ptxas.measure(source, "sm_80")
    assert resources.spill_sentences(source.name, {"sm_80": ptxas.readable(roomy.kernels)}) == []


@needs_nvcc
def test_what_nvcc_says_reaches_the_user(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cu"
    source.write_text("__global__ void k() { undefined_name(); }\n")
    with pytest.raises(ptxas.NvccError, match=r"(?s)wrong\.cu does not compile for sm_80:.*undefined_name"):
        ptxas.measure(source, "sm_80")
