"""A hook of MkDocs (mkdocs.yml): formulas become MathML, which browsers draw by themselves, while the site is built.

So no page needs a script, or another host, for its mathematics. `pymdownx.arithmatex` finds the formulas, in the pages
and in the docstrings, and leaves them as \\(...\\) and \\[...\\] in elements of its class.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'(<(span|div) class="arithmatex">)\\[(\[](.*?)\\[)\]](</\2>)', re.DOTALL)


def on_page_content(content: str, **page: Any) -> str:
    """The HTML of a page, with each formula as MathML."""
    return _FORMULA.sub(_as_mathml, content)


def _as_mathml(found: re.Match[str]) -> str:
    start, element, formula, end = found.groups()
    display = "block" if element == "div" else "inline"
    return start + convert(html.unescape(formula), display=display) + end
