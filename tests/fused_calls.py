"""Counts what runs fused: the layers of each call, whichever way the backend in force takes."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import fastgan


class FusedCalls(list[int]):
    """The number of layers of each call of functional.mlp, and of each that `auto` makes from C++ without it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        whole, reader = fastgan.functional.mlp, fastgan.nn._reader

        def counted(input: Any, weights: Any, *rest: Any) -> Any:
            self.append(len(weights))
            return whole(input, weights, *rest)

        class Reader:
            def run(_, modules: Any, *rest: Any) -> Any:
                output = reader.run(modules, *rest)
                if output is not None:
                    linears = getattr(modules, "_modules", modules).values()
                    self.append(sum(isinstance(module, nn.Linear) for module in linears))
                return output

        monkeypatch.setattr(fastgan.functional, "mlp", counted)
        monkeypatch.setattr(fastgan.nn, "_reader", Reader())

    def of(self, module: nn.Module, *inputs: object) -> list[int]:
        """The layers of each fused call that one call of module makes."""
        self.clear()
        module(*inputs)
        return list(self)
