"""What explains an answer: maps of the picture and weights of the earlier words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import InterpretableInput, LLMAttributionResult
from captum.attr import visualization as captum_visualization
from PIL import Image
from torch import Tensor

from captum_mllm.attr import result_file, result_parts
from captum_mllm.attr.scale_result import ScaleResult
from captum_mllm.models.words import Word, group_words
from captum_mllm.visualization import heatmap
from captum_mllm.visualization.page import ScaleView, embed_page, render_page
from captum_mllm.visualization.text_records import text_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A token by its position, a run of tokens by (start, end), a word by its text.
Place = int | tuple[int, int] | str


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
        ValueError: if the shapes do not fit each other, or a number is not finite.
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
        image_attr, token_attr, output_probs = (
            part.detach().float().cpu() for part in (image_attr, token_attr, output_probs)
        )
        result_parts.check_parts(
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

    def __repr__(self) -> str:
        height, width = self.image_attr.shape[1:]
        return (
            f"{type(self).__name__}({''.join(self.output_tokens)!r}, method={self.method!r}, "
            f"{len(self.output_tokens)} tokens, maps of {height} x {width})"
        )

    @property
    def output_words(self) -> list[str]:
        """The explained words, without the spaces around them."""
        return ["".join(self.output_tokens[i] for i in word).strip() for word in self.words]

    def map(self, token: Place | None = None) -> np.ndarray:
        r"""
        A map at the picture's own size, ready for ``visualize_image_attr``.

        Args:
            token (int, tuple[int, int], str, optional): a token of the answer by its position
                (negative ones count from the end), the mean of tokens m to n (noninclusive), or
                the first word of that text; of the answer, where the prompt has it too.
                Default: None, the mean of all.

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
        self, show: bool = False, target_token_pos: Place | None = None, *, alpha: float = 0.6
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
        self, show: bool = False, *, columns: int = 5, alpha: float = 0.6
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
        return text_records(
            self.input_tokens, self.output_tokens, self.token_attr, self.output_probs
        )

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
        tensors, facts = result_parts.take_apart(self)
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
            return cls(**result_parts.put_together(tensors, facts))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{str(path)!r} lacks a part of a result: {error}") from error

    def _tokens(self, token: Place | None) -> list[int]:
        everything = range(len(self.output_tokens))
        if token is None:
            return list(everything)
        if isinstance(token, str):
            texts = self.output_words
            if token.strip() not in texts:
                raise ValueError(
                    f"there is no word {token!r} in the answer, expected one of {texts}"
                )
            matches = [word for word, text in zip(self.words, texts) if text == token.strip()]
            # The words of the prompt come first; who asks for a word means the answer's.
            skipped = len(self.output_tokens) - (len(self.input_tokens) - self.n_prompt)
            return list(next((word for word in matches if word[0] >= skipped), matches[0]))
        chosen = list(everything[slice(*token)]) if isinstance(token, tuple) else [token]
        if not chosen or not all(-len(everything) <= index < len(everything) for index in chosen):
            raise ValueError(
                f"got token {token!r}, expected a position or a range within the "
                f"{len(everything)} tokens of the answer"
            )
        return chosen
