"""`python -m fastgan` and the `fastgan` command."""

from __future__ import annotations

import sys


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
        app(prog_name="fastgan")
    except OSError as error:  # of a help text on a full disk
        complain(f"fastgan: {error.strerror or error}")
        sys.exit(1)
    finally:
        leave_closed_streams()


if __name__ == "__main__":
    main()
