"""Surgery on the optimizers: numbers, groups, state, what they are."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, defaultdict
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler

from .networks import OwnAdam, optimizer
from .statements import WORLD, NotHere, pick, statement, values_like
from .worlds import World

NUMBERS: list[tuple[str, list[Any]]] = [
    ("lr", [0.0, 0.02, 0.005, 0, 1, numpy.float32(0.01), numpy.float64(0.01), True, -0.01, float("nan"), None]),
    (
        "betas",
        [(0.5, 0.9), [0.9, 0.999], (0.0, 0.5), (0.5, 0.5), (1.0, 0.9), (0, 0), (0.5,), (0.5, 0.9, 1)],
    ),
    ("betas", [numpy.array([0.5, 0.9]), (torch.tensor(0.5), 0.9), (0.5, torch.tensor(0.9))]),
    ("eps", [1e-2, 1e-3, 1, numpy.float64(1e-2), torch.tensor(1e-2, dtype=torch.float64)]),
    ("weight_decay", [0.0, 0.1, 0, 1, numpy.float64(0.1), -0.1, torch.tensor(0.1, dtype=torch.float64)]),
    ("amsgrad", [True, False]),
    ("maximize", [True, False]),
    ("foreach", [True, False, None]),
    ("fused", [True, False, None]),
    ("capturable", [True, False]),
    ("differentiable", [True, False]),
    ("decoupled_weight_decay", [True, False]),
    ("momentum", [0.5, 0.0]),
    ("nesterov", [True, False]),
]


def group_of(world: World, r: random.Random) -> tuple[str, Any, int]:
    name, of = r.choice(world.optimizers)
    return name, of, pick(r, range(len(of.param_groups)))


@statement(WORLD)
def set_number(world: World, r: random.Random) -> str:
    name, of, i = group_of(world, r)
    group = of.param_groups[i]
    key, among = pick(r, [(k, v) for k, v in NUMBERS if k in group])
    value = r.choice(among)
    if key in ("foreach", "fused", "capturable", "differentiable") and value:
        for other in ("foreach", "fused", "differentiable"):
            if other in group and other != key:
                group[other] = False
    group[key] = value
    return f"{name}.param_groups[{i}][{key!r}] = {value}"


@statement(WORLD)
def tensor_rate(world: World, r: random.Random) -> str:
    name, of, i = group_of(world, r)
    group = of.param_groups[i]
    if isinstance(group["lr"], Tensor) and r.random() < 0.5:
        group["lr"].fill_(0.003)
        return f"{name}.param_groups[{i}]['lr'].fill_(0.003)"
    how = r.choice(["float32", "float64", "shape (1,)", "int64", "bfloat16"])
    rate = torch.tensor(0.015, dtype=torch.float64)
    rate = rate[None] if how == "shape (1,)" else rate.to(getattr(torch, how))
    group["lr"] = rate
    if "foreach" in group and not group.get("capturable") and not group.get("fused"):
        group["foreach"] = False
    return f"{name}.param_groups[{i}]['lr'] = a tensor, {how}"


@statement(WORLD)
def replace_group(world: World, r: random.Random) -> str:
    name, of, i = group_of(world, r)
    how = r.choice(["one", "list", "OrderedDict", "in load_state_dict's way"])
    if how == "list":
        of.param_groups = [{**group, "lr": 0.004} for group in of.param_groups]
    elif how == "one":
        of.param_groups[i] = {**of.param_groups[i], "lr": 0.0}
    elif how == "OrderedDict":
        of.param_groups[i] = OrderedDict(of.param_groups[i], lr=0.006)
    else:
        of.__setstate__({"state": of.state, "param_groups": [dict(group) for group in of.param_groups]})
    return f"{name}.param_groups replaced ({how})"


@statement(WORLD)
def move_parameter(world: World, r: random.Random) -> str:
    """Between groups, out of them, into them twice, in another order."""
    name, of, i = group_of(world, r)
    group = of.param_groups[i]
    how = r.choice(["out", "to another", "twice", "reversed", "new list", "new group", "tuple", "group removed"])
    if not group["params"] or isinstance(group["params"], tuple):
        raise NotHere
    at = r.randrange(len(group["params"]))
    if how == "out":
        del group["params"][at]
    elif how == "to another":
        target = r.choice(of.param_groups)["params"]
        if isinstance(target, tuple):
            raise NotHere
        target.append(group["params"].pop(at))
    elif how == "twice":
        group["params"].append(group["params"][at])
    elif how == "reversed":
        group["params"].reverse()
    elif how == "new list":
        group["params"] = list(group["params"])
    elif how == "tuple":
        group["params"] = tuple(group["params"])
    elif how == "new group":
        of.add_param_group({"params": [group["params"].pop(at)], "lr": 0.03})
    else:
        del of.param_groups[i]
    return f"{name}, group {i}, parameter {at}: {how}"


@statement(WORLD)
def add_group(world: World, r: random.Random) -> str:
    """What no optimizer holds yet, or what is held by neither network."""
    name, of = r.choice(world.optimizers)
    held = {id(p) for _, o in world.optimizers for g in o.param_groups for p in g["params"]}
    free = [m._parameters[n] for _, m, n in world.slots() if id(m._parameters[n]) not in held]
    unique = list({id(p): p for p in free}.values())
    stranger = nn.Parameter(torch.ones(2, dtype=torch.float64))
    of.add_param_group({"params": unique or [stranger], "lr": 0.02})
    return f"{name}.add_param_group({len(unique) or 'a stranger'})"


@statement(WORLD)
def set_state(world: World, r: random.Random) -> str:
    name, of = r.choice(world.optimizers)
    how = r.choice(["cleared", "new dict", "one cleared", "one deleted", "one replaced", "reordered", "a list's"])
    keys = list(of.state)
    if how == "cleared":
        of.state.clear()
    elif how == "new dict":
        of.state = defaultdict(dict)
    elif how == "reordered":
        for key in sorted(keys, key=lambda k: -k.numel()):
            of.state[key] = of.state.pop(key)
    else:
        at = pick(r, range(len(keys)))
        key = keys[at]
        if how == "one cleared":
            of.state[key].clear()
        elif how == "one deleted":
            del of.state[key]
        elif how == "one replaced":
            of.state[key] = dict(of.state[key])
        else:
            of.state[key] = OrderedDict(of.state[key])
        how += f" ({at})"
    return f"{name}.state: {how}"


@statement(WORLD)
def set_state_tensor(world: World, r: random.Random) -> str:
    name, of = r.choice(world.optimizers)
    entries = [
        (i, k, v) for i, s in enumerate(of.state.values()) for k, v in s.items() if k != "step" and v is not None
    ]
    i, key, old = pick(r, [e for e in entries if isinstance(e[2], Tensor)])
    state = list(of.state.values())[i]
    how = r.choice(
        ["new", "in place", "data", "transposed", "strided", "float32", "deleted", "None", "shape", "expanded"]
    )
    new = values_like(r, old)
    if how == "new":
        state[key] = new
    elif how == "in place":
        old.copy_(new)
    elif how == "data":
        old.data = new
    elif how == "transposed":
        state[key] = new.t().contiguous().t()
    elif how == "strided" and old.dim():
        state[key] = torch.stack([new, new], -1)[..., 0]
    elif how == "float32":
        state[key] = new.float()
    elif how == "deleted":
        del state[key]
    elif how == "None":
        state[key] = None
    elif how == "shape":
        state[key] = new.flatten()[:1]
    else:
        state[key] = new[:1].expand(new.shape) if new.dim() else new
    return f"{name} state {i} {key}: {how}"


@statement(WORLD)
def set_step(world: World, r: random.Random) -> str:
    """The count of steps, as other libraries and old checkpoints leave it."""
    name, of = r.choice(world.optimizers)
    states = [s for s in of.state.values() if "step" in s]
    chosen = states if r.random() < 0.6 else [pick(r, states)]
    how = r.choice(
        ["float64", "float32", "int64", "int32", "bfloat16", "float16", "number", "int", "(1,)", "0", "shared"]
    )
    shared = torch.tensor(7.0)
    for state in chosen:
        if how == "shared":
            state["step"] = shared
        elif how in ("number", "int"):
            state["step"] = 7.0 if how == "number" else 7
        elif how == "(1,)":
            state["step"] = torch.tensor([7.0])
        elif how == "0":
            state["step"] = torch.tensor(0.0)
        else:
            state["step"] = torch.tensor(7, dtype=getattr(torch, how))
    return f"{name}: step of {len(chosen)} is 7 as {how}"


@statement(WORLD)
def load_optimizer(world: World, r: random.Random) -> str:
    name, of = r.choice(world.optimizers)
    saved = world.kept.setdefault("saved", {})
    how = r.choice(["own", "saved", "empty", "scaled"])
    if name not in saved or how == "own":
        saved[name] = copy.deepcopy(of.state_dict())
        of.load_state_dict(of.state_dict())
        return f"{name}.load_state_dict(own state_dict)"
    state = copy.deepcopy(saved[name])
    if how == "empty":
        state["state"] = {}
    elif how == "scaled":
        for entry in state["state"].values():
            for key, value in entry.items():
                if isinstance(value, Tensor) and key != "step":
                    value.mul_(0.5)
    of.load_state_dict(state)
    return f"{name}.load_state_dict({how})"


@statement(WORLD)
def new_optimizer(world: World, r: random.Random) -> str:
    name, network = r.choice([("g_optimizer", "generator"), ("d_optimizer", "discriminator")])
    given = {
        "kind": r.choice(["Adam", "Adam", "AdamW", "SGD", "RMSprop", "own"]),
        "groups": r.choice([1, 1, 2, 3]),
        "amsgrad": r.random() < 0.3,
        "fused": r.choice([None, True]),
        "tensor_lr": r.random() < 0.2,
    }
    setattr(world.trainer, name, optimizer(getattr(world.trainer, network).parameters(), given))
    return f"{name} = {given}"


@statement(WORLD)
def optimizer_class(world: World, r: random.Random) -> str:
    name, of = r.choice(world.optimizers)
    if not isinstance(of, Adam):
        raise NotHere
    new = r.choice([Adam, AdamW, OwnAdam])
    of.__class__ = new
    return f"{name}.__class__ = {new.__name__}"


@statement(WORLD)
def patch_optimizer(world: World, r: random.Random) -> str:
    name, of = r.choice(world.optimizers)
    method = r.choice(["step", "step", "zero_grad", "add_param_group"])
    if method in vars(of):
        delattr(of, method)
        return f"{name}.{method} as it was"
    bound, half = getattr(of, method), r.random() < 0.5

    def patched(*arguments: Any, **keywords: Any) -> Any:
        result = bound(*arguments, **keywords)
        counts = world.kept.setdefault("counts", {})
        counts[f"{name}.{method}"] = counts.get(f"{name}.{method}", 0) + 1
        if half and method == "step":
            with torch.no_grad():
                for group in of.param_groups:
                    for parameter in group["params"]:
                        parameter.mul_(0.99)
        return result

    setattr(of, method, patched)
    return f"{name}.{method} patched"


@statement(WORLD)
def grad_scale(world: World, r: random.Random) -> str:
    """What torch.amp.GradScaler hands to a fused optimizer."""
    name, of = r.choice(world.optimizers)
    key = r.choice(["grad_scale", "found_inf"])
    if key in vars(of):
        delattr(of, key)
        return f"{name}.{key} gone"
    setattr(of, key, torch.tensor(2.0 if key == "grad_scale" else r.choice([0.0, 1.0])))
    return f"{name}.{key} = {getattr(of, key).item()}"


@statement(WORLD)
def schedule(world: World, r: random.Random) -> str:
    """Schedulers of several kinds, made at first and stepped at each call."""
    name, of = r.choice(world.optimizers)
    schedulers = world.kept.setdefault("schedulers", {})
    if name not in schedulers or r.random() < 0.2:
        makers: dict[str, Any] = {
            "StepLR": lambda: lr_scheduler.StepLR(of, 1, 0.5),
            "LambdaLR": lambda: lr_scheduler.LambdaLR(of, lambda epoch: 1 / (1 + epoch)),
            "OneCycleLR": lambda: lr_scheduler.OneCycleLR(of, 0.02, total_steps=50),
            "CosineAnnealingLR": lambda: lr_scheduler.CosineAnnealingLR(of, 5),
            "CyclicLR": lambda: lr_scheduler.CyclicLR(of, 0.001, 0.02, cycle_momentum=not isinstance(of, SGD)),
            "ReduceLROnPlateau": lambda: lr_scheduler.ReduceLROnPlateau(of, patience=0),
        }
        kind = r.choice(list(makers))
        schedulers[name] = makers[kind]()
        return f"{kind}({name})"
    scheduler = schedulers[name]
    scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    return f"{type(scheduler).__name__}.step()"
