"""check: proves on a user's own checkpoint that images, scales and answers are what they seem."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm.models.attention_record import has_softmax_attention
from captum_mllm.models.backbone import Backbone, logits_at
from captum_mllm.models.encoding import Encoding
from captum_mllm.models.inputs import ImageTextInput, check_is_input
from captum_mllm.models.layout import size_of
from captum_mllm.models.locate import locate
from captum_mllm.models.parity import check_parity, noise
from captum_mllm.models.prompt import open_query
from captum_mllm.models.query import Query
from captum_mllm.models.towers import attention_layers, cross_layers, decoder_layers

SCALES = (0.5, 1.0, 1.5, 2.0)
QUESTION = "Describe the image."
# The share of changed cells that have to be found.
SHARE = 0.95
# Differences of logits relative to their own size, with 16 bits and with more.
_ROUGH, _FINE = 0.1, 1e-3
_MARKS = {True: "ok", False: "FAILED", None: "-"}


@dataclass(frozen=True)
class Verdict:
    r"""What one of the checks found.

    Args:
        name (str): what was checked.
        passed (bool, optional): whether it is right; None if it says what a model does not have.
        detail (str): the figures, or what is wrong.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Report:
    r"""The verdicts on a model; ``print`` shows them as a table.

    Args:
        model (str): the model's class and family.
        verdicts (tuple[Verdict, ...]): one for each check.
    """

    model: str
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return all(verdict.passed is not False for verdict in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON has."""
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        width = max(len(verdict.name) for verdict in self.verdicts)
        lines = [
            f"{_MARKS[verdict.passed]:<8}{verdict.name:<{width + 2}}{verdict.detail}"
            for verdict in self.verdicts
        ]
        return "\n".join([self.model, *lines])


class _Wrong(Exception):
    """Something is not as it should be."""


class _Absent(Exception):
    """The model does not have something."""


def check(
    backbone: Backbone, inp: ImageTextInput | None = None, scales: Sequence[float] = SCALES
) -> Report:
    r"""Check a model, its processor and its family's facts on an image.

    Args:
        backbone (Backbone): the model.
        inp (ImageTextInput, optional): an image and a question. Default: None, coarse noise and
            "Describe the image."
        scales (Sequence[float]): the scales to check. Default: (0.5, 1.0, 1.5, 2.0)

    Returns:
        Report: a verdict on each of: the prompt, the image processor's options, the number of
        tokens, the states' precision, the scales, the places of image tokens, the differentiable
        pixels, the logits, teacher forcing, and attention.
    """
    if inp is not None:
        check_is_input(inp)
    inp = inp or ImageTextInput(noise(336, 448)[0], QUESTION)
    config = backbone.model.config
    geometry = type(backbone.geometry).__name__
    name = f"{type(backbone.model).__name__} ({config.model_type}, {geometry})"
    prepared: list[tuple[Tensor, Query]] = []
    verdicts = [_verdict("prompt", lambda: _check_prompt(backbone, inp, prepared))]
    verdicts.append(_verdict("options", lambda: _check_options(backbone)))
    if not all(verdict.passed for verdict in verdicts):
        return Report(name, tuple(verdicts))
    image, query = prepared[0]
    by_scale = [(scale, _scaled(image, scale)) for scale in scales]
    checks: dict[str, Callable[[], str]] = {
        "tokens": lambda: _check_tokens(backbone, image, query),
        "precision": lambda: _check_precision(backbone, image, query),
        "scales": lambda: _check_scales(backbone, by_scale, query),
        "places": lambda: _check_places(backbone, by_scale, query),
        "pixels": lambda: _check_pixels(backbone, by_scale, query),
        "logits": lambda: _check_logits(backbone, image, query),
        "teacher forcing": lambda: _check_teacher_forcing(backbone, image, query),
        "attention": lambda: _check_attention(backbone),
    }
    verdicts += [_verdict(each, function) for each, function in checks.items()]
    return Report(name, tuple(verdicts))


@torch.no_grad()
def _verdict(name: str, function: Callable[[], str]) -> Verdict:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        try:
            detail = function()
        except _Absent as absent:
            return Verdict(name, None, str(absent))
        except Exception as error:
            kind = "" if isinstance(error, (_Wrong, ValueError)) else f"{type(error).__name__}: "
            return Verdict(name, False, kind + " ".join(str(error).split()))
    own = [str(each.message) for each in warned if type(each.message) is UserWarning]
    return Verdict(name, True, "; ".join([detail, *own]))


def _check_prompt(
    backbone: Backbone, inp: ImageTextInput, prepared: list[tuple[Tensor, Query]]
) -> str:
    if inp.video is not None:
        raise _Wrong("got a video, expected an image, which is enough to prove the family")
    (image, *_), query = open_query(backbone, inp)
    first, *_ = query.explained
    # One image is enough to prove the family; the others are there, and stay as they are.
    seen = [None if index == first else each.to(image) for index, each in enumerate(inp.images)]
    query = replace(query, images=tuple(seen))
    missing = [text for text in inp.texts if text.strip() and text.strip() not in query.prompt]
    if missing:
        raise _Wrong(f"the chat template leaves out or rewrites {missing}")
    prepared.append((image, replace(query, answer_ids=_some_tokens(backbone))))
    return f"{len(query.prompt)} characters, the question among them"


def _check_tokens(backbone: Backbone, image: Tensor, query: Query) -> str:
    encoding = backbone.encode((image,), query)
    count = len(encoding.image_positions[0])
    note = "; they all see each other" if backbone.family.prefix else ""
    return (
        f"{encoding.inputs['input_ids'].shape[1]} tokens, {count} of the image, "
        f"{len(encoding.text_positions)} of the question{note}"
    )


def _check_options(backbone: Backbone) -> str:
    backbone.geometry.verify_options()
    check_parity(backbone.processor, backbone.geometry, backbone.image_token_id)
    frozen = backbone.geometry.frozen()
    if frozen:
        raise _Wrong(
            f"the image processor has {frozen}, which freezes the scale: images of every size get "
            "the same number of tokens. Remove one of the limits, or set them apart"
        )
    return f"{type(backbone.geometry.media_processor).__name__}, size={backbone.geometry.size}"


def _check_precision(backbone: Backbone, image: Tensor, query: Query) -> str:
    states = backbone.states((image,), query)
    largest = max(float(part.abs().max()) for part in (*states.image, states.predicting))
    if not largest < float("inf"):
        raise _Wrong("the states are not finite")
    return f"{backbone.dtype}, states up to {largest:.3g}"


def _check_scales(backbone: Backbone, by_scale: list[tuple[float, Tensor]], query: Query) -> str:
    counts = [
        (scale, sum(map(len, backbone.encode((image,), query).image_positions)) * windows)
        for scale, image in by_scale
        for windows in (backbone.encode((image,), query).windows,)
    ]
    found = ", ".join(f"{scale:g}: {count}" for scale, count in counts)
    ordered = [count for _, count in sorted(counts)]
    if ordered != sorted(ordered) or (len(ordered) > 1 and ordered[0] == ordered[-1]):
        raise _Wrong(f"the tokens of an image do not grow with its scale: {found}")
    return f"image tokens at scale {found}"


def _check_places(backbone: Backbone, by_scale: list[tuple[float, Tensor]], query: Query) -> str:
    found = []
    for scale, image in by_scale:
        located = locate(backbone, _encoder(backbone, query), image)
        if not located.tried:
            raise _Absent(
                f"at scale {scale:g} the image fills no cell of a token; check an image that is "
                "less oblong"
            )
        found.append(f"{scale:g}: {located.found} of {located.tried}")
        if located.share < SHARE:
            raise _Wrong(
                f"at scale {scale:g} only {located.found} of {located.tried} changed cells move "
                f"their own token most: the geometry {type(backbone.geometry).__name__} is not "
                "that of this model, or its processor is another model's"
            )
    return "changed cells that were found at scale " + ", ".join(found)


def _check_pixels(backbone: Backbone, by_scale: list[tuple[float, Tensor]], query: Query) -> str:
    largest = 0.0
    option = backbone.geometry.option
    for _, image in by_scale:
        expected = backbone.encode((image,), query).inputs["pixel_values"].float()
        with torch.enable_grad():
            opened = image.clone().requires_grad_()
            own = backbone.encode((opened,), query).inputs["pixel_values"].detach().float()
        spread = float(torch.as_tensor(option("image_std")).max()) if option("do_normalize") else 1
        spread *= 255 if option("do_rescale") else 1
        largest = max(largest, float((own - expected).abs().mean()) * spread)
    if largest > 2:
        raise _Wrong(f"the differentiable pixels are {largest:.1f} of 255 levels off")
    return f"the differentiable ones are {largest:.2f} of 255 levels off"


def _check_logits(backbone: Backbone, image: Tensor, query: Query) -> str:
    states = backbone.states((image,), query)
    logits = _logits(backbone, image, query)
    every = torch.arange(logits.shape[-1], device=states.predicting.device)
    found = backbone.vocabulary.scores(states.predicting[:, -len(logits) :], every)[0]
    return _compare(backbone, found, logits, "the states' logits", "the model's")


def _check_teacher_forcing(backbone: Backbone, image: Tensor, query: Query) -> str:
    inputs = backbone.encode((image,), replace(query, answer_ids=query.answer_ids[:1])).inputs
    inputs = {name: value for name, value in inputs.items() if name != "position_ids"}
    with backbone.evaluating():
        said = backbone.model.generate(
            **inputs,
            max_new_tokens=5,
            min_new_tokens=5,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
            suppress_tokens=[backbone.image_token_id],
        )
    answer = tuple(said.sequences[0, inputs["input_ids"].shape[1] :].tolist())
    forced = _logits(backbone, image, replace(query, answer_ids=answer))
    stepwise = torch.stack(said.logits, 1)[0]
    return _compare(backbone, forced, stepwise, "the logits of a given answer", "a generated one's")


def _check_attention(backbone: Backbone) -> str:
    if not has_softmax_attention(backbone.model):
        raise _Absent("the model's attention is not a softmax; attention methods are refused")
    layers, attentive = decoder_layers(backbone.model), attention_layers(backbone.model)
    count = len(layers)
    crossing = [layers.index(layer) for layer in cross_layers(backbone.model)]
    if crossing:
        raise _Absent(
            f"layers {crossing} of {count} look at the image by cross-attention, so there is no "
            "lens and no rollout; AttentionMaps(mllm, mode='raw') shows what they look at"
        )
    if len(attentive) < count:
        kept = [layers.index(layer) for layer in attentive]
        raise _Absent(
            f"{len(kept)} of {count} layers have attention, layers={kept}; a rollout through all "
            "of them is not defined"
        )
    return f"in all {count} layers of the language model"


def _logits(backbone: Backbone, image: Tensor, query: Query) -> Tensor:
    encoding = backbone.encode((image,), query)
    with backbone.evaluating(encoding):
        rows = encoding.explained_rows(query)
        found = logits_at(backbone.model, encoding.inputs, rows)
    return found[0]


def _compare(backbone: Backbone, found: Tensor, expected: Tensor, own: str, other: str) -> str:
    found, expected = found.float(), expected.to(found.device).float()
    difference = float((found - expected).norm() / expected.norm())
    limit = _ROUGH if backbone.dtype.itemsize == 2 else _FINE
    if not difference < limit:
        raise _Wrong(f"{own} differ from {other} by {difference:.1%} of their size")
    return f"{own} equal {other} up to {difference:.1e} of their size"


def _some_tokens(backbone: Backbone) -> tuple[int, ...]:
    """Ordinary tokens, of which the answer of a check is made."""
    tokenizer = backbone.tokenizer
    special = {*tokenizer.all_special_ids, backbone.image_token_id}
    ids = tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    return tuple(token for token in ids if token not in special)[:3]


def _scaled(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    size = [max(round(scale * length), 1) for length in size_of(image)]
    return F.interpolate(image, size=size, mode="bilinear", antialias=True)


def _encoder(backbone: Backbone, query: Query) -> Callable[[Tensor], Encoding]:
    return lambda images: backbone.encode((images,), query)
