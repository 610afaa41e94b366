"""prompt8: captioned 8 x 8 pictures of clothing in three styles, from easy to hard, for text-conditional models.

A cell is a style and an item of clothing, 30 in all. A caption is a template of the style with the item's name in it;
two of a style's eight templates are held out. Captions are seen by models through a frozen encoder only: a random
vector for every word, fillers weighted down, as an encoder that knows the language would, so that paraphrases lie
close. The 22 words are fewer than the vectors' 32 numbers, so none is lost.

    plain      the picture
    pair       two pictures of one item side by side, each squeezed to half its width
    negative   the inverted picture with one bright row at random
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

STYLES = ("plain", "pair", "negative")
ITEMS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
TEMPLATES = {
    "plain": (
        "a photo of a plain {}",
        "a single {}",
        "the picture of one plain {}",
        "the photo of a single {}",
        "one single {}",
        "a plain {}",
        "a picture of a single {}",
        "the photo of one plain {}",
    ),
    "pair": (
        "a photo of two {}",
        "a pair of {}",
        "the picture of two {}",
        "one photo of a pair of {}",
        "two {}",
        "the pair of {}",
        "a picture of a pair of {}",
        "the photo of two {}",
    ),
    "negative": (
        "a negative photo of a {}",
        "a dark {}",
        "the negative of a {}",
        "a picture of a dark {}",
        "one dark {}",
        "the photo of a negative {}",
        "a negative picture of a {}",
        "a photo of the dark {}",
    ),
}
TRAINED = 6  # templates of a style that models are trained with; the others are held out
WIDTH = 32  # of an encoded caption
FILLERS = frozenset(("a", "the", "one", "of", "photo", "picture"))  # words that say nothing about the cell
FILLER = 0.25  # their weight; the others' is 1


@dataclass(frozen=True)
class Caption:
    """A text; the cell it describes; whether training never shows it."""

    text: str
    style: int
    item: int
    held_out: bool


@cache
def captions() -> tuple[Caption, ...]:
    """All 240, cell by cell."""
    return tuple(
        Caption(template.format(name), style, item, i >= TRAINED)
        for style, of in enumerate(STYLES)
        for item, name in enumerate(ITEMS)
        for i, template in enumerate(TEMPLATES[of])
    )


class Book(NamedTuple):
    """All captions as arrays, in their order.

    encoded (240, 32) float32, style and item (240,) int64, held_out (240,) bool.
    """

    encoded: np.ndarray
    style: np.ndarray
    item: np.ndarray
    held_out: np.ndarray

    @property
    def cell(self) -> np.ndarray:
        """(240,) 0..29."""
        return self.style * len(ITEMS) + self.item


def book() -> Book:
    style, item, held_out = (np.array([getattr(c, k) for c in captions()]) for k in ("style", "item", "held_out"))
    return Book(encode([c.text for c in captions()]), style, item, held_out)


def encode(texts: Sequence[str]) -> np.ndarray:
    """(n, 32) float32: the weighted sum of the words' random vectors, scaled to the norm sqrt(32)."""

    def weight(word: str) -> float:
        return FILLER if word in FILLERS else 1.0

    rows = np.stack([sum(weight(word) * _vector(word) for word in text.split()) for text in texts])
    return (np.sqrt(WIDTH) * rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@cache
def _vector(word: str) -> np.ndarray:
    return np.random.default_rng(crc32(word.encode())).standard_normal(WIDTH)


def plain(x: Tensor) -> Tensor:
    """(n, 1, 8, 8) in [-1, 1], as it is."""
    return x


def pair(x: Tensor, other: Tensor) -> Tensor:
    """Left and right, two columns averaged into one."""
    return torch.cat([x, other], dim=-1).unflatten(-1, (-1, 2)).mean(-1)


def negative(x: Tensor, row: Tensor) -> Tensor:
    """-x with the row (n,) set to 1."""
    there = torch.arange(x.shape[-2], device=x.device) == row[:, None]  # (n, 8)
    return torch.where(there[:, None, :, None], 1.0, -x)


class Wardrobe:
    """Pictures by item, to be put in any style.

    Args:
        x: (N, 1, size, size) in [-1, 1].
        y: (N,) items.
    """

    def __init__(self, x: Tensor, y: np.ndarray) -> None:
        order = np.argsort(y, kind="stable")
        self.x = x[torch.from_numpy(order).to(x.device)]
        self.counts = torch.from_numpy(np.bincount(y, minlength=len(ITEMS)))
        self.first = self.counts.cumsum(0) - self.counts

    def draw(self, style: Tensor, item: Tensor, generator: torch.Generator) -> Tensor:
        """A random picture for every (style, item), both (n,) on the CPU; draws don't depend on the styles.

        Returns:
            (n, 1, size, size).
        """
        u = torch.rand(3, len(item), generator=generator)
        rows = self.first[item] + (u[:2] * self.counts[item]).long()  # (2, n)
        one, other = self.x[rows.to(self.x.device)]
        bright = (u[2] * one.shape[-2]).long().to(one.device)
        made = torch.stack([plain(one), pair(one, other), negative(one, bright)])  # (3, n, 1, size, size)
        return made[style.to(one.device), torch.arange(len(item), device=one.device)]
