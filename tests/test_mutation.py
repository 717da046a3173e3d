"""The mutation run (tools/mutation.py): what it changes, and that it tells what a check finds from what none does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("tree_sitter_cpp")
from tools import mutation, mutation_build, mutation_sites

SOURCE = """#pragma once
#ifdef FASTGAN_SIMT
constexpr int doubled = 21 * 2;
#else
constexpr int doubled = 1 * 2;  // the host model never sees it
#endif
template <int n>
inline int at_most_three(int x) {
  if (x > 3) return 3;
  return x;
}
inline int sum_below(int n) {
  int sum = 0;
  for (int i = 0; i < n; ++i) sum += i;
  barrier();
  return sum;
}
"""
CHECKS = """#include <cstdio>
inline int barriers = 0;
inline void barrier() { ++barriers; }
#define __syncthreads() barrier()
#include "../../csrc/cuda/tiny.h"
int main() {
  if (doubled != 42) std::printf("FAILED: doubled\\n");
  if (at_most_three<1>(2) != 2 || at_most_three<1>(3) != 3 || at_most_three<1>(4) != 3) std::printf("FAILED: three\\n");
  if (sum_below(5) != 10 || barriers != 1) std::printf("FAILED: sum\\n");
}
"""
BUILDER = """
from pathlib import Path
HERE = Path(__file__).resolve().parent
FLAGS, COMMON = {"plain": "-O0"}, "-DFASTGAN_SIMT"
def target(kind):
    return HERE.parents[1] / "build" / kind / "kernel_checks"
def ninja_file(kind):
    rule = f"rule program\\n  command = g++ -std=c++20 {FLAGS[kind]} {COMMON} $in -o $out\\n"
    return f"{rule}build {target(kind)}: program {HERE / 'check.cpp'} | {HERE.parents[1] / 'csrc/cuda/tiny.h'}\\n"
"""


@pytest.fixture
def every() -> list[mutation_sites.Site]:
    return mutation_build.sites_of(mutation_build.ROOT)


def test_a_sample_is_the_same_each_time_and_holds_a_smaller_one(every: list[mutation_sites.Site]) -> None:
    few, many = ([site.mutant for site in mutation.sample(every, count, 1)] for count in (100, 300))
    assert few == [site.mutant for site in mutation.sample(mutation_build.sites_of(mutation_build.ROOT), 100, 1)]
    assert len(many) == 300
    assert set(few) < set(many)
    assert {mutant.kind for mutant in many} == set(mutation_sites.KINDS)
    assert [mutant for mutant in many if mutant.kind == "sync"] == [s.mutant for s in every if s.mutant.kind == "sync"]
    assert few != [site.mutant for site in mutation.sample(every, 100, 2)]


@pytest.mark.deep
def test_each_mutant_changes_one_place_and_is_still_cpp(every: list[mutation_sites.Site]) -> None:
    for site in mutation.sample(every, 60, 3):
        mutant, data = site.mutant, (mutation_build.ROOT / site.mutant.file).read_bytes()
        assert data[mutant.start : mutant.end].decode() == mutant.old
        changed = data[: mutant.start] + mutant.new.encode() + data[mutant.end :]
        assert changed != data
        before, after = (mutation_sites.tree_of(text.decode()) for text in (data, changed))
        assert errors(after) == errors(before), mutant.diff()


def errors(node: mutation_sites.Node) -> int:
    return (node.type == "ERROR" or node.is_missing) + sum(errors(child) for child in node.children)


@pytest.mark.deep
def test_all_mutants_of_a_file_together_are_still_cpp(every: list[mutation_sites.Site]) -> None:
    for file in sorted({site.mutant.file for site in every}):
        numbered = [
            (n, site) for n, site in enumerate(every) if site.mutant.file == file and not site.mutant.is_constant
        ]
        if not numbered:
            continue
        source = (mutation_build.ROOT / file).read_text()
        text = mutation_build.together(source, numbered)
        assert text.count("\n") == source.count("\n"), "the compiler's errors name the lines of the source"
        assert errors(mutation_sites.tree_of(text)) == errors(mutation_sites.tree_of(source)), file
        assert all(f"is<{number}>()" in text for number, _ in numbered)


def test_what_is_found_and_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    root = tmp_path / "project"
    files = {"csrc/cuda/tiny.h": SOURCE, "tests/simt/check.cpp": CHECKS, "tests/simt/build.py": BUILDER}
    for name, text in {**files, "csrc/core/empty.h": ""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text.replace("  barrier();", "  __syncthreads();"))
    monkeypatch.setattr(mutation_build, "ROOT", root)
    monkeypatch.setattr(mutation_build, "FOLDER", tmp_path / "build")

    every = mutation_build.sites_of(root)
    results = mutation.Results(tmp_path / "results.jsonl", mutation.digest(root))
    said: list[str] = []
    mutation.judge_all(every, results, set(), 2, said.append)
    verdicts = {site.mutant.diff().split("]  ")[1]: results.verdicts[site.mutant.key] for site in every}
    same = {  # as the function is defined
        "if (x > 3) return 3;  ->  if (x >= 3) return 3;",
        "if (x > 3) return 3;  ->  if (x > 2) return 3;",
        "for (int i = 0; i < n; ++i) sum += i;  ->  for (int i = 1; i < n; ++i) sum += i;",
    }
    assert {diff for diff, verdict in verdicts.items() if verdict.status == "survived"} == same
    assert all(verdict.status != "uncompiled" for verdict in verdicts.values())
    assert verdicts["__syncthreads();  ->  ;"].how == "FAILED: sum"
    constant = verdicts["constexpr int doubled = 21 * 2;  ->  constexpr int doubled = (21 + 2);"]
    assert constant == mutation_build.Verdict("killed", "FAILED: doubled", True)
    assert verdicts["for (int i = 0; i < n; ++i) sum += i;  ->  for (int i = 0; i <= n; ++i) sum += i;"].alone is False
    assert not any("doubled = 1 * 2" in diff for diff in verdicts)

    kept = mutation.Results(tmp_path / "results.jsonl", mutation.digest(root))  # a second run has nothing to do
    said.clear()
    mutation.judge_all(every, kept, set(), 1, said.append)
    assert said == []
    assert kept.verdicts == results.verdicts
    assert len([json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]) == len(every)

    known = {mutation.place(s.mutant): "the same" for s in every if results.verdicts[s.mutant.key].status == "survived"}
    lines, good = mutation.report(every, every, results, known)
    assert good
    assert lines[-1].endswith("100.0 % (3 equivalent, 0 do not compile)")
    killed = next(site.mutant for site in every if site.mutant.kind == "sync")
    gone = ("csrc/cuda/tiny.h", "f", "a", "b")
    lines, good = mutation.report(every, every, results, {mutation.place(killed): "", gone: ""})
    assert not good
    assert any(line.startswith("listed as equivalent but killed: csrc/cuda/tiny.h:15 [sync]") for line in lines)
    assert any(line.startswith("listed as equivalent but no longer there") for line in lines)


def test_what_is_listed_as_equivalent_is_there(every: list[mutation_sites.Site]) -> None:
    listed = mutation.equivalents()
    assert set(listed) <= {mutation.place(site.mutant) for site in every}
