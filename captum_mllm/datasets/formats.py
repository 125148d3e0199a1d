r"""``FORMATS``, every format that is read; ``find_format``, which tells them apart; and
``open_samples``, the samples of a file or folder one at a time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from captum_mllm._options import check_choice, check_whole
from captum_mllm.datasets import coco, json_lines, phrases, questions
from captum_mllm.datasets.entries import Entry
from captum_mllm.datasets.rows import RawRow, json_rows
from captum_mllm.datasets.samples import Sample, SampleError

logger = logging.getLogger(__name__)

OnError = Literal["skip", "raise"]
#: How many bad rows are kept with their messages; all of them are counted.
KEPT_ERRORS = 100


class Format(NamedTuple):
    r"""
    How the files of a data set are read.

    Args:
        rows (Callable): From a path to its rows, one at a time.
        sample (Callable): From a row to a sample.
        what (str): What it is, in a few words.
    """

    rows: Callable[[Path], Iterator[RawRow]]
    sample: Callable[[Entry], Sample]
    what: str


#: Every format that is read, by its name.
FORMATS: dict[str, Format] = {
    "jsonl": Format(json_lines.own_rows, json_lines.own_sample, "JSON lines, a list, or CSV"),
    "folder": Format(json_lines.folder_rows, json_lines.own_sample, "a folder of images"),
    "tam-coco": Format(coco.coco_rows, coco.coco_sample, "COCO captions as TAM takes them"),
    "tam": Format(coco.tam_rows, coco.tam_sample, "TAM's rows of GranDf and OpenPSG"),
    "grandf": Format(json_rows, phrases.grandf_sample, "GranD-f's grounded captions"),
    "openpsg": Format(coco.psg_rows, coco.psg_sample, "OpenPSG's psg.json"),
    "refcoco": Format(json_rows, phrases.refcoco_sample, "RefCOCO, +, g as JSON"),
    "flickr30k": Format(phrases.flickr_rows, phrases.flickr_sample, "Flickr30k Entities"),
    "textvqa": Format(json_rows, phrases.textvqa_sample, "TextVQA with boxes"),
    "vizwiz": Format(phrases.vizwiz_rows, phrases.vizwiz_sample, "VizWiz-VQA-Grounding"),
    "pope": Format(json_rows, questions.pope_sample, "POPE and RePOPE"),
    "amber": Format(questions.amber_rows, questions.amber_sample, "AMBER"),
}


def find_format(path: Path) -> str:
    r"""
    The format of a file or folder, by the names in a folder or the first row of a file.

    Args:
        path (Path): The file or folder.

    Returns:
        str: A key of :data:`FORMATS`.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If it is of no known format.
    """
    if path.is_dir():
        return _find_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.suffix.lower() in (".p", ".pkl", ".pickle"):
        raise ValueError(
            f"{path} is a pickle, which can run any code when it is read; convert it to JSON, such "
            "as RefCOCO's rows {image, answer, bbox, segmentation}"
        )
    if path.suffix.lower() == ".csv":
        return "jsonl"
    if phrases.vizwiz_file(path):
        return "vizwiz"
    if questions.amber_file(path):
        return "amber"
    if path.name == "psg.json":
        return "openpsg"
    return _find_rows(path)


def _find_folder(path: Path) -> str:
    if coco.is_coco(path):
        return "tam-coco"
    if (path / "anno.json").is_file():
        return "tam"
    if (path / "psg.json").is_file():
        return "openpsg"
    if (path / "Sentences").is_dir() and (path / "Annotations").is_dir():
        return "flickr30k"
    if questions.amber_file(path):
        return "amber"
    if phrases.vizwiz_file(path):
        return "vizwiz"
    if next(json_lines.folder_rows(path), None) is None:
        raise ValueError(f"{path} holds neither images nor a file of a known format")
    return "folder"


# Names of our own rows alone.
_OWN = {"prompt", "question", "answer", "references", "regions", "images", "explained", "messages"}


def _find_rows(path: Path) -> str:
    """By the first row that can be read."""
    rows = (row.value for row in islice(json_rows(path), 20))
    row = next((row for row in rows if not isinstance(row, SampleError)), None)
    if isinstance(row, list):
        return "tam"
    keys = set(row) if isinstance(row, dict) else set()
    if {"groundings", "caption"} <= keys:
        return "grandf"
    if {"label", "text", "image"} <= keys and keys.isdisjoint(_OWN):
        return "pope"
    if "answer" in keys and "segmentation" in keys:
        return "refcoco"
    if {"answer", "bbox", "question"} <= keys:
        return "textvqa"
    if {"answer", "bbox"} <= keys:
        return "refcoco"
    if keys & {"image", "file_name", "path", "images", "messages"}:
        return "jsonl"
    raise ValueError(
        f"{path} is of no known format: its first row has {sorted(keys) or 'no names'}; name the "
        f"format, one of {', '.join(FORMATS)}"
    )


class Row(NamedTuple):
    r"""
    A row that is not yet a sample.

    Args:
        number (int): Its place in the data set, from 0.
        make (Callable): Makes the sample, or raises :class:`SampleError`.
    """

    number: int
    make: Callable[[], Sample]


class Samples:
    r"""
    The samples of a file or folder, read one at a time.

    Made by :func:`open_samples`. It can be iterated again and again.

    Args:
        path (Path): The file or folder.
        format (str): A key of :data:`FORMATS`.
        images (Path): Where the paths of images begin.
        on_error (str): ``"raise"`` or ``"skip"``.
        prompt (str, optional): The question where rows have none.
        limit (int, optional): How many rows are read.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        images: Path,
        on_error: OnError,
        prompt: str | None = None,
        limit: int | None = None,
    ) -> None:
        self.path = path
        self.format = format
        self.images = images
        self.on_error = on_error
        self.prompt = prompt
        self.limit = limit
        #: How many bad rows were refused, since the last iteration began or a run was started.
        self.n_bad = 0
        #: What is wrong with the first of them.
        self.errors: list[SampleError] = []

    def rows(self) -> Iterator[Row]:
        r"""
        The rows, before anything is looked up or opened.

        Yields:
            Row: In the order of the file.
        """
        kind = FORMATS[self.format]
        data = self.path if self.path.is_dir() else self.path.parent
        for number, (source, value) in enumerate(islice(kind.rows(self.path), self.limit)):
            entry = Entry(number, source, value, data, self.images, self.prompt)
            yield Row(number, partial(_make, kind, entry))

    def fingerprint(self) -> str:
        r"""What tells these rows from others, 16 characters; images and masks do not count."""
        digest = hashlib.sha256()
        for _, value in islice(FORMATS[self.format].rows(self.path), self.limit):
            # What is wrong with a damaged row names its file, which may be said in many ways.
            text = "damaged" if isinstance(value, SampleError) else repr(value)
            digest.update(text.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]

    def check_output(self, folder: Path) -> None:
        r"""
        Refuse a folder for results among images that are listed: its images would become data.

        Args:
            folder (Path): Where results are to go.

        Raises:
            ValueError: If it lies in the folder of images.
        """
        images, own = self.path.resolve(), folder.resolve()
        if json_lines.lists_images(self.path) and (own == images or images in own.parents):
            raise ValueError(
                f"the output {folder} lies in the folder of images {self.path}, and its images "
                "would count as data; name an output elsewhere"
            )

    def __iter__(self) -> Iterator[Sample]:
        r"""
        The good samples. Each is checked: its image can be opened, and its masks fit it.

        Raises:
            SampleError: For a bad row, if ``on_error`` is ``"raise"``.
        """
        self.n_bad, self.errors = 0, []
        for row in self.rows():
            try:
                sample = row.make()
                sample.check()
            except SampleError as error:
                self.refuse(error)
                continue
            yield sample

    def refuse(self, error: SampleError) -> None:
        r"""
        Count and log a bad row, or raise its error if ``on_error`` is ``"raise"``.

        Args:
            error (SampleError): What is wrong.
        """
        if self.on_error == "raise":
            raise error
        self.n_bad += 1
        if self.n_bad <= KEPT_ERRORS:
            # Without its traceback, which keeps all samples of a batch alive.
            self.errors.append(SampleError(error.message, error.source, error.id))
        logger.warning("skipped: %s", error)


def _make(kind: Format, entry: Entry) -> Sample:
    if isinstance(entry.value, SampleError):
        raise entry.value
    return kind.sample(entry)


def open_samples(
    path: str | Path,
    format: str = "auto",
    *,
    images: str | Path | None = None,
    on_error: OnError = "raise",
    prompt: str | None = None,
    limit: int | None = None,
) -> Samples:
    r"""
    The samples of a data set, lazily: a row is read when it comes, and its masks when they are
    asked for.

    Args:
        path (str or Path): A file or a folder.
        format (str): A key of :data:`~captum_mllm.datasets.FORMATS`, or ``"auto"``, which looks at
            the names in the folder or at the first row. Default: "auto"
        images (str or Path, optional): Where relative paths of images begin. Default: None, the
            folder of the data.
        on_error (str): What to do with a bad row: ``"raise"`` its :class:`SampleError`, or
            ``"skip"`` it, counted and logged with its line. Default: "raise"
        prompt (str, optional): What the model is asked where rows have no question.
            Default: None, the question of the format.
        limit (int, optional): How many rows are read. Default: None, all.

    Returns:
        Samples: To be iterated.

    Raises:
        FileNotFoundError: If the file or folder is missing.
        ValueError: If the format is unknown, or an option has another value.

    Examples::

        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from captum_mllm.demo import demo_image
        >>> row = {"image": str(demo_image()), "prompt": "What is it?", "answer": "a red star",
        ...        "regions": [{"words": "red star", "mask": [10, 20, 30, 40]}]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "data.jsonl"
        ...     _ = path.write_text(json.dumps(row))
        ...     (sample,) = open_samples(path)
        ...     sample.question, sample.masks.shape, int(sample.masks.sum())
        ('What is it?', (1, 224, 224), 1200)
    """
    path = Path(path)
    check_choice("on_error", on_error, get_args(OnError))
    check_whole("limit", limit, 1, optional=True)
    if format != "auto" and format not in FORMATS:
        raise ValueError(f"format={format!r}, expected auto or one of {', '.join(FORMATS)}")
    if prompt is not None and not prompt.strip():
        raise ValueError("the prompt is empty; leave it out for the format's own question")
    found = find_format(path) if format == "auto" else format
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    folder = path if path.is_dir() else path.parent
    images = folder if images is None else Path(images)
    if not images.is_dir():
        raise FileNotFoundError(f"there is no folder of images {images}")
    return Samples(path, found, images, on_error, prompt, limit)
