"""Budgets that mean the same for every method.

"64 tokens" may mean 64 image tokens from layer 2 on, 64 in every layer on average, or the work of one of these. Methods
that drop at once, before the language model or step by step are comparable only when it is said which is meant:

    kept      so many image tokens are left behind a method's last place (what the papers' tables mostly mean)
    average   a decoder layer sees so many image tokens on average
    flops     the decoder layers cost as many FLOPs as with so many image tokens from layer 2 on

The plan of a method is its `Method.kept`; what really happened is in a `dart.Report`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from dart import cost
from dart.methods.base import Method

MEANING = {
    "kept": "so many image tokens are left behind a method's last place",
    "average": "a decoder layer sees so many image tokens on average",
    "flops": "the decoder layers cost as many FLOPs as with so many image tokens from layer 2 on",
}
CONVENTIONS = tuple(MEANING)


class OutOfReach(ValueError):
    """A budget that a method cannot meet with any number of tokens."""


@dataclass(frozen=True)
class Plan:
    """What a method means to leave of one prompt, and what that costs.

    Attributes
    ----------
    kept : tuple of int
        Image tokens that each decoder layer sees.
    average : float
        Their mean over layers.
    flops : int
        Of the decoder layers, by :func:`dart.cost.layer_flops`; vision tower, projector and output layer left out.
    kv_bytes : int
        Keys and values of the prompt in all layers.
    """

    kept: tuple[int, ...]
    average: float
    flops: int
    kv_bytes: int


def plan(method: Method | None, config: PreTrainedConfig, prompt_length: int, image_tokens: int, dtype: torch.dtype = torch.bfloat16) -> Plan:
    """The plan of a method for one prompt; None is the plain model.

    Parameters
    ----------
    method : Method or None
    config : PreTrainedConfig
        Of the whole model or of its language model.
    prompt_length, image_tokens : int
        All tokens of the prompt, and how many of them are image tokens.
    dtype : torch.dtype
        Of the cache.

    Raises
    ------
    ValueError
        If what the method keeps depends on the picture.
    """
    layers = config.get_text_config().num_hidden_layers
    kept = [image_tokens] * layers if method is None else method.kept(image_tokens, layers)
    lengths = [prompt_length - image_tokens + count for count in kept]
    return Plan(
        tuple(kept), sum(kept) / layers, sum(cost.layer_flops(config, lengths)), sum(cost.kv_bytes(config, lengths, dtype))
    )


def meet(
    make: Callable[[int], Method], keep: int, convention: str, config: PreTrainedConfig, prompt_length: int, image_tokens: int
) -> Method:
    """The setting of a method that comes nearest to a budget.

    Parameters
    ----------
    make : callable
        Gives the method for a number of image tokens, like ``dart.FastV`` or ``lambda keep: dart.DART(keep, layer=4)``.
    keep : int
        The budget, in image tokens.
    convention : {"kept", "average", "flops"}
        What is meant by it; see the head of this module.
    config, prompt_length, image_tokens
        Of the model and of a typical prompt, as for :func:`plan`.

    Returns
    -------
    Method
        ``make(n)``. Under "kept" n is `keep`; otherwise the number whose plan comes nearest, the smaller one if two are as near.

    Raises
    ------
    ValueError
        An unknown convention.
    OutOfReach
        A budget that the method cannot meet: one that reduces late has paid for the layers before.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention={convention!r}; give one of {', '.join(map(repr, CONVENTIONS))}")
    if convention == "kept":
        return make(keep)
    if convention == "average":
        def price(n):
            return plan(make(n), config, prompt_length, image_tokens).average
        wanted = keep
    else:
        def price(n):
            return plan(make(n), config, prompt_length, image_tokens).flops
        lengths = cost.layer_lengths(config, prompt_length, image_tokens, keep)
        wanted = sum(cost.layer_flops(config, lengths))
    try:
        make(0)
        low = 0
    except ValueError:                                      # some cannot do without any
        low = 1
    high = image_tokens                                     # more tokens never cost less: search by halves
    if price(low) > wanted:
        raise OutOfReach(
            f"{type(make(low)).__name__} cannot meet keep={keep} under convention {convention!r}: with {low} image tokens it is at "
            f"{price(low):.6g} of {wanted:.6g}; give a larger budget or an earlier layer"
        )
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if price(middle) <= wanted else (low, middle - 1)
    nearest = min((low, min(low + 1, image_tokens)), key=lambda n: abs(price(n) - wanted))
    return make(nearest)
