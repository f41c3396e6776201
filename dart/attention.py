"""Attention of chosen rows under any kernel: what a layer hands to its kernel is noted, and rows are recomputed from it.

A fused kernel (SDPA, FlashAttention) never holds the attention map. Methods that score tokens by attention need a few
rows of it only, and these cost little: queries of the rows, all keys, the mask that the layer was given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_NAME = "dart_noting"


@dataclass
class Noted:
    """What one attention layer handed to its kernel.

    Attributes
    ----------
    queries : Tensor, (batch, heads, length, head_dim)
        After RoPE and whatever norm the layer has.
    keys, values : Tensor, (batch, key_value_heads, length, head_dim)
        Likewise; of a static cache only what the prompt filled.
    mask : Tensor or None
        As the layer got it: additive or bool (batch, 1, length, length), 2-D for FlashAttention, or None.
    scaling : float
        Of the scores.
    causal : bool
        Whether a row without mask sees only what is not behind it.
    window : int or None
        How many tokens a row sees, itself included; None is all.
    softcap : float or None
        Bound that the scores are squashed to.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    mask: Tensor | None
    scaling: float
    causal: bool
    window: int | None = None
    softcap: float | None = None

    def to(self, device: torch.device) -> Noted:
        """The same on another device."""
        mask = self.mask if self.mask is None else self.mask.to(device)
        return replace(self, queries=self.queries.to(device), keys=self.keys.to(device), values=self.values.to(device), mask=mask)

    def attention(self, rows: Tensor) -> Tensor:
        """Attention weights of some rows, as eager attention has them.

        Parameters
        ----------
        rows : Tensor, int64 (batch, n)
            Positions that attend.

        Returns
        -------
        Tensor
            float32 (batch, heads, n, length); each row sums to 1.
        """
        batch, heads, length, size = self.queries.shape
        rows = rows.to(self.queries.device)
        index = rows[:, None, :, None]
        queries = self.queries.take_along_dim(index, dim=2).float()
        keys = self.keys.float().repeat_interleave(heads // self.keys.shape[1], dim=1)
        scores = queries @ keys.transpose(2, 3) * self.scaling
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        columns = torch.arange(length, device=rows.device)
        mask = self.mask
        if mask is not None and mask.ndim == 4:
            mask = mask[..., :length].expand(batch, -1, -1, -1).take_along_dim(index, dim=2)
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
        else:
            seen = torch.ones(*rows.shape, length, dtype=torch.bool, device=rows.device)
            if self.causal:
                seen &= columns <= rows[..., None]
            if self.window is not None:
                seen &= columns > rows[..., None] - self.window
            if mask is not None:
                seen &= mask[:, None, :length].bool()
            scores = scores.masked_fill(~seen[:, None], -torch.inf)
        return scores.softmax(-1)


class Noting:
    """While it is hooked to an attention module, what the module hands to its kernel is kept as `noted`.

    The module looks its kernel up by a name in its config. For the time of one call it is shown a config with another name;
    the kernel of that name notes what it is given and goes on to the one that was meant.
    """

    def __init__(self, module: nn.Module, wanted: Callable[[], bool] = lambda: True):
        self.module, self.wanted, self.noted = module, wanted, None
        self.eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)

    def hook(self) -> list:
        return [
            self.module.register_forward_pre_hook(self._enter),
            self.module.register_forward_hook(self._leave, always_call=True),
        ]

    def _enter(self, module, args):
        if self.wanted():
            module.config = _ConfigWithName(module.config, self)

    def _leave(self, module, args, output):
        if isinstance(module.config, _ConfigWithName):  # the module failed before its kernel
            module.config = module.config.meant


class _ConfigWithName:
    """A config that names the noting kernel, and is the one that was meant in everything else."""

    _attn_implementation = _NAME

    def __init__(self, meant, noting: Noting):
        self.meant, self.noting = meant, noting

    def __getattr__(self, name):
        return getattr(self.meant, name)


def _note(module, query, key, value, attention_mask, **kwargs):
    shown = module.config
    module.config = shown.meant  # kernels ask it for their own name
    length = query.shape[2]
    shown.noting.noted = Noted(
        query,
        key[:, :, :length],
        value[:, :, :length],
        attention_mask,
        scaling=kwargs.get("scaling") or query.shape[-1] ** -0.5,
        causal=kwargs["is_causal"] if kwargs.get("is_causal") is not None else getattr(module, "is_causal", True),
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
    )
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(shown.meant._attn_implementation, shown.noting.eager)
    return kernel(module, query, key, value, attention_mask, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(_NAME, _note)
