"""``PlotText``: text of tokens on plots, never a formula, in fonts that have its characters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import matplotlib
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

_TEXT_LENGTH = 50
_MOST_LABELS = 120


class PlotText:
    """Gives texts of a plot their content: never a formula, in fonts that have its characters.

    The fonts are looked for once, for all texts of the plot.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        needed = frozenset(c for text in texts for c in text if ord(c) > 127 and c not in _JOINERS)
        families, self.missing = _families(tuple(matplotlib.rcParams["font.family"]), needed)
        self.families = list(families)
        if self.missing:
            _warn_of_missing(sorted(self.missing))

    def write(self, text: Any, content: str, longest: int) -> None:
        text.set(text=self.shown(content, longest), **self._plain)

    def write_ticks(self, axis: Any, contents: Sequence[str]) -> None:
        # The axis writes its labels itself, at each drawing.
        step = math.ceil(len(contents) / _MOST_LABELS)
        labels = [self.shown(content, _TEXT_LENGTH) for content in contents[::step]]
        axis.set_ticks(range(0, len(contents), step), labels=labels)
        for label in axis.get_ticklabels():
            label.set(**self._plain)

    @property
    def _plain(self) -> dict[str, Any]:
        """Neither a formula nor TeX, also where the user's plots are set by TeX."""
        return {"parse_math": False, "usetex": False, "fontfamily": self.families}

    def shown(self, content: str, longest: int) -> str:
        text = _printable(content)
        text = text if len(text) <= longest else f"{text[: longest - 1]}\u2026"
        # matplotlib would warn of each missing character at each drawing.
        return "".join("\u25a1" if c in self.missing else c for c in text)


def _printable(text: str) -> str:
    """Control characters and halves of surrogate pairs as escapes."""
    return "".join(c if c.isprintable() or c in _JOINERS else repr(c)[1:-1] for c in text)


@lru_cache(maxsize=64)
def _families(
    own: tuple[str, ...], needed: frozenset[str]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Font families that have the needed characters between them, the given ones first, and the
    characters that no installed font has."""
    families = list(own)
    missing = {c for c in needed if c.isprintable()}
    for family in own if missing else ():
        missing -= _covered(findfont(FontProperties(family=[family])), missing)
    for name, path in _fallback_fonts() if missing else ():
        found = _covered(path, missing)
        if found:
            families.append(name)
            missing -= found
        if not missing:
            break
    return tuple(families), frozenset(missing)


def _fallback_fonts() -> list[tuple[str, str]]:
    """Installed upright fonts with outlines, those made for many scripts first."""
    fonts = {
        entry.name: entry.fname
        for entry in fontManager.ttflist
        if entry.style == "normal"
        and entry.size == "scalable"
        and "Color" not in entry.name
        and "Last Resort" not in entry.name
    }
    preferred = ("DejaVu Sans", "Noto Sans", "Noto Emoji", "Arial Unicode", "Noto")
    rank = {
        name: next((i for i, start in enumerate(preferred) if name.startswith(start)), 9)
        for name in fonts
    }
    return sorted(fonts.items(), key=lambda font: (rank[font[0]], font[0]))


def _covered(path: str, characters: Iterable[str]) -> set[str]:
    try:
        font = get_font(path)
    except (OSError, RuntimeError):
        return set()
    return {c for c in characters if font.get_char_index(ord(c))}


_JOINERS = "\u200c\u200d\ufe0e\ufe0f"
_FONTS = (
    (0x2E80, 0xD7FF, "Noto Sans CJK (fonts-noto-cjk)"),
    (0x20000, 0x3FFFF, "Noto Sans CJK (fonts-noto-cjk)"),
    (0x1F000, 0x1FAFF, "Noto Emoji (the one without colours)"),
)
_OTHERS = "the Noto Sans of their script (fonts-noto-core)"
_named: set[str] = set()


def _warn_of_missing(characters: Sequence[str]) -> None:
    """Once for each font to install."""
    fonts = {
        next((font for low, high, font in _FONTS if low <= ord(c) <= high), _OTHERS)
        for c in characters
    }
    if fonts <= _named:
        return
    _named.update(fonts)
    warnings.warn(
        f"no installed font has the characters {''.join(characters)!r}, which are drawn as boxes; "
        f"install {' and '.join(sorted(fonts))}, and delete matplotlib's font cache, "
        f"{matplotlib.get_cachedir()}",
        stacklevel=6,
    )
