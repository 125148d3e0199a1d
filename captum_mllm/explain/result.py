"""``MLLMAttributionResult``: maps of the image and weights of the earlier words for an answer.

Also ``ScaleResult``, what one scale of MSEA saw, and ``WordWeight``, a row of the table of weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import InterpretableInput, LLMAttributionResult
from captum.attr import visualization as captum_visualization
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from captum_mllm.explain.result_file import read_result, write_file, write_result
from captum_mllm.explain.selection import Selection, select_tokens
from captum_mllm.models.prompt_parts import PromptPart
from captum_mllm.models.words import Word, group_runs
from captum_mllm.visualization import plots
from captum_mllm.visualization.page import ScaleView, embed_page, render_page

_DRAWN_SIDE = 1600


@dataclass(frozen=True)
class ScaleResult:
    r"""
    What one scale of MSEA saw.

    Args:
        scale (float): size of the image relative to the original.
        image_attr (Tensor): its maps, shape (T, h, w).
        output_probs (Tensor or None): probability of each token at this scale, shape (T,).
    """

    scale: float
    image_attr: Tensor
    output_probs: Tensor | None = None


class WordWeight(NamedTuple):
    r"""
    How much an earlier word weighs.

    Args:
        word (str): the word, without the spaces around it.
        weight (float): its weight, the sum over its tokens.
        source (str): ``"prompt"`` or ``"answer"``.
        role (str): who says it in the prompt, such as ``"user"``; ``"assistant"`` in the answer;
            empty where that is not known.
        tokens (tuple[int, ...]): its tokens, as indices of ``input_tokens``.
    """

    word: str
    weight: float
    source: Literal["prompt", "answer"]
    role: str
    tokens: tuple[int, ...]


class MLLMAttributionResult(LLMAttributionResult):
    r"""
    The explanation of an answer, word by word.

    It is Captum's ``LLMAttributionResult`` (``token_attr``, ``seq_attr``, ``output_probs``,
    ``plot_token_attr``, ``plot_seq_attr``, ``plot_image_heatmap``) with a map of the image for each
    token. Made by :class:`~captum_mllm.MLLMAttribution`, or read from a file by :meth:`load`.

    Args:
        input_tokens (list[str]): the P tokens of the prompt, then the tokens of the answer.
        output_tokens (list[str]): the T explained tokens: those of the answer, or all.
        image_attr (Tensor): a map for each explained token, shape (T, h, w), as fine as the
            method made it; :meth:`map` enlarges it.
        token_attr (Tensor): weight of each earlier token, shape (T, len(input_tokens)).
        output_probs (Tensor): the model's probability of each explained token, shape (T,).
        n_prompt (int): P, how many of the input tokens are of the prompt.
        words (Sequence[tuple[int, ...]]): the tokens that make each explained word.
        top_predictions (Sequence[Sequence[tuple[str, float]]]): the model's most probable tokens
            at each place, best first.
        images (Sequence[PIL.Image.Image]): the images of the prompt.
        image_index (int): which of them is explained. Default: 0
        prompt_parts (Sequence[PromptPart]): the turns, texts and images of the prompt in their
            order; their tokens together are the P tokens of the prompt. Default: (), the images
            and then one text.
        segments (Tensor, optional): a label for each pixel, integers (H, W), where the image was
            explained in segments. Default: None
        scales (Sequence[ScaleResult]): what each scale saw, where MSEA ran. Default: ()
        unit (str): what the values of the maps are counted in, such as ``"logits"``. Default: ""
        prompt (str): the question. Default: ""
        method (str): the method, as it is written. Default: ""
        model (str): the model's name. Default: ""
        inp (InterpretableInput, optional): the input; not saved. Default: None

    Raises:
        TypeError: if tokens are not strings, or images are not PIL images.
        ValueError: if the parts do not fit each other, or a number is not finite.

    Examples::
        >>> import torch
        >>> from PIL import Image
        >>> from captum_mllm import MLLMAttributionResult
        >>> result = MLLMAttributionResult(
        ...     input_tokens=["What", "?", "A", " red", " star"],
        ...     output_tokens=["A", " red", " star"],
        ...     image_attr=torch.rand(3, 4, 6),
        ...     token_attr=torch.tensor([[0.5, 0, 0, 0, 0], [1, 0, 2, 0, 0], [1.0, 0, 0, 3, 0]]),
        ...     output_probs=torch.tensor([0.9, 0.8, 0.7]),
        ...     n_prompt=2,
        ...     words=[(0,), (1,), (2,)],
        ...     top_predictions=[[], [], []],
        ...     images=[Image.new("RGB", (60, 40))],
        ... )
        >>> result.map("red star").shape
        (40, 60)
        >>> [(row.word, row.weight) for row in result.text_weights("star")]
        [('What', 1.0), ('?', 0.0), ('A', 0.0), ('red', 3.0)]
    """

    image_attr: Tensor
    token_attr: Tensor
    output_probs: Tensor

    def __init__(
        self,
        *,
        input_tokens: list[str],
        output_tokens: list[str],
        image_attr: Tensor,
        token_attr: Tensor,
        output_probs: Tensor,
        n_prompt: int,
        words: Sequence[Word],
        top_predictions: Sequence[Sequence[tuple[str, float]]],
        images: Sequence[Image.Image],
        image_index: int = 0,
        prompt_parts: Sequence[PromptPart] = (),
        segments: Tensor | None = None,
        scales: Sequence[ScaleResult] = (),
        unit: str = "",
        prompt: str = "",
        method: str = "",
        model: str = "",
        inp: InterpretableInput | None = None,
    ) -> None:
        image_attr, token_attr, output_probs = (
            part.detach().float().cpu() for part in (image_attr, token_attr, output_probs)
        )
        words = [tuple(word) for word in words]
        _check_fit(
            input_tokens,
            output_tokens,
            image_attr,
            token_attr,
            output_probs,
            n_prompt,
            words,
            top_predictions,
            scales,
        )
        super().__init__(
            input_tokens=list(input_tokens),
            output_tokens=list(output_tokens),
            seq_attr=token_attr.sum(0),
            token_attr=token_attr,
            output_probs=output_probs,
            inp=inp,
        )
        self.image_attr = image_attr
        self.n_prompt = n_prompt
        self.words = words
        self.top_predictions = [[(str(a), float(b)) for a, b in row] for row in top_predictions]
        self.images = list(images)
        self.image_index = image_index
        self.prompt_parts = list(prompt_parts) or [
            *(PromptPart("", image=index) for index in range(len(self.images))),
            PromptPart("", n_tokens=n_prompt),
        ]
        self.segments = None if segments is None else segments.detach().cpu().to(torch.int32)
        self.scales = list(scales)
        self.unit = unit
        self.prompt = prompt
        self.method = method
        self.model = model
        _check(self)

    def __repr__(self) -> str:
        height, width = self.image_attr.shape[1:]
        return (
            f"{type(self).__name__}({''.join(self.output_tokens)!r}, method={self.method!r}, "
            f"{len(self.output_tokens)} tokens, maps of {height} x {width})"
        )

    @property
    def image(self) -> Image.Image:
        """The explained image."""
        return self.images[self.image_index]

    @property
    def output_words(self) -> list[str]:
        """The explained words, without the spaces around them."""
        return ["".join(self.output_tokens[i] for i in word).strip() for word in self.words]

    @cached_property
    def input_words(self) -> list[Word]:
        """The words of the prompt and of the answer, as indices of ``input_tokens``. No word goes
        over from one text of the prompt into the next."""
        first = self._first
        answer = [tuple(first + token for token in word) for word in self.words]
        if first == 0:
            return answer
        return group_runs(self.input_tokens[: self.n_prompt], self._prompt_runs) + answer

    def map(
        self, selection: Selection | None = None, *, reduce: Literal["mean", "sum"] = "mean"
    ) -> np.ndarray:
        r"""
        The map of a token, a word or a phrase at the image's own size, ready for Captum's
        ``visualize_image_attr``.

        Args:
            selection (int, str, tuple, slice, list, re.Pattern, optional): the tokens whose maps
                are taken together: a position (negative ones count from the end); a range
                ``(start, end)`` (noninclusive), a ``slice`` or a ``range``; a word or a phrase such
                as ``"red star"``, or the second of them by ``("red star", 2)``; a compiled regular
                expression; or a list of these. A phrase is looked for in the answer first, then in
                the prompt if that was explained too; as it is written, then ignoring case.
                Default: None, all tokens.
            reduce (str): ``"mean"`` keeps words of one and of many tokens comparable; ``"sum"`` is
                what Captum's plots of a range show. Default: ``"mean"``

        Returns:
            numpy.ndarray: float32, of shape (H, W).

        Raises:
            TypeError: for a bool, a float, or another type of selection.
            ValueError: if there is no such token or phrase, or the selection is empty.
        """
        width, height = self.image.size
        return self._map(self._tokens(selection), reduce, (height, width))

    def text_weights(
        self, selection: Selection | None = None, *, reduce: Literal["mean", "sum"] = "mean"
    ) -> list[WordWeight]:
        r"""
        The weights of the earlier words for a token, a word or a phrase.

        Args:
            selection (optional): as in :meth:`map`. Default: None, all tokens, on which the words
                of the prompt alone weigh.
            reduce (str): how the weights for several tokens are taken together, ``"mean"`` or
                ``"sum"``. Default: ``"mean"``

        Returns:
            list[WordWeight]: the words before the last selected token, except the selected ones,
            in their order. The weight of a word is the sum over its tokens.

        Raises:
            TypeError: as in :meth:`map`.
            ValueError: as in :meth:`map`.
        """
        tokens = self._tokens(selection)
        weights = _reduced(self.token_attr[tokens].double(), reduce)
        selected = {self._first + token for token in tokens}
        roles = [role for run, role in self._runs for role in [role] * run]
        roles += ["assistant"] * (len(self.input_tokens) - self.n_prompt)
        words = self.input_words
        word_of_token = torch.tensor([i for i, word in enumerate(words) for _ in word])
        sums = weights.new_zeros(len(words)).index_add_(0, word_of_token, weights).tolist()
        return [
            WordWeight(
                word="".join(self.input_tokens[token] for token in word).strip(),
                weight=weight,
                source="prompt" if word[0] < self.n_prompt else "answer",
                role=roles[word[0]],
                tokens=word,
            )
            for word, weight in zip(words, sums)
            if word[-1] < max(selected) and not selected & set(word)
        ]

    def plot_image_heatmap(
        self,
        show: bool = False,
        target_token_pos: Selection | None = None,
        border_width: int = 2,
        show_legends: bool = True,
        *,
        alpha: float = plots.OPACITY,
    ) -> tuple[Figure, Axes] | None:
        r"""
        The image with a map over it.

        As in Captum, the maps of several tokens are summed; :meth:`map` takes their mean. The
        colours run from 0, or from the negative to the positive of the largest value, so that they
        look the same either way.

        Args:
            show (bool): show the plot instead of returning it. Default: False
            target_token_pos (optional): the tokens, as in :meth:`map`. Default: None, all tokens.
            border_width (int): width of the borders of segments, in pixels; 0 for none. Used only
                where the image was explained in segments. Default: 2
            show_legends (bool): write the label of each segment on it. Used only where the image
                was explained in segments. Default: True
            alpha (float): opacity of the map where it is strongest, in [0, 1]. Default: 0.75

        Returns:
            tuple[Figure, Axes] or None: the plot, unless it is shown. It is not registered with
            pyplot, so that it need not be closed; ``show=True`` shows it.

        Raises:
            TypeError: as in :meth:`map`.
            ValueError: as in :meth:`map`, and for an opacity outside of [0, 1].
        """
        tokens = self._tokens(target_token_pos)
        title, label = None, "Attribution"
        if target_token_pos is not None:
            title = "".join(self.output_tokens[token] for token in tokens).strip()
        if len(tokens) > 1:
            label += f", sum of {len(tokens)} tokens"
        return plots.image_heatmap(
            self.image,
            self._map(tokens, "sum", self._size_within(_DRAWN_SIDE)),
            title=title,
            label=label,
            alpha=alpha,
            segments=None if self.segments is None else self.segments.numpy(),
            border_width=border_width,
            show_legends=show_legends,
            show=show,
        )

    def plot_words(
        self, show: bool = False, *, columns: int | None = None, alpha: float = plots.OPACITY
    ) -> tuple[Figure, Axes] | None:
        r"""
        A sheet of the image with the map of each word, the mean over its tokens, all on one scale
        of colours.

        Args:
            show (bool): show the plot instead of returning it. Default: False
            columns (int, optional): images in a row. Default: None, 5, and more for long answers.
            alpha (float): opacity of the maps where they are strongest, in [0, 1]. Default: 0.75

        Returns:
            tuple[Figure, Axes] or None: the plot, unless it is shown. ``axes.images`` and
            ``axes.texts`` are those of the words, in their order.

        Raises:
            ValueError: for fewer than one column, or an opacity outside of [0, 1].
        """
        maps = [self.image_attr[list(word)].mean(0).numpy() for word in self.words]
        return plots.word_sheet(
            self.image, maps, self.output_words, columns=columns, alpha=alpha, show=show
        )

    def plot_token_attr(self, show: bool = False) -> tuple[Figure, Axes] | None:
        r"""
        A table of the weight of each input token for each explained one.

        Args:
            show (bool): show the plot instead of returning it. Default: False

        Returns:
            tuple[Figure, Axes] or None: the plot, unless it is shown.
        """
        weights = self.token_attr.detach().float().cpu().numpy()
        return plots.token_weights(weights, self.input_tokens, self.output_tokens, show=show)

    def plot_seq_attr(self, show: bool = False) -> tuple[Figure, Axes] | None:
        r"""
        A bar for the weight of each input token for all explained ones together.

        Args:
            show (bool): show the plot instead of returning it. Default: False

        Returns:
            tuple[Figure, Axes] or None: the plot, unless it is shown.
        """
        weights = self.seq_attr.detach().float().cpu().numpy()
        return plots.token_sums(weights, self.input_tokens, show=show)

    def text_records(self) -> list[captum_visualization.VisualizationDataRecord]:
        r"""
        A record for each explained token, for Captum's ``visualize_text``.

        The weights of the earlier tokens are divided by the largest, and the tokens are escaped,
        which Captum does not do.

        Returns:
            list[VisualizationDataRecord]: one for each explained token.
        """
        return plots.text_records(
            self.input_tokens, self.output_tokens, self.token_attr, self.output_probs.tolist()
        )

    def to_dict(self, *, maps: bool = True) -> dict[str, Any]:
        r"""
        The result as plain values, word by word.

        Args:
            maps (bool): with the maps, as lists of rows. Default: True

        Returns:
            dict[str, Any]: ``method``, ``model``, ``prompt``, the ``unit`` of the maps, ``answer``,
            the ``image``'s size, and ``words``. Each word has its text, the positions of its
            tokens, its probability (the product over its tokens), the predictions in the place of
            its first token, the weights of the earlier words, and its map (the mean over its
            tokens).
        """
        width, height = self.image.size
        words = []
        for word, text in zip(self.words, self.output_words):
            tokens = list(word)
            entry: dict[str, Any] = {
                "word": text,
                "tokens": tokens,
                "probability": float(self.output_probs[tokens].double().prod()),
                "top_predictions": [list(pair) for pair in self.top_predictions[word[0]]],
                "text_weights": [
                    {"word": row.word, "weight": row.weight, "source": row.source, "role": row.role}
                    for row in self.text_weights(tokens)
                ],
            }
            if maps:
                entry["map"] = self.image_attr[tokens].mean(0).tolist()
            words.append(entry)
        return {
            "method": self.method,
            "model": self.model,
            "prompt": self.prompt,
            "unit": self.unit,
            "answer": "".join(self.input_tokens[self.n_prompt :]),
            "image": {"width": width, "height": height},
            "words": words,
        }

    def to_json(self, *, maps: bool = True, indent: int | None = None) -> str:
        r"""
        The result as JSON, see :meth:`to_dict`.

        Args:
            maps (bool): with the maps. Default: True
            indent (int, optional): spaces of each level. Default: None, one line.

        Returns:
            str: JSON in ASCII.
        """
        return json.dumps(self.to_dict(maps=maps), indent=indent, allow_nan=False)

    def to_dataframe(self) -> Any:
        r"""
        The weights of the earlier words as a table, with a row for each pair of words.

        Returns:
            pandas.DataFrame: columns ``word``, ``position`` (of its first token among the explained
            ones), ``probability``, ``earlier_word``, ``earlier_position`` (of its first token in
            ``input_tokens``), ``source``, ``role`` and ``weight``.

        Raises:
            ModuleNotFoundError: without pandas, which is not a dependency of this package.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_dataframe() needs pandas: pip install pandas; text_weights() and to_dict() "
                "give the same numbers without it"
            ) from error
        rows = [
            {
                "word": text,
                "position": word[0],
                "probability": float(self.output_probs[list(word)].double().prod()),
                "earlier_word": earlier.word,
                "earlier_position": earlier.tokens[0],
                "source": earlier.source,
                "role": earlier.role,
                "weight": earlier.weight,
            }
            for word, text in zip(self.words, self.output_words)
            for earlier in self.text_weights(list(word))
        ]
        return pandas.DataFrame(rows)

    def to_html(self) -> str:
        r"""The page as one self-contained HTML document."""
        # The page walks through the answer; the words of the prompt are context there.
        skipped = self.n_prompt - self._first
        words = [[token - skipped for token in word] for word in self.words if word[0] >= skipped]
        prompt, parts, weights = self._prompt_words(self.token_attr[skipped:])
        image_attr = self.image_attr[skipped:]
        # Beside maps of evidence alone, evidence against a word would change the colours' meaning.
        lowest = 0.0 if image_attr.min() >= 0 else None
        scales = [
            ScaleView(
                scale.scale,
                scale.image_attr[skipped:].clamp(min=lowest, max=torch.inf).numpy(),
                None if scale.output_probs is None else scale.output_probs[skipped:].numpy(),
            )
            for scale in self.scales
        ]
        return render_page(
            images=self.images,
            image_index=self.image_index,
            prompt_tokens=prompt,
            prompt_parts=parts,
            answer_tokens=self.output_tokens[skipped:],
            words=words,
            image_attr=image_attr.numpy(),
            token_attr=weights.numpy(),
            output_probs=self.output_probs[skipped:].numpy(),
            top_predictions=self.top_predictions[skipped:],
            scales=scales,
            unit=self.unit,
            method=self.method,
            model=self.model,
        )

    def save_html(self, path: str | Path) -> None:
        r"""
        Write the page: the image, its maps and the words, to look at in any browser.

        Args:
            path (str or Path): the file to write; it is replaced whole or not at all.

        Raises:
            FileNotFoundError: if its folder does not exist.
            IsADirectoryError: if the path is a folder.
            PermissionError: if the file may not be written.
        """
        write_file(path, self.to_html().encode("utf-8"))

    def _repr_html_(self) -> str:
        return embed_page(self.to_html())

    def save(self, path: str | Path) -> None:
        r"""
        Write the result to one safetensors file, with its texts as JSON inside.

        Args:
            path (str or Path): the file to write; it is replaced whole or not at all.

        Raises:
            FileNotFoundError: if its folder does not exist.
            IsADirectoryError: if the path is a folder.
            PermissionError: if the file may not be written.
        """
        tensors = {name: getattr(self, name) for name in _TENSORS}
        for index, image in enumerate(self.images):
            tensors[f"image.{index}"] = torch.from_numpy(np.array(image.convert("RGB")))
        if self.segments is not None:
            tensors["segments"] = self.segments
        for index, scale in enumerate(self.scales):
            tensors[f"scale.{index}.image_attr"] = scale.image_attr
            if scale.output_probs is not None:
                tensors[f"scale.{index}.output_probs"] = scale.output_probs
        facts = {name: getattr(self, name) for name in _FACTS}
        facts["prompt_parts"] = [vars(part) for part in self.prompt_parts]
        facts["scales"] = [scale.scale for scale in self.scales]
        write_result(path, tensors, facts)

    @classmethod
    def load(cls, path: str | Path) -> MLLMAttributionResult:
        r"""
        Read a result that :meth:`save` wrote. Nothing in the file is executed.

        Args:
            path (str or Path): the file to read.

        Returns:
            MLLMAttributionResult: equal to the saved one, except for ``inp``, which is None.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not a saved result, or its parts do not fit each other.
        """
        tensors, facts = read_result(path)
        parts: dict[str, Any] = {**facts, **tensors}
        try:
            n_images = sum(name.startswith("image.") for name in tensors)
            return cls(
                **{name: parts[name] for name in _FACTS + _TENSORS},
                images=[
                    Image.fromarray(tensors[f"image.{index}"].numpy()) for index in range(n_images)
                ],
                prompt_parts=[PromptPart(**part) for part in facts["prompt_parts"]],
                segments=tensors.get("segments"),
                scales=[
                    ScaleResult(
                        scale,
                        tensors[f"scale.{index}.image_attr"],
                        tensors.get(f"scale.{index}.output_probs"),
                    )
                    for index, scale in enumerate(facts["scales"])
                ],
            )
        except KeyError as error:
            raise ValueError(f"{str(path)!r} lacks a part of a result: {error}") from error
        except (TypeError, AttributeError, ValueError, LookupError, OverflowError) as error:
            raise ValueError(f"{str(path)!r} is not a whole result: {error}") from error

    @property
    def _first(self) -> int:
        """Where the explained tokens begin among the input tokens."""
        return len(self.input_tokens) - len(self.output_tokens)

    @property
    def _runs(self) -> list[tuple[int, str]]:
        """Number of tokens and role of each text of the prompt."""
        return [(part.n_tokens, part.role) for part in self.prompt_parts if part.image is None]

    @property
    def _prompt_runs(self) -> list[int]:
        return [n_tokens for n_tokens, _ in self._runs]

    def _tokens(self, selection: Selection | None) -> list[int]:
        runs = [len(self.input_tokens) - self.n_prompt]
        if self._first == 0:
            runs = self._prompt_runs + runs
        return select_tokens(selection, self.output_tokens, self.words, runs)

    def _map(
        self, tokens: list[int], reduce: Literal["mean", "sum"], size: tuple[int, int]
    ) -> np.ndarray:
        map_ = _reduced(self.image_attr[tokens], reduce)[None, None]
        return F.interpolate(map_, size=size, mode="bilinear")[0, 0].numpy()

    def _size_within(self, longest: int) -> tuple[int, int]:
        """Height and width of the image, reduced to a longest side."""
        width, height = self.image.size
        share = min(1.0, longest / max(width, height))
        return max(round(height * share), 1), max(round(width * share), 1)

    def _prompt_words(self, weights: Tensor) -> tuple[list[str], list[PromptPart], Tensor]:
        """The words of the prompt, its parts with the number of their words, and the weights by
        words of the prompt and tokens of the answer."""
        tokens = self.input_tokens[: self.n_prompt]
        words = group_runs(tokens, self._prompt_runs)
        texts = ["".join(tokens[token] for token in word) for word in words]
        word_of_token = torch.tensor(
            [index for index, word in enumerate(words) for _ in word], dtype=torch.int64
        )
        sums = weights.new_zeros(len(weights), len(words))
        sums.index_add_(1, word_of_token, weights[:, : self.n_prompt])
        parts, start = [], 0
        for part in self.prompt_parts:
            end = start + part.n_tokens
            parts.append(replace(part, n_tokens=sum(start <= word[0] < end for word in words)))
            start = end
        return texts, parts, torch.cat([sums, weights[:, self.n_prompt :]], dim=1)


_TENSORS = ("image_attr", "token_attr", "output_probs")
_FACTS = (
    "input_tokens",
    "n_prompt",
    "output_tokens",
    "words",
    "top_predictions",
    "image_index",
    "unit",
    "prompt",
    "method",
    "model",
)


def _reduced(values: Tensor, reduce: str) -> Tensor:
    if reduce not in ("mean", "sum"):
        raise ValueError(f"reduce is {reduce!r}; expected 'mean' or 'sum'")
    return values.mean(0) if reduce == "mean" else values.sum(0)


def _check_fit(
    input_tokens: list[str],
    output_tokens: list[str],
    image_attr: Tensor,
    token_attr: Tensor,
    output_probs: Tensor,
    n_prompt: int,
    words: Sequence[Word],
    top_predictions: Sequence[Sequence[tuple[str, float]]],
    scales: Sequence[ScaleResult],
) -> None:
    """Raise where the shapes do not fit each other."""
    n_input, n_tokens = len(input_tokens), len(output_tokens)
    fits = (
        image_attr.ndim == 3
        and image_attr.numel() > 0
        and 0 <= n_prompt < n_input
        and n_tokens in (n_input, n_input - n_prompt)
        and token_attr.shape == (n_tokens, n_input)
        and output_probs.shape == (n_tokens,)
        and len(image_attr) == len(top_predictions) == n_tokens
        and [token for word in words for token in word] == list(range(n_tokens))
        and all(words)
        and all(
            scale.image_attr.ndim == 3
            and scale.image_attr.numel() > 0
            and len(scale.image_attr) == n_tokens
            and (scale.output_probs is None or scale.output_probs.shape == (n_tokens,))
            for scale in scales
        )
    )
    if not fits:
        raise ValueError(
            f"the parts of the result do not fit each other: {n_tokens} output tokens, "
            f"{n_input} input tokens, maps {tuple(image_attr.shape)}, weights "
            f"{tuple(token_attr.shape)}, {len(top_predictions)} lists of predictions"
        )


def _check(result: MLLMAttributionResult) -> None:
    """Raise for parts of other types, and numbers that are not finite or out of range."""
    for name in ("input_tokens", "output_tokens"):
        if not all(isinstance(token, str) for token in getattr(result, name)):
            raise TypeError(f"{name} has tokens that are not strings; give the text of each token")
    texts = [result.unit, result.prompt, result.method, result.model]
    if not all(isinstance(text, str) for text in [*texts, *(role for _, role in result._runs)]):
        raise TypeError("unit, prompt, method, model and the roles of prompt_parts are strings")
    if not all(isinstance(image, Image.Image) for image in result.images):
        raise TypeError("images has an entry that is not a PIL.Image.Image")
    if not 0 <= result.image_index < len(result.images):
        raise ValueError(
            f"image_index is {result.image_index}, expected one of {len(result.images)} images"
        )
    in_prompt = sum(part.n_tokens for part in result.prompt_parts)
    if in_prompt != result.n_prompt:
        raise ValueError(
            f"prompt_parts have {in_prompt} tokens together, expected n_prompt={result.n_prompt}"
        )
    image, segments = result.image, result.segments
    if segments is not None and segments.shape != (image.height, image.width):
        raise ValueError(
            f"segments have shape {tuple(segments.shape)}, expected {(image.height, image.width)}"
        )
    parts = {name: getattr(result, name) for name in _TENSORS}
    for index, scale in enumerate(result.scales):
        parts[f"scales[{index}].image_attr"] = scale.image_attr
        if scale.output_probs is not None:
            parts[f"scales[{index}].output_probs"] = scale.output_probs
        if not 0 < scale.scale < math.inf:
            raise ValueError(f"scales[{index}].scale is {scale.scale}, expected a positive number")
    for name, part in parts.items():
        if not part.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite, expected none")
        # Rounding may carry a sum of probabilities past 1.
        if name.endswith("probs") and bool(((part < -1e-6) | (part > 1 + 1e-6)).any()):
            raise ValueError(f"{name} has numbers outside of [0, 1], expected probabilities")
