"""Which papers stand on the same ground: a testbed, a base model or a data set in common."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from papertrial.engine.cards import Card

MOST = 10  # neighbours shown on a page
Mark = tuple[str, str]  # (what it is, its name)


def testbeds(card: Card) -> list[str]:
    """The testbeds a card names: 'gmm2d + fm16 (solver lab)' are gmm2d and fm16."""
    named = re.sub(r"\(.*?\)", "", card.testbed or "")
    return [t.strip() for t in named.split("+") if t.strip()]


def marks(card: Card) -> list[Mark]:
    """What a paper may share with others; a name counts once, as what it is first."""
    models = [*card.needs.models, *card.compares_with]
    found = dict.fromkeys(card.needs.datasets, "data set")
    found |= dict.fromkeys(models, "base model") | dict.fromkeys(testbeds(card), "testbed")
    return sorted((kind, name) for name, kind in found.items())


def holders(cards: Mapping[str, Card]) -> dict[str, list[str]]:
    """{what is shared: the papers that have it}."""
    found: dict[str, list[str]] = defaultdict(list)
    for paper, card in cards.items():
        for _, name in marks(card):
            found[name].append(paper)
    return found


def neighbours(paper: str, cards: Mapping[str, Card], ground: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """The papers that share most with one, rarest first: a base model of three papers says more than MNIST.

    Args:
        ground: ``holders(cards)``.
    """
    closeness: dict[str, float] = defaultdict(float)
    shared: dict[str, list[str]] = defaultdict(list)
    for kind, name in marks(cards[paper]):
        for other in ground[name]:
            if other != paper:
                closeness[other] += 1 / len(ground[name])
                shared[other].append(f"{kind} {name}")
    closest = sorted(closeness, key=lambda other: (-closeness[other], other))[:MOST]
    return [{"paper": p, "title": cards[p].title, "shared": shared[p]} for p in closest]
