"""What a method sees and what it answers.

A method reduces image tokens at one place or at several. Places are

* decoder layers (`Method.places`): before each of them `select` is asked what stays;
* layers of the vision tower (`Method.tower_places`): likewise `select_patches`, for every picture by itself. What is gone from
  the tower is gone from the prompt, from decoder layer 0 on;
* the picture itself (`Method.resize`), which becomes fewer patches before the tower sees it.

Whatever the place, it is handed a `View` and answers with a mask of what stays, or with the mask and new states of what stays:
that is merging.
"""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from dart.attention import Noted


@dataclass
class View:
    """What a method may look at when it decides, once per prompt and place, which image tokens stay.

    Attributes
    ----------
    hidden_states : Tensor, (batch, length, hidden_size)
        States that enter the layer; at decoder layer 0 the input embeddings. After an earlier reduction only what it left.
    keys, values : Tensor, (batch, key_value_heads, length, head_dim)
        Keys (after RoPE) and values of the layer before. Layer 0 has none before it: both are the input embeddings there,
        as one head.
    image_mask : Tensor, bool, (batch, length)
        True at image (and video) tokens; in the tower at patches, which its class token is not.
    padding_mask : Tensor, bool, (batch, length)
        True at padding, and at what fills up the shorter rows of a batch after an earlier reduction.
    layer, n_layers : int
        The layer about to run, and how many there are: of the decoder, or of the tower.
    stage : int
        Which of the method's places this is, from 0.
    image_count : Tensor, int64, (batch,)
        Image tokens of each sample before any reduction.
    memory : dict
        Empty at a method's first place in the tower and in the decoder, then whatever the method put there at the place before.
    """

    hidden_states: Tensor
    keys: Tensor
    values: Tensor
    image_mask: Tensor
    padding_mask: Tensor
    final_norm: Callable[[Tensor], Tensor] = lambda states: states
    layer: int = 2
    n_layers: int = 32
    stage: int = 0
    image_count: Tensor | None = None
    memory: dict = field(default_factory=dict)
    noted: Noted | None = None
    find_vision: Callable[[], Vision] | None = None
    find_grid: Callable[[], Tensor] | None = None

    def __post_init__(self):
        if self.image_count is None:
            self.image_count = self.image_mask.sum(1)

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

    @property
    def last_token(self) -> Tensor:
        """Position of the last token of each sample, int64 (batch, 1): the row that predicts the first word of the answer."""
        positions = torch.arange(self.image_mask.shape[1], device=self.image_mask.device)
        return positions.masked_fill(self.padding_mask, -1).argmax(1, keepdim=True)

    def attention(self, rows: Tensor) -> Tensor:
        """Attention that some rows paid in the layer before, recomputed from its queries and keys under any kernel.

        Parameters
        ----------
        rows : Tensor, int64 (batch, n)
            Positions that attend.

        Returns
        -------
        Tensor
            float32 (batch, heads, n, length); each row sums to 1.

        Raises
        ------
        ValueError
            At layer 0, which has no layer before it.
        """
        if self.noted is None:
            raise ValueError(f"layer={self.layer} has no layer before it whose attention could be read; use layer=1 or later")
        return self.noted.attention(rows).to(self.image_mask.device)

    @cached_property
    def vision(self) -> Vision:
        """What the vision tower saw.

        Raises
        ------
        ValueError
            If the family's tower is not described, or the tower did not run in this block.
        """
        if self.find_vision is None:
            raise ValueError("there is nothing of a vision tower to look at")
        return self.find_vision()

    @cached_property
    def grid(self) -> Tensor:
        """Where tokens lie: int64 (batch, length, 3) number of the picture view, row and column; -1 at what lies nowhere.

        A view is a square of LLaVA, a frame of a video, the base view or the joined tiles of LLaVA-NeXT, whose newline tokens lie
        nowhere.

        Raises
        ------
        ValueError
            If the family has no layout.
        """
        if self.find_grid is None:
            raise ValueError("where the tokens lie is not known here")
        return self.find_grid()


@dataclass
class Vision:
    """What the vision tower saw, as decoder tokens see it.

    `patches[b, i]` tells which patch token `i` of sample `b` is: its place among all patches of all pictures that the tower was
    given, int64, -1 at tokens that are no patch (text, LLaVA-NeXT's newlines). `views` (batch, length) tells the picture (or
    tile) it comes from, likewise.
    """

    hidden_states: Tensor       # (pictures, tokens, width) what the projector was given, before the class token is cut off
    class_tokens: int           # how many tokens stand before the patches: 1 or 0
    patches: Tensor
    noted: dict[int, Noted]     # by number of the tower layer

    @property
    def patches_per_view(self) -> int:
        return self.hidden_states.shape[1] - self.class_tokens

    @property
    def views(self) -> Tensor:
        """Number of the picture (or tile) each token comes from, int64 (batch, length); -1 where none."""
        return self.patches.div(self.patches_per_view, rounding_mode="floor")

    def to_tokens(self, per_patch: Tensor) -> Tensor:
        """Lay out something that every patch has, (pictures, patches, ...), over the prompt: (batch, length, ...).

        Zero at tokens that are no patch.
        """
        flat = per_patch.flatten(0, 1).to(self.patches.device)
        found = flat[self.patches.clamp(min=0)]
        none = (self.patches < 0).reshape(*self.patches.shape, *[1] * (found.ndim - 2))
        return found.masked_fill(none, 0)

    @property
    def features(self) -> Tensor:
        """Tower states of each token, (batch, length, width), before the projector."""
        return self.to_tokens(self.hidden_states[:, self.class_tokens :])

    def layer(self, number: int = -1) -> Noted:
        """Queries and keys of a tower layer, class token first; -1 is the layer whose output the projector gets, 0 the first.

        A method names the layers it reads in `Method.tower_layers`.
        """
        return self.noted[number]

    def class_attention(self, number: int = -1) -> Tensor:
        """Attention that the class token pays to every patch in a tower layer, float32 (pictures, heads, patches).

        Raises
        ------
        ValueError
            If the tower has no class token (SigLIP).
        """
        if not self.class_tokens:
            raise ValueError("this vision tower has no class token whose attention could be read; use a method that needs none")
        noted = self.layer(number)
        first = torch.zeros(len(noted.queries), 1, dtype=torch.long, device=noted.queries.device)
        return noted.attention(first)[:, :, 0, self.class_tokens :]

    def patch_attention(self, number: int = -1) -> Tensor:
        """Attention between patches in a tower layer, mean over heads: float32 (pictures, patches that attend, patches)."""
        noted = self.layer(number)
        length = noted.queries.shape[2]
        rows = torch.arange(self.class_tokens, length, device=noted.queries.device).expand(len(noted.queries), -1)
        return noted.attention(rows).mean(1)[:, :, self.class_tokens :]


class NoPlan(ValueError):
    """What a method keeps depends on the picture, so that it cannot be told beforehand."""


Reduction = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Method(ABC):
    """A rule that reduces image tokens.

    To write one, subclass as a frozen dataclass and give `select`; :func:`dart.prune` does the rest. By default it is
    asked once, before decoder layer `layer`.

    Attributes
    ----------
    layer : int
        Index of the first decoder layer that sees a shorter sequence; keyword only. Default 2, "after the second layer"
        (paper, captions of Tables 1, 9 and 10).
    """

    layer: int = field(default=2, kw_only=True)

    tower_layers: ClassVar[Sequence[int]] = ()
    """Tower layers whose attention the method reads: 0 is the first, -1 the one whose output the projector gets."""

    reads_tower: ClassVar[bool] = False
    """Whether the method looks at the vision tower or acts in it, so that the tower has to run in the block."""

    def places(self, n_layers: int) -> tuple[int, ...]:
        """Decoder layers before which tokens are reduced, ascending, in a decoder of `n_layers`; () is none."""
        return (self.layer,)

    def kept(self, image_tokens: int, n_layers: int) -> list[int]:
        """Image tokens that each decoder layer sees of `image_tokens` in a prompt: the plan by which budgets are compared.

        Raises
        ------
        NoPlan
            If what stays depends on the picture.
        """
        keep = getattr(self, "keep", None)
        places = self.places(n_layers)
        if keep is None or len(places) != 1:
            raise NoPlan(f"how many tokens {type(self).__name__} keeps depends on the picture; measure it with a Report")
        return [image_tokens] * places[0] + [min(keep, image_tokens)] * (n_layers - places[0])

    def select(self, view: View) -> Reduction:
        """Say which image tokens stay.

        Returns
        -------
        Tensor or (Tensor, Tensor)
            bool (batch, length). Text stays whatever is answered there. To merge, add new states (batch, length, hidden_size);
            only those of tokens that stay count.
        """
        raise NotImplementedError(f"{type(self).__name__} has no select")

    def tower_places(self, n_layers: int) -> tuple[int, ...]:
        """Tower layers (of the `n_layers` that the projector's input comes from) before which patches are reduced."""
        return ()

    def select_patches(self, view: View) -> Reduction:
        """Likewise for the patches of every picture, in the tower; every picture must keep equally many."""
        raise NotImplementedError(f"{type(self).__name__} has no select_patches")

    def resize(self, rows: int, columns: int) -> tuple[int, int] | None:
        """Patches to which a picture of `rows` x `columns` patches is scaled before the tower; None leaves it alone."""
        return None


def answer(method: Method, select: Callable[[View], Reduction], view: View) -> tuple[Tensor, Tensor]:
    """What `select` of a method says, as a mask and states, the states of the view if it merges nothing.

    It is asked without gradient and without autocast. States that it left as they were are given back as they came, gradient
    and all.

    Raises
    ------
    ValueError
        If that is not of the shapes and dtypes it should have.
    """
    before = view.hidden_states
    with torch.no_grad(), torch.autocast(before.device.type, enabled=False):
        said = select(view)
    stays, states = said if isinstance(said, tuple) else (said, view.hidden_states)
    for what, got, like, dtype in (("", stays, view.image_mask, torch.bool), (" states", states, view.hidden_states, view.hidden_states.dtype)):
        if not isinstance(got, Tensor) or got.shape != like.shape or got.dtype != dtype:
            found = f"{got.dtype} of shape {tuple(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
            wanted = "bool (batch, length)" if dtype == torch.bool else f"{dtype} (batch, length, hidden_size)"
            raise ValueError(f"{type(method).__name__}.{select.__name__} gave{what} {found}; give {wanted} = {tuple(like.shape)}")
    if before.requires_grad and states is not before:
        states = torch.where((states == before).all(-1, keepdim=True), before, states)
    return stays, states


LABELS = ("Signal", "Place", "Attention", "Source", "Licence of the original", "Differs")


def describe(method: type[Method]) -> dict[str, str]:
    """What a method's docstring says under each of `LABELS`, one line each; labels that it lacks are left out."""
    found: dict[str, str] = {}
    label = None
    for line in inspect.cleandoc(method.__doc__ or "").splitlines():
        start, colon, text = line.partition(":")
        if colon and start in LABELS:
            label, found[start] = start, text.strip()
        elif not line.strip():
            label = None
        elif label:
            found[label] += " " + line.strip()
    return found


def keep_top(scores: Tensor, among: Tensor, keep: int | Tensor) -> Tensor:
    """Mark the highest scores of every row.

    Parameters
    ----------
    scores : Tensor
        (batch, length); compared in their own dtype, the earlier position first among equals.
    among : Tensor
        bool (batch, length): the candidates.
    keep : int or Tensor
        How many, or one number a row, int64 (batch,). All candidates if there are fewer.

    Returns
    -------
    Tensor
        bool (batch, length).
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.take_along_dim(among.take_along_dim(order, 1).byte().argsort(dim=1, descending=True, stable=True), 1)
    ranks = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    places = torch.empty_like(order).scatter(1, order, ranks)
    limit = keep[:, None] if isinstance(keep, Tensor) else keep
    return (places < limit) & among


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
