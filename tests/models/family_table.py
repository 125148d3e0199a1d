"""What each family allows, tried on its tiny model: ``python -m tests.models.family_table`` writes
the table in the docs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from captum.attr import Saliency
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput, LogitLens, TokenCam, Video
from captum_mllm.attr.attention_maps import AttentionMaps
from captum_mllm.models import Query
from captum_mllm.models.batches import batch_states
from tests.models.test_families import scaled
from tests.models.tiny_families import FAMILIES, shared
from tests.models.tiny_later_families import mllama

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
START, END = "<!-- what each family allows -->", "<!-- end of what each family allows -->"
YES, NO, FRAMES = "yes", "–", "frames"
QUESTION = "what is it ?"

Try = Callable[[MLLM, Tensor, Query], Any]


def _picture(height: int = 70, width: int = 98) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, height, width, generator=generator).mul(255).round() / 255


def _maps(method: Any, image: Any, query: Query, **options: Any) -> bool:
    maps = method.attribute(image, additional_forward_args=(query,), **options)
    maps = maps if isinstance(maps, tuple) else (maps,)
    return all(bool(each.isfinite().all() and each.abs().sum() > 0) for each in maps)


def _refuses_not(method: TokenCam, image: Tensor, query: Query) -> bool:
    """Without a sum above 0: of random weights all may be negative."""
    maps = method.attribute(image, additional_forward_args=(query,))
    return bool(maps.isfinite().all())


def _more_tokens(mllm: MLLM, image: Tensor, query: Query) -> bool:
    native, larger = (mllm.layouts(each, query)[0].n_tokens for each in (image, scaled(image, 2.0)))
    return larger > native


def _several_images(mllm: MLLM, image: Tensor, query: Query) -> bool:
    inp = ImageTextInput([image[0], 1 - image[0]], QUESTION)
    both, opened = mllm.prepare(inp, target="a cat")
    return len(both) == 2 and _maps(AttentionMaps(mllm, mode="raw"), both, opened)


def _batch(mllm: MLLM, image: Tensor, query: Query) -> bool:
    _, other = mllm.prepare(ImageTextInput(image[0], "what"), target="a dog")
    states = batch_states(mllm.backbone, [((image,), query), ((image,), other)])
    return all(bool(found[None].predicting.isfinite().all()) for found in states)


def _video(mllm: MLLM, image: Tensor, query: Query) -> str:
    """Frames are images; a family with tokens for videos has them where torchvision is there."""
    video = Video([image[0], 1 - image[0], image[0].flip(-1)])
    shown, opened = mllm.prepare(ImageTextInput(video, QUESTION), target="a cat")
    if not (len(shown) == 3 and _maps(AttentionMaps(mllm, mode="raw"), shown, opened)):
        return NO
    return FRAMES if mllm.backbone.family.video is None else YES


COLUMNS: dict[str, Try] = {
    "lens": lambda mllm, image, query: _maps(LogitLens(mllm), image, query),
    "attention": lambda mllm, image, query: _maps(AttentionMaps(mllm, mode="raw"), image, query),
    "rollout": lambda mllm, image, query: _maps(AttentionMaps(mllm), image, query),
    "Grad-CAM, decoder": lambda mllm, image, query: _refuses_not(
        TokenCam(mllm, 0, "grad_cam", tower="decoder"), image, query
    ),
    "Grad-CAM, vision tower": lambda mllm, image, query: _refuses_not(
        TokenCam(mllm, variant="grad_cam"), image, query
    ),
    "gradients of pixels": lambda mllm, image, query: _maps(
        Saliency(mllm), image.clone().requires_grad_(), query, target=(1, query.answer_ids[1])
    ),
    "scales": _more_tokens,
    "several images": _several_images,
    "video": _video,
    "streaming": lambda mllm, image, query: LogitLens(mllm).why_not_streamed() is None,
    "batches": _batch,
}
BUILDERS: dict[str, Callable[[], Any]] = {
    **{name: (lambda name=name: shared(name)) for name in FAMILIES},
    "mllama": mllama,
}


def abilities(family: str) -> list[str]:
    """A cell for each column; what is refused is no ability, and other errors are raised."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model, processor = BUILDERS[family]()
        mllm = MLLM(model.eval(), processor)
        image, query = mllm.prepare(ImageTextInput(_picture(), QUESTION), target="a cat")
        return [_cell(attempt, mllm, image, query) for attempt in COLUMNS.values()]


def _cell(attempt: Try, mllm: MLLM, image: Tensor, query: Query) -> str:
    try:
        found = attempt(mllm, image, query)
    except ValueError:
        return NO
    return found if isinstance(found, str) else YES if found else NO


def row(family: str, cells: list[str]) -> str:
    """A line of the table."""
    return f"| `{family}` | {' | '.join(cells)} |"


def stored_rows() -> dict[str, str]:
    """The lines of the table in the docs, by family."""
    table = PAGE.read_text().partition(START)[2].partition(END)[0]
    lines = [line for line in table.splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: line for line in lines}


def main() -> None:
    lines = [row(family, abilities(family)) for family in sorted(BUILDERS)]
    head = f"| | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}"
    before, _, rest = PAGE.read_text().partition(START)
    table = "\n".join([head, *lines])
    PAGE.write_text(f"{before}{START}\n\n{table}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
