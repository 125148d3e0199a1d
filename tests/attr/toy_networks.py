"""Small networks that take images of any size, for testing attribution methods."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvolutionalClassifier(nn.Module):
    """Two convolutions of stride 2 and a linear head over the mean: (N, 3, H, W) -> (N, 5)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
            self.last = nn.Conv2d(6, 8, 3, stride=2, padding=1)
            self.head = nn.Linear(8, 5)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        activations = F.gelu(self.last(F.gelu(self.first(images))))
        return self.head(activations.mean(dim=(2, 3)))


class VisionTransformerClassifier(nn.Module):
    """One attention block on 4 x 4 patches: (N, 3, H, W) -> (N, 5), with H and W from 4 on.

    The position embeddings are learnt for 4 x 4 patches, and interpolated for other sizes.
    """

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.patches = nn.Conv2d(3, width, 4, stride=4)
            self.positions = nn.Parameter(torch.randn(1, width, 4, 4))
            self.attention_norm = nn.LayerNorm(width)
            self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
            self.mlp_norm = nn.LayerNorm(width)
            self.mlp = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )
            self.head = nn.Linear(width, 5)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        grid = self.patches(images)
        size = (grid.shape[2], grid.shape[3])
        grid = grid + F.interpolate(self.positions, size, mode="bicubic", align_corners=False)
        tokens = grid.flatten(2).transpose(1, 2)
        normed = self.attention_norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        return self.head(tokens.mean(dim=1))


class WeightedMean(nn.Module):
    """Mean over the image of the pixels times a weight, which is a function of the place alone.

    Score c is the mean over pixels of ``offset[c] + down[c] * v + right[c] * u`` times the sum of
    the channels, with u, v in (0, 1) the place of the pixel's centre. At any size it computes the
    same functional of the continuous image, and its gradient is known in closed form.
    """

    offset: Tensor
    down: Tensor
    right: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor([0.5, 1.0, -0.2], dtype=torch.float64))
        self.register_buffer("down", torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
        self.register_buffer("right", torch.tensor([0.3, 0.0, -1.0], dtype=torch.float64))

    def weight(self, target: int, height: int, width: int) -> Tensor:
        """The weights of one score, (H, W), in float64."""
        v = (torch.arange(height, dtype=torch.float64) + 0.5) / height
        u = (torch.arange(width, dtype=torch.float64) + 0.5) / width
        return self.offset[target] + self.down[target] * v[:, None] + self.right[target] * u

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        intensity = images.sum(dim=1)
        weights = [self.weight(target, height, width) for target in range(len(self.offset))]
        return torch.stack(
            [(weight.to(intensity) * intensity).mean(dim=(1, 2)) for weight in weights], dim=1
        )


class ImageAndVectorClassifier(nn.Module):
    """An image and a vector: (N, 3, H, W), (N, 4) -> (N, 5)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.image = ConvolutionalClassifier(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)
            self.vector = nn.Linear(4, 5)
        self.eval()

    def forward(self, images: Tensor, vectors: Tensor) -> Tensor:
        return self.image(images) * torch.tanh(self.vector(vectors))
