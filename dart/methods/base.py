"""What a method sees and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral

from torch import Tensor


@dataclass
class View:
    """What a method may look at when it decides, once per prompt, which image tokens stay.

    Attributes
    ----------
    hidden_states : Tensor, (batch, length, hidden_size)
        States that enter the first layer of the short sequence; at layer 0 the input embeddings.
    keys, values : Tensor, (batch, key_value_heads, length, head_dim)
        Keys (after RoPE) and values of the layer before. Layer 0 has none before it: both are the input embeddings there,
        as one head.
    image_mask : Tensor, bool, (batch, length)
        True at image (and video) tokens.
    padding_mask : Tensor, bool, (batch, length)
        True at padding.
    """

    hidden_states: Tensor
    keys: Tensor
    values: Tensor
    image_mask: Tensor
    padding_mask: Tensor
    final_norm: Callable[[Tensor], Tensor]

    @cached_property
    def normed_hidden_states(self) -> Tensor:
        """`hidden_states` after the decoder's final norm, the space of DART's cosines; at layer 0 the embeddings as they are.

        (batch, length, hidden_size). Source: the authors' code; the paper does not mention the norm.
        """
        return self.final_norm(self.hidden_states)

    @property
    def text_mask(self) -> Tensor:
        """True at tokens that are neither image nor padding, bool (batch, length)."""
        return ~(self.image_mask | self.padding_mask)


@dataclass(frozen=True)
class Method(ABC):
    """A rule that drops image tokens before decoder layer `layer`.

    To write one, subclass as a frozen dataclass and give `select`; :func:`dart.prune` does the rest.

    Attributes
    ----------
    layer : int
        Index of the first decoder layer that sees the short sequence; keyword only. Default 2, "after the second layer"
        (paper, captions of Tables 1, 9 and 10).
    """

    layer: int = field(default=2, kw_only=True)

    @abstractmethod
    def select(self, view: View) -> Tensor:
        """Mark the image tokens that stay, bool (batch, length). Text stays whatever is answered there."""


def check_budget(**numbers: int | float | None) -> None:
    """Refuse budgets that cannot be meant: exactly one given, whole numbers not negative, fractions within [0, 1].

    Raises
    ------
    ValueError
        Naming the budget, its value and what to write instead.
    """
    given = {name: value for name, value in numbers.items() if value is not None}
    if len(given) != 1:
        wanted = ", ".join(numbers)
        got = ", ".join(f"{name}={value}" for name, value in given.items()) or "none"
        raise ValueError(f"give exactly one of {wanted}; got {got}")
    (name, value), = given.items()
    if name == "reduction_ratio":
        if not 0 <= value <= 1:
            raise ValueError(f"reduction_ratio={value}; it is the fraction removed, give 0 <= reduction_ratio <= 1")
    elif isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"{name}={value!r}; give a whole number, 0 or more")
