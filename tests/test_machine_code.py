"""tools/sass.py and tools/machine_code.py: machine code as nvdisasm prints it, and the table that is kept of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools import machine_code, resources, sass
from tools.ptxas import NvccError

HEAD = "\t.section\t.text.k\n.text.k:\n"


def code(*lines: str) -> str:
    """A kernel `k` of these instructions and labels."""
    place, text = 0, HEAD
    for line in lines:
        if line.endswith(":"):
            text += f"{line}\n"
            continue
        text += f"        /*{place:04x}*/                   {line} ;\n"
        place += 16
    return text


def counted(*lines: str) -> dict[str, int]:
    (kernel,) = sass.parse(code(*lines)).values()
    return {name: number for name, number in sass.counts(kernel).items() if number}


def test_accesses_are_counted_by_width() -> None:
    found = counted(
        "LDC R1, c[0x0][0x28]",
        "LDG.E R4, desc[UR6][R2.64]",
        "LDG.E.U8 R5, desc[UR6][R2.64+0x4]",
        "@!P0 LDG.E.128 R8, desc[UR6][R2.64]",
        "STG.E.64 desc[UR6][R2.64], R4",
        "STG.E.128 desc[UR6][R2.64+0x10], R8",
        "LDGSTS.E.BYPASS.128.ZFILL [R11], desc[UR6][R12.64], P0",
        "LDGSTS.E [R11], desc[UR6][R12.64], P2",
        "LDS.128 R12, [R20]",
        "STS.64 [R20+0x8], R4",
        "LDSM.16.M88.4 R16, [R20]",
        "HMMA.1688.F32.TF32 R4, R4, R8, R4",
        "FFMA R4, R5, R6, R4",
        "EXIT",
    )
    assert found == {
        **{"instructions": 14, "LDG.32": 2, "LDG.128": 1, "STG.64": 1, "STG.128": 1, "LDGSTS.32": 1},
        **{"LDGSTS.128": 1, "LDS.128": 1, "STS.64": 1, "LDSM": 1, "tensor": 1, "FMA": 1, "chain": 1},
    }


CHAINS = {
    "no load": (["MOV R2, R4", "EXIT"], 0),
    "three of pointers": (
        [
            "LDG.E.64 R2, desc[UR6][R2.64]",
            "LDG.E.64 R4, desc[UR6][R2.64+0x8]",
            "IADD3 R6, P0, R4, 0x10, RZ",
            "IMAD.X R7, RZ, RZ, R5, P0",
            "LDG.E R8, desc[UR6][R6.64]",
            "EXIT",
        ],
        3,
    ),
    "three at once": (
        [
            "LDG.E R4, desc[UR6][R2.64]",
            "LDG.E R5, desc[UR6][R2.64+0x4]",
            "LDG.E R6, desc[UR6][R2.64+0x8]",
            "FADD R4, R4, R5",
            "EXIT",
        ],
        1,
    ),
    "an index, widened": (
        ["LDG.E R4, desc[UR6][R2.64]", "IMAD.WIDE R8, R4, 0x4, R10", "LDG.E R5, desc[UR6][R8.64]", "EXIT"],
        2,
    ),
    "a guard": (
        ["LDG.E R4, desc[UR6][R2.64]", "ISETP.NE.U32.AND P1, PT, R4, RZ, PT", "@P1 LDG.E R5, desc[UR6][R6.64]", "EXIT"],
        2,
    ),
    "carries of a sum": (
        [
            ".L_x_0:",
            "LDG.E R16, desc[UR12][R20.64]",
            "FSETP.GTU.AND P6, PT, R16, RZ, PT",
            "IADD3 R20, P0, P6, R4, UR9, R13",
            "IADD3.X R21, R5, UR10, RZ, P0, P6",
            "@P1 BRA `(.L_x_0)",
            "EXIT",
        ],
        1,
    ),
    "a sum in a loop": (
        [
            ".L_x_0:",
            "LDG.E R4, desc[UR6][R2.64]",
            "FADD R5, R5, R4",
            "IADD3 R2, P0, R2, 0x80, RZ",
            "IMAD.X R3, RZ, RZ, R3, P0",
            "@P1 BRA `(.L_x_0)",
            "EXIT",
        ],
        1,
    ),
    "a list in a loop": (
        [".L_x_0:", "LDG.E.64 R2, desc[UR6][R2.64]", "@P1 BRA `(.L_x_0)", "EXIT"],
        sass.LONGEST_CHAIN,
    ),
    "one way of two": (
        [
            "LDG.E.64 R2, desc[UR6][R8.64]",
            "@P0 BRA `(.L_x_1)",
            "MOV R2, R10",
            "MOV R3, R11",
            ".L_x_1:",
            "LDG.E R4, desc[UR6][R2.64]",
            "EXIT",
        ],
        2,
    ),
    "a way by a table": (
        [
            'BRX R12 -0x150 (*"BRANCH_TARGETS .L_x_2"*)',
            ".L_x_2:",
            "LDG.E.64 R2, desc[UR6][R8.64]",
            "LDG.E R4, desc[UR6][R2.64]",
            "EXIT",
        ],
        2,
    ),
    "a register that was set anew": (
        [
            "LDG.E R4, desc[UR6][R2.64]",
            "MOV R4, R9",
            "IMAD.WIDE R8, R4, 0x4, R10",
            "LDG.E R5, desc[UR6][R8.64]",
            "EXIT",
        ],
        1,
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_of_dependent_loads(name: str) -> None:
    lines, longest = CHAINS[name]
    assert counted(*lines).get("chain", 0) == longest


def test_nvdisasm_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sass.shutil, "which", lambda _: None)
    monkeypatch.setattr(sass.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(NvccError, match="pip install nvidia-cuda-nvdisasm"):
        sass.nvdisasm()


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two sources and a compiler that gives each one kernel; the list is of the files that it compiled."""
    compiled: list[str] = []

    def disassemble(source: Path, architecture: str) -> dict[str, sass.Kernel]:
        assert architecture == machine_code.ARCHITECTURE
        compiled.append(source.name)
        width = ".128" if "wide" in source.read_text() else ""
        return {source.stem: sass.parse(code(f"LDG.E{width} R4, desc[UR6][R2.64]", "EXIT"))["k"]}

    folder = tmp_path / "csrc" / "cuda"
    folder.mkdir(parents=True)
    for name in ("a.cu", "b.cu", "nvcc-flags.txt"):
        (folder / name).write_text("")
    monkeypatch.setattr(machine_code, "ROOT", tmp_path)
    monkeypatch.setattr(machine_code, "KERNELS", folder)
    monkeypatch.setattr(machine_code, "TABLE", folder / "machine_code.tsv")
    monkeypatch.setattr(machine_code, "nvcc_version", lambda: "13.0.88")
    monkeypatch.setattr(machine_code, "demangle", list)
    monkeypatch.setattr(sass, "disassemble", disassemble)
    monkeypatch.setattr(sass, "nvdisasm", lambda: "nvdisasm")
    return compiled


def test_only_what_has_changed_is_compiled(made_up: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert machine_code.main(["--write"]) == 0
    assert sorted(made_up) == ["a.cu", "b.cu"]
    made_up.clear()
    assert machine_code.main([]) == 0
    assert made_up == []
    (machine_code.KERNELS / "b.cu").write_text("wide")
    capsys.readouterr()
    assert machine_code.main([]) == 1
    assert made_up == ["b.cu"]
    said = capsys.readouterr().err
    assert "machine_code.tsv: b.cu b: LDG.32 1 in the table, 0 measured; LDG.128 0 in the table, 1 measured" in said
    assert said.endswith("where these changes are meant: python -m tools.machine_code --write\n")
    assert machine_code.main(["--write"]) == 0
    assert machine_code.main(["--all"]) == 0
    assert made_up == ["b.cu", "b.cu", "a.cu", "b.cu"]


def test_a_row_that_was_not_measured_is_found(made_up: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert machine_code.main(["--write"]) == 0
    table = machine_code.TABLE
    table.write_text(table.read_text().replace("a.cu\ta\t2\t1", "a.cu\ta\t2\t0"))
    assert machine_code.main([]) == 1
    assert "a.cu a: LDG.32 0 in the table, 1 measured" in capsys.readouterr().err
    table.write_text(table.read_text().replace("13.0.88", "12.8.1"))
    assert machine_code.main([]) == 0  # of another nvcc: nothing is compared
    assert "nothing is compared" in capsys.readouterr().out


def test_the_table_has_the_kernels_and_the_sources_as_they_are() -> None:
    version, digests, rows = machine_code.read_table()
    assert version
    assert {row[:2] for row in rows} == {row[:2] for row in resources.read_table(resources.TABLE)[1]}
    for source in machine_code.KERNELS.glob("*.cu"):
        of = [row for row in rows if row[0] == source.name]
        is_known = digests[source.name] == machine_code.digest(source, of)
        assert is_known, f"{source.name}: python -m tools.machine_code --write"


@pytest.mark.deep
def test_the_table_is_what_the_compiler_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one file: `python -m tools.machine_code --check` compiles each that has changed; all of them take minutes."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    try:
        sass.nvdisasm()
    except NvccError as error:
        pytest.skip(str(error))
    table, seen = tmp_path / "machine_code.tsv", "# adam.cu "
    lines = machine_code.TABLE.read_text().splitlines(keepends=True)
    table.write_text("".join(f"{seen}0\n" if line.startswith(seen) else line for line in lines))
    monkeypatch.setattr(machine_code, "TABLE", table)
    compiled: list[str] = []
    own = machine_code.rows_of

    def rows_of(source: Path) -> list[machine_code.Row]:
        compiled.append(source.name)
        return own(source)

    monkeypatch.setattr(machine_code, "rows_of", rows_of)
    assert machine_code.main([]) == 0
    assert compiled == ["adam.cu"]
