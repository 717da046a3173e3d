"""Surgery on the step itself: its attributes, the average, copies."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import numpy
import torch
from torch import nn

from fastgan.nn import unfuse
from fastgan.step import average_of

from .networks import build, optimizer
from .statements import WORLD, NotHere, pick, statement, values, values_like
from .worlds import World

OPTIONS: list[tuple[str, list[Any]]] = [
    ("real_target", [0.9, 1.0, 0.5, 0, 1]),
    ("fake_target", [0.1, 0.0, 0, 1]),
    ("loss", ["non_saturating", "minimax", "relativistic", "hinge", "wasserstein", "least_squares"]),
    ("d_steps", [1, 2, 3]),
    ("reuse_fake", [True, False]),
    ("r1_gamma", [0.0, 0.5]),
    ("r1_every", [1, 2, 3]),
    ("r2_gamma", [0.0, 0.0, 0.5]),
    ("gp_weight", [0.0, 0.0, 1.0]),
    ("gp_center", [1.0, 0.0]),
    ("clip_grad_norm", [None, None, 0.1, 10]),
    ("instance_noise", [0.0, 0.0, 0.2]),
    ("instance_noise_steps", [0, 5]),
    ("ema_decay", [0.0, 0.5, 0.9]),
    ("precision", ["fp32", "bf16"]),
    ("num_classes", [0, 1, 3]),
    # of other types, which may do
    ("real_target", [numpy.float64(0.9), numpy.float32(0.75), True, torch.tensor(0.9)]),
    ("d_steps", [numpy.int64(2), True, 2.0]),
    ("ema_decay", [numpy.float64(0.5), 0]),
    ("reuse_fake", [1, 0, None]),
    # to be refused
    ("real_target", [1.5, -0.1, float("nan"), None, "1"]),
    ("loss", ["wgan", None]),
    ("pac", [0, 7, None]),
    ("clip_grad_norm", [0, "1"]),
    ("instance_noise", [-1.0, None]),
    ("d_steps", [0, -1, None]),
    ("ema_decay", [1.0, 1.5, None]),
    ("num_classes", [-1, 2.5, None]),
    ("precision", ["fp16", None]),
    ("r1_every", [0, 1.5]),
    ("r1_gamma", [-1.0, float("inf"), None]),
]


@statement(WORLD)
def set_option(world: World, r: random.Random) -> str:
    name, among = r.choice(OPTIONS)
    value = r.choice(among)
    setattr(world.trainer, name, value)
    return f"step.{name} = {value!r}"


@statement(WORLD)
def fresh_start(world: World, r: random.Random) -> str:
    """Other networks and optimizers in the same step, as the example began; hooks and schedulers go with the old."""
    trainer, description = world.trainer, world.kept["description"]
    trainer.generator, trainer.discriminator, full = build(description)
    for name, net in (("g_optimizer", trainer.generator), ("d_optimizer", trainer.discriminator)):
        setattr(trainer, name, optimizer(net.parameters(), full[name]))
    if world.is_plain:
        unfuse(trainer.generator)
        unfuse(trainer.discriminator)
    if trainer.ema is not None:
        trainer.ema = average_of(trainer.generator)
    world.kept = {"description": description, "batch": world.kept["batch"]}
    return "networks and optimizers as at the beginning"


@statement(WORLD)
def set_average(world: World, r: random.Random) -> str:
    how = r.choice(["None", "new", "new", "new and trainable", "another network", "G", "D", "G's weight in it"])
    trainer = world.trainer
    trainer.ema = None if how == "None" else average_of(trainer.generator)
    if how == "new and trainable":
        trainer.ema.requires_grad_(True)
    elif how == "another network":
        trainer.ema = nn.Linear(2, 2, dtype=torch.float64)
    elif how in ("G", "D"):
        trainer.ema = dict(world.networks)[how]
    elif how == "G's weight in it":
        slots = [[(m, n) for m in net.modules() for n in m._parameters] for net in (trainer.ema, trainer.generator)]
        (ours, name), (theirs, _) = pick(r, zip(*slots, strict=True))
        ours._parameters[name] = theirs._parameters[name]
    return f"step.ema = {how}"


@statement(WORLD)
def change_average(world: World, r: random.Random) -> str:
    """Its parameters and buffers, as resuming, resetting and saving change them."""
    ema = world.trainer.ema
    if ema is None:
        raise NotHere
    how = r.choice(
        ["load", "assign", "parameter", "data", "strided", "buffer", "freeze", "shared", "module", "eval", "copy"]
    )
    slots = [(m, n) for m in ema.modules() for n, p in m._parameters.items() if p is not None]
    buffers = [(m, n) for m in ema.modules() for n, b in m._buffers.items() if b is not None]
    if how in ("load", "assign"):
        state = {key: values_like(r, value) for key, value in ema.state_dict().items()}
        ema.load_state_dict(state, assign=how == "assign")
    elif how in ("parameter", "data", "strided", "shared"):
        module, name = pick(r, slots)
        old = module._parameters[name]
        if how == "parameter":
            module._parameters[name] = nn.Parameter(values_like(r, old), requires_grad=r.random() < 0.5)
        elif how == "data":
            old.data = values_like(r, old)
        elif how == "strided" and old.dim():
            old.data = torch.stack([values_like(r, old)] * 2, -1)[..., 0]
        else:
            twins = dict(zip(map(id, ema.parameters()), world.trainer.generator.parameters(), strict=True))
            old.data = twins[id(old)].data
    elif how == "buffer":
        module, name = pick(r, buffers)
        old = module._buffers[name]
        module._buffers[name] = values_like(r, old) if r.random() < 0.7 else old.float()
    elif how == "freeze":
        ema.requires_grad_(r.random() < 0.5)
    elif how == "module":
        holder = pick(r, [m for m in ema.modules() if isinstance(m, nn.Sequential) and len(m)])
        name = pick(r, holder._modules)
        holder._modules[name] = copy.deepcopy(holder._modules[name])
    elif how == "eval":
        ema.train(r.random() < 0.5)
    else:
        world.trainer.ema = copy.deepcopy(ema)
    return f"average: {how}"


@statement(WORLD)
def copy_step(world: World, r: random.Random) -> str:
    """Training goes on with a copy; hooks and patches that hold the old objects stay theirs."""
    if set(world.kept) - {"description", "batch"} or any(
        "forward" in vars(m) or "_call_impl" in vars(m) for _, m in world.modules()
    ):
        raise NotHere
    if r.random() < 0.5:
        world.trainer = copy.deepcopy(world.trainer)
        return "step = deepcopy(step)"
    world.trainer = pickle.loads(pickle.dumps(world.trainer))
    return "step = pickle.loads(pickle.dumps(step))"


@statement(WORLD)
def read_plan(world: World, r: random.Random) -> str:
    """Which asks at once whether there may be a plan again."""
    if not world.is_plain:
        assert isinstance(world.trainer.plan, str)
    return "step.plan"


@statement(WORLD)
def graph_across_steps(world: World, r: random.Random) -> str:
    """A graph that is kept over the steps that come: its backward must see that the parameters have changed."""
    loss = world.kept.pop("graph", None)
    if loss is None:
        net = r.choice(world.networks)[1]
        width = next(m.weight.shape[1] for m in net.modules() if isinstance(m, nn.Linear))
        world.kept["graph"] = net(values(r, 4, width)).square().sum()
        return "a graph is kept"
    try:
        loss.backward()
    except RuntimeError as error:
        if not any(group.get("fused") for _, of in world.optimizers for group in of.param_groups):
            return f"its backward: {type(error).__name__}, {'version' in str(error)}"
        # The fused kernels of torch.optim do not count as a change: the composed step's backward runs, on new weights.
    finally:
        for _, module, name in world.slots():
            module._parameters[name].grad = None
    return "its backward runs"


@statement(WORLD)
def look_between(world: World, r: random.Random) -> str:
    """What a user does between two steps: samples in eval, a backward of his own, a clip."""
    generator = world.trainer.generator
    classes = world.trainer.num_classes
    noise = values(r, 4, 3 + classes).to(next(generator.parameters()).dtype)
    how = r.choice(["eval", "backward", "no_grad"])
    if how == "backward":
        generator(noise).sum().backward()
    else:
        was = generator.training
        generator.train(how != "eval" and was)
        with torch.no_grad():
            generator(noise)
        generator.train(was)
    return f"G({how})"
