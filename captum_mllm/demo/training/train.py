r"""Train a demo model from nothing: ``python -m captum_mllm.demo.training.train --output FOLDER``.

The stages run one after the other, and each leaves a checkpoint in ``FOLDER/checkpoints``; the same
command goes on where training stopped. The schedule counts steps, so the result depends on the
seed and on the number of threads (the order of summation), never on the speed of the machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from captum_mllm.demo.training.architecture import Architecture
from captum_mllm.demo.training.architectures import ARCHITECTURES
from captum_mllm.demo.training.attention import use_float32_attention
from captum_mllm.demo.training.caption_stages import polish, train_captions
from captum_mllm.demo.training.course import Course, Stage
from captum_mllm.demo.training.language_stage import train_language
from captum_mllm.demo.training.optimization import Checkpoint
from captum_mllm.demo.training.vision_stage import ground_vision, initialize_vision, train_vision

_STEPS = {
    "language": 700,
    "vision": 1200,
    "grounding": 500,
    "captions": 6000,
    "zooms": 800,
}


def _stages(course: Course) -> dict[str, Stage]:
    stages: dict[str, Stage] = {"language": train_language, "vision": train_vision}
    if not course.answers_only:
        stages["grounding"] = ground_vision
    stages["captions"] = train_captions
    if len(course.architecture.zooms) > 1:
        stages["zooms"] = partial(polish, lens=False)
    stages["polish"] = polish
    return stages


def train(
    output: Path,
    architecture: str = "qwen2-vl",
    seed: int = 0,
    fraction: float = 1.0,
    answers_only: bool = False,
) -> Any:
    r"""Train a demo model and save it, with its processor, in the formats of transformers.

    Args:
        output (Path): The folder to fill. If it holds checkpoints of the same architecture, seed
            and fraction, training goes on from there.
        architecture (str): One of :data:`~captum_mllm.demo.training.architectures.ARCHITECTURES`.
            Default: ``"qwen2-vl"``
        seed (int): Seeds weights, scenes and their order. Default: 0
        fraction (float): How much of the full schedule to run, in (0, 1]; a hundredth is a smoke
            test. Default: 1.0
        answers_only (bool): Whether to leave out the losses on what each image token says, and
            with them the stage that has no other. Default: False

    Returns:
        transformers.PreTrainedModel: The trained model.

    Raises:
        ValueError: If there is no such architecture, the fraction is out of range, or the folder
            holds checkpoints of another run.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"No architecture is called {architecture!r}; there are {', '.join(ARCHITECTURES)}."
        )
    if not 0 < fraction <= 1:
        raise ValueError(f"The fraction must lie in (0, 1], but is {fraction}.")
    facts = ARCHITECTURES[architecture]
    checkpoints = output / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    run = {
        "architecture": architecture,
        "seed": seed,
        "fraction": fraction,
        "answers_only": answers_only,
    }
    _check_same_run(checkpoints / "run.json", run)
    model = facts.build_model(seed)
    initialize_vision(model, facts, seed)
    facts.prepare(model)
    use_float32_attention(model)
    course = Course(facts, seed, answers_only=answers_only)
    all_steps = {**_STEPS, "polish": facts.polish_steps}
    for label, stage in _stages(course).items():
        done = checkpoints / f"{label}.done.pt"
        if done.exists():
            model.load_state_dict(torch.load(done, weights_only=True))
            continue
        running = Checkpoint(checkpoints / f"{label}.running.pt")
        stage(model, course, max(1, round(all_steps[label] * fraction)), running)
        torch.save(model.state_dict(), done)
        running.path.unlink(missing_ok=True)
    save_demo(model, facts, output)
    return model


def _check_same_run(path: Path, run: dict[str, Any]) -> None:
    """Refuse to mix two runs in one folder."""
    if path.exists() and json.loads(path.read_text()) != run:
        raise ValueError(
            f"{path.parent} holds the checkpoints of another run, {path.read_text()}, not of "
            f"{json.dumps(run)}; choose another folder or delete it."
        )
    path.write_text(json.dumps(run))


def save_demo(model: Any, architecture: Architecture, output: Path) -> None:
    r"""Save a trained model and its processor; the weights take 16 bits each on disk.

    Args:
        model (transformers.PreTrainedModel): The model, in float32.
        architecture (Architecture): Its architecture.
        output (Path): The folder to write to.
    """
    copy = architecture.build_model()
    copy.load_state_dict(model.state_dict())
    copy.half().save_pretrained(output)
    # Readers take the data type of the configuration: half the space, but full precision in use.
    config = output / "config.json"
    entries = json.loads(config.read_text())
    entries["dtype"] = "float32"
    config.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n")
    architecture.build_processor().save_pretrained(output)


def main(arguments: Sequence[str] | None = None) -> None:
    r"""The command line.

    Args:
        arguments (Sequence[str], optional): The arguments. If None, those of the process.
            Default: None
    """
    parser = argparse.ArgumentParser(description="Train a tiny multimodal model on scenes.")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="qwen2-vl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder to fill")
    parser.add_argument(
        "--fraction", type=float, default=1.0, help="share of the schedule, for a smoke test"
    )
    parser.add_argument(
        "--answers-only",
        action="store_true",
        help="leave out the losses on what each image token says",
    )
    options = parser.parse_args(arguments)
    train(
        options.output,
        options.architecture,
        options.seed,
        options.fraction,
        options.answers_only,
    )


if __name__ == "__main__":
    main()
