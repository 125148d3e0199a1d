"""The table of attributors in the docs: ``python -m tests.attr.attributor_table`` writes it."""

from __future__ import annotations

import warnings
from pathlib import Path

from tests.attr.attributor_columns import COLUMNS, column
from tests.attr.attributor_outcomes import REASONS, kind, remark
from tests.attr.attributor_rows import IMAGE_ROWS, LAYER_ROWS, TOKEN_ROWS, Row, attributions

PAGE = Path(__file__).parents[2] / "docs" / "attributors.md"

REFUSED = "–"
INTRODUCTION = """# Which methods explain which models

Every method below is run on a small model of each kind in the tests, and this page is written from
that run. A cell says what the values are, of the method alone and under `MSEA`:

- **pixels**: one value for each channel of each pixel, `(B, 3, H, W)`;
- **grid**: one value for each token of the image, where it lies, `(B, 1, h, w)`;
- **map**: one value for each pixel, `(B, 1, H, W)`;
- **states**: one value for each state of the layer, as the layer has them, enlarged under `MSEA`
  where they are a grid;
- **–**: an error, which says why.
"""

BESIDE_THE_TABLE = """## Image and words together

On a multimodal LLM, the embeddings of the words are an input too, `mllm(image, words, query)`, so
methods of gradients and methods that perturb take `(image, mllm.word_embeddings(query))` as well;
see [the questions](questions.md#how-do-i-weigh-the-image-and-the-question-together).

## What they look like

The bundled model, a word of three images each; red speaks for the word, blue against it.

![A row of maps for each method, alone and under MSEA](images/attributors.jpg)

## With Captum's metrics

`captum.metrics.infidelity` wants attributions of the shape of the image. A grid or a map gets
that by

```python
maps = LayerAttribution.interpolate(maps, image.shape[-2:], "bilinear").expand_as(image)
```

and `captum.metrics.sensitivity_max` takes `method.attribute` of every method as it is.
"""

SECTIONS = [
    (
        "Captum's methods on images",
        "The forward function is the network, or `MLLM` with its query in "
        "`additional_forward_args`.",
        IMAGE_ROWS,
    ),
    (
        "Captum's methods on layers",
        "The layer is a convolution of a classifier; the first layer of the language model of a "
        "multimodal one, or the first of its vision tower.",
        LAYER_ROWS,
    ),
    (
        "Methods on the tokens of an image",
        "These know where a token lies, and explain every word of an answer from one pass.",
        TOKEN_ROWS,
    ),
]


class Notes:
    """Footnotes, numbered in the order in which they are asked for."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str | None) -> str:
        if text is None:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return f"[^{self.texts.index(text) + 1}]"

    def lines(self) -> list[str]:
        return [
            f"[^{number}]: {text[0].upper()}{text[1:]}."
            for number, text in enumerate(self.texts, 1)
        ]


def cell(row: Row, name: str, notes: Notes) -> str:
    where = column(name)
    if not row.applies_to(where):
        return ""
    mark = notes.mark(remark(row, where))
    found = []
    for wrapped in (False, True):
        try:
            values = attributions(row.name, name, wrapped)
        except tuple(reason.error for reason in REASONS) as error:
            (text,) = {reason.text for reason in REASONS if reason.fits(error)}
            found.append(REFUSED + notes.mark(text))
        else:
            found.append(kind(values, row.inputs(where)))
    found[0 if found[1].startswith(REFUSED) else 1] += mark
    return " / ".join(found)


def page() -> str:
    notes = Notes()
    lines = [INTRODUCTION]
    titles = [column(name).title for name in COLUMNS]
    for title, text, rows in SECTIONS:
        lines += [f"## {title}", "", text, ""]
        lines.append(" | ".join(["| method", *titles]) + " |")
        lines.append("|" + " --- |" * (len(titles) + 1))
        for row in rows:
            cells = [cell(row, name, notes) for name in COLUMNS]
            lines.append(" | ".join([f"| {row.name}", *cells]) + " |")
        lines.append("")
    return "\n".join([*lines, BESIDE_THE_TABLE, *notes.lines(), ""])


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = page()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
