"""A network whose non-linearities are modules, for the methods that have rules for them."""

import torch
from torch import Tensor, nn


class RectifiedClassifier(nn.Module):
    """Two convolutions of stride 2, ReLU, and a linear head: (N, 3, H, W) -> (N, 5)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
            self.first_relu = nn.ReLU()
            self.last = nn.Conv2d(6, 8, 3, stride=2, padding=1)
            self.last_relu = nn.ReLU()
            self.head = nn.Linear(8, 5)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        activations = self.last_relu(self.last(self.first_relu(self.first(images))))
        return self.head(activations.mean(dim=(2, 3)))
