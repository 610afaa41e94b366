"""The data of the training workloads, split by numpy.random.default_rng(0)."""

from collections.abc import Mapping

import numpy as np

ALPHABET = b" abcdefghijklmnopqrstuvwxyz.,;:'\"!?-\n"
HELD_OUT = "persuasion"

Arrays = Mapping[str, np.ndarray]


def fashion(dataset: Arrays, held_out: int = 6000) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Fashion-MNIST as {train (54,000), validation (6,000), test (10,000)}: images (n, 784) float32, labels (n,)."""
    order = np.random.default_rng(0).permutation(len(dataset["x_train"]))
    validation, train = order[:held_out], order[held_out:]

    def part(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = x.reshape(len(x), -1).astype(np.float32)
        pixels /= 255
        pixels -= 0.286
        pixels /= 0.353
        return pixels, y.astype(np.int64)

    x, y = dataset["x_train"], dataset["y_train"]
    return {
        "train": part(x[train], y[train]),
        "validation": part(x[validation], y[validation]),
        "test": part(dataset["x_test"], dataset["y_test"]),
    }


def austen(dataset: Arrays) -> dict[str, np.ndarray]:
    """Austen's novels as {train, validation, test}: codes (n,) uint8, places in ALPHABET.

    Persuasion is the test set, the last 5% of each other novel validation, the rest train.
    """
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for novel, text in dataset.items():
        codes = encode(text)
        if novel == HELD_OUT:
            parts["test"].append(codes)
        else:
            cut = len(codes) - len(codes) // 20
            parts["train"].append(codes[:cut])
            parts["validation"].append(codes[cut:])
    return {name: np.concatenate(pieces) for name, pieces in parts.items()}


def encode(text: np.ndarray) -> np.ndarray:
    """Bytes to codes: lower case, whatever isn't in the alphabet becomes a space, runs of spaces one space."""
    table = np.zeros(256, np.uint8)  # 0 is the space
    table[list(ALPHABET)] = np.arange(len(ALPHABET))
    table[list(ALPHABET.upper())] = np.arange(len(ALPHABET))
    codes = table[text]
    repeated = np.zeros(len(codes), bool)
    repeated[1:] = (codes[1:] == 0) & (codes[:-1] == 0)
    return codes[~repeated]
