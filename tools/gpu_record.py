"""The record of tools/gpu.sh: facts of the machine, and what its parts left behind, in one JSON file.

    python -m tools.gpu_record facts FILE
    python -m tools.gpu_record assemble FOLDER FILE

A part that failed or hung leaves nothing or half a file: what is missing or unreadable is left out.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

_QUERY = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.memory")


def facts() -> dict[str, Any]:
    """GPUs as nvidia-smi names them, and versions of Python, torch and nvcc; only reads."""
    import torch

    smi = _said(["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"])
    gpus = [dict(zip(_QUERY, line.split(", "), strict=False)) for line in smi.splitlines()]
    nvcc = re.search(r"\bV(\d+(?:\.\d+)+)", _said(["nvcc", "--version"]))
    return {
        "gpus": gpus,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "nvcc": nvcc[1] if nvcc else None,
        "cuda_home": os.environ.get("CUDA_HOME"),
    }


def assemble(folder: Path) -> dict[str, Any]:
    """The record: parts with their exit status and seconds, facts, counts of the tests, and the benchmark's records.

    Args:
        folder: with parts.tsv, and where their parts got so far, facts.json, the tests' kernels.xml, kernels-2.xml and
            tests.xml, and of the benchmark step.json, step-tf32.json, step-compiled.json, penalties.json, profile.json,
            choices.json and bench.json.
    """
    record: dict[str, Any] = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": os.environ.get("FASTGAN_COMMIT") or "unknown",
        "parts": [],
    }
    for line in (folder / "parts.tsv").read_text().splitlines():
        name, result, status, seconds, limit = line.split("\t")
        record["parts"].append(
            {"part": name, "result": result, "exit": int(status), "seconds": float(seconds), "limit": int(limit)}
        )
    if (machine := _json(folder / "facts.json")) is not None:
        record["facts"] = machine
    for name in ("kernels", "kernels-2", "tests"):
        if (tests := _tests(folder / f"{name}.xml")) is not None:
            record[name] = tests
    for name in ("step", "step-tf32", "step-compiled", "penalties", "profile", "choices"):
        if (measured := _json(folder / f"{name}.json")) is not None:
            record[name] = measured
    record.update(_json(folder / "bench.json") or {})  # environment, ceilings, rows: as python -m bench writes them
    return record


def _said(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=15).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def _tests(file: Path) -> dict[str, Any] | None:
    try:
        suites = list(ElementTree.parse(file).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return None
    counts: dict[str, Any] = {
        key: sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    }
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for suite in suites
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "failed": failed}


def main(arguments: Sequence[str]) -> int:
    """Write one of the two files; returns the exit code."""
    match arguments:
        case ["facts", file]:
            value = facts()
            print("\n".join(f"{key}: {text}" for key, text in value.items()))
        case ["assemble", folder, file]:
            value = assemble(Path(folder))
        case _:
            print(f"tools.gpu_record takes `facts FILE` or `assemble FOLDER FILE`, not {arguments}", file=sys.stderr)
            return 2
    Path(file).write_text(json.dumps(value, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
