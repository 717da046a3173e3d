"""What the documents show: blocks, commands and names, and where they stand."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fastgan

ROOT = Path(__file__).resolve().parent.parent
AT_THE_TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
# Those beside the code that they describe, and the notes to records, where they are: not all are in a distribution.
BESIDE_CODE = [
    path
    for pattern in ("csrc/*/README.md", "tests/*/README.md", "bench/results/*.md")
    for path in sorted(ROOT.glob(pattern))
]
DOCUMENTS = [*AT_THE_TOP, *sorted((ROOT / "docs").rglob("*.md")), *BESIDE_CODE]
# What a block may be: code, commands, or what no one runs: drawings, and what a block before printed.
LANGUAGES = ("python", "sh", "text")
COMMAND = re.compile(r"fastgan [a-z-]|python -m (bench|tools)|python \S+\.py|make [a-z]|pip install |tools/\S+\.sh")
FENCE = re.compile(
    r"^(?P<mark> *<!-- not run: [^\n]+ -->\n)?(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)


class Example(NamedTuple):
    """A block or a command, and where it stands."""

    document: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{shown(self.document)}:{self.line}"


def shown(document: Path) -> str:
    """A document's path: there are several READMEs."""
    return document.relative_to(ROOT).as_posix() if document.is_relative_to(ROOT) else document.name


def blank(text: str) -> str:
    """As many lines, so that what follows keeps its number."""
    return "\n" * text.count("\n")


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def blocks(document: Path, language: str, marked: bool = False) -> list[Example]:
    """The blocks in a language that are marked as not run, or those that are not."""
    text = document.read_text(encoding="utf-8")
    found = [match for match in FENCE.finditer(text) if match["language"] == language and bool(match["mark"]) == marked]
    code = [(line_of(text, match.start("code")), inspect.cleandoc("\n" + match["code"])) for match in found]
    return [Example(document, line, block) for line, block in code]


def unknown_blocks(document: Path) -> list[str]:
    """The blocks in a language that nothing here runs, and lines of shell blocks that are no command known here."""
    text = document.read_text(encoding="utf-8")
    unknown = [
        f"{shown(document)}:{line_of(text, match.start('code'))}: a block of {match['language'] or 'no language'}"
        for match in FENCE.finditer(text)
        if match["language"] not in LANGUAGES
    ]
    for block in blocks(document, "sh"):
        for number, line in enumerate(block.text.splitlines(), block.line):
            if line.strip() and not line.startswith("#") and not COMMAND.match(without_setting(line)):
                unknown.append(f"{shown(document)}:{number}: {line}")
    return unknown


def without_setting(command: str) -> str:
    """A command without a prompt, or variables of the environment, before it."""
    return re.sub(r"^\$ |^(?:[A-Z_]+=\S* )+", "", command.strip())


def commands(document: Path) -> Iterator[Example]:
    """Shell commands: lines of blocks, fenced or indented, and `spans of code`, that begin as a command does."""
    text = document.read_text(encoding="utf-8")
    shown = [
        (number, line)
        for block in blocks(document, "sh")
        for number, line in enumerate(block.text.splitlines(), block.line)
    ]
    for number, line in enumerate(FENCE.sub(lambda match: blank(match[0]), text).splitlines(), 1):
        shown += [(number, span) for span in ([line] if line.startswith("    ") else re.findall(r"`([^`\n]+)`", line))]
    for number, line in sorted(shown):
        command = without_setting(line)
        if COMMAND.match(command):
            for part in command.split(" && "):
                yield Example(document, number, without_setting(part))


def arguments(command: str) -> list[str]:
    return shlex.split(command, comments=True)


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
