"""What test_processes.py runs in each of several processes: python process_checks.py SIZE STORE CHECK...

The ranks are forks of the process that is started, which has imported what they need. Each check prints one line of
JSON on rank 0: its name, and what it found.
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from plain_step import adam
from torch import nn

import fastgan
from fastgan.nn import MLP
from fastgan.processes import Processes
from fastgan.step import average_of

LATENT, DATA, BATCH, STEPS = 3, 4, 6, 4  # of each process
PART_BYTES = 100  # so that what is exchanged of a network of two layers goes in two parts

BATCH_NORM = {"batch_norm": True}
# Options of a TrainStep; `batch_norm` is of the networks.
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "r1_r2_pac": {"loss": "relativistic", "r1_gamma": 0.3, "r2_gamma": 0.2, "r1_every": 2, "pac": 2, "d_steps": 2},
    "gp_clip": {"loss": "wasserstein", "gp_weight": 2.0, "clip_grad_norm": 0.05},
    "classes": {"loss": "least_squares", "num_classes": 3, "reuse_fake": True, "clip_grad_norm": 0.1, "ema": True},
    "batch_norm": {"loss": "hinge", **BATCH_NORM},
    "batch_norm_r1": {"r1_gamma": 0.5, "r1_every": 1, "r2_gamma": 0.5, **BATCH_NORM},
    "batch_norm_pac_gp": {"gp_weight": 1.0, "pac": 3, "clip_grad_norm": 0.5, **BATCH_NORM},
}


def networks(options: dict[str, Any], dtype: torch.dtype, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """G and D, as `options` has them."""
    torch.manual_seed(seed)
    classes, pac = options.get("num_classes", 0), options.get("pac", 1)
    norm = [nn.BatchNorm1d(8)] if options.get("batch_norm") else []
    generator = nn.Sequential(nn.Linear(LATENT + classes, 8), *norm, nn.Tanh(), nn.Linear(8, DATA))
    norm = [nn.BatchNorm1d(8, momentum=None)] if options.get("batch_norm") else []
    discriminator = nn.Sequential(nn.Linear(pac * (DATA + classes), 8), *norm, nn.SiLU(), nn.Linear(8, 1))
    return generator.to(dtype), discriminator.to(dtype)


def train_step(options: dict[str, Any], dtype: torch.dtype = torch.float64, **more: Any) -> fastgan.TrainStep:
    """A step over new networks."""
    generator, discriminator = networks(options, dtype)
    own = {name: value for name, value in options.items() if name not in ("batch_norm", "ema")}
    ema = average_of(generator) if options.get("ema") else None
    return fastgan.TrainStep(
        generator,
        discriminator,
        adam(generator.parameters()),
        adam(discriminator.parameters()),
        ema=ema,
        **own,
        **more,
    )


def take(step: fastgan.TrainStep, options: dict[str, Any], first: int, count: int) -> list[float]:
    """Some steps on `count` samples from `first` on of batches that are the same everywhere; their statistics."""
    found = []
    for i in range(STEPS):
        torch.manual_seed(100 + i)
        many = dist.get_world_size() * BATCH
        rows = options.get("d_steps", 1) + (not options.get("reuse_fake"))
        real = torch.randn(options.get("d_steps", 1), many, DATA, dtype=torch.float64)
        noise = torch.randn(rows, many, LATENT, dtype=torch.float64)
        classes = options.get("num_classes", 0)
        labels = torch.randint(classes, (many,)) if classes else None
        part = slice(first, first + count)
        torch.manual_seed(200 + i)
        torch.rand(first // options.get("pac", 1), dtype=torch.float64)  # what the ranks before draw of the mix
        stats = step.step(real[:, part], None if labels is None else labels[part], noise=noise[:, part])
        found += [float(value) for value in stats]
    return found


def difference(a: fastgan.TrainStep, b: fastgan.TrainStep) -> float:
    """Of all that was trained, and of BatchNorm's statistics."""
    tensors, others = a._shared_tensors(), b._shared_tensors()
    assert tensors.keys() == others.keys()
    return max(
        float((tensors[name].detach().double() - others[name].detach().double()).abs().max()) for name in tensors
    )


def as_one(case: str, engine: bool) -> Any:
    """How far a step of all processes is from one of a single process with the batch of all."""
    options, group = CASES[case], dist.group.WORLD
    together, alone = train_step(options, engine=engine, process_group=group), train_step(options, engine=False)
    found = take(together, options, BATCH * dist.get_rank(), BATCH)
    expected = take(alone, options, 0, BATCH * dist.get_world_size())
    apart = max(abs(x - y) for x, y in zip(found, expected, strict=True))
    together.check_processes()
    return [difference(together, alone), apart, together.plan]


def discriminator_as_one(engine: bool) -> Any:
    """Likewise of a DiscriminatorStep, with fewer fakes than real samples."""
    rank, size = dist.get_rank(), dist.get_world_size()
    steps = []
    for group in (dist.group.WORLD, None):
        _, discriminator = networks({}, torch.float64)
        own = adam(discriminator.parameters())
        options: dict[str, Any] = {"r1_gamma": 0.5, "clip_grad_norm": 0.1, "process_group": group}
        steps.append(fastgan.DiscriminatorStep(discriminator, own, engine=engine and group is not None, **options))
    apart = 0.0
    for i in range(STEPS):
        torch.manual_seed(i)
        real, fake = (torch.randn(size, n, DATA, dtype=torch.float64) for n in (BATCH, BATCH - 2))
        found = steps[0].step(real[rank], fake[rank])
        expected = steps[1].step(real.flatten(0, 1), fake.flatten(0, 1))
        apart = max(apart, *(abs(float(x - y)) for x, y in zip(found, expected, strict=True)))
    steps[0].check_processes()
    pairs = zip(steps[0].discriminator.parameters(), steps[1].discriminator.parameters(), strict=True)
    return [max(float((a - b).abs().max()) for a, b in pairs), apart, steps[0].plan]


def bits(engine: bool, batch_norm: bool) -> Any:
    """200 steps in float32, noise and masks drawn: whether the ranks have the same bits, and drew different noise."""
    options = {"r1_gamma": 0.3, "r1_every": 4, "ema": True, "instance_noise": 0.1, "instance_noise_steps": 100}
    generator = nn.Sequential(*MLP([LATENT, 16, DATA]))
    discriminator = nn.Sequential(nn.Linear(DATA, 16), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(16, 1))
    if batch_norm:
        generator.insert(1, nn.BatchNorm1d(16))
    own: dict[str, Any] = {name: value for name, value in options.items() if name != "ema"}
    torch.manual_seed(5)
    step = fastgan.TrainStep(
        generator,
        discriminator,
        adam(generator.parameters()),
        adam(discriminator.parameters()),
        ema=average_of(generator),
        engine=engine,
        process_group=dist.group.WORLD,
        sync_batch_norm=not engine,
        **own,
    )
    drawn = step._processes.gather(float(torch.randn(())))
    data = torch.randn(64, DATA, generator=torch.Generator().manual_seed(dist.get_rank()))
    for i in range(200):
        step.step(data[8 * (i % 8) : 8 * (i % 8) + 8])
    step.check_processes()
    return [len(set(drawn)), step.plan]


def told_of_other_bits() -> Any:
    """What is said where a rank's parameters differ."""
    step = train_step({}, process_group=dist.group.WORLD)
    if dist.get_rank() == 1:
        with torch.no_grad():
            step.generator[2].bias[1] += 1e-12
    return said(step.check_processes)


def said(call: Callable[[], Any]) -> str:
    """The sentence that a call raises."""
    try:
        call()
    except (RuntimeError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refused() -> Any:
    """A rank is given what a step refuses, or another batch; then all go on."""
    return [each for engine in (True, False) for each in refused_by(engine)]


def refused_by(engine: bool) -> list[Any]:
    """What each rank says, and what rank 0 says of another batch."""
    step = train_step({}, process_group=dist.group.WORLD, engine=engine)
    before = copy.deepcopy(step.generator.state_dict())
    rank = dist.get_rank()
    good, bad = torch.randn(BATCH, DATA).double(), torch.randn(BATCH, DATA + 1).double()
    state = torch.get_rng_state()
    found = [
        step._processes.gather(said(lambda: step.step(good if rank != 1 else bad))),
        said(lambda: step.step(good[: BATCH - rank])),
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in step.generator.state_dict().items())
    step.step(good)
    step.check_processes()
    return found


def differ() -> Any:
    """Networks or options that are not the same everywhere."""
    rank = dist.get_rank()
    found = [said(lambda: train_step({"num_classes": 2 * (rank == 1)}, process_group=dist.group.WORLD))]
    found.append(said(lambda: train_step({"r1_gamma": 0.5 * rank}, process_group=dist.group.WORLD)))
    found.append(said(lambda: train_step({}, process_group="world")))
    step = train_step({}, process_group=dist.group.WORLD)
    found.append(said(lambda: copy.deepcopy(step)))
    return found


def one_composed() -> Any:
    """A hook on one rank keeps its step from being one native call: then no rank's is."""
    step = train_step({}, process_group=dist.group.WORLD)
    seen: list[Any] = []
    if dist.get_rank() == 1:
        step.discriminator[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    step.step(torch.randn(BATCH, DATA).double())
    step.check_processes()
    assert bool(seen) == (dist.get_rank() == 1)
    return step.plan


def data_parallel() -> Any:
    """Gradients of an MLP in DistributedDataParallel, beside those of the same layers in torch alone."""
    torch.manual_seed(3)
    own = MLP([DATA, 8, 8, 1], activation="leaky_relu").double()
    plain = nn.Sequential(*copy.deepcopy(list(own)))
    wrapped = [nn.parallel.DistributedDataParallel(each) for each in (own, plain)]
    data = torch.randn(dist.get_world_size(), BATCH, DATA, dtype=torch.float64)
    for network in wrapped:
        network(data[dist.get_rank()]).square().mean().backward()
    whole = copy.deepcopy(plain)
    whole.zero_grad()
    whole(data.flatten(0, 1)).square().mean().backward()
    apart = [
        max(float((a.grad - b.grad).abs().max()) for a, b in zip(x.parameters(), y.parameters(), strict=True))
        for x, y in ((own, plain), (own, whole))
    ]
    return apart


CHECKS: dict[str, Callable[[], Any]] = {
    **{f"{case} {engine}": (lambda c=case, e=engine: as_one(c, e)) for case in CASES for engine in (True, False)},
    **{f"discriminator {engine}": (lambda e=engine: discriminator_as_one(e)) for engine in (True, False)},
    **{f"bits {engine} {norm}": (lambda e=engine, n=norm: bits(e, n)) for engine in (True, False) for norm in (0, 1)},
    "told_of_other_bits": told_of_other_bits,
    "refused": refused,
    "differ": differ,
    "one_composed": one_composed,
    "data_parallel": data_parallel,
}


def run_rank(rank: int, size: int, store: str, names: list[str]) -> None:
    """Run the checks as one of several ranks."""
    Processes.shares_memory = os.environ["SHARES_MEMORY"] == "1"
    Processes.part_bytes = PART_BYTES
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=limit)
    for name in names:
        try:
            found = CHECKS[name]()
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            print(json.dumps([name, rank, found]), flush=True)
            raise
        if rank == 0:
            print(json.dumps([name, rank, found]), flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Run the checks that the command line names, or all, in as many processes as it says; fail where one does."""
    size, store = int(sys.argv[1]), sys.argv[2]
    ranks = []
    for rank in range(size):
        if (child := os.fork()) == 0:
            code = 1
            try:
                run_rank(rank, size, store, sys.argv[3:] or list(CHECKS))
                code = 0
            except Exception:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        ranks.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ranks]
    if any(codes):
        sys.exit(f"the ranks ended with {codes}")


if __name__ == "__main__":
    main()
