"""Networks, optimizers and options of an example, from a description that JSON can hold.

A description is a dict; what it lacks has the value of DEFAULTS. So a smaller description is a simpler example, which
is how a fault is reduced (reduce.py).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from conformance import ACTIVATION_MODULES
from torch import Tensor, nn
from torch.optim import SGD, Adam, Adamax, AdamW, NAdam, Optimizer, RMSprop

from fastgan.nn import MLP, fuse

LATENT, DATA = 3, 4

DEFAULTS: dict[str, Any] = {
    "generator": ["linear 5", "relu"],
    "generator_end": [],
    "generator_kind": "sequential",
    "discriminator": ["linear 6", "leaky_relu 0.2"],
    "discriminator_end": [],
    "discriminator_kind": "sequential",
    "g_optimizer": {},
    "d_optimizer": {},
    "options": {},
    "batch": 5,
    "seed": 0,
}

PLAIN_ACTIVATIONS = tuple(ACTIVATION_MODULES)
ACTIVATIONS = (
    *PLAIN_ACTIVATIONS,
    "leaky_relu -0.5",
    "leaky_relu 0",
    "leaky_relu 1.5",
    "relu inplace",
    "leaky_relu inplace",
    "elu 0.5",
    "softplus 2",
    "gelu tanh",
)
WIDTHS = (1, 2, 5, 8, 17, 40, 70)
LINEARS = tuple(f"linear {width}{bias}" for width in WIDTHS for bias in ("", " nobias"))
NORMS = ("bn", "bn noaffine", "bn nostats", "bn cumulative", "bn momentum 0")
OTHERS = ("dropout 0.3", "dropout 0", "dropout 1", "scaled", "layernorm", "prelu", "flatten")
KINDS = ("sequential", "fused", "mlp", "subclass", "nested", "wrapped", "backwards", "iterates", "calls")


class Scaled(nn.Module):
    """Somebody's own layer, with a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, value: Tensor) -> Tensor:
        return value * self.scale


class Named(nn.Sequential):
    """A subclass that adds nothing."""


class Backwards(nn.Sequential):
    """An order of its own, in forward: the modules are held from the last to the first."""

    def forward(self, value: Tensor) -> Tensor:
        for module in reversed(self._modules.values()):
            value = module(value)
        return value


class Iterates(nn.Sequential):
    """An order of its own, in __iter__."""

    def __iter__(self) -> Any:
        return reversed(self._modules.values())


class Calls(nn.Sequential):
    """More than its layers, in __call__."""

    def __call__(self, value: Tensor) -> Tensor:
        return super().__call__(value) * 1.5


class Wrapped(nn.Module):
    """A network held by a module that is no Sequential."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, value: Tensor) -> Tensor:
        return self.net(value)


def layer(token: str, width: int) -> tuple[nn.Module, int]:
    """The module of a token on an input of a width, and the width of its output."""
    name, *rest = token.split()
    double = {"dtype": torch.float64}
    if name == "linear":
        return nn.Linear(width, int(rest[0]), bias="nobias" not in rest, **double), int(rest[0])
    if name == "bn":
        module = nn.BatchNorm1d(
            width,
            affine="noaffine" not in rest,
            track_running_stats="nostats" not in rest,
            momentum=None if "cumulative" in rest else 0.0 if "momentum" in rest else 0.1,
            **double,
        )
        return module, width
    if name in ACTIVATION_MODULES and not rest:
        return ACTIVATION_MODULES[name](), width
    if name == "leaky_relu" and rest != ["inplace"]:
        return nn.LeakyReLU(float(rest[0])), width
    makers: dict[str, Any] = {
        "relu": lambda: nn.ReLU(inplace="inplace" in rest),
        "leaky_relu": lambda: nn.LeakyReLU(0.2, inplace=True),
        "gelu": lambda: nn.GELU(*rest),
        "elu": lambda: nn.ELU(*map(float, rest)),
        "softplus": lambda: nn.Softplus(*map(float, rest)),
        "dropout": lambda: nn.Dropout(float(rest[0])),
        "scaled": Scaled,
        "layernorm": lambda: nn.LayerNorm(width, **double),
        "prelu": lambda: nn.PReLU(**double),
        "flatten": nn.Flatten,
    }
    return makers[name](), width


def network(tokens: list[str], kind: str, width: int) -> nn.Module:
    """A network of the tokens in one of the KINDS of containers; the values of its parameters are drawn."""
    modules = []
    for token in tokens:
        module, width = layer(token, width)
        modules.append(module)
    if kind == "mlp":
        plain = nn.Sequential(*modules)
        built: nn.Module = fuse(plain)
        if all(type(m) in (nn.Linear, nn.ReLU, nn.Tanh) for m in modules):
            built.__class__ = MLP
    elif kind == "fused":
        built = fuse(nn.Sequential(*modules))
    elif kind == "subclass":
        built = Named(*modules)
    elif kind == "nested":
        half = len(modules) // 2
        built = nn.Sequential(nn.Sequential(*modules[:half]), fuse(nn.Sequential(*modules[half:])))
    elif kind == "wrapped":
        built = Wrapped(fuse(nn.Sequential(*modules)))
    elif kind == "backwards":
        built = Backwards(*reversed(modules))
    elif kind == "iterates":
        built = Iterates(*reversed(modules))
    elif kind == "calls":
        built = Calls(*modules)
    else:
        built = nn.Sequential(*modules)
    fill(built)
    return built


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Draw the parameters of a module.

    Where a unit were dead by symmetry or a bias zero, rounding would choose the side of a kink; and where a class is
    patched, a module may not initialise itself.
    """
    for parameter in module.parameters():
        drawn = torch.randn(parameter.shape, dtype=torch.float64)
        parameter.copy_(0.7 * drawn / parameter.shape[1] ** 0.5 if parameter.dim() == 2 else 0.5 + 0.2 * drawn)


def optimizer(parameters: Any, given: dict[str, Any]) -> Optimizer:
    """An optimizer; eps is so large that the rounding of a gradient near zero is not a full step of Adam."""
    values = dict(given)
    kind, groups, rate = values.pop("kind", "Adam"), values.pop("groups", 1), values.pop("lr", 0.01)
    if values.pop("tensor_lr", False):
        rate = torch.tensor(rate, dtype=torch.float64 if values.pop("double_lr", False) else torch.float32)
    values.pop("double_lr", None)
    held: list[Any] = list(parameters)
    if not held:
        held = [nn.Parameter(torch.zeros(1, dtype=torch.float64))]
    if groups == 2 and len(held) > 1:
        held = [{"params": held[1:], "lr": 0.02}, {"params": held[:1], "weight_decay": 0.05}]
    elif groups == 3:
        held = [{"params": [p], "lr": 0.01 * (1 + i % 3)} for i, p in enumerate(reversed(held))]
    if kind in ("SGD", "SGD momentum"):
        values = {k: v for k, v in values.items() if k in ("weight_decay", "maximize", "foreach", "differentiable")}
        return SGD(held, lr=rate, momentum=0.9 if "momentum" in kind else 0.0, **values)
    if kind in ("RMSprop", "NAdam", "Adamax"):
        values = {k: v for k, v in values.items() if k in ("weight_decay", "maximize", "foreach")}
        maker: Any = {"RMSprop": RMSprop, "NAdam": NAdam, "Adamax": Adamax}[kind]
        return maker(held, lr=float(rate), eps=1e-3, **values)
    maker = {"Adam": Adam, "AdamW": AdamW, "own": OwnAdam}[kind]
    if isinstance(rate, Tensor) and values.get("foreach") and not values.get("capturable"):
        values.pop("foreach")  # torch refuses it
    if isinstance(rate, Tensor) and not values.get("capturable"):
        values.setdefault("foreach", False)
    if values.get("fused"):
        values.pop("foreach", None)
        values.pop("differentiable", None)
    if "betas" in values:
        values["betas"] = tuple(values["betas"])
    return maker(held, lr=rate, eps=1e-3, **values)


class OwnAdam(Adam):
    """Somebody's own optimizer, with another step."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = float(group["lr"]) * 0.9
        return super().step(closure)


def build(description: dict[str, Any]) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """The networks of a description, and the description with nothing missing."""
    full = {**DEFAULTS, **copy.deepcopy(description)}
    classes = full["options"].get("num_classes", 0)
    torch.manual_seed(full["seed"])
    generator = network(
        [*full["generator"], f"linear {DATA}", *full["generator_end"]], full["generator_kind"], LATENT + classes
    )
    discriminator = network(
        [*full["discriminator"], "linear 1", *full["discriminator_end"]], full["discriminator_kind"], DATA + classes
    )
    return generator, discriminator, full
