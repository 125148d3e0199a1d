"""The answer as a function of which parts of the input are there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from captum_mllm.attr.segments import Segments
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query


class Coalitions:
    r"""
    The logits of all explained tokens, of the segments and words that are present.

    Methods that perturb need one pass for each coalition, not one for each token: what was
    computed is kept, so that they can go through the same coalitions for each token.

    Args:
        mllm (MLLM): the model.
        image (Tensor): the picture, (1, 3, H, W) in [0, 1].
        query (Query): the question and the answer.
        segments (Segments): of the picture, at its size.
        picture_baseline (Tensor): what is to be seen where a segment is absent, (1, 3, H, W).
        words (tuple[Tensor, Tensor, Tensor], optional): the embeddings of the words (1, n, D),
            those in the place of absent ones (1, n, D), and the index of the word of each (n,).
            Default: None, the words stay as they are.
    """

    def __init__(
        self,
        mllm: MLLM,
        image: Tensor,
        query: Query,
        segments: Segments,
        picture_baseline: Tensor,
        words: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        self.mllm = mllm
        self.image = image
        self.query = query
        self.segments = segments
        self.picture_baseline = picture_baseline
        self.words = words
        self._known: dict[bytes, Tensor] = {}

    @property
    def everything(self) -> tuple[Tensor, ...]:
        """What is present in the input as it is: ones for the segments, and for the words."""
        present = [torch.ones(1, *self.segments.shape)]
        if self.words is not None:
            present.append(torch.ones(1, int(self.words[2].max()) + 1))
        return tuple(present)

    def __call__(self, *present: Tensor) -> Tensor:
        r"""
        Args:
            *present (Tensor): 1 for each segment that is there, else 0, (B, \*segments.shape); then
                for each word, (B, W), if words are features.

        Returns:
            Tensor: logits (B, T), on the CPU, float32 at least.
        """
        parts = [part > 0.5 for part in present]
        rows = torch.cat([part.flatten(1) for part in parts], dim=1).cpu().numpy()
        # A bit for each feature: there may be many coalitions.
        keys = [row.tobytes() for row in np.packbits(rows, axis=1)]
        # One pass for each coalition that is not known yet.
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        if new:
            found = self._run([part[list(new.values())] for part in parts])
            self._known.update(zip(new, found))
        return torch.stack([self._known[key] for key in keys])

    @torch.no_grad()
    def _run(self, present: list[Tensor]) -> Tensor:
        device = self.image.device
        seen = self.segments.seen(present[0].to(device))
        inputs = [torch.where(seen, self.image, self.picture_baseline)]
        if self.words is not None:
            own, absent, word_of_token = self.words
            kept = present[1].to(own.device)[:, word_of_token, None]
            inputs.append(torch.where(kept, own, absent))
        return self.mllm.token_logits(*inputs, self.query).cpu()
