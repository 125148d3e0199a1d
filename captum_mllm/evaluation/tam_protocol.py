"""TAM's published protocol: ``tag_words``, ``compatible_scores``, and taggers of words.

Source: "Token Activation Map to Visually Explain Multimodal LLMs" (Li et al., ICCV 2025,
https://arxiv.org/abs/2506.23270) and its evaluation. :func:`captum_mllm.metrics.token_iou` mends
two faults of that evaluation. They are kept here, so that scores compare with published ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from captum_mllm.evaluation.records import NOTHING, Score, Scores
from captum_mllm.metrics import Word, otsu_threshold
from captum_mllm.metrics.aligned_maps import resize, safe_ratio

#: Tags of the Penn Treebank for words that no part of an image shows; IN and CD are not among them.
FUNCTION_TAGS = frozenset(
    ("CC", "DT", "EX", "MD", "POS", "PRP", "PRP$", "UH", "WDT", "WP", "WP$", "WRB")
)
NOUN_TAGS = frozenset(("NN", "NNS", "NNP", "NNPS"))


class Tag(NamedTuple):
    r"""
    What a tagger says of a word by itself.

    Args:
        tag (str): Of the Penn Treebank.
        lemma (str): The word in its basic form.
    """

    tag: str
    lemma: str


Tagger = Callable[[str], Tag]


def read_tags(path: Path) -> tuple[Tagger, str]:
    r"""
    A tagger from a file. Words are tagged one by one, so that a table says all.

    Args:
        path (Path): A JSON object from each word in lower case to its tag, or to ``[tag, lemma]``;
            without a lemma, the word is its own. Words that are missing have the tag ``""``.

    Returns:
        tuple[Callable, str]: The tagger, and a digest of the file.

    Raises:
        ValueError: If the file is something else.
    """
    raw = path.read_bytes()
    try:
        table = json.loads(raw.decode("utf-8-sig"))
        found = {
            str(word): Tag(given, word) if isinstance(given, str) else Tag(*map(str, given))
            for word, given in table.items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a JSON object from words to tags or [tag, lemma]: {error}"
        ) from error

    def tag(word: str) -> Tag:
        return found.get(word.lower(), Tag("", word.lower()))

    return tag, hashlib.sha256(raw).hexdigest()


def nltk_tagger() -> Tagger:
    r"""
    The tagger and the lemmatizer of nltk.

    Raises:
        ValueError: If nltk or its data is not installed; the message says what is missing.
    """
    needed = "TAM's protocol needs tags of words: give a file with --tags, or install nltk"
    try:
        import nltk
        from nltk.stem import WordNetLemmatizer
    except ModuleNotFoundError:
        raise ValueError(f"{needed}: pip install nltk") from None
    lemmatizer = WordNetLemmatizer()

    def tag(word: str) -> Tag:
        return Tag(nltk.pos_tag([word])[0][1], lemmatizer.lemmatize(word.lower()))

    try:
        tag("cats")
    except LookupError:
        raise ValueError(
            f"{needed} with its data: python -m nltk.downloader averaged_perceptron_tagger_eng "
            "wordnet"
        ) from None
    return tag


def tag_words(
    words: Sequence[tuple[str, tuple[int, ...]]], tagger: Tagger, categories: Mapping[str, int]
) -> tuple[Word, ...]:
    r"""
    The words of an answer, with the category of nouns.

    A noun's category is the last one whose name has the noun's lemma among its words. Labels of 0
    do not count.

    Args:
        words (Sequence[tuple[str, tuple[int, ...]]]): Each word's text and tokens.
        tagger (Callable): From a word to its :class:`Tag`.
        categories (Mapping[str, int]): The label of each category by its name.

    Returns:
        tuple[Word, ...]: In their order.

    Examples::

        >>> table = {"cats": Tag("NNS", "cat"), "the": Tag("DT", "the")}
        >>> tag_words([("the", (0,)), ("cats", (1, 2))], table.get, {"big cat": 7})
        (Word(kind='function', tokens=(0,), category=None),
         Word(kind='noun', tokens=(1, 2), category=7))
    """
    label_of: dict[str, int] = {}
    for name, label in categories.items():
        label_of.update(dict.fromkeys(name.lower().split(), label))
    found = []
    for text, tokens in words:
        tag = tagger(text)
        if tag.tag in NOUN_TAGS:
            found.append(Word("noun", tokens, label_of.get(tag.lemma) or None))
        else:
            found.append(Word("function" if tag.tag in FUNCTION_TAGS else "other", tokens))
    return tuple(found)


def compatible_scores(levels: Tensor, words: Sequence[Word], labels: Tensor) -> Scores:
    r"""
    TAM's scores of one answer, exactly as published.

    They are those of :func:`~captum_mllm.metrics.token_iou` with two faults. The threshold of a
    constant map is 0, so that all of it is foreground if it is above 0. Where two nouns of one
    category follow each other, the last two scores become the better of them, even if the category
    is not in the label image and the scores are of other nouns.

    Args:
        levels (Tensor): The map of each token, (T, h, w), uint8.
        words (Sequence[Word]): The words, see :func:`tag_words`.
        labels (Tensor): The category of each pixel, (H, W), integers; 0 is the background.

    Returns:
        dict[str, Score]: ``"tam_objects"`` and ``"tam_functions"``, and the ``"tam_precision"`` and
        ``"tam_recall"`` of pixels of the best token of each noun.
    """
    nouns = [word for word in words if word.kind == "noun"]
    if not nouns:
        names = ("tam_objects", "tam_functions", "tam_precision", "tam_recall")
        return dict.fromkeys(names, NOTHING)
    rows = torch.tensor([token for word in nouns for token in word.tokens])
    owner = [place for place, word in enumerate(nouns) for _ in word.tokens]
    category = torch.tensor([nouns[place].category or 0 for place in owner])
    resized = resize(levels[rows], (labels.shape[0], labels.shape[1]), antialias=False)
    flat = resized.flatten(1)
    # OpenCV finds no threshold in an image of one level, and takes 0.
    thresholds = torch.where(flat.amin(1) == flat.amax(1), 0, otsu_threshold(resized))
    foreground = resized > thresholds[:, None, None]
    target = labels[None] == category[:, None, None]
    both = (foreground & target).sum((-2, -1)).double()
    marked, true = foreground.sum((-2, -1)).double(), target.sum((-2, -1)).double()
    iou = safe_ratio(both, marked + true - both).tolist()
    precision, recall = safe_ratio(both, marked).tolist(), safe_ratio(both, true).tolist()

    best: dict[int, int] = {}
    for row, place in enumerate(owner):
        if place not in best or iou[row] > iou[best[place]]:
            best[place] = row
    objects = _merged(words, best, iou, present=(true > 0).tolist())
    largest = [0] * len(nouns)
    for place, threshold in zip(owner, thresholds.tolist()):
        largest[place] = max(largest[place], threshold)
    limit = sum(largest) / len(largest)
    shares = (levels.flatten(1).double() < limit).double().mean(1)
    functions = [shares[list(word.tokens)].mean() for word in words if word.kind == "function"]
    return {
        "tam_objects": _sum(iou[row] for row in objects),
        "tam_functions": _sum(map(float, functions)),
        "tam_precision": _sum(precision[row] for row in objects),
        "tam_recall": _sum(recall[row] for row in objects),
    }


def _merged(
    words: Sequence[Word], best: Mapping[int, int], iou: Sequence[float], present: Sequence[bool]
) -> list[int]:
    """The tokens that count: the best of each noun, and of nouns of one category in a row."""
    objects: list[int] = []
    before, place = None, 0
    for word in words:
        if word.kind == "noun":
            row, place = best[place], place + 1
            if word.category and present[row]:
                objects.append(row)
            if word.category and word.category == before and len(objects) > 1:
                objects[-2:] = [max(objects[-2:], key=iou.__getitem__)]
        before = word.category
    return objects


def _sum(values: Iterable[float]) -> Score:
    listed = list(values)
    return Score(float(sum(listed)), float(len(listed)))
