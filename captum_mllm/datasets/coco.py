r"""TAM's data (COCO captions, and rows of image, caption, mask and categories), and OpenPSG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from captum_mllm.datasets.entries import Entry
from captum_mllm.datasets.masks import PanopticMask, PngMask, Size
from captum_mllm.datasets.rows import RawRow, json_rows, read_json
from captum_mllm.datasets.samples import LabelImage, Region, Sample, SampleError

COCO_PROMPT = "Write a one-sentence caption for this image:"
TWO_SENTENCES = "Write a description for this image using around two sentences:"
THREE_SENTENCES = "Write a description for this image using around three sentences:"

_INSTANCES = "annotations/instances_minival2014.json"
_CAPTIONS = "annotations/captions_val2014.json"
#: Names of COCO that TAM's evaluation shortens, since it looks for single words.
RENAMED = {"sports ball": "ball", "wine glass": "glass"}


class _Captioned(NamedTuple):
    """An image of COCO: its number, its captions, and the labels of all categories."""

    image: int
    captions: tuple[str, ...]
    categories: Mapping[str, int]


def is_coco(path: Path) -> bool:
    r"""Whether a folder is COCO in TAM's layout."""
    return (path / _INSTANCES).is_file() and (path / _CAPTIONS).is_file()


def coco_rows(path: Path) -> Iterator[RawRow]:
    r"""
    The images of the minival split, with their captions.

    Args:
        path (Path): The folder of ``annotations``, ``image`` and ``seg_label``.

    Yields:
        RawRow: In the order of ``instances_minival2014.json``.

    Raises:
        ValueError: If one of the two files of annotations is damaged.
    """
    captions: dict[Any, list[str]] = {}
    instances = read_json(path / _INSTANCES)
    listed = read_json(path / _CAPTIONS)
    try:
        for row in listed["annotations"]:
            captions.setdefault(row["image_id"], []).append(str(row["caption"]))
        categories = {
            RENAMED.get(each["name"], each["name"]): int(each["id"])
            for each in instances["categories"]
        }
        images = [image["id"] for image in instances["images"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path / 'annotations'} is not COCO's: {error!r}") from error
    for place, image in enumerate(images):
        source = f"{path / _INSTANCES}, image {place + 1}"
        yield RawRow(source, _Captioned(image, tuple(captions.get(image, ())), categories))


def coco_sample(entry: Entry) -> Sample:
    r"""
    A sample of an image of COCO, whose first caption is the reference answer.

    Raises:
        SampleError: If a file is missing, or the image has no caption.
    """
    row: _Captioned = entry.value
    if not isinstance(row.image, int) or row.image < 0:
        raise entry.error(f"the image has the id {row.image!r}, expected a number")
    name = f"{row.image:012d}"
    image = entry.image(f"image/{name}.jpg", entry.images, entry.data)
    captions = tuple(caption.strip() for caption in row.captions if caption.strip())
    if not captions:
        raise entry.error(f"the image {name} has no caption")
    return entry.sample(
        name,
        image,
        entry.prompt or COCO_PROMPT,
        answer=captions[0],
        references=captions,
        labels=_labels(entry, entry.data / f"seg_label/{name}.png", row.categories),
    )


def _labels(entry: Entry, path: Path, categories: Any) -> LabelImage:
    if not path.is_file():
        raise entry.error(f"there is no label image {path}")
    is_table = isinstance(categories, dict) and all(
        isinstance(name, str) and type(label) is int and label >= 0
        for name, label in categories.items()
    )
    if not is_table:
        raise entry.error("the categories are not an object from names to labels from 0 upwards")
    return LabelImage.of_file(path, categories, PngMask(path))


def tam_rows(path: Path) -> Iterator[RawRow]:
    r"""The rows of ``anno.json`` in a folder, or of a file of such rows (a list or JSON lines)."""
    file = path / "anno.json" if path.is_dir() else path
    return json_rows(file)


def tam_sample(entry: Entry) -> Sample:
    r"""
    A sample of a row ``[image, caption, mask, {category: label}]`` or
    ``[image, prompt, [caption, ...], mask, {category: label}]``.

    Raises:
        SampleError: If something is missing or wrong.
    """
    row = entry.value
    if not isinstance(row, list) or len(row) not in (4, 5):
        raise entry.error(
            "expected a list of image, caption, mask and categories, or of image, prompt, "
            "captions, mask and categories"
        )
    # The two data sets of TAM have this layout; their folders tell them apart.
    own = THREE_SENTENCES if "psg" in str(entry.data).lower() else TWO_SENTENCES
    image, *texts, mask, categories = row
    prompt = texts[0] if len(texts) == 2 else entry.prompt or own
    given = texts[-1] if isinstance(texts[-1], list) else [texts[-1]]
    if not all(isinstance(text, str) for text in (image, mask, prompt, *given)):
        raise entry.error("image, prompt, captions and mask have to be texts")
    captions = tuple(text.strip() for text in given if text.strip())
    if not captions or not prompt.strip():
        raise entry.error("the caption is empty" if not captions else "the prompt is empty")
    return entry.sample(
        str(entry.number),
        entry.image(image, entry.images, entry.data),
        prompt,
        answer=captions[0],
        references=captions,
        labels=_labels(entry, entry.data / mask, categories),
    )


def psg_rows(path: Path) -> Iterator[RawRow]:
    r"""
    The images of OpenPSG's ``psg.json``; those of the test split, where the file names one.

    Args:
        path (Path): The file, or its folder.

    Yields:
        RawRow: The entry of an image, with the names of all classes.

    Raises:
        ValueError: If the file is damaged.
    """
    file = path / "psg.json" if path.is_dir() else path
    whole = read_json(file)
    try:
        classes = (*whole["thing_classes"], *whole["stuff_classes"])
        test = set(map(str, whole.get("test_image_ids", ())))
        rows = list(whole["data"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a file of OpenPSG: {error!r}") from error
    for place, row in enumerate(rows):
        source = f"{file}, entry {place + 1}"
        if not isinstance(row, dict):
            yield RawRow(source, SampleError("expected a JSON object", source))
        elif not test or str(row.get("image_id")) in test:
            yield RawRow(source, {**row, "classes": classes})


def psg_sample(entry: Entry) -> Sample:
    r"""
    A sample of an image of OpenPSG: it has no caption, and a region for each class in it.

    Raises:
        SampleError: If something is missing or wrong.
    """
    classes = entry.get("classes", tuple)
    image = entry.image(entry.text("file_name"), entry.images, entry.data)
    name = entry.text("pan_seg_file_name")
    panoptic = next(
        (each / name for each in (entry.images, entry.data) if (each / name).is_file()), None
    )
    if panoptic is None:
        raise entry.error(f"there is no panoptic image {name!r}")
    segments: dict[int, list[int]] = {}
    for segment in entry.get("segments_info", list):
        try:
            segments.setdefault(int(segment["category_id"]), []).append(int(segment["id"]))
        except (KeyError, TypeError, ValueError) as error:
            raise entry.error(f"a segment is damaged: {error!r}") from error
    if not all(0 <= place < len(classes) for place in segments):
        raise entry.error(f"a segment has a class beyond the {len(classes)} classes")
    # "wall-brick" and "wall-other-merged" of COCO are walls.
    categories: dict[str, int] = {}
    members: dict[str, list[int]] = {}
    for place, ids in segments.items():
        name = classes[place].split("-")[0]
        categories.setdefault(name, place + 1)
        members.setdefault(name, []).extend(ids)
    label_of = {id: categories[name] for name, ids in members.items() for id in ids}

    def labels(size: Size) -> npt.NDArray[np.int32]:
        with Image.open(panoptic) as opened:
            colors = np.asarray(opened.convert("RGB"), dtype=np.int32)
        ids = colors @ np.array([1, 256, 65536], dtype=np.int32)
        found = np.zeros(ids.shape, dtype=np.int32)
        for id, label in label_of.items():
            found[ids == id] = label
        if found.shape != size:
            raise ValueError(f"the panoptic image has {found.shape}, expected {size}")
        return found

    return entry.sample(
        entry.id("image_id"),
        image,
        entry.prompt or THREE_SENTENCES,
        regions=tuple(
            Region(name, PanopticMask(panoptic, tuple(ids))) for name, ids in members.items()
        ),
        labels=LabelImage(labels, categories, PngMask(panoptic).check),
    )
