"""What an integration has changed in another package, and how it is given back."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

__all__ = ["Acceleration"]


def known_package(name: str, is_known: Callable[[str], bool], known: str, requirement: str) -> ModuleType | None:
    """The package that is to be accelerated; None, with a warning, where its version is not a known one.

    Args:
        name: of the package.
        is_known: whether its version is.
        known: the known versions, in words.
        requirement: what pip installs.

    Raises:
        ImportError: it is not installed.
    """
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"fastgan.integrations.{name} accelerates the package {name}: pip install '{requirement}'"
        ) from error
    version = str(getattr(package, "__version__", "unknown"))
    if is_known(version):
        return package
    told = f"{name} {version} is not accelerated: fastgan knows {name} {known}. It runs as ever."
    warnings.warn(told, stacklevel=3)
    return None


class Acceleration:
    """What `accelerate` has changed in a package, until `undo`, or until the end of a with statement."""

    def __init__(self) -> None:
        self._before: list[tuple[type, str, Any]] = []

    @property
    def is_on(self) -> bool:
        """Whether the package runs on fastgan now because of this object."""
        return bool(self._before)

    def undo(self) -> None:
        """Give the package back what it had; a second call does nothing."""
        while self._before:
            owner, name, value = self._before.pop()
            setattr(owner, name, value)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def _replace(self, owner: type, name: str, make: Callable[[Any], Any]) -> None:
        """Sets owner.name to what `make` makes of it."""
        before = owner.__dict__[name]
        self._before.append((owner, name, before))
        setattr(owner, name, make(before))
