"""What the documentation shows runs: its Python blocks, its commands, and the names and options that it mentions.

Python blocks run in their order within a document, in the README with the names that its prose takes for granted
(`assumed`). `fastgan` commands run with few steps, in a folder that has the data they name. Commands that take minutes
or change the machine are only parsed: `python -m bench` by its own parser, `make` against the Makefile, `pip install`
against the extras, scripts by their options. A block that cannot run has `<!-- not run: the reason -->` on the line
before it, and is counted in NOT_RUN.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit
import torch
import typer
from documents import (
    DOCUMENTS,
    FENCE,
    LANGUAGES,
    ROOT,
    Example,
    arguments,
    blank,
    blocks,
    check_span,
    commands,
    line_of,
    shown,
    unknown_blocks,
)
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import fastgan
from bench.mixed_table import mixed_table, write_csv
from fastgan.cli import app
from fastgan.evaluation.protocols import PROTOCOLS

# How many blocks of a document are marked as not run: torchrun starts processes of its own, and ctgan is an extra.
NOT_RUN: dict[str, int] = {"docs/export.md": 1, "docs/processes.md": 2, "docs/tables.md": 1}

BLOCKS = {shown(document): blocks(document, "python") for document in DOCUMENTS}
COMMANDS = [example for document in DOCUMENTS for example in commands(document)]
# Each once, where it stands first: several pages show the same.
FASTGAN = list(
    {
        tuple(arguments(example.text)): example for example in COMMANDS[::-1] if example.text.startswith("fastgan ")
    }.values()
)
OTHERS = [example for example in COMMANDS if not example.text.startswith("fastgan ")]


# Python.


def assumed(given: dict[str, Any]) -> dict[str, Any]:
    """The names that a reader is taken to have and the document has not defined so far, fitting those it has."""
    torch.manual_seed(0)
    names: dict[str, Any] = {"torch": torch, "nn": nn}
    names["G"] = given.get("G") or nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 64), nn.Tanh())
    names["D"] = given.get("D") or nn.Sequential(nn.Linear(64, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    names["critic"] = names["discriminator"] = names["D"]
    names["generator"] = names["G"]
    names["model"] = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))
    names["g_optimizer"] = torch.optim.Adam(names["G"].parameters(), lr=2e-4, betas=(0.5, 0.999))
    names["d_optimizer"] = torch.optim.Adam(names["D"].parameters(), lr=2e-4, betas=(0.5, 0.999))
    names["real"], names["fake"], names["z"] = (torch.randn(8, 64) for _ in range(3))
    names["loader"] = [torch.rand(8, 64) for _ in range(3)]
    return {name: value for name, value in names.items() if name not in given}


# The README's are what a newcomer tries first; what takes long on the other pages is deep.
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(document, marks=pytest.mark.deep if document == "docs/student.md" else ())
        for document, found in BLOCKS.items()
        if found
    ],
)
def test_python_blocks(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(BLOCKS[document], assumes=document == "README.md")


def run(examples: list[Example], assumes: bool = False) -> None:
    """Blocks one after another, in one namespace."""
    defined: dict[str, Any] = {"__name__": "__main__"}
    for block in examples:
        before = assumed(defined) if assumes else {}
        names = {**before, **defined}
        code = "\n" * (block.line - 1) + block.text
        exec(compile(code, str(block.document), "exec"), names)
        defined.update({name: value for name, value in names.items() if before.get(name) is not value})


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_no_block_is_left_out(document: Path) -> None:
    assert not unknown_blocks(document)
    marked = [block for language in LANGUAGES for block in blocks(document, language, marked=True)]
    assert len(marked) == NOT_RUN.get(shown(document), 0), [str(block) for block in marked]


SPANS = [
    Example(document, line_of(text, match.start()), match[1] or match[2])  # `code`, or a name in the reference
    for document in DOCUMENTS
    for text in [FENCE.sub(lambda match: blank(match[0]), document.read_text(encoding="utf-8"))]
    for match in re.finditer(r"`(fastgan\.[^`\n]+)`|^::: (fastgan\.\S+)$", text, re.MULTILINE)
]


@pytest.mark.parametrize("span", SPANS, ids=lambda span: f"{span}-{span.text}")
def test_names_in_the_prose(span: Example) -> None:
    check_span(span.text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_links_within_the_repository(document: Path) -> None:
    """Files and pictures that are linked to exist; what is within a page `make docs` checks."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target}
    assert not [target for target in linked if not (document.parent / target).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=shown)
def test_lines_fit_a_screen(document: Path) -> None:
    """All but the rows of tables, which cannot be broken."""
    lines = document.read_text(encoding="utf-8").splitlines()
    assert not [i for i, line in enumerate(lines, 1) if len(line) > 120 and not line.startswith("|")]


# Commands.


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files and the run folders that the documented commands name."""
    folder = tmp_path_factory.mktemp("commands")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    mnist = folder / "path/to/fashion-mnist"
    mnist.mkdir(parents=True)
    head = bytes((0, 0, 8, 3, 0, 0, 0, 40, 0, 0, 0, 6, 0, 0, 0, 6))
    (mnist / "train-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
    (mnist / "train-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 40)) + bytes(i % 4 for i in range(40)))
    (folder / "faces").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"faces/{i}.png")
    np.save(folder / "unseen.npy", np.arange(6400, dtype=np.uint8).reshape(100, 8, 8) % 17)
    run = fastgan.Trainer("digits", steps=2, g_hidden=(8,), d_hidden=(8,), runs=str(folder / "made")).train(quiet=True)
    people = write_csv(folder / "people.csv", mixed_table(300))
    few = {"steps": 2, "g_hidden": (8,), "d_hidden": (8,), "batch_size": 100}
    of_people = fastgan.Trainer(people, runs=str(folder / "made"), **few).train(quiet=True)
    for command in FASTGAN:
        words = arguments(command.text)
        if words[1:2] == ["eval"] and words[2:3] and words[2] in PROTOCOLS:
            continue
        if words[1] in ("resume", "sample", "export", "eval") and len(words) > 2 and not words[2].startswith("-"):
            named = Path(words[2])
            named = Path("runs") / f"{int(words[2]):05d}-digits" if words[2].isdecimal() else named
            if not (folder / named).exists():
                (folder / named).parent.mkdir(exist_ok=True, parents=True)
                os.symlink(of_people if named.name.endswith("-people") else run, folder / named)
    return folder


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=() if shown(command.document) == "README.md" else pytest.mark.deep)
        for command in FASTGAN
    ],
    ids=lambda example: f"{example}-{example.text.split('  ')[0]}",
)
def test_fastgan_commands(command: Example, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First as it stands against the command line's own parser, then run with few steps."""
    monkeypatch.chdir(workplace)
    words = arguments(command.text)[1:]
    group = typer.main.get_command(app)
    if words[0].startswith("-"):
        assert CliRunner().invoke(app, words).exit_code == 0
        return
    assert words[0] in group.commands
    if any(word.isupper() for word in words):  # such as `fastgan train DATA`: words to be replaced
        words = [word.replace("RUN", "3").replace("DATA", "ring8") for word in words]
    if "--help" not in words and words[0] != "bench":
        group.commands[words[0]].make_context(words[0], list(words[1:]))
    if words[0] == "eval" and words[1:2] and words[1] in PROTOCOLS:
        return  # tests/test_evaluation.py runs them
    if words[0] == "bench":
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        with pytest.raises((Parsed, SystemExit)) as ended:
            runpy_main("bench", words[1:], monkeypatch)
        assert not isinstance(ended.value, SystemExit) or ended.value.code in (0, None)
        return
    extra = {
        "train": ["--steps", "2", "--g-hidden", "8", "--d-hidden", "8", "--runs", "trained"],
        "resume": ["--steps", "3"],
        "eval": ["--number", "50"],
        "sample": ["--number", "12"],
        "export": ["--format", "state_dict"],
    }
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        result = CliRunner().invoke(app, [*words, *([] if "--help" in words else extra.get(words[0], []))])
    assert result.exit_code == 0, result.output
    if "--out" in words:
        assert (workplace / words[words.index("--out") + 1]).exists()


class Parsed(Exception):
    """The arguments were parsed; what the command would do next is left out."""


PARSE_ARGS = argparse.ArgumentParser.parse_args


def only_parse(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
    PARSE_ARGS(parser, args, namespace)
    raise Parsed


def runpy_main(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """python -m module words"""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", [module, *words])
    runpy.run_module(module, run_name="__main__", alter_sys=False)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", OTHERS, ids=lambda example: f"{example}-{example.text.split('  ')[0]}")
def test_other_commands_are_parsed(command: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not run: their modules, scripts, targets and extras exist, and their options are ones that the parser has."""
    words = arguments(command.text)
    program = words[0]
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in words[1:] if "=" not in word} <= targets
    elif program == "pip":
        facts = tomlkit.parse((ROOT / "pyproject.toml").read_text())
        extras = {extra for word in words for found in re.findall(r"\[([\w,]+)\]", word) for extra in found.split(",")}
        assert extras <= facts["project"]["optional-dependencies"].keys()
    elif words[:2] == ["python", "-m"]:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        with pytest.raises((Parsed, SystemExit)) as ended:
            runpy_main(words[2], words[3:], monkeypatch)
        assert not isinstance(ended.value, SystemExit) or ended.value.code in (0, None)
    else:
        if program.startswith("build/"):
            return  # built by the command before it
        script = ROOT / (words[1] if program == "python" else program)
        assert script.is_file()
        assert program == "python" or os.access(script, os.X_OK)
        options = [word for word in words if word.startswith("--")]
        assert all(option in script.read_text() for option in options)


def test_there_is_something_to_check() -> None:
    """The extraction finds what the documents are known to show."""
    assert len(BLOCKS["README.md"]) >= 3
    assert len(BLOCKS["docs/student.md"]) >= 8
    assert len(BLOCKS["docs/pytorch.md"]) >= 8
    assert {arguments(example.text)[1] for example in FASTGAN} >= {"train", "resume", "sample", "bench", "doctor"}
    assert {arguments(example.text)[0] for example in OTHERS} >= {"make", "pip", "python"}
    assert any("--number" in example.text for example in FASTGAN)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_what_does_not_exist_is_noticed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above are no formality: an option, a target, an extra, a name or an argument too many fails them."""

    def example(text: str) -> Example:
        return Example(ROOT / "README.md", 1, text)

    for command in ("fastgan sample 3 --bogus 1", "fastgan dance", "fastgan bench --bogus"):
        with pytest.raises(BaseException) as caught, monkeypatch.context() as patch:  # noqa: PT011
            test_fastgan_commands(example(command), workplace, patch)
        assert not isinstance(caught.value, Parsed)
    for command in ("make nonsense", "pip install '.[nonsense]'", "python -m bench --bogus", "tools/gpu.sh --bogus"):
        with pytest.raises(AssertionError), monkeypatch.context() as patch:
            test_other_commands_are_parsed(example(command), patch)
    for span in ("fastgan.nonsense", 'fastgan.Trainer("digits", "too", "many")', "fastgan.data.load(bogus=1)"):
        with pytest.raises((AttributeError, ModuleNotFoundError, TypeError)):
            check_span(span)


def test_a_wrong_block_is_noticed(tmp_path: Path) -> None:
    document = tmp_path / "page.md"

    def page(*lines: str) -> Path:
        document.write_text("\n".join(["# A page", *lines, ""]))
        return document

    for wrong in ("undefined_name", "import fastgan; fastgan.nonsense", "assert False", "not Python"):
        with pytest.raises((NameError, AttributeError, AssertionError, SyntaxError)):
            run(blocks(page("```python", "import torch", "```", "Then:", "```python", wrong, "```"), "python"))
    run(blocks(page("```python", "x = 1", "```", "```python", "assert x == 1", "```"), "python"))
    for wrong in (["```cpp", "int i;", "```"], ["```", "words", "```"], ["```sh", "rm -rf runs", "```"]):
        assert len(unknown_blocks(page(*wrong))) == 1
    assert not unknown_blocks(page("```sh", "# words", "FASTGAN_ISA=avx2 fastgan doctor", "```", "```text", "-", "```"))
    marked = page("<!-- not run: it takes a GPU -->", "```python", "undefined_name", "```")
    assert not blocks(marked, "python")
    assert len(blocks(marked, "python", marked=True)) == 1
    assert [example.text for example in commands(page("```sh", "fastgan dance", "```"))] == ["fastgan dance"]
