r"""Train a demo model from nothing: ``python -m captum_mllm.demo.train --output FOLDER``.

The stages run one after the other, and each leaves a checkpoint in ``FOLDER/checkpoints``; the same
command goes on where training stopped. The schedule counts steps, so the result depends on the
seed and on the number of threads (the order of summation), never on the speed of the machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import Qwen2VLForConditionalGeneration

from captum_mllm.demo.architecture import build_model, build_processor
from captum_mllm.demo.caption_stage import polish, train_captions, train_scales
from captum_mllm.demo.fast_vision import use_fast_vision
from captum_mllm.demo.grounding_stage import ground_vision
from captum_mllm.demo.language_stage import train_language
from captum_mllm.demo.optimization import Checkpoint
from captum_mllm.demo.vision_stage import align_vision, initialize_vision, train_vision

#: The architectures that can be trained.
ARCHITECTURES: tuple[str, ...] = ("qwen2-vl",)

#: Strength of the language prior of the captions that the model learns from.
PRIOR = 0.5

_STEPS = {
    "language": 2200,
    "vision": 1400,
    "alignment": 400,
    "grounding": 1000,
    "captions": 3000,
    "scales": 2200,
    "polish": 700,
}


def _stages(
    model: Qwen2VLForConditionalGeneration, seed: int
) -> dict[str, Callable[[int, Checkpoint], None]]:
    return {
        "language": lambda steps, file: train_language(model, seed, steps, PRIOR, file),
        "vision": lambda steps, file: train_vision(model, seed, steps, file),
        "alignment": lambda steps, file: align_vision(model, seed, steps, file),
        "grounding": lambda steps, file: ground_vision(model, seed, steps, file),
        "captions": lambda steps, file: train_captions(model, seed, steps, file),
        "scales": lambda steps, file: train_scales(model, seed, steps, PRIOR, file),
        "polish": lambda steps, file: polish(model, seed, steps, PRIOR, file),
    }


def train(output: Path, seed: int = 0, fraction: float = 1.0) -> Qwen2VLForConditionalGeneration:
    r"""Train a tiny Qwen2-VL and save it, with its processor, in the formats of transformers.

    Args:
        output (Path): The folder to fill. If it holds checkpoints of the same seed and fraction,
            training goes on from there.
        seed (int): Seeds weights, scenes and their order. Default: 0
        fraction (float): How much of the full schedule to run, in (0, 1]; a hundredth is a smoke
            test. Default: 1.0

    Returns:
        transformers.Qwen2VLForConditionalGeneration: The trained model.

    Raises:
        ValueError: If the fraction is out of range, or the folder holds checkpoints of another
            seed or fraction.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"The fraction must lie in (0, 1], but is {fraction}.")
    checkpoints = output / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    _check_same_run(checkpoints / "run.json", {"seed": seed, "fraction": fraction})
    model = build_model(seed)
    initialize_vision(model, seed)
    use_fast_vision(model)
    for label, run in _stages(model, seed).items():
        done = checkpoints / f"{label}.done.pt"
        if done.exists():
            model.load_state_dict(torch.load(done, weights_only=True))
            continue
        running = Checkpoint(checkpoints / f"{label}.running.pt")
        run(max(1, round(_STEPS[label] * fraction)), running)
        torch.save(model.state_dict(), done)
        running.path.unlink(missing_ok=True)
    save_demo(model, output)
    return model


def _check_same_run(path: Path, run: dict[str, float]) -> None:
    """Refuse to mix two runs in one folder."""
    if path.exists() and json.loads(path.read_text()) != run:
        raise ValueError(
            f"{path.parent} holds the checkpoints of another run, {path.read_text()}, not of "
            f"{json.dumps(run)}; choose another folder or delete it."
        )
    path.write_text(json.dumps(run))


def save_demo(model: Qwen2VLForConditionalGeneration, output: Path) -> None:
    r"""Save a trained model and its processor; the weights take 16 bits each on disk.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model, in float32.
        output (Path): The folder to write to.
    """
    copy = build_model()
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(output)
    # Readers take the data type of the configuration: half the space, but full precision in use.
    config = output / "config.json"
    entries = json.loads(config.read_text())
    entries["dtype"] = "float32"
    config.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n")
    build_processor().save_pretrained(output)


def main(arguments: Sequence[str] | None = None) -> None:
    r"""The command line.

    Args:
        arguments (Sequence[str], optional): The arguments. If None, those of the process.
            Default: None
    """
    parser = argparse.ArgumentParser(description="Train a tiny multimodal model on scenes.")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default=ARCHITECTURES[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder to fill")
    parser.add_argument(
        "--fraction", type=float, default=1.0, help="share of the schedule, for a smoke test"
    )
    options = parser.parse_args(arguments)
    train(options.output, options.seed, options.fraction)


if __name__ == "__main__":
    main()
