"""Run by CI with the interpreter of a plain installation, outside the checkout."""

import sys
from pathlib import Path

import torch

import learned_optim

assert "site-packages" in str(Path(learned_optim.__file__)), learned_optim.__file__
for name in ("pytorch_lightning", "higher", "torchvision", "matplotlib"):
    assert name not in sys.modules, f"import learned_optim imports {name}"
model = torch.nn.Linear(3, 1)
optimizer = learned_optim.LSTMOptimizer(model.parameters(), checkpoint="mnist-mlp")
model(torch.ones(2, 3)).sum().backward()
before = model.weight.detach().clone()
optimizer.step()
assert not torch.equal(before, model.weight)
print("plain installation:", learned_optim.available_checkpoints())
