"""What the documentation shows runs: its Python blocks, its commands, and the names and options that it mentions.

Python blocks run in their order within a document, with the names that the prose takes for granted (`assumed`).
`fastgan` commands run with few steps, in a folder that has the data they name. Commands that take minutes or change the
machine are only parsed: `python -m bench` by its own parser, `make` against the Makefile, `pip install` against the
extras, scripts by their options.
"""

from __future__ import annotations

import argparse
import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tomlkit
import torch
import typer
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import fastgan
from fastgan.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = ("", "sh", "bash", "console", "shell")
COMMAND = re.compile(r"fastgan [a-z-]|python -m (bench|tools)|python \S+\.py|make [a-z]|pip install |tools/\S+\.sh")
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A block or a command, and where it stands."""

    document: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def blank(text: str) -> str:
    """As many lines, so that what follows keeps its number."""
    return "\n" * text.count("\n")


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def python_blocks(document: Path) -> list[Example]:
    text = document.read_text(encoding="utf-8")
    found = [match for match in FENCE.finditer(text) if match[2] in ("python", "py")]
    return [Example(document, line_of(text, match.start(3)), inspect.cleandoc("\n" + match[3])) for match in found]


def commands(document: Path) -> Iterator[Example]:
    """Shell commands: lines of blocks, fenced or indented, and `spans of code`, that begin as a command does."""
    text = document.read_text(encoding="utf-8")
    prose = FENCE.sub(lambda match: match[0] if match[2] in SHELLS else blank(match[0]), text)
    for number, line in enumerate(prose.splitlines(), 1):
        shown = [line] if line.startswith("    ") or not line.startswith((" ", "|")) else []
        for command in (*shown, *re.findall(r"`([^`\n]+)`", line)):
            command = re.sub(r"^\$ |^(?:[A-Z_]+=\S* )+", "", command.strip())
            if COMMAND.match(command):
                for part in command.split(" && "):
                    yield Example(document, number, part)


def arguments(command: str) -> list[str]:
    return shlex.split(command, comments=True)


BLOCKS = {document.relative_to(ROOT).as_posix(): python_blocks(document) for document in DOCUMENTS}
COMMANDS = [example for document in DOCUMENTS for example in commands(document)]
FASTGAN = [example for example in COMMANDS if example.text.startswith("fastgan ")]
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


@pytest.mark.parametrize("document", BLOCKS)
def test_python_blocks(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    defined: dict[str, Any] = {"__name__": "__main__"}
    for block in BLOCKS[document]:
        before = assumed(defined)
        names = {**before, **defined}
        code = "\n" * (block.line - 1) + block.text
        exec(compile(code, str(block.document), "exec"), names)
        defined.update({name: value for name, value in names.items() if before.get(name) is not value})


def modules() -> list[str]:
    found = [info.name for info in pkgutil.walk_packages(fastgan.__path__, "fastgan.")]
    left = ("fastgan._C", "fastgan.__main__", "fastgan.bench")
    return ["fastgan", *(name for name in found if not name.startswith(left))]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`>>>` examples run; `fastgan.f(x=1)` in backquotes calls what exists with arguments that it has."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            for span in re.findall(r"`(fastgan\.[^`]+)`", ast.get_docstring(node) or ""):
                check_span(span)


SPANS = [
    Example(document, line_of(text, match.start()), match[1])
    for document in DOCUMENTS
    for text in [FENCE.sub(lambda match: blank(match[0]), document.read_text(encoding="utf-8"))]
    for match in re.finditer(r"`(fastgan\.[^`\n]+)`", text)
]


@pytest.mark.parametrize("span", SPANS, ids=lambda span: f"{span}-{span.text}")
def test_names_in_the_prose(span: Example) -> None:
    check_span(span.text)


def check_span(span: str) -> None:
    """A dotted name exists, and a call of it has arguments that it takes."""
    dotted = re.match(r"fastgan(\.\w+)+", span)[0]
    target: Any = fastgan
    for part in dotted.split(".")[1:]:
        try:
            target = getattr(target, part)
        except AttributeError:
            target = importlib.import_module(f"{target.__name__}.{part}")
    if span != dotted:
        call = next(node for node in ast.walk(ast.parse(span, mode="eval")) if isinstance(node, ast.Call))
        while isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Call):
            call = call.func.value
        inspect.signature(target).bind(*call.args, **{keyword.arg: None for keyword in call.keywords})


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
    run = fastgan.Trainer("digits", steps=2, g_hidden=(8,), d_hidden=(8,), runs=str(folder / "made")).train(quiet=True)
    for command in FASTGAN:
        words = arguments(command.text)
        if words[1] in ("resume", "sample") and len(words) > 2 and not words[2].startswith("-"):
            named = Path(words[2])
            named = Path("runs") / f"{int(words[2]):05d}-digits" if words[2].isdecimal() else named
            if not (folder / named).exists():
                (folder / named).parent.mkdir(exist_ok=True, parents=True)
                os.symlink(run, folder / named)
    return folder


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", FASTGAN, ids=lambda example: f"{example}-{example.text.split('  ')[0]}")
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
    if words[0] == "bench":
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        with pytest.raises((Parsed, SystemExit)) as ended:
            runpy_main("bench", words[1:], monkeypatch)
        assert not isinstance(ended.value, SystemExit) or ended.value.code in (0, None)
        return
    extra = {
        "train": ["--steps", "2", "--g-hidden", "8", "--d-hidden", "8", "--runs", "trained"],
        "resume": ["--steps", "3"],
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
    """The extraction finds what the README is known to show."""
    assert len(BLOCKS["README.md"]) >= 5
    assert {arguments(example.text)[1] for example in FASTGAN} >= {"train", "resume", "sample", "bench", "doctor"}
    assert {arguments(example.text)[0] for example in OTHERS} >= {"make", "pip", "python"}
    assert any("--number" in example.text for example in FASTGAN)


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
