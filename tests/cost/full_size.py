"""What an explanation of a whole 2B and 8B model takes: ``python -m tests.cost.full_size`` counts
parameters and operations, which need no machine that holds the model, and writes their data.

The peaks of memory are measured with few layers (``python -m tests.cost.measure --layers 2 --memory
allocated``): above the weights, an explanation holds what one layer needs, at any depth.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from torch import nn

from tests.cost.methods import SCALES
from tests.cost.subjects import SHAPES, VISION, Shape, random_network

DATA = Path(__file__).parents[2] / "docs" / "results" / "full_size.csv"
HEAD = ("shape", "image tokens", "answer tokens", "what", "unit", "value")

CASES = (("2b", 256), ("2b", 1024), ("8b", 256), ("8b", 1024))
ANSWER = 64
# The template, the question and the marks around the image.
PROMPT = 32


@cache
def network(name: str, layers: int | None = None) -> nn.Module:
    r"""The network of a shape, without its values.

    Args:
        name (str): one of ``SHAPES``.
        layers (int, optional): see :func:`~tests.cost.subjects.load_model`. Default: None
    """
    return random_network(SHAPES[name], "meta", layers=layers)


def parameters(name: str) -> int:
    r"""Number of parameters of a shape, each counted once."""
    return sum(each.numel() for each in network(name).parameters())


def operations(
    name: str, image_tokens: float, text_tokens: int, rows: int, layers: int | None = None
) -> float:
    r"""
    Floating-point operations of one pass.

    Args:
        name (str): the shape.
        image_tokens (float): image tokens of the pass.
        text_tokens (int): tokens of the question and the answer.
        rows (int): tokens whose logits are computed.
        layers (int, optional): see :func:`network`. Default: None

    Returns:
        float: two for each weight of a matrix and each token that passes it, and for attention two
        products of all tokens with all others.
    """
    model, shape = network(name, layers), SHAPES[name]
    patches = 4 * image_tokens
    tower = {True: 0.0, False: 0.0}
    for part, each in model.model.visual.named_modules():
        if isinstance(each, nn.Linear | nn.Conv3d):
            tower["merger" in part] += each.weight.numel()
    blocks = len(model.model.visual.blocks)
    seen = 2 * (tower[False] * patches + tower[True] * image_tokens)
    seen += 4 * patches**2 * int(VISION["embed_dim"]) * blocks
    return seen + _of_language(model, shape, image_tokens + text_tokens, rows)


def _of_language(model: nn.Module, shape: Shape, tokens: float, rows: int) -> float:
    stack = model.model.language_model.layers
    weights = sum(each.weight.numel() for each in stack.modules() if isinstance(each, nn.Linear))
    attention = 4 * tokens**2 * shape.hidden_size * len(stack)
    return 2 * weights * tokens + attention + 2 * rows * shape.hidden_size * shape.vocabulary


def rows() -> list[list[str]]:
    r"""The data: for each case what the weights take, and the passes of one and of four scales."""
    found = []
    for name in dict.fromkeys(name for name, _ in CASES):
        count = parameters(name)
        found.append([name, "", "", "parameters", "billion", f"{count / 1e9:.2f}"])
        found.append([name, "", "", "weights in 16 bits", "GB", f"{2 * count / 1e9:.1f}"])
    for name, tokens in CASES:
        text = PROMPT + ANSWER
        one = operations(name, tokens, text, ANSWER)
        four = sum(operations(name, tokens * scale**2, text, ANSWER) for scale in SCALES)
        case = [name, str(tokens), str(ANSWER)]
        found.append([*case, "one pass", "TFLOP", f"{one / 1e12:.1f}"])
        found.append([*case, "passes of four scales", "TFLOP", f"{four / 1e12:.1f}"])
    return found


def main() -> None:
    with DATA.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEAD, *rows()])


if __name__ == "__main__":
    main()
