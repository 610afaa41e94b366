"""What a network costs, counted without running it: parameters, and floating-point operations of one example.

A base model's recipe (or a paper's method.py) that trains a network offers two functions:

    network(settings) -> (module, arguments)   an untrained network and the arguments of one example's forward pass,
                                               on torch's default device
    passes(settings)  -> number                forward passes that the whole job makes, each of one example: a training
                                               example counts 3 (forward and backward), a sampling step 1
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Count:
    """Of one network: parameters, floating-point operations of an example's forward pass, and of the whole job."""

    parameters: int
    flops: int
    job_flops: float


def offers(module: str) -> bool:
    recipe = import_module(module)
    return hasattr(recipe, "network") and hasattr(recipe, "passes")


def count(module: str, settings: Mapping[str, Any]) -> Count | None:
    """Build the network of a recipe on the meta device, where nothing is allocated, and count; None if it offers none.

    Args:
        module: dotted name of the recipe.
        settings: its settings at a scale.
    """
    if not offers(module):
        return None
    recipe = import_module(module)
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network, arguments = recipe.network(dict(settings))
        network(*arguments)
    flops = counter.get_total_flops()
    parameters = sum(p.numel() for p in network.parameters())
    return Count(parameters, flops, flops * float(recipe.passes(dict(settings))))


def count_once(module: str, settings: Mapping[str, Any]) -> Count | None:
    """The same, remembered: a table of prices asks for one network many times."""
    key = module, json.dumps(settings, sort_keys=True)
    if key not in _COUNTED:
        _COUNTED[key] = count(module, settings)
    return _COUNTED[key]


_COUNTED: dict[tuple[str, str], Count | None] = {}
