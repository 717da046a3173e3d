"""Random module trees, their inputs, and what is done to them: the same to a fused module and to its plain twin."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from conformance import ACTIVATION_MODULES
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

WIDTH = 4  # of every layer, so that any may stand after any other


class Named(nn.Sequential):
    """A Sequential subclass without anything of its own."""


class Residual(nn.Sequential):
    """A Sequential subclass with a forward of its own, which changes the output of its blocks in place."""

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return output.add_(input) if output is not input and not output.is_leaf else output + input


class Backwards(nn.Sequential):
    """A Sequential subclass with an order of its own."""

    def __iter__(self) -> Iterator[nn.Module]:
        return reversed(list(self._modules.values()))


class Scaled(nn.Linear):
    """A Linear subclass with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Plain(nn.Linear):
    """A Linear subclass without one."""


class Block(nn.Module):
    """A module that holds a Sequential and changes what that returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input: Tensor) -> Tensor:
        return self.inner(input).mul(0.5)


class Twice(nn.Module):
    """A custom activation, in place."""

    def forward(self, input: Tensor) -> Tensor:
        return input.mul_(1.5) if input.grad_fn is not None else input * 1.5


# What is fused, of which most trees are, and what is not or only sometimes.
LINEARS: tuple[Callable[[], nn.Module], ...] = (
    *(lambda: nn.Linear(WIDTH, WIDTH),) * 4,
    lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    lambda: nn.LazyLinear(WIDTH),
)
ACTIVATIONS = tuple(ACTIVATION_MODULES.values())
OTHERS: tuple[Callable[[], nn.Module], ...] = (
    lambda: Scaled(WIDTH, WIDTH),
    lambda: Plain(WIDTH, WIDTH),
    lambda: nn.LeakyReLU(-0.5),
    lambda: nn.LeakyReLU(1),
    lambda: nn.ELU(0.5),
    lambda: nn.Softplus(2.0),
    lambda: nn.GELU("tanh"),
    lambda: nn.ReLU(inplace=True),
    lambda: nn.LeakyReLU(0.2, inplace=True),
    lambda: nn.SiLU(inplace=True),
    nn.PReLU,
    nn.ReLU6,
    Twice,
    lambda: nn.BatchNorm1d(WIDTH),
    lambda: nn.BatchNorm1d(WIDTH, affine=False, track_running_stats=False),
    lambda: nn.LayerNorm(WIDTH),
    lambda: nn.Dropout(0.3),
    lambda: nn.Dropout(0.3, inplace=True),
    lambda: nn.Flatten(-1),
)


def leaf(rng: random.Random, others: float) -> nn.Module:
    if rng.random() < others:
        return rng.choice(OTHERS)()
    return rng.choice(LINEARS if rng.random() < 0.6 else ACTIVATIONS)()


def tree(rng: random.Random, depth: int = 0) -> nn.Module:
    """A random Sequential of layers and Sequentials; now and then one module in several places."""
    parts: list[nn.Module] = []
    others = rng.choice((0.0, 0.1, 0.4))
    for _ in range(rng.randint(0 if depth else 1, 6)):
        if parts and rng.random() < 0.1:
            parts.append(rng.choice(parts))
        elif depth < 2 and rng.random() < 0.15:
            parts.append(tree(rng, depth + 1))
        elif depth < 2 and rng.random() < 0.05:
            parts.append(Block(tree(rng, depth + 1)))
        else:
            parts.append(leaf(rng, others))
    return rng.choice((nn.Sequential, nn.Sequential, nn.Sequential, Named, Residual, Backwards))(*parts)


def chosen(module: nn.Module, rng: random.Random, *kinds: type) -> nn.Module | None:
    """One of the modules of the kinds, by its place in the tree."""
    found = [m for m in module.modules() if isinstance(m, kinds)]
    return found[rng.randrange(len(found))] if found else None


def replace_layer(module: nn.Module, rng: random.Random) -> None:
    holder = chosen(module, rng, nn.Sequential)
    if holder is not None and len(holder._modules):
        holder[rng.randrange(len(holder._modules))] = leaf(rng, 0.3).double()


def append_layer(module: nn.Module, rng: random.Random) -> None:
    holder = chosen(module, rng, nn.Sequential)
    if holder is not None:
        holder.append(leaf(rng, 0.3).double())


def remove_layer(module: nn.Module, rng: random.Random) -> None:
    holder = chosen(module, rng, nn.Sequential)
    if holder is not None and len(holder._modules) > 1:
        del holder[rng.randrange(len(holder._modules))]


def initialised(module: nn.Module, rng: random.Random) -> nn.Linear | None:
    """A Linear whose weight is there and is the parameter itself."""
    linear = chosen(module, rng, nn.Linear)
    usable = linear is not None and type(linear._parameters.get("weight")) is nn.Parameter
    return linear if usable and linear.weight.shape == (WIDTH, WIDTH) else None


def retie(module: nn.Module, rng: random.Random) -> None:
    first, second = initialised(module, rng), initialised(module, rng)
    if first is not None and second is not None:
        second.weight = first.weight


def new_parameter(module: nn.Module, rng: random.Random) -> None:
    linear = initialised(module, rng)
    if linear is not None:
        linear.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.float64).t())


def new_data(module: nn.Module, rng: random.Random) -> None:
    linear = initialised(module, rng)
    if linear is not None:
        linear.weight.data = torch.randn(WIDTH, 2 * WIDTH, dtype=torch.float64)[:, ::2]


def drop_bias(module: nn.Module, rng: random.Random) -> None:
    linear = initialised(module, rng)
    if linear is not None and "bias" in linear._parameters:
        linear.bias = None


def widen_bias(module: nn.Module, rng: random.Random) -> None:
    """A bias that broadcasts, of one element or of the batch."""
    linear = initialised(module, rng)
    if linear is not None and "bias" in linear._parameters:
        linear.bias = nn.Parameter(torch.randn((1,), dtype=torch.float64))


def resize(module: nn.Module, rng: random.Random) -> None:
    """Wider in the middle, where two plain Linears follow each other; `in_features` and `out_features` stay."""
    for holder in module.modules():
        children = list(holder._modules.values()) if type(holder).__iter__ is nn.Sequential.__iter__ else []
        for a, b in pairwise(children):
            if a is not b and type(a) is type(b) is nn.Linear and a.weight.shape == b.weight.shape == (WIDTH, WIDTH):
                if sum(m is a or m is b for m in module.modules()) != 2 or has_extras(a) or has_extras(b):
                    continue
                a.weight = nn.Parameter(torch.randn(7, WIDTH, dtype=torch.float64))
                a.bias = nn.Parameter(torch.randn(7, dtype=torch.float64))
                b.weight = nn.Parameter(torch.randn(WIDTH, 7, dtype=torch.float64))
                return


def has_extras(linear: nn.Module) -> bool:
    return parametrize.is_parametrized(linear) or set(linear._parameters) != {"weight", "bias"}


def freeze(module: nn.Module, rng: random.Random) -> None:
    parameters = list(module.parameters())
    if parameters:
        parameter = parameters[rng.randrange(len(parameters))]
        parameter.requires_grad_(not parameter.requires_grad)


def hook(module: nn.Module, rng: random.Random) -> None:
    kind = rng.choice(("forward", "forward_pre", "full_backward", "full_backward_pre"))
    target = chosen(module, rng, nn.Module)
    if kind == "forward":
        target.register_forward_hook(lambda m, a, out: out * 1.1)
    elif kind == "forward_pre":
        target.register_forward_pre_hook(lambda m, a: (a[0] * 1.1,))
    elif kind == "full_backward":
        target.register_full_backward_hook(lambda m, gi, go: tuple(g if g is None else g * 1.1 for g in gi))
    else:
        target.register_full_backward_pre_hook(lambda m, go: tuple(g if g is None else g * 1.1 for g in go))


def unhook(module: nn.Module, rng: random.Random) -> None:
    for part in module.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()


def rewrite(module: nn.Module, rng: random.Random) -> None:
    linear = initialised(module, rng)
    if linear is None or has_extras(linear):
        return
    kind = rng.choice(("spectral", "weight_norm", "prune", "softplus"))
    if kind == "spectral":
        parametrizations.spectral_norm(linear)
    elif kind == "weight_norm":
        parametrizations.weight_norm(linear)
    elif kind == "prune":
        prune.l1_unstructured(linear, "weight", 0.5)
    else:
        parametrize.register_parametrization(linear, "bias", nn.Softplus())


class Shifted:
    """A forward set on one instance."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, input: Tensor) -> Tensor:
        return type(self.module).forward(self.module, input) + 0.25


def patch_instance(module: nn.Module, rng: random.Random) -> None:
    target = chosen(module, rng, nn.Module)
    target.forward = Shifted(target)


def unpatch_instance(module: nn.Module, rng: random.Random) -> None:
    for part in module.modules():
        part.__dict__.pop("forward", None)


def change_slope(module: nn.Module, rng: random.Random) -> None:
    target = chosen(module, rng, nn.LeakyReLU)
    if target is not None:
        target.negative_slope = rng.choice((0.0, 0.7, -0.3, 2))


def train_part(module: nn.Module, rng: random.Random) -> None:
    chosen(module, rng, nn.Module).train(rng.random() < 0.5)


def in_place_update(module: nn.Module, rng: random.Random) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if not isinstance(parameter, nn.parameter.UninitializedParameter):
                parameter.mul_(0.9)


def extra_parameter(module: nn.Module, rng: random.Random) -> None:
    chosen(module, rng, nn.Module).register_parameter("extra", nn.Parameter(torch.ones(2, dtype=torch.float64)))


SURGERY: dict[str, Callable[[nn.Module, random.Random], None]] = {
    f.__name__: f
    for f in (
        replace_layer, append_layer, remove_layer, retie, new_parameter, new_data, drop_bias, widen_bias, resize,
        freeze, hook, unhook, rewrite, patch_instance, unpatch_instance, change_slope, train_part, in_place_update,
        extra_parameter,
    )
}  # fmt: skip


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": pickled,
    "casts": lambda m: m.float().double(),
}


def input_of(rng: random.Random) -> Tensor:
    """(batch, WIDTH), in some layout."""
    rows = rng.choice((1, 2, 3, 7, 33))
    kind = rng.choice(("plain", "plain", "plain", "turned", "skipped", "expanded", "negative"))
    draw: Callable[..., Tensor] = lambda *shape: torch.randn(shape, dtype=torch.float64)  # noqa: E731
    if kind == "turned":
        return draw(WIDTH, rows).t()
    if kind == "skipped":
        return draw(rows, 2 * WIDTH)[:, ::2]
    if kind == "expanded":
        return draw(1, WIDTH).expand(rows, WIDTH)
    if kind == "negative":
        return torch._neg_view(draw(rows, WIDTH))
    return draw(rows, WIDTH)


Outcome = dict[str, Any]
