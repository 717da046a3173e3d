"""Surgery on the modules of the networks: flags, layers, containers, classes, forwards."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch import Tensor, nn

from fastgan import reference
from fastgan.nn import fuse, unfuse

from .networks import Backwards, Calls, Iterates, Named, Wrapped, fill, layer
from .statements import WORLD, NotHere, pick, statement
from .worlds import World


class SameLinear(nn.Linear):
    """A subclass that adds nothing."""


class OtherLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 0.5


class CallLinear(nn.Linear):
    def __call__(self, input: Tensor) -> Tensor:
        return super().__call__(input) + 0.25


class WeightLinear(nn.Linear):
    """The weight that forward reads is another than the one that is held."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return value * 0.5 if name == "weight" else value


class PropertyLinear(nn.Linear):
    @property
    def bias(self) -> Any:
        held = self._parameters["bias"]
        return held if held is None else held + 0.125


class OtherReLU(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 0.5


class OtherNorm(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 0.5


class OtherDropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return input * 0.5


CLASSES: dict[type, list[type]] = {
    nn.Linear: [SameLinear, OtherLinear, CallLinear, WeightLinear, PropertyLinear],
    nn.ReLU: [OtherReLU, nn.Tanh],
    nn.BatchNorm1d: [OtherNorm, nn.SyncBatchNorm],
    nn.Dropout: [OtherDropout, nn.AlphaDropout],
    nn.Sequential: [Named, Backwards, Iterates, Calls],
}


@statement(WORLD)
def change_class(world: World, r: random.Random) -> str:
    known = [(p, m) for p, m in world.modules() if any(isinstance(m, kind) for kind in CLASSES)]
    path, module = pick(r, known)
    base = next(kind for kind in CLASSES if isinstance(module, kind))
    new = r.choice([*CLASSES[base], base])
    module.__class__ = new
    return f"{path}.__class__ = {new.__name__}"


@statement(WORLD)
def fuse_or_unfuse(world: World, r: random.Random) -> str:
    net_name, net = r.choice(world.networks)
    how = r.choice([fuse, unfuse])
    if not world.is_plain:
        how(net)
    return f"{how.__name__}({net_name})"


@statement(WORLD)
def patch_forward(world: World, r: random.Random) -> str:
    """On the instance: forward itself, or what __call__ looks for."""
    path, module = pick(r, world.modules())
    name = r.choice(["forward", "forward", "_call_impl", "_compiled_call_impl"])
    if vars(module).get(name) is not None:
        del vars(module)[name]
        return f"{path}.{name} as it was"
    kind = type(module)
    same = r.random() < 0.3

    def forward(*inputs: Any) -> Any:
        value = kind.forward(module, *inputs)
        return value if same else value * 0.75

    vars(module)[name] = forward
    return f"{path}.{name} patched{', to the same' if same else ''}"


@statement(WORLD)
def train_or_eval(world: World, r: random.Random) -> str:
    path, module = pick(r, world.modules())
    to = r.random() < 0.5
    module.train(to)
    return f"{path}.train({to})"


OPTIONS: dict[str, list[Any]] = {  # values for those of the activations
    "negative_slope": [0.0, 0.5, -0.3, 2],
    "inplace": [True, False],
    "alpha": [1.0, 0.5, 1],
    "beta": [1.0, 3.0],
    "threshold": [20.0, 0.5],
    "approximate": ["tanh", "none"],
}
ATTRIBUTES: dict[type, list[tuple[str, list[Any]]]] = {
    nn.BatchNorm1d: [
        ("momentum", [None, 0.0, 0.5, 1.0, 0]),
        ("eps", [1e-3, 0.1]),
        ("track_running_stats", [False, True]),
        ("affine", [False]),
        ("num_features", [3]),
        ("weight", [None]),
        ("training", [0, 1]),
    ],
    nn.Dropout: [("p", [0.0, 0.5, 1.0, 0]), ("inplace", [True, False]), ("training", [0, 1])],
    **{
        activation.module: [(option, OPTIONS[option]) for option in activation.options]
        for activation in reference.ACTIVATIONS.values()
        if activation.options
    },
    nn.Linear: [("in_features", [1, 99]), ("out_features", [1, 99]), ("extra", [1])],
}


@statement(WORLD)
def set_attribute(world: World, r: random.Random) -> str:
    kinds = [kind for kind in ATTRIBUTES if any(isinstance(m, kind) for _, m in world.modules())]
    kind = pick(r, [kind for kind in kinds for _ in ATTRIBUTES[kind]])
    path, module = pick(r, [(p, m) for p, m in world.modules() if isinstance(m, kind)])
    name, among = r.choice(ATTRIBUTES[kind])
    value = r.choice(among)
    setattr(module, name, value)
    return f"{path}.{name} = {value}"


def containers(world: World) -> list[tuple[str, nn.Module]]:
    return [(p, m) for p, m in world.modules() if isinstance(m, nn.Sequential) and len(m)]


@statement(WORLD)
def replace_module(world: World, r: random.Random) -> str:
    path, holder = pick(r, containers(world))
    name = pick(r, [n for n, m in holder._modules.items() if m is not None])
    old = holder._modules[name]
    if isinstance(old, nn.Linear):
        new: nn.Module | None = copy.deepcopy(old)
        if r.random() < 0.5:
            r.choice(world.optimizers)[1].add_param_group({"params": list(new.parameters())})  # type: ignore[union-attr]
        what = "a copy"
    elif isinstance(old, nn.Sequential):
        new, what = Wrapped(old), "itself, wrapped"
    else:
        token = r.choice(["relu", "tanh", "sigmoid", "identity", "dropout 0.3", "elu", "leaky_relu 0.1"])
        new, what = layer(token, 1)[0], token
    if r.random() < 0.05:
        new, what = None, "None"
    holder._modules[name] = new
    return f"{path}[{name}] = {what}"


@statement(WORLD)
def insert_module(world: World, r: random.Random) -> str:
    path, holder = pick(r, containers(world))
    at = r.randrange(len(holder._modules) + 1)
    widths = [m.weight.shape[0] for m in list(holder._modules.values())[:at] if isinstance(m, nn.Linear)]
    token = r.choice(["relu", "tanh", "sigmoid", "dropout 0.3", "identity", "scaled", "bn", "linear"])
    if token in ("bn", "linear") and not widths:
        raise NotHere
    if token == "linear":
        token = f"linear {widths[-1]}"
    torch.manual_seed(r.randrange(1 << 30))
    new = layer(token, widths[-1] if widths else 1)[0]
    fill(new)
    modules = list(holder._modules.values())
    modules.insert(at, new)
    holder._modules.clear()
    for i, module in enumerate(modules):
        holder._modules[str(i)] = module
    if r.random() < 0.5 and list(new.parameters()):
        r.choice(world.optimizers)[1].add_param_group({"params": list(new.parameters())})
    return f"{path}: {token} inserted at {at}"


@statement(WORLD)
def delete_module(world: World, r: random.Random) -> str:
    path, holder = pick(r, containers(world))
    fitting = [n for n, m in holder._modules.items() if not isinstance(m, nn.Linear)]
    name = pick(r, fitting)
    del holder._modules[name]
    return f"del {path}[{name}]"


@statement(WORLD)
def reorder_modules(world: World, r: random.Random) -> str:
    path, holder = pick(r, containers(world))
    name = pick(r, holder._modules)
    held = holder._modules.pop(name)
    holder._modules[name] = held
    return f"{path}[{name}] moved to the end"


@statement(WORLD)
def module_used_twice(world: World, r: random.Random) -> str:
    path, holder = pick(r, containers(world))
    square = [
        (n, m)
        for n, m in holder._modules.items()
        if m is not None and (not isinstance(m, nn.Linear) or m.weight.shape[0] == m.weight.shape[1])
    ]
    name, module = pick(r, square)
    position = list(holder._modules).index(name)
    rest = list(holder._modules.items())
    holder._modules.clear()
    for i, (key, held) in enumerate(rest):
        holder._modules[key] = held
        if i == position:
            holder._modules[f"{key}_again"] = module
    return f"{path}[{name}] twice"


@statement(WORLD)
def extra_tensor(world: World, r: random.Random) -> str:
    path, module = pick(r, world.modules())
    if r.random() < 0.5:
        module.register_buffer("extra_buffer", torch.ones(2, dtype=torch.float64))
        return f"{path}.register_buffer(...)"
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float64))
    module.register_parameter("extra_parameter", parameter)
    if r.random() < 0.5:
        r.choice(world.optimizers)[1].add_param_group({"params": [parameter]})
    return f"{path}.register_parameter(...)"


@statement(WORLD)
def new_network(world: World, r: random.Random) -> str:
    """A deepcopy in place of a network, its optimizer with the old parameters or the new."""
    which, name = r.choice([("generator", "g_optimizer"), ("discriminator", "d_optimizer")])
    trainer = world.trainer
    old = getattr(trainer, which)
    new = copy.deepcopy(old)
    setattr(trainer, which, new)
    known = r.random() < 0.8
    if known:
        optimizer = getattr(trainer, name)
        twins = dict(zip(map(id, old.parameters()), new.parameters(), strict=True))
        for group in optimizer.param_groups:
            group["params"] = [twins.get(id(p), p) for p in group["params"]]
        optimizer.state.clear()
    return f"{which} = a deepcopy, {'known' if known else 'unknown'} to its optimizer"
