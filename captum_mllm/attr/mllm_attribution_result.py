"""What explains an answer: maps of the picture and weights of the earlier words."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import InterpretableInput, LLMAttributionResult
from captum.attr import visualization as captum_visualization
from PIL import Image
from torch import Tensor

from captum_mllm.attr import result_file
from captum_mllm.models.pixels import to_pil, to_tensor
from captum_mllm.models.words import Word, group_words
from captum_mllm.visualization import heatmap
from captum_mllm.visualization.page import ScaleView, embed_page, render_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A token by its position, a run of tokens by (start, end), a word by its text.
Place = int | tuple[int, int] | str


@dataclass(frozen=True)
class ScaleResult:
    r"""What one scale of MSEA saw.

    Args:
        scale (float): size of the picture relative to the original.
        image_attr (Tensor): its maps, shape (T, h, w).
        output_probs (Tensor or None): probability of each token at this scale, shape (T,).
    """

    scale: float
    image_attr: Tensor
    output_probs: Tensor | None = None


class MLLMAttributionResult(LLMAttributionResult):
    r"""
    The explanation of an answer, word by word.

    It is Captum's ``LLMAttributionResult`` (``token_attr``, ``seq_attr``, ``output_probs``,
    ``plot_token_attr``, ``plot_seq_attr``) with a map of the picture for each token. Made by
    :class:`~captum_mllm.MLLMAttribution`, or read from a file by :meth:`load`.

    Args:
        input_tokens (list[str]): the P words of the prompt, then the T tokens of the answer.
        output_tokens (list[str]): the explained tokens.
        image_attr (Tensor): a map for each explained token, shape (T, h, w), as fine as the
            method made it; :meth:`map` enlarges it.
        token_attr (Tensor): weight of each earlier token, shape (T, P + T).
        output_probs (Tensor): the model's probability of each explained token, shape (T,).
        n_prompt (int): P, how many of the input tokens are of the prompt.
        words (Sequence[tuple[int, ...]]): the tokens that make each word.
        top_predictions (Sequence[Sequence[tuple[str, float]]]): the model's most probable tokens
            at each place, best first.
        picture (PIL.Image.Image): the picture.
        scales (Sequence[ScaleResult]): what each scale saw, where MSEA ran.
        prompt (str): the question.
        method (str): the method, as it is written.
        model (str): the model's name.
        inp (InterpretableInput, optional): the input; not saved.

    Raises:
        ValueError: if the shapes do not fit each other.
    """

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
        picture: Image.Image,
        scales: Sequence[ScaleResult] = (),
        prompt: str = "",
        method: str = "",
        model: str = "",
        inp: InterpretableInput | None = None,
    ) -> None:
        n_tokens = len(output_tokens)
        fits = (
            image_attr.ndim == 3
            and 0 <= n_prompt < len(input_tokens)
            and n_tokens in (len(input_tokens), len(input_tokens) - n_prompt)
            and token_attr.shape == (n_tokens, len(input_tokens))
            and output_probs.shape == (n_tokens,)
            and len(image_attr) == len(top_predictions) == n_tokens
            and [token for word in words for token in word] == list(range(n_tokens))
            and all(
                scale.image_attr.ndim == 3 and len(scale.image_attr) == n_tokens for scale in scales
            )
        )
        if not fits or not torch.isfinite(image_attr).all():
            raise ValueError(
                f"the parts of the result do not fit each other: {n_tokens} output tokens, "
                f"{len(input_tokens)} input tokens, finite maps {tuple(image_attr.shape)}, weights "
                f"{tuple(token_attr.shape)}, {len(top_predictions)} lists of predictions"
            )
        super().__init__(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            seq_attr=token_attr.sum(0),
            token_attr=token_attr,
            output_probs=output_probs,
            inp=inp,
        )
        self.image_attr = image_attr
        self.n_prompt = n_prompt
        self.words = [tuple(word) for word in words]
        self.top_predictions = [list(row) for row in top_predictions]
        self.picture = picture
        self.scales = list(scales)
        self.prompt = prompt
        self.method = method
        self.model = model

    @property
    def output_words(self) -> list[str]:
        """The answer's words, without the spaces around them."""
        return ["".join(self.output_tokens[i] for i in word).strip() for word in self.words]

    def map(self, token: Place | None = None) -> np.ndarray:
        r"""
        A map at the picture's own size, ready for ``visualize_image_attr``.

        Args:
            token (int, tuple[int, int], str, optional): a token of the answer by its position
                (negative ones count from the end), the mean of tokens m to n (noninclusive), or
                the first word of that text. Default: None, the mean of all.

        Returns:
            numpy.ndarray: float32, of shape (H, W).

        Raises:
            ValueError: if there is no such token or word.
        """
        mean = self.image_attr[self._tokens(token)].mean(0)
        width, height = self.picture.size
        enlarged = F.interpolate(mean[None, None], size=(height, width), mode="bilinear")
        return enlarged[0, 0].numpy()

    def plot_image_heatmap(
        self, show: bool = False, target_token_pos: Place | None = None, alpha: float = 0.6
    ) -> tuple[Figure, Axes] | None:
        r"""
        The picture with a map over it.

        Args:
            show (bool): show the plot instead of returning it. Default: False
            target_token_pos (int, tuple[int, int], str, optional): as in :meth:`map`.
                Default: None, the mean of all tokens.
            alpha (float): opacity of the map where it is strongest, in [0, 1]. Default: 0.6

        Returns:
            tuple[Figure, Axes] or None: the plot, unless it is shown.
        """
        title = None
        if target_token_pos is not None:
            title = "".join(self.output_tokens[i] for i in self._tokens(target_token_pos)).strip()
        plot = heatmap.plot_heatmap(self.picture, self.map(target_token_pos), title, alpha)
        return heatmap.show_or_return(plot, show)

    def plot_words(
        self, show: bool = False, columns: int = 5, alpha: float = 0.6
    ) -> tuple[Figure, np.ndarray] | None:
        r"""
        A sheet of the picture with the map of each word, all on one scale of colours.

        Args:
            show (bool): show the plot instead of returning it. Default: False
            columns (int): pictures in a row. Default: 5
            alpha (float): opacity of the maps where they are strongest. Default: 0.6

        Returns:
            tuple[Figure, numpy.ndarray] or None: the figure and its axes, unless it is shown.
        """
        maps = [self.map((word[0], word[-1] + 1)) for word in self.words]
        plot = heatmap.plot_sheet(self.picture, maps, self.output_words, columns, alpha)
        return heatmap.show_or_return(plot, show)

    def text_records(self) -> list[captum_visualization.VisualizationDataRecord]:
        r"""
        A record for each explained token, for Captum's ``visualize_text``.

        The weights of the earlier words are divided by the largest, and the tokens are escaped,
        which Captum does not do.

        Returns:
            list[VisualizationDataRecord]: one for each explained token.
        """
        assert self.token_attr is not None and self.output_probs is not None
        tokens = [_escaped(token) for token in self.input_tokens]
        records = []
        for index, weights in enumerate(self.token_attr):
            largest = weights.abs().max() if weights.numel() else torch.tensor(0.0)
            name = _escaped(self.output_tokens[index])
            records.append(
                captum_visualization.VisualizationDataRecord(
                    word_attributions=weights / largest if largest > 0 else weights,
                    pred_prob=float(self.output_probs[index]),
                    pred_class=name,
                    true_class=name,
                    attr_class=name,
                    attr_score=float(weights.sum()),
                    raw_input_ids=tokens,
                    convergence_score=0.0,
                )
            )
        return records

    def to_html(self) -> str:
        r"""The page as one self-contained HTML document."""
        assert self.token_attr is not None and self.output_probs is not None
        # The page walks through the answer; the words of the prompt are context there.
        skipped = len(self.output_tokens) - (len(self.input_tokens) - self.n_prompt)
        words = [[token - skipped for token in word] for word in self.words if word[0] >= skipped]
        prompt, weights = self._prompt_words(self.token_attr[skipped:])
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
            picture=self.picture,
            prompt_tokens=prompt,
            answer_tokens=self.output_tokens[skipped:],
            words=words,
            image_attr=image_attr.numpy(),
            token_attr=weights.numpy(),
            output_probs=self.output_probs[skipped:].numpy(),
            top_predictions=self.top_predictions[skipped:],
            scales=scales,
            method=self.method,
            model=self.model,
        )

    def _prompt_words(self, weights: Tensor) -> tuple[list[str], Tensor]:
        """The prompt by words, each with the weights of its tokens together."""
        tokens = self.input_tokens[: self.n_prompt]
        words = group_words(tokens)
        texts = ["".join(tokens[token] for token in word) for word in words]
        columns = [weights[:, list(word)].sum(1) for word in words]
        return texts, torch.column_stack([*columns, weights[:, self.n_prompt :]])

    def save_html(self, path: str | Path) -> None:
        r"""Write the page: the picture, its maps and the words, to look at in any browser.

        Args:
            path (str or Path): the file to write.
        """
        Path(path).write_text(self.to_html(), encoding="utf-8")

    def _repr_html_(self) -> str:
        return embed_page(self.to_html())

    def save(self, path: str | Path) -> None:
        r"""
        Write the result to one safetensors file, with its texts as JSON inside.

        Args:
            path (str or Path): the file to write.
        """
        tensors: dict[str, Tensor] = {
            "image_attr": self.image_attr,
            "token_attr": self.token_attr,
            "output_probs": self.output_probs,
            "picture": to_tensor(self.picture).mul(255).round().to(torch.uint8),
        }
        for index, scale in enumerate(self.scales):
            tensors[f"scale.{index}.image_attr"] = scale.image_attr
            if scale.output_probs is not None:
                tensors[f"scale.{index}.output_probs"] = scale.output_probs
        facts = {
            "input_tokens": self.input_tokens,
            "n_prompt": self.n_prompt,
            "output_tokens": self.output_tokens,
            "words": self.words,
            "top_predictions": self.top_predictions,
            "scales": [scale.scale for scale in self.scales],
            "prompt": self.prompt,
            "method": self.method,
            "model": self.model,
        }
        result_file.write(path, tensors, facts)

    @classmethod
    def load(cls, path: str | Path) -> MLLMAttributionResult:
        r"""
        Read a result that :meth:`save` wrote. Nothing in the file is executed.

        Args:
            path (str or Path): the file to read.

        Returns:
            MLLMAttributionResult: equal to the saved one, but for ``inp``, which is None.

        Raises:
            ValueError: if the file is not a saved result, or was changed since it was written.
        """
        tensors, facts = result_file.read(path)
        try:
            return cls(
                input_tokens=facts["input_tokens"],
                output_tokens=facts["output_tokens"],
                image_attr=tensors["image_attr"],
                token_attr=tensors["token_attr"],
                output_probs=tensors["output_probs"],
                n_prompt=facts["n_prompt"],
                words=[tuple(word) for word in facts["words"]],
                top_predictions=[
                    [(token, probability) for token, probability in row]
                    for row in facts["top_predictions"]
                ],
                picture=to_pil(tensors["picture"].float() / 255),
                scales=[
                    ScaleResult(
                        scale,
                        tensors[f"scale.{index}.image_attr"],
                        tensors.get(f"scale.{index}.output_probs"),
                    )
                    for index, scale in enumerate(facts["scales"])
                ],
                prompt=facts["prompt"],
                method=facts["method"],
                model=facts["model"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{str(path)!r} lacks a part of a result: {error}") from error

    def _tokens(self, token: Place | None) -> list[int]:
        everything = range(len(self.output_tokens))
        if token is None:
            return list(everything)
        if isinstance(token, str):
            if token.strip() not in self.output_words:
                raise ValueError(
                    f"there is no word {token!r} in the answer, expected one of {self.output_words}"
                )
            return list(self.words[self.output_words.index(token.strip())])
        chosen = list(everything[slice(*token)]) if isinstance(token, tuple) else [token]
        if not chosen or not all(-len(everything) <= index < len(everything) for index in chosen):
            raise ValueError(
                f"got token {token!r}, expected a position or a range within the "
                f"{len(everything)} tokens of the answer"
            )
        return chosen


def _escaped(token: str) -> str:
    return html.escape(token.replace("\n", "\\n"))
