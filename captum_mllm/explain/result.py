"""``MLLMAttributionResult``: what an explanation returns, with its plots, its page and its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import visualization as captum_visualization
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from captum_mllm.explain.alternatives import Alternatives
from captum_mllm.explain.calibration import Calibration
from captum_mllm.explain.diagnosis import WordRisk, diagnose
from captum_mllm.explain.reasons import Reasons
from captum_mllm.explain.result_file import read_result, write_file, write_result
from captum_mllm.explain.result_page import result_page
from captum_mllm.explain.result_parts import ScaleResult
from captum_mllm.explain.result_tables import result_dict, result_table
from captum_mllm.explain.result_values import ResultValues
from captum_mllm.explain.selection import Selection
from captum_mllm.explain.word_changes import WhatIf
from captum_mllm.models.prompt_parts import PromptPart
from captum_mllm.visualization import plots, text_plots
from captum_mllm.visualization.colors import OPACITY
from captum_mllm.visualization.page import embed_page

_DRAWN_SIDE = 1600


class MLLMAttributionResult(ResultValues):
    r"""
    The explanation of an answer, word by word.

    It is Captum's ``LLMAttributionResult`` (``token_attr``, ``seq_attr``, ``output_probs``,
    ``plot_token_attr``, ``plot_seq_attr``, ``plot_image_heatmap``) with a map of each image for
    each token: ``image_attrs``, and ``image_attr`` where one image is explained. Made by
    :class:`~captum_mllm.MLLMAttribution`, or read from a file by :meth:`load`.

    Args:
        input_tokens (list[str]): the P tokens of the prompt, then the tokens of the answer.
        output_tokens (list[str]): the T explained tokens: those of the answer, or all.
        image_attr (Tensor or Sequence[Tensor]): a map for each explained token, shape (T, h, w),
            as fine as the method made it; :meth:`map` enlarges it. A tuple of them where several
            images are explained; their values compare.
        token_attr (Tensor): weight of each earlier token, shape (T, len(input_tokens)).
        output_probs (Tensor): the model's probability of each explained token, shape (T,).
        n_prompt (int): P, how many of the input tokens are of the prompt.
        words (Sequence[tuple[int, ...]]): the tokens that make each explained word.
        top_predictions (Sequence[Sequence[tuple[str, float]]]): the model's most probable tokens
            at each place, best first.
        images (Sequence[PIL.Image.Image]): the images of the prompt.
        explained (Sequence[int], optional): which of them are explained. Default: None, the first
            ones, as many as have maps
        image_shares (Tensor, optional): the share of each explained image in the evidence for each
            token, shape (T, n_images), see :func:`~captum_mllm.attr.image_shares.image_shares`.
            Default: None, by the cells of the maps
        prompt_parts (Sequence[PromptPart]): the turns, texts and images of the prompt in their
            order; their tokens together are the P tokens of the prompt. Default: (), the images
            and then one text.
        segments (Tensor or Sequence[Tensor], optional): a label for each pixel, integers (H, W),
            where the image was explained in segments; one for each of several images.
            Default: None
        scales (Sequence[ScaleResult]): what each scale saw, where MSEA ran. Default: ()
        reasons (Reasons, optional): what each explained token rests on: the image, the question,
            the answer so far, or none of them. Default: None, it was not asked for.
        signals (Tensor, optional): what :meth:`diagnosis` judges tokens by, see
            ``captum_mllm.explain.signals.SIGNALS``. Default: None, it was not asked for.
        alternatives (Alternatives, optional): why the next most probable tokens were not said.
            Default: None, it was not asked for.
        what_ifs (Sequence[WhatIf]): what the model says without the region of a word, see
            :meth:`keep_what_if`. Default: ()
        unit (str): what the values of the maps are counted in, such as ``"logits"``. Default: ""
        finished (bool, optional): whether the model ended its own answer, or was cut off. Default:
            None, the answer was given
        prompt (str): the question. Default: ""
        method (str): the method as code. Default: ""
        model (str): the model's name. Default: ""
        times (Sequence[float]): when each image of a video was seen, in seconds; the images are the
            first frames of the groups of frames that share a map. Default: (), not of a video
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

    def plot_image_heatmap(
        self,
        show: bool = False,
        target_token_pos: Selection | None = None,
        border_width: int = 2,
        show_legends: bool = True,
        *,
        image: int | None = None,
        alpha: float = OPACITY,
    ) -> tuple[Figure, Any] | None:
        r"""
        The image with a map over it; several images beside each other, on one scale of colours.

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
            image (int, optional): one image of the prompt, from 0. Default: None, all explained
                ones
            alpha (float): opacity of the map where it is strongest, in [0, 1]. Default: 0.75

        Returns:
            tuple[Figure, Axes] or None: the plot, unless it is shown. It is not registered with
            pyplot, so that it need not be closed; ``show=True`` shows it. Of several images an
            array of axes.

        Raises:
            TypeError: as in :meth:`map`.
            ValueError: as in :meth:`map`, and for an opacity outside of [0, 1].
        """
        tokens = self.tokens_of(target_token_pos)
        title, label = None, self._label
        if target_token_pos is not None:
            title = "".join(self.output_tokens[token] for token in tokens).strip()
        if len(tokens) > 1:
            label += f", sum of {len(tokens)} tokens"
        places = self._places(image)
        images = [self.images[self.explained[place]] for place in places]
        maps = [
            self._map(place, tokens, "sum", _size_within(each, _DRAWN_SIDE))
            for place, each in zip(places, images)
        ]
        labels = None
        if self._labels is not None:
            labels = [self._labels[place].numpy() for place in places]
        return plots.image_heatmap(
            images if len(places) > 1 else images[0],
            maps if len(places) > 1 else maps[0],
            title=title,
            names=[self.image_names[self.explained[place]] for place in places],
            label=label,
            alpha=alpha,
            segments=labels if labels is None or len(places) > 1 else labels[0],
            border_width=border_width,
            show_legends=show_legends,
            show=show,
        )

    def plot_words(
        self,
        show: bool = False,
        *,
        image: int | None = None,
        columns: int | None = None,
        alpha: float = OPACITY,
    ) -> tuple[Figure, Axes] | None:
        r"""
        A sheet of the image with the map of each word, the mean over its tokens, all on one scale
        of colours. Several images are shown side by side for each word.

        Args:
            show (bool): show the plot instead of returning it. Default: False
            image (int, optional): one image of the prompt, from 0. Default: None, all explained
                ones
            columns (int, optional): words in a row. Default: None, 5, and more for long answers;
                fewer where there are several images.
            alpha (float): opacity of the maps where they are strongest, in [0, 1]. Default: 0.75

        Returns:
            tuple[Figure, Axes] or None: the plot, unless it is shown. ``axes.images`` and
            ``axes.texts`` are those of the words, in their order; each word has an image of each.

        Raises:
            ValueError: for fewer than one column, or an opacity outside of [0, 1].
        """
        places = self._places(image)
        maps = [
            [self.image_attrs[place][list(word)].mean(0).numpy() for place in places]
            for word in self.words
        ]
        images = [self.images[self.explained[place]] for place in places]
        return plots.word_sheet(
            images,
            maps,
            self.output_words,
            columns=columns,
            label=self._label,
            alpha=alpha,
            show=show,
        )

    def _places(self, image: int | None) -> list[int]:
        """Which explained images are drawn."""
        return list(range(len(self.explained))) if image is None else [self._place(image)]

    def plot_token_attr(self, show: bool = False) -> tuple[Figure, Axes] | None:
        r"""
        A table of the weight of each input token for each explained one.

        Args:
            show (bool): show the plot instead of returning it. Default: False

        Returns:
            tuple[Figure, Axes] or None: the plot, unless it is shown.
        """
        weights = self.token_attr.detach().float().cpu().numpy()
        return text_plots.token_weights(weights, self.input_tokens, self.output_tokens, show=show)

    def plot_seq_attr(self, show: bool = False) -> tuple[Figure, Axes] | None:
        r"""
        A bar for the weight of each input token for all explained ones together.

        Args:
            show (bool): show the plot instead of returning it. Default: False

        Returns:
            tuple[Figure, Axes] or None: the plot, unless it is shown.
        """
        weights = self.seq_attr.detach().float().cpu().numpy()
        return text_plots.token_sums(weights, self.input_tokens, show=show)

    def diagnosis(
        self, calibration: Calibration | None = None, words: Selection | None = None
    ) -> list[WordRisk]:
        r"""
        The risk that the image does not show what each content word names, with its reasons.

        The answer has to be explained with ``attribute(..., diagnosis=True)``. Without a
        calibration for the model (``captum-mllm calibrate``) risks rank words and are no
        probabilities.

        Args:
            calibration (Calibration, optional): how signals combine to a risk. Default: None, the
                one of the bundled models.
            words (optional): the words to judge, as in :meth:`map`. Default: None, all of the
                answer but punctuation, numbers, and what names nothing: function words of
                English, prepositions, and forms of be, have and do.

        Returns:
            list[WordRisk]: in the order of the answer.

        Raises:
            ValueError: for a result without signals, and words that are not there.

        Examples::
            >>> from PIL import Image
            >>> from captum_mllm import MLLM, AttendedLens, ImageTextInput, MLLMAttribution
            >>> from captum_mllm.demo import demo_image
            >>> explainer = MLLMAttribution(AttendedLens(MLLM.from_pretrained("demo/qwen2-vl")))
            >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
            >>> result = explainer.attribute(inp, target="a striped red cross", diagnosis=True)
            >>> {each.word: each.level for each in result.diagnosis()}
            {'striped': 'low', 'red': 'low', 'cross': 'high'}
        """
        return diagnose(self, calibration, words)

    def text_records(self) -> list[captum_visualization.VisualizationDataRecord]:
        r"""
        A record for each explained token, for Captum's ``visualize_text``.

        The weights of the earlier tokens are divided by the largest, and the tokens are escaped,
        which Captum does not do.

        Returns:
            list[VisualizationDataRecord]: one for each explained token.
        """
        return text_plots.text_records(
            self.input_tokens, self.output_tokens, self.token_attr, self.output_probs.tolist()
        )

    def to_dict(self, *, maps: bool = True) -> dict[str, Any]:
        r"""
        The result as plain values, word by word.

        Args:
            maps (bool): with the maps, as lists of rows. Default: True

        Returns:
            dict[str, Any]: ``method``, ``model``, ``prompt``, the ``unit`` of the maps, ``answer``,
            whether the model ``finished`` it, the ``image``'s size, and ``words``. Each word has
            its text, the positions of its tokens, its probability (the product over its tokens),
            the predictions for its first token, the weights of the earlier words, its reasons where
            they were asked for (in nats, as of :meth:`Reasons.parts`), and its map (the mean over
            its tokens).
        """
        return result_dict(self, maps)

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
        return result_table(self)

    def to_html(self, calibration: Calibration | None = None) -> str:
        r"""The page as one self-contained HTML document; see :meth:`save_html`."""
        return result_page(self, calibration)

    def save_html(self, path: str | Path, calibration: Calibration | None = None) -> None:
        r"""
        Write the page: the image, its maps and the words, to look at in any browser.

        Args:
            path (str or Path): the file to write; it is replaced whole or not at all.
            calibration (Calibration, optional): as in :meth:`diagnosis`, for the marks under words
                at risk. Default: None, the one of the bundled models.

        Raises:
            FileNotFoundError: if its folder does not exist.
            IsADirectoryError: if the path is a folder.
            PermissionError: if the file may not be written.
        """
        write_file(path, self.to_html(calibration).encode("utf-8"))

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
        tensors |= _numbered("image_attr", self.image_attrs)
        for index, image in enumerate(self.images):
            tensors[f"image.{index}"] = torch.from_numpy(np.array(image.convert("RGB")))
        tensors |= _numbered("segments", self._labels or ())
        if self.signals is not None:
            tensors["signals"] = self.signals
        for index, scale in enumerate(self.scales):
            tensors |= _numbered(f"scale.{index}.image_attr", scale.image_attrs)
            if scale.output_probs is not None:
                tensors[f"scale.{index}.output_probs"] = scale.output_probs
        facts = {name: getattr(self, name) for name in _FACTS}
        facts["finished"], facts["times"] = self.finished, self.times
        facts["prompt_parts"] = [vars(part) for part in self.prompt_parts]
        facts["scales"] = [scale.scale for scale in self.scales]
        facts["reasons"] = None
        if self.reasons is not None:
            reasons_tensors, facts["reasons"] = self.reasons.to_parts()
            tensors |= reasons_tensors
        if self.alternatives is not None:
            tensors |= self.alternatives.to_parts()
        facts["what_ifs"] = []
        for index, what_if in enumerate(self.what_ifs):
            parts, texts = what_if.to_parts(f"what_if.{index}")
            tensors |= parts
            facts["what_ifs"].append(texts)
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
            numbers = range(len(facts["explained"]))
            return cls(
                image_attr=[tensors[f"image_attr.{number}"] for number in numbers],
                **{name: parts[name] for name in _FACTS + _TENSORS},
                finished=facts.get("finished"),
                times=facts.get("times", ()),
                images=[
                    Image.fromarray(tensors[f"image.{index}"].numpy()) for index in range(n_images)
                ],
                prompt_parts=[PromptPart(**part) for part in facts["prompt_parts"]],
                segments=[tensors[f"segments.{number}"] for number in numbers]
                if "segments.0" in tensors
                else None,
                signals=tensors.get("signals"),
                scales=[
                    ScaleResult(
                        scale,
                        tuple(tensors[f"scale.{index}.image_attr.{number}"] for number in numbers),
                        tensors.get(f"scale.{index}.output_probs"),
                    )
                    for index, scale in enumerate(facts["scales"])
                ],
                reasons=Reasons.from_parts(tensors, facts.get("reasons")),
                alternatives=Alternatives.from_parts(tensors, len(numbers)),
                what_ifs=[
                    WhatIf.from_parts(f"what_if.{index}", tensors, texts)
                    for index, texts in enumerate(facts.get("what_ifs", ()))
                ],
            )
        except KeyError as error:
            raise ValueError(f"{str(path)!r} lacks a part of a result: {error}") from error
        except (TypeError, AttributeError, ValueError, LookupError, OverflowError) as error:
            raise ValueError(f"{str(path)!r} is not a whole result: {error}") from error

    @property
    def _label(self) -> str:
        return f"Attribution ({self.unit})" if self.unit else "Attribution"


_TENSORS = ("image_shares", "token_attr", "output_probs")
_FACTS = (
    "input_tokens",
    "n_prompt",
    "output_tokens",
    "words",
    "top_predictions",
    "explained",
    "unit",
    "prompt",
    "method",
    "model",
)


def _size_within(image: Image.Image, longest: int) -> tuple[int, int]:
    """Height and width of an image, reduced to a longest side."""
    share = min(1.0, longest / max(image.size))
    return max(round(image.height * share), 1), max(round(image.width * share), 1)


def _numbered(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{number}": tensor for number, tensor in enumerate(tensors)}
