"""The page that compares the models: made by one command, and what is committed is what it makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tools import models_page

PAGE = models_page.PAGE


@pytest.mark.deep
def test_one_command_writes_tables_and_pictures(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    assert models_page.main(["--write", str(page), "--share", "0.001", "--held-out", "40"]) == 0
    for name in models_page.MODELS:
        assert titles(page, name) == titles(PAGE, name)
    before, after = (text.partition("<!-- models")[0] for text in (PAGE.read_text(), page.read_text()))
    assert before == after
    pictures = sorted((tmp_path / "models").iterdir())
    assert [file.name for file in pictures] == sorted(file.name for file in PAGE.with_suffix("").iterdir())
    for file in pictures:
        with Image.open(file) as made, Image.open(PAGE.with_suffix("") / file.name) as committed:
            assert made.size == committed.size


def titles(page: Path, name: str) -> list[list[str]]:
    """The heads and the first column of a data set's tables."""
    text = page.read_text(encoding="utf-8")
    part = text.partition(f"<!-- models: {name} -->")[2].partition(f"<!-- end of models: {name} -->")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    heads = [i for i, row in enumerate(rows[1:]) if set(row) == {"---"}]
    return [row if i in heads else row[:1] for i, row in enumerate(rows)]


@pytest.mark.parametrize("name", models_page.MODELS)
def test_the_committed_page_has_every_model(name: str) -> None:
    found = [row[0] for row in titles(PAGE, name)]
    models = [models_page.REAL, *models_page.MODELS[name]]
    assert found[2 : 2 + len(models)] == models


def test_a_page_without_its_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the lines <!-- models: ring8 -->"):
        models_page.put("# A page\n", "ring8", "a table")
