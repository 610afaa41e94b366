"""prompt8: styles do to pictures what they say, captions name their cell, and splits are disjoint."""

import numpy as np
import pytest
import torch

from papertrial.testbeds.prompts import (
    ITEMS,
    STYLES,
    TEMPLATES,
    TRAINED,
    WIDTH,
    Wardrobe,
    book,
    captions,
    encode,
    negative,
    pair,
)


def seeded():
    return torch.Generator().manual_seed(1000)


def test_every_cell_has_six_captions_to_train_with_and_two_held_out():
    of = book()
    assert len(captions()) == 240 and len({c.text for c in captions()}) == 240
    for cell in range(30):
        assert (of.held_out[of.cell == cell]).tolist() == [False] * TRAINED + [True] * 2


def test_a_caption_names_its_item_and_no_other():
    for c in captions():
        named = {word for word in c.text.split() if word in ITEMS}
        assert named == {ITEMS[c.item]}


def test_held_out_captions_use_words_that_training_has_seen():
    seen = {word for c in captions() if not c.held_out for word in c.text.split()}
    assert all(word in seen for c in captions() if c.held_out for word in c.text.split())


def test_templates_of_a_style_differ():
    assert set(TEMPLATES) == set(STYLES) and all(len(set(of)) == 8 for of in TEMPLATES.values())


def test_encoding_is_scaled_and_does_not_know_word_order():
    e = encode(["a plain dress", "dress plain a", "a plain coat"])
    assert e.shape == (3, WIDTH) and np.allclose((e**2).sum(1), WIDTH, rtol=1e-5)
    assert np.allclose(e[0], e[1], atol=1e-5) and not np.allclose(e[0], e[2], atol=0.1)


def test_paraphrases_lie_nearer_than_other_cells():
    """The held-out caption's mean cosine is larger with its own cell's captions than with any other's."""
    of = book()
    e = of.encoded / np.linalg.norm(of.encoded, axis=1, keepdims=True)
    near = e[of.held_out] @ e[~of.held_out].T  # (60, 180)
    means = np.stack([near[:, of.cell[~of.held_out] == c].mean(1) for c in range(30)], axis=1)
    assert (means.argmax(1) == of.cell[of.held_out]).mean() > 0.8


def test_a_pair_shows_both_squeezed_to_half():
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    made = pair(x, torch.full_like(x, -1))
    assert made.shape == x.shape and (made[..., 4:] == -1).all()
    assert torch.equal(made[..., :4], (x[..., ::2] + x[..., 1::2]) / 2)


def test_a_negative_negates_all_but_one_row():
    x = torch.rand(5, 1, 8, 8, generator=seeded())
    made = negative(x, torch.arange(5))
    for i in range(5):
        others = torch.arange(8) != i
        assert (made[i, 0, i] == 1).all() and torch.equal(made[i, 0, others], -x[i, 0, others])


@pytest.fixture(scope="module")
def wardrobe():
    """Pictures that are constant at item / 10."""
    y = np.random.default_rng(0).permutation(np.arange(200) % 10)
    return Wardrobe(torch.from_numpy(y.astype(np.float32) / 10)[:, None, None, None].expand(-1, 1, 8, 8), y)


def test_pictures_are_of_the_item_asked_for(wardrobe):
    item = torch.arange(300) % 10
    for style, sign in ((0, 1), (1, 1), (2, -1)):
        x = wardrobe.draw(torch.full((300,), style), item, seeded())
        median = x.flatten(1).median(1).values
        assert torch.allclose(median, sign * item / 10.0, atol=1e-6)


def test_what_is_drawn_does_not_depend_on_the_style():
    y = np.zeros(50, int)
    of = Wardrobe(torch.rand(50, 1, 8, 8, generator=seeded()), np.append(y[1:], 9))
    item, zeros = torch.zeros(40, dtype=torch.long), torch.zeros(40, dtype=torch.long)
    plain, inverted = (of.draw(zeros + style, item, seeded()) for style in (0, 2))
    same = (plain == -inverted).flatten(1).sum(1)
    assert (same >= 56).all()  # all but the bright row
