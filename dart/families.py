"""Where a model family keeps the things that pruning needs.

An entry is one small object. Everything else about a family stays in transformers: its attention, its masks, its rotary
positions, its way of putting images into the prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import isqrt

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Family:
    """What :func:`dart.prune` needs to know of a family of models.

    Attributes
    ----------
    decoder : str
        Attribute path of the text decoder, counted from the model's body (``model.base_model``: the part that receives
        `input_ids` and puts the image features in); the empty path is the body itself. The decoder must hold its layers as
        ``layers`` and its last norm as ``norm``.
    image_tokens : tuple of str
        Attribute paths in the model's config of the placeholder ids that image tokens have in the prompt (and video and audio
        tokens, which are treated alike); those that a config lacks are passed over.
    layout : callable, optional
        ``layout(config, count, size, grid) -> tuple of Tensor``: where the `count` tokens of one image lie on it, one int64
        (rows, columns) table of their ranks for every view that covers the image. LLaVA has one view, LLaVA-NeXT two (the base
        view and the tiles), a video one for every step in time. `size` is (height, width) of the picture in pixels, `grid`
        the m-RoPE positions of its tokens, int (3, count), in families that have them. Only :meth:`dart.Report.show` asks.
    tokens : callable, optional
        ``tokens(config, size) -> int``: how many tokens a picture of that size has. With it pictures that touch in the prompt
        are told apart.
    centre_crop : bool
        Whether the processor cuts the centre square out of a picture before it makes patches.
    tower : str, optional
        Attribute path, from the body, of the module that receives the pixels. Given for families whose methods may look into the
        vision tower: a stack ``encoder.layers`` of attention layers, one token for each patch, whose output goes through
        ``multi_modal_projector``.
    patches : callable, optional
        ``patches(body, pictures, patches, sizes) -> Tensor``: which patch each image token comes from, int64 (image tokens of
        the batch,), counted through all patches of all pictures (or tiles) that the tower was given; -1 for none.
    """

    decoder: str = "language_model"
    image_tokens: tuple[str, ...] = ("image_token_id", "video_token_id")
    layout: Callable[[object, int, tuple[int, int], Tensor | None], tuple[Tensor, ...]] | None = None
    tokens: Callable[[object, tuple[int, int]], int] | None = None
    centre_crop: bool = False
    tower: str | None = None
    patches: Callable[[nn.Module, int, int, list[tuple[int, int]]], Tensor] | None = None


def square(config, count, size, grid):
    """One square of tokens over the whole picture."""
    side = isqrt(count)
    if side * side != count:
        raise ValueError(f"{count} image tokens are not one square; give all pictures of the sample, in order")
    return (torch.arange(count).view(side, side),)


def patches_of_tower(config, size):
    """LLaVA: one token for each patch of a square picture.

    Raises
    ------
    ValueError
        For towers that take pictures as they are (Pixtral).
    """
    vision = config.vision_config
    if not isinstance(getattr(vision, "image_size", None), int) or vision.model_type == "pixtral":
        raise ValueError(f"where the tokens of the vision tower {vision.model_type!r} lie on the image is not described")
    return (vision.image_size // vision.patch_size) ** 2


def pooled(config, size):
    """Gemma 3: the same number for every picture."""
    return config.mm_tokens_per_image


def _unpadded(config, size):
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    side = config.vision_config.image_size // config.vision_config.patch_size
    tall, wide = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
    return side, *unpad_image(torch.empty(1, tall * side, wide * side), size).shape[1:]


def base_and_tiles(config, size):
    """LLaVA-NeXT: a base view, and the unpadded tiles with a newline token behind each row."""
    side, rows, columns = _unpadded(config, size)
    return side * side + rows * (columns + 1)


def frames(config, count, size, grid):
    """Video-LLaVA: one square for an image; for a video one for each frame, whose class token comes first and lies nowhere."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    if count == side * side:
        return square(config, count, size, grid)
    if count % (side * side + 1):
        raise ValueError(f"{count} tokens are neither one image of {side * side} nor frames of {side * side + 1}; give all pictures "
                         "of the sample, in order")
    return tuple(torch.arange(count).view(-1, side * side + 1)[:, 1:].unflatten(1, (side, side)))


def tiles(config, count, size, grid):
    """LLaVA-NeXT: a base view, then the unpadded tiles with a newline token behind each row."""
    side, rows, columns = _unpadded(config, size)
    if count != base_and_tiles(config, size):
        raise ValueError(f"a picture of {size[1]} x {size[0]} pixels has {base_and_tiles(config, size)} image tokens, not {count}; "
                         "give the pictures as they went into the processor")
    base = torch.arange(side * side).view(side, side)
    fine = side * side + torch.arange(rows * (columns + 1)).view(rows, columns + 1)[:, :columns]
    return base, fine


def rotary_grid(config, count, size, grid):
    """Qwen-VL: a grid of its own for every image and every step in time, as the rotary positions number it."""
    frames = len(grid[0].unique())
    rows, columns = (int(axis.max() - axis.min()) + 1 for axis in grid[1:])
    return tuple(torch.arange(count).view(frames, rows, columns))


def one_to_one(body, pictures, patches, sizes):
    """LLaVA: every patch is an image token."""
    return torch.arange(pictures * patches)


def unpadded_tiles(body, pictures, patches, sizes):
    """LLaVA-NeXT: numbers instead of features, packed by the model's own code."""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    config = body.config
    tiles = [image_size_to_num_patches(list(size), config.image_grid_pinpoints, config.vision_config.image_size) for size in sizes]
    numbers = torch.arange(pictures * patches).view(pictures, patches, 1).split(tiles)
    packed, _ = body.pack_image_features(numbers, torch.tensor(sizes), "default", image_newline=torch.tensor([-1]))
    return torch.cat(list(packed)).flatten()


FAMILIES: dict[str, Family] = {
    "llava": Family(layout=square, tokens=patches_of_tower, centre_crop=True, tower="vision_tower", patches=one_to_one),
    "llava_next": Family(layout=tiles, tokens=base_and_tiles, tower="vision_tower", patches=unpadded_tiles),
    "llava_onevision": Family(),
    "qwen2_vl": Family(layout=rotary_grid),
    "qwen2_5_vl": Family(layout=rotary_grid),
    "qwen3_vl": Family(layout=rotary_grid),
    "internvl": Family(),
    "gemma3": Family(layout=square, tokens=pooled),
    "idefics3": Family(decoder="text_model"),
    "smolvlm": Family(decoder="text_model"),
    "video_llava": Family(layout=frames, centre_crop=True),
    "phi4_multimodal": Family(decoder="", image_tokens=("vision_config.image_token_id", "audio_config.audio_token_id")),
}


def lay_out(family: Family, config, positions: Tensor, sizes: list[tuple[int, int]], rotary: Tensor | None) -> list[tuple[Tensor, ...]]:
    """For each image of a sample its views: int64 (rows, columns) tables of ranks among the sample's image tokens.

    Parameters
    ----------
    family, config
        Of the model.
    positions : Tensor
        int64 (n,): where the sample's image tokens lie in the prompt, ascending.
    sizes : list of (int, int)
        Height and width of the pictures in pixels, for families where they matter; the last stands for all that follow.
    rotary : Tensor, optional
        int (3, n) m-RoPE positions of these tokens.

    Raises
    ------
    ValueError
        If the family has no layout, or the tokens do not fit the sizes.
    """
    if family.layout is None:
        raise ValueError(
            f"where the tokens of {config.model_type!r} lie on the image is not described; give dart.Family(layout=...) "
            "or draw with dart.plots.draw_patches"
        )
    ranks = torch.arange(len(positions))
    if family.tokens is not None:
        counts: list[int] = []
        while sum(counts) < len(positions):
            counts.append(family.tokens(config, sizes[min(len(counts), len(sizes) - 1)]))
        spans = ranks.split([*counts[:-1], len(positions) - sum(counts[:-1])])
    else:
        breaks = (positions.diff() > 1).nonzero().flatten() + 1
        spans = torch.tensor_split(ranks, breaks.tolist())
        if len(spans) == 1 and rotary is None and len(sizes) > 1:   # nothing but the pictures tells images apart that touch
            spans = spans[0].tensor_split(len(sizes))
    sizes = [sizes[min(number, len(sizes) - 1)] for number in range(len(spans))]
    return [
        tuple(span[view] for view in family.layout(config, len(span), size, None if rotary is None else rotary[:, span]))
        for span, size in zip(spans, sizes)
    ]


def find(model: nn.Module, family: Family | None = None) -> tuple[Family, PreTrainedModel, nn.Module]:
    """The family, body and decoder of `model`, which may be wrapped (by PEFT, say).

    Raises
    ------
    ValueError
        If no part of `model` is of a known family (with words on how to describe it), or the description does not fit.
    """
    stock = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if family is None:
        stock = [module for module in stock if module.config.model_type in FAMILIES]
        if not stock:
            kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
            raise ValueError(
                f"the family {kind!r} is not known; known are {', '.join(FAMILIES)}. Describe it in one object: "
                "dart.prune(model, method, family=dart.Family(decoder='language_model', image_tokens=('image_token_id',)))"
            )
        family = FAMILIES[stock[0].config.model_type]
    body = stock[0].base_model if stock else model
    try:
        decoder = body.get_submodule(family.decoder)
        decoder.get_submodule("layers"), decoder.get_submodule("norm")
    except AttributeError as missing:
        raise ValueError(
            f"{type(body).__name__} does not fit dart.Family(decoder={family.decoder!r}): {missing}; give the path of the "
            "decoder that holds `layers` and `norm`"
        ) from None
    return family, body, decoder


def image_token_ids(config, family: Family) -> list[int]:
    """Placeholder ids of image tokens in the prompt.

    Raises
    ------
    ValueError
        If the config names none of ``family.image_tokens``.
    """
    named = [reduce(lambda part, name: getattr(part, name, None), path.split("."), config) for path in family.image_tokens]
    ids = [each for each in named if each is not None]
    if not ids:
        raise ValueError(
            f"the config of {config.model_type!r} names no image token: it has none of {', '.join(family.image_tokens)}; "
            "give the names: dart.Family(image_tokens=...)"
        )
    return ids


def layer_types(config) -> list[str]:
    """Kind of attention of every layer of a decoder; a window without a list of kinds holds for all of them (Mistral)."""
    kinds = getattr(config, "layer_types", None)
    kind = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    return list(kinds) if kinds else [kind] * config.num_hidden_layers
