"""Scenes as files in the formats of public data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captum_mllm.datasets import SHAPES, render
from captum_mllm.evaluation import SceneExample, sample_examples
from tests.datasets.written import encode_rle, write_json, write_lines

#: Tags of the words of captions of scenes, as TAM's protocol takes them.
TAGS = {
    **dict.fromkeys(SHAPES, "NN"),
    "background": "NN",
    "a": "DT",
    "the": "DT",
    "and": "CC",
    "there": "EX",
}


def row_of(example: SceneExample, folder: Path) -> dict[str, Any]:
    """A row of our own, whose nouns have their masks."""
    name = f"{example.number}.png"
    example.image.save(folder / name, compress_level=1)
    regions, start = [], 0
    for place, word in enumerate(example.caption.words):
        if example.caption.kinds[place] == "noun" and word in SHAPES:
            mask = example.region(place).numpy()
            if mask.any():
                rle = {"counts": encode_rle(mask), "size": list(mask.shape)}
                regions.append({"words": [start, start + len(word)], "mask": rle})
        start += len(word) + 1
    answer, prompt = example.answer, example.prompt
    return {"image": name, "prompt": prompt, "answer": answer, "regions": regions}


def export_lines(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    examples = sample_examples(range(count), "test", objects=2)
    return write_lines(folder / "scenes.jsonl", [row_of(each, folder) for each in examples])


def export_coco(folder: Path, count: int, size: int = 224) -> Path:
    """TAM's layout of COCO; an object's category is its shape."""
    labels = {shape: place + 1 for place, shape in enumerate(sorted(SHAPES))}
    (folder / "image").mkdir(parents=True)
    (folder / "seg_label").mkdir()
    captions = []
    for example in sample_examples(range(count), "test", objects=2):
        name = f"{example.number:012d}"
        rendered = render(example.scene, size)
        Image.fromarray(rendered.image).save(folder / "image" / f"{name}.jpg", quality=95)
        levels = np.zeros((size, size), dtype=np.uint8)
        for thing, mask in zip(example.scene.objects, rendered.masks):
            levels[mask] = labels[thing.shape]
        Image.fromarray(levels).save(folder / "seg_label" / f"{name}.png")
        captions.append({"image_id": example.number, "caption": example.answer})
    categories = [{"id": label, "name": shape} for shape, label in labels.items()]
    write_json(
        folder / "annotations/instances_minival2014.json",
        {"images": [{"id": number} for number in range(count)], "categories": categories},
    )
    write_json(folder / "annotations/captions_val2014.json", {"annotations": captions})
    (folder / "tags.json").write_text(json.dumps(TAGS))
    return folder
