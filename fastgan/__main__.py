"""`python -m fastgan` and the `fastgan` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; without the packages that it needs, say how to get them and exit with code 2."""
    try:
        from fastgan.cli import app
    except ModuleNotFoundError as error:
        if (error.name or "fastgan").split(".")[0] == "fastgan":
            raise
        print(
            f'fastgan: the command line needs {error.name}: pip install "fastgan[train]"',
            file=sys.stderr,
        )
        sys.exit(2)
    app(prog_name="fastgan")


if __name__ == "__main__":
    main()
