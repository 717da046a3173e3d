"""`python -m tools.model`: modelled microseconds of steps and ops on an H100, and where they go.

From what the host model counts (tests/simt/, build `count`), kept in bench/results/modelled.json, by published
latencies and bandwidths (tools/model_parameters.py). It compares designs where there is no GPU; what it says is
modelled, not measured. `--count` counts anew, in a quarter of an hour; `--write` renews the tables of
docs/inside/model.md; `--measured FILE` puts a profile of tools.kernel_profile beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from . import machine_code, model_parameters
from .model_path import path_of
from .model_time import PARTS, Launch, Time, time_of
from .ptxas import KERNELS, ROOT
from .resources import HEADER, read_table

RECORD = ROOT / "bench" / "results" / "modelled.json"
PAGE = ROOT / "docs" / "inside" / "model.md"
MEASURED = ROOT / "bench" / "results" / "gpu-2026-11-26.json"
# What was counted of the kernels of commit 70c6a18, and what their machine code had: kernels change, and what was
# measured of those is compared with what is modelled of those.
KEPT = RECORD.with_name("modelled-70c6a18.json")
# Steps that were measured, by the record that has them, and the counts that they are compared with.
PROFILES = {
    "gpu-2026-11-27.json": (("ring",), KEPT),
    "gpu-2026-11-27-tiled.json": (("digits", "mnist"), KEPT),
    "gpu-2026-11-27-branches.json": (("wide",), RECORD),
}
# On a GPU a step's inputs are copied to where its graph has them, and its statistics from there.
COPIES = 3
LIBRARY = "library product"


def whole(launch: Mapping[str, Any]) -> Launch:
    """A launch of the record with the zeros that it leaves out, and its kernel's static shared memory."""
    pairs = ("accesses", "trips", "shared_trips", "barriers", "collectives", "copies", "wavefronts", "least")
    numbers = ("atomics", "fences", "fills", "steps", "grid_barriers", "vectors", "shared_bytes")
    numbers += ("copy_wavefronts", "cluster", "cluster_barriers", "cluster_waits", "remote_trips", "remote_bytes")
    traffic = {"instructions": [0, 0, 0], "requested": 0, "needed": 0, "split": 0}
    return {
        **dict.fromkeys(pairs, (0, 0)),
        **dict.fromkeys((*numbers, "hbm_read", "hbm_written", "l2", "shared_accesses"), 0),
        **{"ways": 1, "products": {}, "static_bytes": code_of(launch)["static_bytes"]},
        **launch,
        **{key: traffic | launch.get(key, {}) for key in ("read", "written", "copied")},
    }


@cache
def resources() -> dict[str, tuple[int, int]]:
    """Registers a thread on sm_90a and bytes of static shared memory, by kernel."""
    at, shared = HEADER.index("sm_90a"), HEADER.index("shared")
    return {row[1]: (int(row[at]), int(row[shared])) for row in read_table(KERNELS / "resources.tsv")[1]}


@cache
def instructions() -> dict[str, float]:
    """Instructions of a kernel's machine code for each that accesses memory, by kernel."""
    found = {}
    for row in machine_code.read_table()[2]:
        of = dict(zip(machine_code.HEADER[2:], map(int, row[2:]), strict=True))
        accesses = sum(number for column, number in of.items() if "." in column) + of["LDSM"]
        found[row[1]] = of["instructions"] / max(1, accesses)
    return found


def kernel_of(launch: Mapping[str, Any]) -> str:
    """A launch's kernel by the resources table; where its code did not tell, the first of its name in float."""
    if "kernel" in launch:
        return launch["kernel"]
    of = re.compile(rf"{launch['name']}_kernel<.*\bfloat\b")
    return next((name for name in sorted(resources()) if of.match(name)), "")


def modelled(launch: Mapping[str, Any]) -> Time:
    """The time of a launch of the record."""
    launch = {**code_of(launch), **launch}
    return time_of(whole(launch), launch["registers"], launch["instructions"])


def code_of(launch: Mapping[str, Any]) -> dict[str, float]:
    """What the tables say of a launch's kernel as it is now; a launch that has them of its own is of that time."""
    kernel = kernel_of(launch)
    registers, static = resources().get(kernel, (0, 0))
    ratio = round(instructions().get(kernel, 10.0), 3)
    return {"registers": registers, "static_bytes": static, "instructions": ratio}


def name_of(step: Mapping[str, Any]) -> str:
    """Such as `mnist, tiled`."""
    scaled = f", a {'quarter' if step['scaled'] == 4 else step['scaled']} of it" if "scaled" in step else ""
    return f"{step['configuration']}, {step['path']}{scaled}"


def parts_of(launches: Sequence[Mapping[str, Any]], copies: int = 0) -> dict[str, float]:
    """Microseconds by PARTS, of the longest chain, and `all`; `in turn` is all where no launch runs beside another."""
    times = [modelled(launch) for launch in launches]
    path = path_of(launches, times)
    sums = dict.fromkeys(PARTS, 0.0)
    for place in path.chain:
        for part, microseconds in times[place].parts.items():
            sums[part] += microseconds
    moved = copies * model_parameters.value("copy")
    sums["other"] += moved + path.total - sum(times[place].total for place in path.chain)
    return sums | {"all": moved + path.total, "in turn": moved + sum(time.total for time in times)}


def count_of_launches(step: Mapping[str, Any]) -> int:
    """Of a step, as the engine has them: a product of the library is one here, and two where its k is split."""
    return len(step["launches"])


def step_table(record: Mapping[str, Any]) -> list[str]:
    """Microseconds of each step and where they go."""
    lines = ["| step | penalty | launches | in the chain | in turn us | modelled us | " + " | ".join(PARTS) + " |"]
    lines.append("|---|---|---|---|---|---|" + "---|" * len(PARTS))
    for step in record["steps"]:
        sums = parts_of(step["launches"], COPIES)
        chain = path_of(step["launches"], [modelled(launch) for launch in step["launches"]]).chain
        cells = [name_of(step), step["penalty"], str(count_of_launches(step)), str(len(chain))]
        cells += [f"{sums['in turn']:.0f}", f"{sums['all']:.0f}"]
        lines.append("| " + " | ".join(cells + [f"{sums[part]:.0f}" for part in PARTS]) + " |")
    return lines


def kernel_table(record: Mapping[str, Any]) -> list[str]:
    """The step of mnist by this project's own kernels, kernel by kernel."""
    lines = ["| kernel | launches | modelled us | blocks a multiprocessor | most round trips | steps of k |"]
    lines.append("|---|---|---|---|---|---|")
    (step,) = (
        s for s in record["steps"] if (s["configuration"], s["path"], s["penalty"]) == ("mnist", "tiled", "none")
    )
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for launch in step["launches"]:
        groups.setdefault(launch.get("kernel", launch["name"]), []).append(launch)
    for kernel, launches in groups.items():
        times, found = [modelled(one) for one in launches], [whole(one) for one in launches]
        cells = [f"`{kernel}`", str(len(launches)), f"{sum(t.total for t in times):.1f}", str(times[0].resident)]
        cells += [str(max(one["trips"][0] + one["atomics"] + one["fills"] for one in found))]
        cells += [" to ".join(str(n) for n in sorted({min(k), max(k)})) if (k := [f["steps"] for f in found]) else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def op_table(record: Mapping[str, Any]) -> list[str]:
    """Each op: launches, modelled, and what an H200 took."""
    rows = _json(MEASURED).get("rows", [])
    known = {row["case"]: row["median_us"] for row in rows if row["contender"] == "fastgan"}
    lines = ["| op | launches | modelled us | an H200, 2026-11-26 |", "|---|---|---|---|"]
    for op in record["ops"]:
        total = sum(modelled(launch).total for launch in op["launches"])
        measured = f"{known[op['case']]:.1f}" if op["case"] in known else ""
        lines.append(f"| {op['case']} | {len(op['launches'])} | {total:.1f} | {measured} |")
    return lines


def goal_table(record: Mapping[str, Any]) -> list[str]:
    """By kernel, over all that was counted: what is to be at least 90 %, at most two ways, at most 8 trips."""
    worst: dict[str, list[float]] = {}
    for entry in (*record["steps"], *record["ops"]):
        for launch in map(whole, entry["launches"]):
            if "note" in launch:
                continue
            ways = [launch[way] for way in ("read", "written", "copied")]
            requested, needed = (sum(way[key] for way in ways) for key in ("requested", "needed"))
            trips = launch["trips"][0] + launch["atomics"] + launch["fills"]
            now = [needed / max(1, requested), launch["ways"], trips]
            before = worst.setdefault(launch["name"], now)
            worst[launch["name"]] = [min(before[0], now[0]), max(before[1], now[1]), max(before[2], now[2])]
    lines = ["| launch | sectors needed of those requested | ways of bank conflicts | round trips outside the loop |"]
    lines.append("|---|---|---|---|")
    for name, (share, ways, trips) in sorted(worst.items()):
        lines.append(f"| {name} | {100 * share:.0f} % | {ways:.0f} | {trips:.0f} |")
    return lines


def parameter_table(_: Mapping[str, Any] | None = None) -> list[str]:
    """The figures that the model takes."""
    lines = ["| figure | value | source |", "|---|---|---|"]
    for name, one in model_parameters.H100.items():
        lines.append(f"| {name} | {one.value:g} {one.unit} | {one.source} |")
    return lines


def families(launches: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, float]]:
    """Launches and microseconds by kernel of a profile (tools/kernel_profile.py); the library's are one family."""
    sums: dict[str, tuple[int, float]] = {}
    for launch in launches:
        if "Memcpy" in launch["kernel"]:
            continue
        ours = re.match(r"(\w+)_kernel<", launch["kernel"])
        name = {"product": "linear"}.get(ours[1], ours[1]) if ours and "splitK" not in launch["kernel"] else LIBRARY
        count, microseconds = sums.get(name, (0, 0.0))
        sums[name] = (count + 1, microseconds + launch["us"])
    return sums


def measured_table(record: Mapping[str, Any], profiles: Iterable[Mapping[str, Any]] | None = None) -> list[str]:
    """Steps measured beside modelled, kernel by kernel: those of PROFILES, or of a record of one's own."""
    if profiles is None:
        known = {RECORD: record, KEPT: _json(KEPT)}
        pairs = [
            (profile, known[counts])
            for file, (names, counts) in PROFILES.items()
            for profile in _json(MEASURED.parent / file)["profile"]
            if profile["configuration"] in names
        ]
    else:
        pairs = [(profile, record) for profile in profiles]
    lines = ["| step | kernel | launches | measured us | modelled us | modelled over measured |"]
    lines.append("|---|---|---|---|---|---|")
    for profile, counted in pairs:
        if profile["precision"] != "fp32":
            continue
        key = (profile["configuration"], profile.get("path", "default"), "none")
        found = [s for s in counted["steps"] if (s["configuration"], s["path"], s["penalty"]) == key]
        if not found:
            continue
        times: dict[str, float] = {}
        for launch in found[0]["launches"]:
            times[launch["name"]] = times.get(launch["name"], 0) + modelled(launch).total
        for name, (count, measured) in sorted(families(profile["launches"]).items(), key=lambda item: -item[1][1]):
            if name in times:
                cells = [key[0], name, str(count), f"{measured:.1f}", f"{times[name]:.1f}"]
                lines.append("| " + " | ".join([*cells, f"{times[name] / measured:.2f}"]) + " |")
        total = parts_of(found[0]["launches"], COPIES)["all"]
        cells = [key[0], "the step", str(len(profile["launches"])), f"{profile['loop_us']:.0f}", f"{total:.0f}"]
        lines.append("| " + " | ".join([*cells, f"{total / profile['loop_us']:.2f}"]) + " |")
    return lines


def public_table(_: Mapping[str, Any] | None = None) -> list[str]:
    """What others have published, beside what the model says of it."""
    value = model_parameters.value
    product = (
        time_of({"note": {"m": 4096, "n": 8192, "k": 16384}, "hbm_read": 1, "hbm_written": 0, "l2": 1}).total / 1e3
    )
    tiny = value("launch") + 1e-3 * value("L2 latency") / value("clock")
    lines = ["| what | published | modelled | source |", "|---|---|---|---|"]
    rows = (
        ("1024 sums, a launch of 2000 in a graph", "1.1 to 1.3 us", f"{tiny:.2f} us", model_parameters.PYTORCH),
        (
            "a copy of 256 MB, read and written",
            "1992 to 2034 GB/s",
            f"{value('memory bandwidth'):.0f} GB/s",
            model_parameters.STUDY,
        ),
        ("cuBLAS, float32, 4096 x 16384 by 16384 x 8192", "31.0 ms", f"{product:.1f} ms", model_parameters.STUDY),
    )
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


TABLES = {
    "steps": step_table,
    "kernels": kernel_table,
    "ops": op_table,
    "goals": goal_table,
    "measured": measured_table,
    "public": public_table,
    "parameters": parameter_table,
}


def page(text: str, record: Mapping[str, Any]) -> str:
    """The page with its tables made anew: each stands between `<!-- NAME -->` and `<!-- end -->`."""
    for name, table in TABLES.items():
        block = f"<!-- {name} -->\n\n" + "\n".join(table(record)) + "\n\n<!-- end -->"
        text, times = re.subn(rf"<!-- {name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
        if times != 1:
            raise ValueError(f"the page must have the table {name!r} once, not {times} times")
    return text


def _json(file: Path) -> Any:
    return json.loads(file.read_text())


def count(only: str, into: Path) -> int:
    """Counts steps and ops whose names have `only` in them, in place of those that the record has.

    A record of one's own keeps what the kernels' machine code has, too, so that it holds when they change.

    Returns:
        The exit status of what counts, a process of its own with tests/ on its path.
    """
    record = _json(into) if into.exists() else {"steps": [], "ops": []}
    command = [sys.executable, "-m", "tools.model_counts", only]
    # No way of a step is timed: the default one runs.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "FASTGAN_TUNE": "0"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if line.startswith("{"):
                entry = json.loads(line)
                if into.resolve() != RECORD:
                    entry["launches"] = [
                        {**one, **code_of(one)} if "note" not in one else one for one in entry["launches"]
                    ]
                keep(record, entry)
                lines = {key: ",\n".join(map(json.dumps, record[key])) for key in ("steps", "ops")}
                into.write_text("{" + ",\n".join(f'"{key}": [\n{text}\n]' for key, text in lines.items()) + "}\n")
    return process.returncode


def keep(record: dict[str, list[dict[str, Any]]], entry: dict[str, Any]) -> None:
    """Puts a step or an op into a record, in its place."""
    same = ("case",) if "case" in entry else ("configuration", "path", "penalty")
    entries = record["ops" if "case" in entry else "steps"]
    for i, old in enumerate(entries):
        if all(old[key] == entry[key] for key in same):
            entries[i] = entry
            return
    entries.append(entry)
    if "case" not in entry:
        order = ["ring", "digits", "mnist", "wide", "default", "tiled", "none", "R1", "WGAN-GP"]
        entries.sort(key=lambda step: [order.index(step[key]) for key in same])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print tables, or count, or write the page; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.model", description=__doc__.split("\n")[0])
    parser.add_argument("--count", action="store_true", help="count anew by the host model, built where needed")
    parser.add_argument("--only", default="", metavar="TEXT", help="with --count: of what has TEXT in its name")
    parser.add_argument("--write", action="store_true", help=f"write the tables to {PAGE.relative_to(ROOT)}")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="a profile of tools.kernel_profile, beside it")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="the counts (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.count and (status := count(options.only, options.record)) != 0:
        return status
    if not options.record.exists():
        print(f"tools.model: there are no counts in {options.record}; --count makes them", file=sys.stderr)
        return 2
    record = _json(options.record)
    if options.write:
        PAGE.write_text(page(PAGE.read_text(), record))
        return 0
    if options.measured is not None:
        print(*measured_table(record, _json(options.measured)), sep="\n")
        return 0
    print("Modelled, not measured.")
    for name in ("steps", "ops", "goals"):
        print("", *TABLES[name](record), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
