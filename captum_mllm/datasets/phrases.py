r"""Data whose phrases are grounded: GranD-f, RefCOCO, Flickr30k Entities, TextVQA boxes, VizWiz."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from captum_mllm.datasets.entries import Entry
from captum_mllm.datasets.masks import BoxMask, PngMask, RleMask
from captum_mllm.datasets.rows import RawRow, read_json
from captum_mllm.datasets.samples import Region, Sample, SampleError

GROUNDED_CAPTION = "Describe the image in detail."
REFERRING = "Describe one object of this image in a short phrase."
CAPTION = "Describe the image in one sentence."
_ENTITY = re.compile(r"\[/EN#(\d+)((?:/[^\s\]/]+)+) ([^\]]*)\]")


def grandf_sample(entry: Entry) -> Sample:
    r"""
    A sample of GranD-f's grounded captions: ``{file_name, caption, groundings: {phrase:
    {token_positives: [start, end], rle_masks: [...]}}}``.

    Raises:
        SampleError: If something is missing or wrong.
    """
    # Positions count in the caption without the quotation marks around it.
    caption = entry.text("caption").strip('"').strip()
    if not caption:
        raise entry.error("'caption' is empty")
    image = entry.image(entry.text("file_name"))
    regions = []
    for phrase, grounding in entry.get("groundings", dict).items():
        if not isinstance(grounding, dict):
            raise entry.error(f"the grounding of {phrase!r} is not an object")
        mask = entry.mask(grounding.get("rle_masks"), f"the grounding of {phrase!r}")
        if not isinstance(mask, RleMask):
            raise entry.error(f"the grounding of {phrase!r} has no run-length encodings")
        regions.append(entry.region(caption, mask, phrase, grounding.get("token_positives")))
    regions.sort(key=lambda region: region.start or 0)
    return entry.sample(
        entry.id("image_id"),
        image,
        entry.prompt or GROUNDED_CAPTION,
        answer=caption,
        references=(caption,),
        regions=tuple(regions),
    )


def refcoco_sample(entry: Entry) -> Sample:
    r"""
    A sample of RefCOCO, RefCOCO+ or RefCOCOg in its JSON form: ``{image, answer: [expression,
    ...], bbox, segmentation}``. The first expression is the answer, and all of it speaks of the
    object.

    Raises:
        SampleError: If something is missing or wrong.
    """
    expressions = entry.texts("answer")
    image = entry.image(entry.text("image", "file_name"))
    key = "segmentation" if entry.has("segmentation") else "bbox"
    mask = entry.mask(entry.get(key, (list, dict)), key)
    return entry.sample(
        entry.id("question_id", "id"),
        image,
        entry.prompt or REFERRING,
        answer=expressions[0],
        references=expressions,
        regions=(Region(expressions[0], mask, 0),),
    )


def textvqa_sample(entry: Entry) -> Sample:
    r"""
    A sample of TextVQA with boxes: ``{image, question, answer: [...], bbox: [x, y, w, h]}``. All
    of the answer is read in the box.

    Raises:
        SampleError: If something is missing or wrong.
    """
    answers = entry.texts("answer")
    mask = entry.mask(entry.get("bbox", list), "bbox")
    if not isinstance(mask, BoxMask):
        raise entry.error("'bbox' is not a box [x, y, width, height]")
    return entry.sample(
        entry.id("question_id", "id"),
        entry.image(entry.text("image", "file_name", "image_id")),
        entry.text("question"),
        answer=answers[0],
        references=answers,
        regions=(Region(answers[0], mask, 0),),
    )


class _Named(NamedTuple):
    """A row of VizWiz: the image's name, the split, and what is said about it."""

    name: str
    split: str
    row: Any


def vizwiz_file(path: Path) -> Path | None:
    r"""The file of VizWiz in a folder: that of the validation split, if it is there."""
    if path.is_file():
        return path if path.name.endswith("_grounding.json") else None
    names = [f"{split}_grounding.json" for split in ("val", "train", "test")]
    return next((path / name for name in names if (path / name).is_file()), None)


def vizwiz_rows(path: Path) -> Iterator[RawRow]:
    r"""
    The rows of ``{split}_grounding.json``, an object with an entry for each image.

    Raises:
        ValueError: If there is no such file, or it is damaged.
    """
    file = vizwiz_file(path)
    if file is None:
        raise ValueError(f"there is no file SPLIT_grounding.json in {path}")
    whole = read_json(file)
    if not isinstance(whole, dict):
        raise ValueError(f"{file}: expected a JSON object with an entry for each image")
    split = file.name.removesuffix("_grounding.json")
    for name, row in whole.items():
        yield RawRow(f"{file}, {name}", _Named(name, split, row))


def vizwiz_sample(entry: Entry) -> Sample:
    r"""
    A sample of VizWiz-VQA-Grounding, whose answer is the most common one.

    Raises:
        SampleError: If something is missing or wrong.
    """
    name, split, row = entry.value
    given = Entry(entry.number, entry.source, row, entry.data, entry.images)
    if given.has("most_common_answer"):
        answers: list[Any] = [given.text("most_common_answer")]
    else:
        listed = given.get("answers", list)
        answers = [each.get("answer") if isinstance(each, dict) else each for each in listed]
        if not answers or not all(isinstance(each, str) for each in answers):
            raise given.error("'answers' is not a list of texts")
        answers = [answer.strip() for answer, _ in Counter(answers).most_common() if answer.strip()]
        if not answers:
            raise given.error("all answers are empty")
    image = given.image(name, given.images / split, given.data / split, given.images)
    mask = given.data / "binary_masks_png" / split / f"{Path(name).stem}.png"
    if not mask.is_file():
        raise given.error(f"there is no mask {mask}")
    return given.sample(
        name,
        image,
        given.text("question"),
        answer=answers[0],
        references=tuple(answers),
        regions=(Region(answers[0], PngMask(mask), 0),),
    )


class _Sentence(NamedTuple):
    """A sentence of Flickr30k: the image's id, which of its sentences, and the text."""

    image: str
    place: int
    text: str


def flickr_rows(path: Path) -> Iterator[RawRow]:
    r"""A row for each sentence of ``Sentences/ID.txt``, in the order of the ids."""
    for file in sorted((path / "Sentences").glob("*.txt")):
        with file.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                source = f"{file}, line {number}"
                try:
                    text = raw.decode("utf-8").strip()
                except UnicodeDecodeError as error:
                    message = f"the line is not UTF-8: {error}"
                    yield RawRow(source, SampleError(message, source))
                    continue
                if text:
                    yield RawRow(source, _Sentence(file.stem, number, text))


def flickr_sample(entry: Entry) -> Sample:
    r"""
    A sample of Flickr30k Entities: a sentence whose phrases ``[/EN#chain/type words]`` speak of
    the boxes of their chain. Phrases of chains without a box have no region.

    Raises:
        SampleError: If something is missing or wrong.
    """
    row: _Sentence = entry.value
    file = entry.data / "Annotations" / f"{row.image}.xml"
    try:
        boxes = _boxes(file)
    except FileNotFoundError:
        raise entry.error(f"there is no file {file}") from None
    except (ElementTree.ParseError, ValueError, AttributeError) as error:
        raise entry.error(f"{file} is damaged: {error}") from error
    folders = [entry.data / name for name in ("flickr30k-images", "flickr30k_images", "images")]
    image = entry.image(f"{row.image}.jpg", entry.images, *folders)
    sentence, place, phrases = "", 0, []
    for found in _ENTITY.finditer(row.text):
        sentence += row.text[place : found.start()]
        phrases.append((found[1], len(sentence), found[3]))
        sentence += found[3]
        place = found.end()
    sentence += row.text[place:]
    if "[/EN#" in sentence:
        raise entry.error("a phrase has no end or no words")
    regions = tuple(
        entry.region(sentence, BoxMask(boxes[chain]), "", [start, start + len(text)])
        for chain, start, text in phrases
        if boxes.get(chain)
    )
    return entry.sample(
        f"{row.image}#{row.place}",
        image,
        entry.prompt or CAPTION,
        answer=sentence,
        references=(sentence,),
        regions=regions,
    )


Box = tuple[float, float, float, float]


# The sentences of an image come one after the other.
@lru_cache(maxsize=4)
def _boxes(file: Path) -> dict[str, tuple[Box, ...]]:
    """The boxes of each chain; pixels are counted from 1, and both ends belong to a box."""
    text = file.read_text(encoding="utf-8")
    if "<!ENTITY" in text:
        raise ValueError("it declares entities, which annotations do not need")
    found: dict[str, list[Box]] = {}
    for thing in ElementTree.fromstring(text).iter("object"):
        box = thing.find("bndbox")
        if box is None:
            continue
        values = [int(box.findtext(edge) or "") for edge in ("xmin", "ymin", "xmax", "ymax")]
        left, top, right, bottom = map(float, values)
        for name in thing.findall("name"):
            found.setdefault(name.text or "", []).append((left - 1, top - 1, right, bottom))
    return {chain: tuple(boxes) for chain, boxes in found.items()}
