"""The ways that a step can take, which give the same results up to rounding, and what tells two steps apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastgan.plan_layers import Layer

# As the engine numbers them (csrc/cuda/platform.h, csrc/bindings/step_choice.h).
ROLES = ("forward", "input gradient", "weight gradient")
LIBRARY, TILED = 0, -1
Product = tuple[int, int, int, int]  # a role's number, m, n, k

_COMPOSED = {  # by the layer path of its ops
    "library": "composed of fused ops, products by the library",
    "narrow": "composed of fused ops, each network as a whole",
}
_NARROW = {True: "narrow", False: "layered"}


@dataclass(frozen=True)
class Way:
    """How a step of one size of batch runs; what is not said is as the default table has it.

    Attributes:
        composed: the layer path of the fused ops that it is composed of; empty where the engine runs it.
        narrow: whether networks that fit take the kernels that run a network in one launch.
        products: of products that are launches of their own, LIBRARY, TILED, or the parts of a tiled one.
    """

    composed: str = ""
    narrow: bool | None = None
    products: tuple[tuple[Product, int], ...] = ()

    @property
    def name(self) -> str:
        """The way in text, which `parse` reads."""
        parts = [f"composed {self.composed}"] if self.composed else []
        parts += [] if self.narrow is None else [_NARROW[self.narrow]]
        parts += [f"{ROLES[role]} {m}x{n}x{k} {_kind(kind)}" for (role, m, n, k), kind in self.products]
        return "; ".join(parts) or "default"

    def words(self) -> str:
        """What a plan says of it."""
        if self.composed:
            return _COMPOSED[self.composed]
        parts = [] if self.narrow is None else ["narrow kernels" if self.narrow else "a launch a layer"]
        tiled = sum(kind != LIBRARY for _, kind in self.products)
        for count, kind in ((tiled, "tiled"), (len(self.products) - tiled, "by the library")):
            if count:
                parts.append(f"{count} product{'s' if count > 1 else ''} {kind}")
        return " and ".join(parts) or "the default kernels"

    def with_product(self, product: Product, kind: int) -> Way:
        """The same but for one product."""
        return Way(self.composed, self.narrow, tuple(sorted({**dict(self.products), product: kind}.items())))


def _kind(kind: int) -> str:
    return {LIBRARY: "library", TILED: "tiled"}.get(kind, f"in {kind}")


def _kind_named(name: str) -> int:
    for kind in (LIBRARY, TILED):
        if name == _kind(kind):
            return kind
    count = int(name.removeprefix("in "))
    if name != _kind(count):
        raise ValueError(name)
    return count


def parse(text: str) -> Way:
    """The way that a name tells.

    Raises:
        ValueError: it tells none.
    """
    composed, narrow = "", None
    products: dict[Product, int] = {}
    try:
        for part in text.split("; ") if text != "default" else []:
            if part.startswith("composed ") and part[9:] in _COMPOSED:
                composed = part[9:]
            elif part in _NARROW.values():
                narrow = part == _NARROW[True]
            else:
                role = next(i for i, name in enumerate(ROLES) if part.startswith(f"{name} "))
                size, _, kind = part[len(ROLES[role]) + 1 :].partition(" ")
                m, n, k = map(int, size.split("x"))
                products[role, m, n, k] = _kind_named(kind)
    except (StopIteration, ValueError, AttributeError):
        raise ValueError(f"{text!r} is not the name of a way that a step can take") from None
    return Way(composed, narrow, tuple(sorted(products.items())))


def signature(networks: list[list[Layer]], updated: set[int], facts: Mapping[str, Any]) -> str:
    """What a step's time depends on, but for the batch: two steps that have the same take the same way.

    Args:
        networks: the layers of the generator and of the discriminator.
        updated: the ids of the parameters that a step updates.
        facts: what else, by name.
    """
    described = [
        ", ".join(
            f"{layer.kind} {layer.width_in}x{layer.width_out} {layer.activation[0]}"
            + "".join(
                f"{' bias' if is_bias else ''}{'' if id(p) in updated else ' frozen'}"
                for is_bias, p in layer.parameters()
            )
            + (" batch statistics" if layer.uses_batch_statistics() else "")
            + layer.segments()
            for layer in network
        )
        for network in networks
    ]
    return " | ".join([*(f"{name} {value}" for name, value in facts.items()), *described])
