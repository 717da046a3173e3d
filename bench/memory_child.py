"""Trains for some steps and prints the process's peak memory in MiB: run by bench/memory.py in a fresh process."""

import json
import re
import resource
import sys
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "tanh": nn.Tanh}


def network(sizes, activation, output_activation=None):
    """An MLP of torch.nn modules."""
    layers = []
    for width_in, width_out in pairwise(sizes):
        layers += [nn.Linear(width_in, width_out), ACTIVATIONS[activation]()]
    last = [ACTIVATIONS[output_activation]()] if output_activation else []
    return nn.Sequential(*layers[:-1], *last)


def plain_step(generator, discriminator, g_optimizer, d_optimizer):
    """The training step in plain PyTorch; G's backward pass computes no weight gradients of D."""

    def loss(logits, target):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    def step(real, noise):
        fake = generator(noise)
        d_loss = loss(discriminator(real), 1.0) + loss(discriminator(fake.detach()), 0.0)
        d_optimizer.zero_grad(set_to_none=True)
        d_loss.backward()
        d_optimizer.step()
        g_loss = loss(discriminator(fake), 1.0)
        g_optimizer.zero_grad(set_to_none=True)
        g_loss.backward(inputs=list(generator.parameters()))
        g_optimizer.step()

    return step


def fastgan_step(*networks_and_optimizers):
    """`fastgan.TrainStep` over the same modules, which it fuses itself."""
    import fastgan

    generator, discriminator, *optimizers = networks_and_optimizers
    step = fastgan.TrainStep(fastgan.nn.fuse(generator), fastgan.nn.fuse(discriminator), *optimizers, reuse_fake=True)
    return lambda real, noise: step.step(real, noise=noise[None])


def peak_mib():
    """The most that this process has had resident.

    On Linux VmHWM: ru_maxrss counts from the fork, and so from what the parent had resident then.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 2**10
    except OSError:  # macOS, where ru_maxrss is in bytes and starts with the process
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(options):
    """Train, then print the peak."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    generator = network(options["generator"], options["activation"], options["output_activation"])
    discriminator = network(options["discriminator"], "leaky_relu")
    optimizers = [
        torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.999), fused=True) for m in (generator, discriminator)
    ]
    build = fastgan_step if options["kind"] == "fastgan" else plain_step
    step = build(generator, discriminator, *optimizers)
    for _ in range(options["steps"]):
        real = torch.randn(options["batch"], options["generator"][-1])
        step(real, torch.randn(options["batch"], options["generator"][0]))
    print(peak_mib())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
