"""``render_page`` and ``embed_page``: an explanation as one HTML page that loads nothing."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from captum_mllm.models.prompt_parts import PromptPart
from captum_mllm.visualization.colors import FADE, color_table
from captum_mllm.visualization.document import fill_document
from captum_mllm.visualization.page_alternatives import AlternativesView, alternatives_data
from captum_mllm.visualization.page_data import ScaleView, page_data
from captum_mllm.visualization.page_reasons import ReasonsView, RiskView, reasons_data
from captum_mllm.visualization.page_what_if import HiddenWord, WhatIfView, what_if_data

__all__ = [
    "AlternativesView",
    "HiddenWord",
    "ReasonsView",
    "RiskView",
    "ScaleView",
    "WhatIfView",
    "embed_page",
    "render_page",
]

_SCRIPTS = ("_heatmap", "_tokens", "_bars", "_reasons", "_what_if", "")
_LONGEST_SIDE, _THUMBNAIL_SIDE = 1600, 192
_STAGE = Template(
    '<figure class="stage"><div class="frame"><img src="$source" alt="$alt">'
    '<canvas aria-hidden="true"></canvas></div>'
    "<figcaption><i></i><span></span><b></b></figcaption></figure>"
)


def render_page(
    *,
    images: Sequence[Image.Image],
    explained: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    prompt_tokens: Sequence[str],
    prompt_parts: Sequence[PromptPart] = (),
    answer_tokens: Sequence[str],
    words: Sequence[Sequence[int]],
    image_attr: np.ndarray | Sequence[np.ndarray],
    image_shares: np.ndarray | None = None,
    token_attr: np.ndarray | None = None,
    output_probs: np.ndarray | None = None,
    top_predictions: Sequence[Sequence[tuple[str, float]]] | None = None,
    scales: Sequence[ScaleView] = (),
    reasons: ReasonsView | None = None,
    risks: Sequence[RiskView] | None = None,
    alternatives: AlternativesView | None = None,
    what_ifs: Sequence[WhatIfView] = (),
    unit: str = "",
    finished: bool | None = None,
    method: str = "",
    model: str = "",
    title: str = "captum_mllm",
) -> str:
    r"""
    Render an explanation of an answer about an image as one HTML document.

    The page shows the image under the map of the word that the reader points at, and shades every
    earlier word by its weight. Several images are shown side by side, and a line below each word
    tells what share of the evidence for it lies in which of them. All words and images share one
    scale of colours unless the reader gives each word its own. A long prompt is folded, so that the
    answer stays in sight. The page loads nothing, and its content security policy lets nothing run
    but its own script. Token text is shown as text, whatever it holds. What is None or empty is
    left out of the page.

    A word of several tokens shows the mean of their maps and of their weights, the product of their
    probabilities, and the predictions of its first token. The weight of an earlier word is the sum
    over its tokens. The page can be switched from words to tokens.

    Args:
        images (Sequence[PIL.Image.Image]): The images of the prompt. The explained ones are shown
            with a longest side of at most 1600 pixels. Where there are others, all are thumbnails
            beside the prompt as well; all without their metadata.
        explained (Sequence[int], optional): Which images were explained. Default: None, the first
            ones, as many as have maps
        names (Sequence[str], optional): What the images are called, such as the times of a video's
            frames. Default: None, by their number
        prompt_tokens (Sequence[str]): The P tokens of the prompt, or its words; may be empty.
        prompt_parts (Sequence[PromptPart]): The turns, texts and images of the prompt in their
            order, which have P tokens together. Default: (), one text.
        answer_tokens (Sequence[str]): The T tokens of the answer, at least one.
        words (Sequence[Sequence[int]]): Indices of the answer tokens that make each word. Taken
            together they are 0, 1, ..., T - 1.
        image_attr (np.ndarray or Sequence[np.ndarray]): A map of the image for each answer token,
            of shape (T, h, w), of any sign and size, laid over the whole image; those of each
            explained image if there are several. Zero is drawn as nothing. The page keeps 8 bits of
            each value.
        image_shares (np.ndarray or None): The share of each of several explained images in the
            evidence for each answer token, of shape (T, n_images), in [0, 1]. Default: None
        token_attr (np.ndarray or None): Weight of each prompt token, then of each answer token, of
            shape (T, P + T). Row t is 0 from column P + t on. Default: None
        output_probs (np.ndarray or None): Probability of each answer token, of shape (T,), in
            [0, 1]. Default: None
        top_predictions (Sequence[Sequence[tuple[str, float]]] or None): For each answer token, the
            tokens that the model found most probable and their probabilities, best first; the page
            shows up to 8. Default: None
        scales (Sequence[ScaleView]): Maps and probabilities at single scales. Default: ()
        reasons (ReasonsView or None): What each answer token rests on, shown as shares.
            Default: None
        risks (Sequence[RiskView] or None): The risk that the image does not show a word; words of
            some or high risk are marked. Default: None
        alternatives (AlternativesView or None): Why other predictions were not said, shown by a
            click on them. Default: None
        what_ifs (Sequence[WhatIfView]): What the model says without the regions of words, which
            are outlined on the image. Default: ()
        unit (str): What the values of the maps are counted in, such as "logits". Default: ""
        finished (bool or None): Whether the model ended its own answer. False makes a note that the
            answer is cut off. Default: None, the answer was given
        method (str): The attribution method, for the reader. Default: ""
        model (str): The model's name, for the reader. Default: ""
        title (str): Title of the page. Default: "captum_mllm"

    Returns:
        str: An HTML document. It can be encoded as UTF-8 whatever the tokens hold.

    Raises:
        TypeError: If tokens are not strings, an image is not a PIL image or an array is not of
            real numbers.
        ValueError: If shapes, indices or ranges are not as described, or a value is not finite.

    Examples::

        >>> import numpy as np
        >>> from PIL import Image
        >>> page = render_page(
        ...     images=[Image.new("RGB", (32, 24), "teal")],
        ...     prompt_tokens=["Describe", " it", "."],
        ...     answer_tokens=[" A", " te", "al", " wall"],
        ...     words=[[0], [1, 2], [3]],
        ...     image_attr=np.linspace(0, 1, 4 * 3 * 4).reshape(4, 3, 4),
        ... )
        >>> page.startswith("<!doctype html>"), "://" in page
        (True, False)
    """
    for index, image in enumerate(images):
        if not isinstance(image, Image.Image):
            raise TypeError(f"images[{index}] is a {type(image).__name__}; give a PIL.Image.Image.")
        if 0 in image.size:
            raise ValueError(f"images[{index}] has size {image.size}; give at least one pixel.")
    n_maps = 1 if isinstance(image_attr, np.ndarray) else len(image_attr)
    shown = tuple(range(n_maps) if explained is None else explained)
    if len(shown) != n_maps or not set(shown) <= set(range(len(images))):
        raise ValueError(
            f"explained is {shown}; expected {n_maps} of {len(images)} image(s), one for each of "
            "image_attr."
        )
    data = page_data(
        n_images=len(images),
        prompt_tokens=prompt_tokens,
        prompt_parts=prompt_parts,
        answer_tokens=answer_tokens,
        words=words,
        image_attr=image_attr,
        image_shares=image_shares,
        token_attr=token_attr,
        output_probs=output_probs,
        top_predictions=top_predictions,
        scales=scales,
    )
    data |= reasons_data(reasons, risks, len(answer_tokens))
    data |= alternatives_data(alternatives, data)
    data |= what_if_data(what_ifs, len(answer_tokens), len(shown))
    data["colors"] = _base64(color_table(data["signed"]).tobytes())
    data["fade"] = FADE
    data["ratios"] = [images[index].width / images[index].height for index in shown]
    data["explained"], data["count"] = shown, len(images)
    data["names"] = list(names or (f"image {number + 1}" for number in range(len(images))))
    if len(data["names"]) != len(images):
        raise ValueError(f"names has {len(data['names'])} entries for {len(images)} image(s).")
    # Explained images are on the page already.
    data["thumbnails"] = (
        [_data_uri(image, _THUMBNAIL_SIDE) for image in images] if len(images) > len(shown) else []
    )
    data["unit"], data["method"], data["model"] = unit, method, model
    data["cut"] = finished is False
    return fill_document(
        "page",
        tuple(f"page{part}.js" for part in _SCRIPTS),
        title,
        styles=("page_reasons.css", "page_what_if.css"),
        stages="".join(
            _STAGE.substitute(
                source=_data_uri(images[index], _LONGEST_SIDE),
                alt=(
                    escape(data["names"][index][:1].upper() + data["names"][index][1:])
                    if len(shown) > 1
                    else "The image that is explained"
                ),
            )
            for index in shown
        ),
        data=_json(data),
    )


def embed_page(html: str, height: int = 720) -> str:
    r"""
    Wrap a page in a frame that isolates it, for a notebook's ``_repr_html_``.

    The frame may run the page's script and nothing more: it cannot reach the notebook around it.

    Args:
        html (str): A whole HTML document, as from :func:`render_page`.
        height (int): Height of the frame in CSS pixels, at least 1. Default: 720

    Returns:
        str: An ``iframe`` element.

    Raises:
        ValueError: If ``height`` is less than 1.

    Examples::

        >>> embed_page("<p>A</p>", height=90).partition(" sandbox")[0]
        '<iframe srcdoc="&lt;p&gt;A&lt;/p&gt;"'
    """
    if height < 1:
        raise ValueError(
            f"height is {height}; give the height of the frame in CSS pixels, at least 1."
        )
    return (
        f'<iframe srcdoc="{escape(html)}" sandbox="allow-scripts" '
        'title="Explanation of an answer about an image" '
        f'style="width: 100%; height: {height}px; border: 0"></iframe>'
    )


def _data_uri(image: Image.Image, longest: int) -> str:
    """PNG where it is the smaller (drawings, screenshots), JPEG elsewhere (photographs)."""
    pixels = Image.fromarray(np.asarray(image.convert("RGB")))
    pixels.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=2.0)
    files = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 90, "subsampling": 0})):
        buffer = io.BytesIO()
        pixels.save(buffer, kind, **options)
        files.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    _, kind, content = min(files)
    return f"data:image/{kind};base64,{_base64(content)}"


def _json(data: dict[str, Any]) -> str:
    """JSON in ASCII that holds no character with a meaning in HTML."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
