r"""Train: ``python -m captum_mllm.demo.training.smolvlm.train --output FOLDER``.

After the start, which :mod:`~captum_mllm.demo.training.smolvlm.start` describes, there is one
loss: that of the next token of the answers. The language model's weights are fixed; a tower, a
projector and low-rank changes of the language model are trained. A run that is interrupted goes on
from its last checkpoint.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from captum_mllm.datasets import COLORS, SHAPES, Scene, render, sample_scene
from captum_mllm.demo.language_model import load_language_model, load_tokenizer
from captum_mllm.demo.training.architecture import pixels
from captum_mllm.demo.training.caption_stages import frame
from captum_mllm.demo.training.optimization import fast_products
from captum_mllm.demo.training.smolvlm.architecture import (
    GRID,
    IMAGE,
    SIDE,
    LoRA,
    add_lora,
    build_model,
    image_features,
    text_logits,
    with_image_token,
)
from captum_mllm.demo.training.smolvlm.export import as_trained
from captum_mllm.demo.training.smolvlm.start import start_from_nothing, start_from_words
from captum_mllm.demo.training.smolvlm.texts import IGNORED, Texts, pack, sequence

# Odds of the zooms: side of the drawn image over that of its canvas.
_ZOOMS = {1.0: 0.7, 0.5: 0.04, 0.65: 0.05, 0.8: 0.06, 0.9: 0.05, 1.25: 0.04, 1.5: 0.03, 2.0: 0.03}
_PRIORS = {0.0: 0.5, 0.5: 0.35, 1.0: 0.15}
_WARM_UP = 20
_NEGATIVES = 4096

#: What training may start from, beside the file of an adapter.
STARTS = ("words", "nothing")

#: How many scenes tell which tokens answers are made of.
ANSWERS_OF = 400


class Settings(NamedTuple):
    r"""What a run depends on.

    Args:
        steps (int): Optimization steps in all.
        decay (int): How many of them, at the end, lower the learning rates to 0.
        batch (int): Images in a step.
        budget (int): Tokens of text behind an image.
        keep (float): Share of the image tokens that a step sees, in 0 to 1, drawn anew in each.
            In the last ``whole`` steps it sees all of them.
        whole (int): How many steps these are.
        rank (int): Rank of the changes to the language model.
        seed (int): Seeds everything.
        lora_rate (float): Learning rate of these changes, before the decay.
        projector_rate (float): Learning rate of the projector.
        tower_rate (float): Learning rate of the tower.
        start (str): "words", a tower and a projector that say words; "nothing", random ones; or
            the file of an exported adapter.
    """

    steps: int
    decay: int
    batch: int = 4
    budget: int = 210
    keep: float = 0.5
    whole: int = 100
    rank: int = 8
    seed: int = 0
    lora_rate: float = 1e-3
    projector_rate: float = 1e-3
    tower_rate: float = 2e-4
    start: str = "words"


def learning_rate(step: int, settings: Settings) -> float:
    r"""The factor of the learning rates in a step: a warm-up, a plateau, a decay to 0."""
    left = (settings.steps - step) / max(settings.decay, 1)
    return max(0.0, min(1.0, (step + 1) / _WARM_UP, left))


def draw_scenes(generator: np.random.Generator, count: int) -> tuple[list[Scene], np.ndarray]:
    r"""Scenes with a language prior of varying strength, and their images at several zooms."""
    scenes, images = [], []
    for _ in range(count):
        zoom = float(generator.choice(list(_ZOOMS), p=list(_ZOOMS.values())))
        prior = float(generator.choice(list(_PRIORS), p=list(_PRIORS.values())))
        contact = 0.25 if generator.random() < 0.5 else 0.0
        scene = sample_scene(
            generator, objects=1 if zoom > 1 else None, prior=prior, contact=contact
        )
        image = render(scene, SIDE).image
        if zoom != 1:
            image = frame(image[None], [scene], zoom, generator)[0]
        scenes.append(scene)
        images.append(image)
    return scenes, np.stack(images)


def used_tokens(texts: Texts) -> Tensor:
    r"""The tokens that answers are made of."""
    found: set[int] = set()
    for number in range(ANSWERS_OF):
        generator = np.random.default_rng([3, number])
        for _, said in texts.of_scene(sample_scene(generator, contact=0.2), generator, 400):
            found.update(said)
    return torch.tensor(sorted(found))


class Trainer:
    r"""A run in progress.

    Args:
        settings (Settings): What it depends on.
        folder (Path): Where its checkpoint and its log lie.
        model (transformers.LlavaForConditionalGeneration): The untrained model; it is changed.
        texts (Texts): Its tokens.
    """

    def __init__(self, settings: Settings, folder: Path, model: Any, texts: Texts) -> None:
        self.settings, self.folder, self.model, self.texts = settings, folder, model, texts
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        if settings.start == "words":
            start_from_words(model, texts, settings.seed)
        else:
            start_from_nothing(model, settings.seed)
        add_lora(model, settings.rank)
        model.requires_grad_(False)
        changes = [m for m in model.modules() if isinstance(m, LoRA)]
        tower = model.model.vision_tower
        groups = {
            "projector": (
                list(model.model.multi_modal_projector.parameters()),
                settings.projector_rate,
            ),
            # The last layer of the tower is not used.
            "tower": (
                [
                    parameter
                    for part in (tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:-1])
                    for parameter in part.parameters()
                ],
                settings.tower_rate,
            ),
            "changes": ([p for m in changes for p in (m.A, m.B)], settings.lora_rate),
        }
        if settings.start not in STARTS:
            load_adapter(model, as_trained(load_file(settings.start)))
        self.parameters = [p for group, _ in groups.values() for p in group]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            [{"params": group, "lr": rate, "peak": rate} for group, rate in groups.values()],
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )
        self.used = used_tokens(texts)
        self.step = 0
        self.smooth: dict[str, float] = {}
        self.groups = {
            name: torch.tensor([texts.encode(f" {word}")[0] for word in words])
            for name, words in (("shape", tuple(SHAPES)), ("color", tuple(COLORS)))
        }

    def train_step(self) -> None:
        r"""One step of optimization."""
        settings, step = self.settings, self.step
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(step, settings)
        generator = np.random.default_rng([settings.seed, 7, step])
        scenes, images = draw_scenes(generator, settings.batch)
        rows = [self.texts.of_scene(scene, generator, settings.budget) for scene in scenes]
        # One width for all steps, so that one compilation serves them.
        batch = pack(rows, self.texts.end, settings.budget)
        whole = step >= settings.steps - settings.whole
        kept = GRID**2 if whole else round(GRID**2 * settings.keep)
        cells = torch.from_numpy(
            np.stack([np.sort(generator.permutation(GRID**2)[:kept]) for _ in scenes])
        )
        chosen = batch.labels != IGNORED
        labels = batch.labels[chosen]
        # The loss's denominator holds the tokens that answers are made of and a sample of the rest.
        others = torch.from_numpy(generator.integers(0, len(self.model.lm_head.weight), _NEGATIVES))
        columns = torch.cat([self.used, labels, others]).unique()
        targets = torch.searchsorted(columns, labels)
        with fast_products():
            features = image_features(self.model, pixels(images, SIDE))
            features = features.gather(1, cells.unsqueeze(2).expand(-1, -1, features.shape[2]))
            states = sequence(self.model, self.texts, features, cells, batch)[:, kept:]
            logits = text_logits(self.model, states[chosen], columns).float()
        loss = F.cross_entropy(logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        right = logits.argmax(1) == targets
        now = {"loss": float(loss.detach()), "all": float(right.float().mean())}
        for name, words in self.groups.items():
            now[name] = float(right[torch.isin(labels, words)].float().mean())
        for name, value in now.items():
            if value != value:  # No such word among the answers.
                continue
            self.smooth[name] = 0.95 * self.smooth.get(name, value) + 0.05 * value
        self.size = (len(scenes) * (kept + 3 + batch.ids.shape[1]), len(labels))

    def save(self) -> None:
        r"""Write the checkpoint, in one piece or not at all."""
        state = {
            "step": self.step,
            "smooth": self.smooth,
            "settings": self.settings._asdict(),
            "adapter": adapter_state(self.model),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")

    def resume(self) -> None:
        r"""Go on from the checkpoint, if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            return
        state = torch.load(path, weights_only=True)
        # The plateau may be longer or shorter than it was meant to be.
        free = {"steps", "decay", "whole"}
        if any(
            state["settings"].get(key, value) != value
            for key, value in self.settings._asdict().items()
            if key not in free
        ):
            raise ValueError(f"{path} is of a run with other settings: {state['settings']}.")
        load_adapter(self.model, state["adapter"])
        peaks = [(group["lr"], group["peak"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, (rate, peak) in zip(self.optimizer.param_groups, peaks):
            group["lr"], group["peak"] = rate, peak
        self.step, self.smooth = state["step"], state["smooth"]

    def run(self, save_every: float = 150.0) -> None:
        r"""Train to the end, with a checkpoint every so many seconds and a line every 5 steps."""
        self.resume()
        saved = time.monotonic()
        with (self.folder / "log.txt").open("a") as log:
            while self.step < self.settings.steps:
                self.train_step()
                if self.step % 5 == 0:
                    measured = " ".join(f"{k} {v:.3f}" for k, v in self.smooth.items())
                    clock = f"{time.strftime('%H:%M:%S')} cpu {time.process_time():.0f}"
                    log.write(f"{clock} step {self.step} size {self.size} {measured}\n")
                    log.flush()
                if time.monotonic() - saved > save_every:
                    self.save()
                    saved = time.monotonic()
        self.save()


def adapter_state(model: Any) -> dict[str, Tensor]:
    r"""The weights of the tower, the projector and the changes."""
    return {
        name: value.detach().clone()
        for name, value in model.state_dict().items()
        if "vision_tower" in name or "multi_modal_projector" in name or name.endswith((".A", ".B"))
    }


def load_adapter(model: Any, state: dict[str, Tensor]) -> None:
    r"""Set the weights of the tower, the projector and the changes."""
    missing = set(adapter_state(model)) ^ set(state)
    if missing:
        raise ValueError(f"the adapter does not fit the model: {sorted(missing)[:3]}")
    model.load_state_dict(state, strict=False)


def main(arguments: list[str] | None = None) -> None:
    r"""Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--decay", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the learning rates")
    parser.add_argument("--batch", type=int, default=4, help="images in a step")
    parser.add_argument("--budget", type=int, default=210, help="tokens of text behind an image")
    parser.add_argument("--whole", type=int, default=100, help="last steps with all image tokens")
    parser.add_argument(
        "--start",
        default="words",
        metavar="{words,nothing,FILE}",
        help="a tower that says words, a random one, or the adapter of a model to go on from",
    )
    parser.add_argument("--compile", action="store_true", help="fuse what is not a product")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    tokenizer = with_image_token(load_tokenizer())
    model = build_model(load_language_model(), tokenizer.convert_tokens_to_ids(IMAGE))
    settings = Settings(
        options.steps,
        options.decay,
        batch=options.batch,
        budget=options.budget,
        whole=options.whole,
        seed=options.seed,
        lora_rate=1e-3 * options.rate,
        projector_rate=1e-3 * options.rate,
        tower_rate=2e-4 * options.rate,
        start=options.start,
    )
    # Attention with a mask of its own has a slow gradient in the fused kernel.
    model.set_attn_implementation("eager")
    trainer = Trainer(settings, options.output, model, Texts(tokenizer))
    if options.compile:
        for layer in model.model.language_model.layers:
            layer.compile(dynamic=False)
    trainer.run()


if __name__ == "__main__":
    main()
