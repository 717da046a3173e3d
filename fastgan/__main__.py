"""`python -m fastgan` and the `fastgan` command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Run the command line; without the packages that it needs, say how to get them and exit with code 2."""
    from fastgan.output import complain, leave_closed_streams, occupy_closed_streams

    try:
        from fastgan.cli import app
    except ModuleNotFoundError as error:
        if (error.name or "fastgan").split(".")[0] == "fastgan":
            raise
        complain(f'fastgan: the command line needs {error.name}: pip install "fastgan[train]"')
        sys.exit(2)
    occupy_closed_streams()
    try:
        code = _run(app, complain)
    finally:
        leave_closed_streams()
    sys.exit(code)


def _run(app: Callable[..., Any], complain: Callable[[str], None]) -> int:
    """The exit code of the command line, whose usage errors are one sentence as all others are."""
    try:
        return int(app(prog_name="fastgan", standalone_mode=False) or 0)
    except OSError as error:  # of a help text on a full disk
        complain(f"fastgan: {error.strerror or error}")
        return 1
    except Exception as raised:
        # By what they have, not by class: typer brings click's exceptions along, or imports them, by its version.
        if type(raised).__name__ == "Abort":  # Ctrl-C
            return 130
        if not hasattr(raised, "format_message"):
            raise
        shown: Any = raised
        if type(raised).__name__ == "NoArgsIsHelpError":
            shown.show()
        else:
            complain(f"fastgan: {' '.join(shown.format_message().split()).rstrip('.')}; see fastgan --help")
        return int(shown.exit_code)


if __name__ == "__main__":
    main()
