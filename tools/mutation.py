"""`python -m tools.mutation`: how many small faults in csrc/core and csrc/cuda the checks of the kernels find.

It plants faults (mutants) one at a time: an operator, a bound, a count, a barrier that is dropped. Each that compiles
is run under `kernel_checks` (tests/simt/), on the host model. One that no check notices survives: either it changes
nothing that matters, and tools/mutation_equivalents.tsv says why, or a check is missing. The sample is the same for
the same --count and --seed, and a larger one holds the smaller one. Results are kept in build/mutation/ for as long as
sources and checks stay as they are, so that a run which was stopped goes on.
"""

from __future__ import annotations

import argparse
import collections
import csv
import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools import mutation_build
from tools.mutation_build import FOLDER, ROOT, Judge, Tree, Unbuildable, Verdict
from tools.mutation_sites import KINDS, Mutant, Site

EQUIVALENTS = Path(__file__).with_name("mutation_equivalents.tsv")
COLUMNS = ("file", "function", "before", "after", "reason")
Place = tuple[str, str, str, str]  # file, function, before, after
WANTED = 95.0  # percent of the mutants that are not equivalent


def sample(every: Sequence[Site], count: int, seed: int) -> list[Site]:
    """`count` of them: barriers and fences all, of each other kind in each file by the root of their number."""
    strata: dict[tuple[str, str, bool], list[Site]] = collections.defaultdict(list)
    for site in every:
        strata[site.mutant.file, site.mutant.kind, site.mutant.is_constant].append(site)
    chosen = []
    for (_, kind, _), own in sorted(strata.items()):
        random.Random(f"{seed} {own[0].mutant.file} {kind}").shuffle(own)
        weight = math.inf if kind == "sync" else math.sqrt(len(own))
        chosen += [(-weight / (taken + 1), own[0].mutant.key, site) for taken, site in enumerate(own)]
    chosen.sort(key=lambda entry: entry[:2])
    return sorted((site for *_, site in chosen[:count]), key=lambda site: site.mutant.key)


def digest(root: Path) -> str:
    """Of the sources and the checks."""
    whole = hashlib.sha256()
    for folder in ("csrc/core", "csrc/cuda", "tests/simt"):
        for path in sorted((root / folder).iterdir()):
            if path.suffix in (".h", ".cu", ".cpp"):
                whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()[:16]


class Results:
    """Verdicts, kept line by line in a file."""

    def __init__(self, file: Path, of: str) -> None:
        self.file, self.of = file, of
        self.verdicts: dict[tuple[str, int, str, str], Verdict] = {}
        if file.exists():
            for line in file.read_text().splitlines():
                entry = json.loads(line)
                if entry["sources"] == of:
                    self.verdicts[tuple(entry["mutant"])] = Verdict(entry["status"], entry["how"], entry["alone"])

    def add(self, mutant: Mutant, verdict: Verdict) -> None:
        self.verdicts[mutant.key] = verdict
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a") as file:
            file.write(json.dumps({"sources": self.of, "mutant": mutant.key, **vars(verdict)}) + "\n")


Say = Callable[[str], None]
Numbered = Sequence[tuple[int, Site]]


def judge_all(chosen: Sequence[Site], results: Results, listed: set[Place], jobs: int, say: Say) -> None:
    """Judges what has no verdict yet; what survives the plain checks and is not listed, under sanitizers too."""
    open_ = {site.mutant.key for site in chosen if site.mutant.key not in results.verdicts}
    numbered = [(number, site) for number, site in enumerate(chosen) if not site.mutant.is_constant]
    separate = [site for site in chosen if site.mutant.is_constant and site.mutant.key in open_]
    if any(site.mutant.key in open_ for _, site in numbered):
        tree = Tree("together", jobs=jobs)
        left_out = build_timed(tree, numbered, ["probe", "plain"], say)
        separate += [chosen[number] for number in left_out if chosen[number].mutant.key in open_]
        todo = [(number, site) for number, site in numbered if site.mutant.key in open_ and number not in left_out]
        judge(todo, Judge(tree.builder.target("plain"), "plain"), "", results, jobs, say)
    for kind in Tree("together", jobs=jobs).later_kinds():
        survivors = survivors_before(f"not by {kind}", numbered, results, listed)
        if survivors:
            tree = Tree(kind, jobs=jobs)
            build_timed(tree, survivors, [kind], say)
            judge(survivors, Judge(tree.builder.target(kind), kind), f"not by {kind}", results, jobs, say)
    if separate:
        tree = Tree("alone", flags="-O1", jobs=jobs)
        tree.build("plain")
        for site in sorted(separate, key=lambda site: site.mutant.key):
            kinds = ["plain", *(tree.later_kinds() if place(site.mutant) not in listed else [])]
            add(site, mutation_build.alone(tree, site.mutant, kinds), results, say)


def survivors_before(judged: str, numbered: Numbered, results: Results, listed: set[Place]) -> list[tuple[int, Site]]:
    """The survivors that are not listed, of those compiled together, which this judge has not seen."""
    steps = ("", *(f"not by {kind}" for kind in mutation_build.LATER))
    survivors = []
    for number, site in numbered:
        verdict = results.verdicts.get(site.mutant.key)
        if verdict is None or verdict.status != "survived" or verdict.alone or place(site.mutant) in listed:
            continue
        if steps.index(verdict.how) < steps.index(judged):
            survivors.append((number, site))
    return survivors


def build_timed(tree: Tree, numbered: Numbered, kinds: Sequence[str], say: Say) -> set[int]:
    begun = time.monotonic()
    left_out = mutation_build.build_together(tree, numbered, kinds)
    say(f"{len(numbered) - len(left_out)} mutants compiled together in {time.monotonic() - begun:.0f} s ({kinds[-1]})")
    return left_out


def judge(
    todo: Numbered, by: Callable[[int], str | None], survived: str, results: Results, jobs: int, say: Say
) -> None:
    """Judges mutants that were compiled together; `survived` is what is kept of one that survives."""

    def one(entry: tuple[int, Site]) -> None:
        number, site = entry
        why = by(number)
        add(
            site,
            Verdict("survived" if why is None else "killed", survived if why is None else why, False),
            results,
            say,
        )

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, todo))


def add(site: Site, verdict: Verdict, results: Results, say: Say) -> None:
    results.add(site.mutant, verdict)
    how = ", ".join([*(["alone"] if verdict.alone else []), *([verdict.how] if verdict.how else [])])
    say(f"{verdict.status}: {site.mutant.diff()}" + (f"  ({how})" if how else ""))


def equivalents(file: Path = EQUIVALENTS) -> dict[Place, str]:
    """Mutants that were read and found to change nothing that matters: (file, function, before, after) and why."""
    with open(file, newline="") as lines:
        rows = list(
            csv.reader((line for line in lines if not line.startswith("#")), delimiter="\t", quoting=csv.QUOTE_NONE)
        )
    if bad := [row for row in rows if len(row) != len(COLUMNS) or not row[-1].strip()]:
        raise ValueError(f"{file.name}: a line has {', '.join(COLUMNS)}, not {bad[0]}")
    return {tuple(row[:4]): row[4] for row in rows}


def place(mutant: Mutant) -> Place:
    return mutant.file, mutant.function, mutant.before, mutant.after


def table(title: str, groups: Iterable[tuple[str, list[str]]]) -> list[str]:
    lines = [f"{title:<40} killed  survived  equivalent  not compiled"]
    for name, of in groups:
        counts = [of.count(status) for status in ("killed", "survived", "equivalent", "uncompiled")]
        lines.append(f"{name:<40} {counts[0]:>6}  {counts[1]:>8}  {counts[2]:>10}  {counts[3]:>12}")
    return lines


def report(
    every: Sequence[Site], chosen: Sequence[Site], results: Results, known: dict[Place, str]
) -> tuple[list[str], bool]:
    """The report's lines, and whether all is as it must be."""
    status: dict[tuple[str, int, str, str], str] = {}
    wrong = []
    waiting = [site for site in chosen if site.mutant.key not in results.verdicts]
    chosen = [site for site in chosen if site.mutant.key in results.verdicts]
    for site in chosen:
        mutant = site.mutant
        verdict = results.verdicts[mutant.key]
        listed = place(mutant) in known
        status[mutant.key] = "equivalent" if listed and verdict.status == "survived" else verdict.status
        if listed and verdict.status == "killed":
            wrong.append(f"listed as equivalent but killed: {mutant.diff()}  ({verdict.how})")
    there = {place(site.mutant) for site in every}
    stale = [f"listed as equivalent but no longer there: {' | '.join(entry)}" for entry in known if entry not in there]
    by_kind = ((kind, [status[s.mutant.key] for s in chosen if s.mutant.kind == kind]) for kind in KINDS)
    files = sorted({site.mutant.file for site in chosen})
    by_file = ((file, [status[s.mutant.key] for s in chosen if s.mutant.file == file]) for file in files)
    counts = collections.Counter(status.values())
    judged = counts["killed"] + counts["survived"]
    rate = 100.0 * counts["killed"] / max(1, judged)
    lines = [*table("kind", by_kind), "", *table("file", by_file), ""]
    lines += [site.mutant.diff() for site in chosen if status[site.mutant.key] == "survived"]
    lines += ["", *wrong, *stale] if wrong or stale else [""]
    if waiting:
        lines.append(f"{len(waiting)} mutants are not judged yet")
    lines.append(
        f"{counts['killed']} of {judged} mutants that compile and are not equivalent are killed: {rate:.1f} %"
        f" ({counts['equivalent']} equivalent, {counts['uncompiled']} do not compile)"
    )
    return lines, rate >= WANTED and not (waiting or stale or wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutation",
        description=__doc__.split(": ", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=400, help="how many mutants to sample (400)")
    parser.add_argument("--seed", type=int, default=1, help="which sample (1)")
    parser.add_argument("--only", metavar="FILE", help="mutants of one file, such as csrc/cuda/tile.h")
    parser.add_argument("--jobs", type=int, default=1, help="compilers or checks at a time (1)")
    parser.add_argument("--report", action="store_true", help="report what is judged so far and stop")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    options = parser.parse_args(arguments)

    every = mutation_build.sites_of(ROOT)
    among = [site for site in every if options.only in (None, site.mutant.file)]
    if not among:
        parser.error(
            f"--only must be a source of csrc/core or csrc/cuda with something to change, not {options.only!r}"
        )
    chosen = sample(among, options.count, options.seed)
    if options.list:
        print("\n".join(site.mutant.diff() for site in chosen))
        return 0
    known = equivalents()
    results = Results(FOLDER / "results.jsonl", digest(ROOT))

    def say(text: str) -> None:
        print(time.strftime("%H:%M:%S"), text, flush=True)

    try:
        if not options.report:
            judge_all(chosen, results, set(known), options.jobs, say)
    except Unbuildable as error:
        sys.exit(f"the sources do not compile without a mutant:\n{str(error)[-4000:]}")
    lines, good = report(every, chosen, results, known)
    print("\n" + "\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
