"""Lines for the user, wherever they go: to a terminal, a pipe whose reader has left, or nowhere."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def say(text: str) -> None:
    """Print a line to standard output where there is one that takes it, and else do nothing.

    It may be None (pythonw, a service), closed, or a pipe whose reader has gone: a run goes on without its reader. Of
    a name that is no UTF-8 the bytes are printed escaped.
    """
    _write(sys.stdout, text)


def complain(text: str) -> None:
    """The same, to standard error."""
    _write(sys.stderr, text)


def is_terminal() -> bool:
    """Whether standard output is there and a terminal."""
    try:
        return sys.stdout is not None and sys.stdout.isatty()
    except ValueError:  # it is closed
        return False


def printable(text: str, encoding: str | None) -> str:
    """The text with what the encoding does not have escaped."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def occupy_closed_streams() -> None:
    """Open nothing in the place of standard streams that are closed (`>&-`): the next file would get their number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one


def leave_closed_streams() -> None:
    """Keep the interpreter's last flush from failing, of a stream whose reader has gone or whose disk is full: it would
    end with code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            _drain(stream)
        except ValueError:  # it is closed
            continue


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:
        return
    try:
        print(printable(text, getattr(stream, "encoding", None)), file=stream, flush=True)
    except BrokenPipeError:
        _drain(stream)
    except (OSError, ValueError):
        return


def _drain(stream: TextIO) -> None:
    """Send what is left in a stream's buffer nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        return
