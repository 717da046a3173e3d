"""One import swapped: fastgan's BCEWithLogitsLoss in an ordinary PyTorch loop (logistic regression)."""

import torch

from fastgan.nn import BCEWithLogitsLoss  # was: from torch.nn import BCEWithLogitsLoss

torch.manual_seed(0)
inputs = torch.randn(512, 10)
targets = (inputs @ torch.randn(10, 1) > 0).float()

model = torch.nn.Linear(10, 1)
criterion = BCEWithLogitsLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
for _ in range(200):
    optimizer.zero_grad()
    loss = criterion(model(inputs), targets)
    loss.backward()
    optimizer.step()

accuracy = ((model(inputs) > 0) == (targets > 0.5)).float().mean()
print(f"loss {loss.item():.4f}, accuracy {accuracy.item():.3f}")
