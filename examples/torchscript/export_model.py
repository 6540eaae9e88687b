#!/usr/bin/env python3
"""Writes a TorchScript file for fashion-torchscript.yaml. Needs PyTorch (python3-torch).

    python3 export_model.py model.pt

Any module does that takes a batch of records and returns one row of class scores each. Its values
in the file are the initial values of the job. Do not freeze it (torch.jit.freeze): a frozen module
has no parameters left to train.
"""

import sys

import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Residual(16),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "model.pt"
    torch.manual_seed(1)
    torch.jit.script(make_model()).save(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
