"""Docstrings: their examples run, the names in them exist, and those of the reference have one form."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import check_span

import fastgan


def modules() -> list[str]:
    found = [
        info.name for info in pkgutil.walk_packages(fastgan.__path__, "fastgan.") if "fastgan.bench" not in info.name
    ]
    return ["fastgan", *(name for name in found if not name.endswith(("._C", ".__main__")))]


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


def documented() -> Iterator[tuple[str, Any, str]]:
    """What the reference shows that can be called: its name, itself, and its docstring."""
    for module in (fastgan, fastgan.functional, fastgan.nn, fastgan.data, fastgan.metrics):
        for name in module.__all__:
            member = getattr(module, name)
            if inspect.isfunction(member):
                yield f"{module.__name__}.{name}", member, inspect.getdoc(member) or ""
            elif inspect.isclass(member) and not issubclass(member, (tuple, Exception)):
                if not dataclasses.is_dataclass(member):  # those have attributes, which are their arguments
                    own = member.__init__.__doc__ if "__init__" in vars(member) else ""
                    yield (
                        f"{module.__name__}.{name}",
                        member,
                        f"{inspect.getdoc(member)}\n{inspect.cleandoc(own or '')}",
                    )
                for method, value in vars(member).items():
                    function = getattr(value, "__func__", value)
                    if inspect.isfunction(function) and not method.startswith("_") and method != "extra_repr":
                        bound = function if isinstance(value, staticmethod) else functools.partial(function, None)
                        yield f"{module.__name__}.{name}.{method}", bound, inspect.getdoc(function) or ""


@pytest.mark.parametrize("member", list(documented()), ids=lambda member: member[0])
def test_docstrings_have_one_form(member: tuple[str, Any, str]) -> None:
    """One line of what, then a line for each argument, and what is returned."""
    check_docstring(*member[1:])


def check_docstring(called: Any, text: str) -> None:
    lines = text.splitlines()
    assert lines
    assert lines[0].endswith((".", ":"))
    signature = inspect.signature(called)
    sections = {title: body for title, body in re.findall(r"^(Args|Returns|Yields):\n((?: +.*\n?|\n)*)", text, re.M)}
    arguments = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    named = re.findall(r"^    \*{0,2}(\w+): ", sections.get("Args", ""), re.M)
    assert [argument for argument in named if argument in arguments] == arguments
    if arguments and signature.return_annotation not in (inspect.Signature.empty, None, "None", "Iterator[None]"):
        assert "Returns" in sections


def test_an_incomplete_docstring_is_noticed() -> None:
    def called(a: int, b: int) -> int:
        return a + b

    check_docstring(called, "A sum.\n\nArgs:\n    a: one.\n    b: another.\n\nReturns:\n    It.")
    for text in (
        "",
        "A sum.",
        "A sum.\n\nArgs:\n    a: one.\n\nReturns:\n    It.",
        "A sum.\n\nArgs:\n    a: one.\n    b: x.",
    ):
        with pytest.raises(AssertionError):
            check_docstring(called, text)
