"""`fuse` on a model that was written without fastgan: same Parameters, same outputs, fused layers."""

import torch
from torch import nn

import fastgan

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(64, 256), nn.LeakyReLU(0.2), nn.Dropout(0.3),
    nn.Linear(256, 256), nn.LeakyReLU(0.2), nn.Linear(256, 1),
).eval()  # fmt: skip
inputs = torch.randn(128, 64)
before, parameters = model(inputs), list(model.parameters())

fastgan.nn.fuse(model)
assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))
print(f"{type(model).__name__}: largest difference {(model(inputs) - before).abs().max().item():.1e}")

fastgan.nn.unfuse(model)
print(f"{type(model).__name__}: largest difference {(model(inputs) - before).abs().max().item():.1e}")
