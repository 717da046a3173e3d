"""tools/gpu.sh without a GPU: its options, and with stand-ins for nvidia-smi and Python, that no part hides another."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.options import OPS
from tools import gpu_record

ROOT = Path(__file__).parent.parent
# What a file has whose tests run on a GPU: a fixture with the backend `cuda`, or the suite's words where there is none.
OF_A_GPU = r'\b\w*backend: str\b|usefixtures\("(device_)?backend"\)|\("simt", "cuda"\)|needs a CUDA GPU'
PARTS = ["facts", "build", "verify", "kernels", "kernels-2", "step", "profile", "modelled", "choices", "step-tf32"]
PARTS += ["memcheck", "racecheck", "synccheck", "initcheck", "tests", "step-compiled", "penalties", "bench"]

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(
        shutil.which("bash") is None or shutil.which("timeout") is None, reason="bash or timeout is not on PATH"
    ),
]

# Stands in for python3: a GPU is there, the build fails, the tests hang, the benchmark leaves a record.
EMPTY = '{"ceilings": {}, "rows": [], "environment": {}}'
FAKE_PYTHON = f"""#!/bin/sh
case "$*" in
  *"gpu_record facts"*) echo '{{"torch": "2"}}' >"$4" ;;
  *gpu_record*) exec {sys.executable} "$@" ;;
  *get_device_capability*) echo 9.0a ;;
  *build_ext*) echo "built for $TORCH_CUDA_ARCH_LIST"; exit 3 ;;
  *"-m pytest tests/"*) echo "commit $FASTGAN_COMMIT" ;;
  *"-m pytest tests"*) sleep 60 ;;
  *"-m bench --device cuda --only step"*) echo '{EMPTY}' >"$WORK/step.json" ;;
  *"-m bench --device cuda"*) echo '{EMPTY}' >"$WORK/bench.json" ;;
esac
"""


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(cwd / "tools" / "gpu.sh"), *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def program(folder: Path, name: str, text: str) -> str:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)
    return str(file)


def test_a_dry_run_lists_the_parts_and_their_limits_fit() -> None:
    result = run("--dry-run")
    assert result.returncode == 0, result.stderr
    parts = re.findall(r"^([\w-]+), at most (\d+) s:$", result.stdout, re.MULTILINE)
    assert [name for name, _ in parts] == PARTS
    assert result.stdout.endswith("560 s at most\n")  # the clock, however much the limits are together
    assert "FASTGAN_REQUIRE_BACKENDS=cuda" in result.stdout
    # What measured the time of a step is put beside the model, and every op of the benchmark is in one part or another.
    assert '-m tools.model --measured "$WORK/profile.json"' in result.stdout
    measured = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"--only ([a-z_ ]+)", result.stdout))))
    assert measured >= set(OPS)
    for file in re.findall(r"tests/test_\w+\.py", result.stdout):
        assert (ROOT / file).exists(), file
    assert run("--dry-run", "--part", "build", "--limit", "7").stdout.startswith("build, at most 7 s:\n")
    two = run("--dry-run", "--part", "step", "--part", "profile", "--clock", "50").stdout
    assert re.findall(r"^([\w-]+), at most", two, re.MULTILINE) == ["step", "profile"]
    assert two.endswith("50 s at most\n")


def test_the_halves_are_the_whole_and_both_build() -> None:
    first, second = (
        re.findall(r"^([\w-]+), at most", run("--dry-run", "--half", half).stdout, re.MULTILINE) for half in "12"
    )
    assert second[:2] == first[:2] == ["facts", "build"]
    assert [*first, *second[2:]] == PARTS
    assert first[-1] == "memcheck"


def test_files_of_kernels_have_tests_for_a_gpu_and_run_once() -> None:
    parts = re.split(r"^[\w-]+, at most \d+ s:$", run("--dry-run").stdout, flags=re.MULTILINE)[1:]
    first, second = (
        re.findall(r"tests/test_\w+\.py", parts[PARTS.index(name)].split("-m pytest")[1])
        for name in ("kernels", "kernels-2")
    )
    assert len({*first, *second}) == len([*first, *second])
    for file in (*first, *second):
        assert re.search(OF_A_GPU, (ROOT / file).read_text()), file
    assert all(f" {file}" in parts[PARTS.index("tests")] for file in (*first, *second))


def test_help() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert all(
        option in result.stdout
        for option in ("--dry-run", "--half", "--part", "--limit", "--clock", "--commit", "--out")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fast"], "unknown option '--fast'; the options are --dry-run"),
        (["--part", "train"], f"--part must be one of {' '.join(PARTS)}, not 'train'"),
        (["--part"], "--part needs a value"),
        (["--half", "3"], "--half must be 1 or 2, not '3'"),
        (["--half", "1", "--part", "step"], "--half and --part do not go together: a half is a choice of parts"),
        (["--limit", "0"], "--limit must be whole seconds, at least 1, not '0'"),
        (["--clock", "0"], "--clock must be whole seconds, at least 1, not '0'"),
        (["--limit", "1.5"], "--limit must be whole seconds, at least 1, not '1.5'"),
    ],
)
def test_bad_options(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_without_a_gpu_one_sentence(tmp_path: Path) -> None:
    no_gpu = program(tmp_path / "bin", "nvidia-smi", "#!/bin/sh\nexit 9\n")
    path = f"{Path(no_gpu).parent}:{os.environ['PATH']}"
    result = run("--out", str(tmp_path / "out"), PATH=path)
    assert result.returncode == 2
    assert result.stderr == "tools/gpu.sh: there is no NVIDIA GPU here: nvidia-smi is missing or finds none\n"
    program(tmp_path / "bin", "nvidia-smi", "#!/bin/sh\n")
    no_cuda = program(tmp_path / "bin", "python-without-cuda", "#!/bin/sh\nexit 1\n")
    result = run("--out", str(tmp_path / "out"), PATH=path, PYTHON=no_cuda)
    assert result.returncode == 2
    assert result.stderr.endswith("torch.cuda.is_available() is not true\n")
    assert not list((tmp_path / "out").iterdir())


def test_a_part_that_fails_or_hangs_does_not_hide_the_rest(tmp_path: Path) -> None:
    checkout = tmp_path / "no repository"
    shutil.copytree(ROOT / "tools", checkout / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "tests").mkdir()
    (checkout / "tests" / "test_gpu.py").touch()
    fakes = tmp_path / "bin"
    program(fakes, "nvidia-smi", "#!/bin/sh\n")
    program(fakes, "compute-sanitizer", '#!/bin/sh\ncase "$2" in racecheck) exit 9 ;; esac\n')
    out = tmp_path / "out"
    result = run(
        *("--out", str(out), "--limit", "3", "--commit", "abc123"),
        cwd=checkout,
        PATH=f"{fakes}:{os.environ['PATH']}",
        PYTHON=program(fakes, "python", FAKE_PYTHON),
        GIT_CEILING_DIRECTORIES=str(tmp_path),
        CUDA_HOME=str(tmp_path),
    )
    assert result.returncode == 1, result.stderr
    (file,) = out.glob("gpu-*.json")
    record = json.loads(file.read_text())
    assert record["commit"] == "abc123"
    assert record["facts"] == {"torch": "2"}
    assert (record["rows"], record["step"]["rows"]) == ([], [])
    results = {part["part"]: (part["result"], part["exit"]) for part in record["parts"]}
    assert results == {
        **dict.fromkeys(PARTS, ("ok", 0)),
        "build": ("failed", 3),
        "tests": ("timed out", 124),
        "racecheck": ("failed", 9),
    }
    log = file.with_suffix(".log").read_text()
    assert "built for 9.0a" in log
    assert "commit abc123" in log
    assert [line.split()[0] for line in result.stdout.splitlines()[-len(PARTS) - 1 : -1]] == PARTS


def test_what_the_clock_leaves_no_time_for_is_reported(tmp_path: Path) -> None:
    fakes = tmp_path / "bin"
    program(fakes, "nvidia-smi", "#!/bin/sh\n")
    result = run(
        *("--out", str(tmp_path / "out"), "--part", "facts", "--part", "tests", "--part", "bench", "--clock", "9"),
        PATH=f"{fakes}:{os.environ['PATH']}",
        PYTHON=program(fakes, "python", FAKE_PYTHON),
        CUDA_HOME=str(tmp_path),
    )
    assert result.returncode == 1, result.stderr
    (file,) = (tmp_path / "out").glob("gpu-*.json")
    parts = json.loads(file.read_text())["parts"]
    assert [(part["part"], part["result"]) for part in parts] == [
        ("facts", "ok"),
        ("tests", "timed out"),
        ("bench", "left out"),
    ]
    assert parts[1]["limit"] <= 4


def test_a_missing_sanitizer_is_no_failure_and_is_said(tmp_path: Path) -> None:
    fakes = tmp_path / "bin"
    program(fakes, "nvidia-smi", "#!/bin/sh\n")
    if shutil.which("compute-sanitizer"):
        pytest.skip("compute-sanitizer is installed")
    result = run(
        *("--out", str(tmp_path / "out"), "--part", "memcheck"),
        PATH=f"{fakes}:{os.environ['PATH']}",
        PYTHON=program(fakes, "python", FAKE_PYTHON),
        CUDA_HOME=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert "compute-sanitizer is not installed" in result.stdout
    (file,) = (tmp_path / "out").glob("gpu-*-memcheck.json")
    assert [part["result"] for part in json.loads(file.read_text())["parts"]] == ["missing"]


def test_the_record_holds_the_counts_of_the_tests(tmp_path: Path) -> None:
    (tmp_path / "parts.tsv").write_text("tests\tfailed\t1\t2.5\t110\n")
    (tmp_path / "bench.json").write_text('{"rows": [')  # cut short
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">'
        '<testcase classname="tests.test_a" name="test_b"><failure/></testcase>'
        '<testcase classname="tests.test_a" name="test_c"/></testsuite></testsuites>'
    )
    record = gpu_record.assemble(tmp_path)
    assert record["parts"] == [{"part": "tests", "result": "failed", "exit": 1, "seconds": 2.5, "limit": 110}]
    counts = {"tests": 3, "failures": 1, "errors": 0, "skipped": 1}
    assert record["tests"] == {**counts, "failed": ["tests.test_a::test_b"]}
    assert "rows" not in record
