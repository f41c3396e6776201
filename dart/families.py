"""Where a model family keeps the things that pruning needs.

An entry is one small object. Everything else about a family stays in transformers: its attention, its masks, its rotary
positions, its way of putting images into the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class ImageLayout:
    """Where the tokens of one image lie on it.

    Attributes
    ----------
    count : int
        Image tokens of this image in the prompt.
    views : tuple of Tensor
        One int64 (rows, columns) table per view that covers the image: ranks among the image's tokens. LLaVA has one
        view, LLaVA-NeXT two (the base view and the tiles), a video one per pair of frames.
    centre_crop : bool
        Whether the processor cuts the centre square out before it makes patches.
    """

    count: int
    views: tuple[Tensor, ...]
    centre_crop: bool = False


@dataclass(frozen=True)
class Family:
    """What :func:`dart.prune` needs to know of a family of models.

    Attributes
    ----------
    decoder : str
        Attribute path of the text decoder, counted from the model's body (``model.base_model``: the part that receives
        `input_ids` and puts the image features in). The decoder must hold its layers as ``layers`` and its last norm as
        ``norm``.
    image_tokens : tuple of str
        Names in the model's config of the placeholder ids that image (and video) tokens have in the prompt; those that a
        config lacks are passed over.
    layout : callable, optional
        ``layout(config, inputs, total) -> list[ImageLayout]``, one entry per image of the batch, in order. Only
        :meth:`dart.Report.show` needs it. `inputs` holds what the call was given of `image_grid_thw`, `video_grid_thw`
        and `image_sizes`, and the first size of `pixel_values` as `images`; `total` is the number of image tokens.
    """

    decoder: str = "language_model"
    image_tokens: tuple[str, ...] = ("image_token_id", "video_token_id")
    layout: Callable[[object, Mapping, int], list[ImageLayout]] | None = None


def square(config, inputs, total):
    """One square of tokens over the whole image."""
    count = total // inputs["images"]
    side = isqrt(count)
    if side * side != count:
        raise ValueError(f"{count} image tokens for each of {inputs['images']} pictures are not one square")
    return [ImageLayout(count, (torch.arange(count).view(side, side),))] * inputs["images"]


def centre_square(config, inputs, total):
    """One square of tokens over the centre of the image: what CLIP's processor leaves of it."""
    return [ImageLayout(image.count, image.views, centre_crop=True) for image in square(config, inputs, total)]


def tiles(config, inputs, total):
    """LLaVA-NeXT: a base view, then the unpadded tiles with a newline token behind each row."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    side = config.vision_config.image_size // config.vision_config.patch_size
    layouts = []
    for size in inputs["image_sizes"].tolist():
        tall, wide = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
        rows, columns = unpad_image(torch.empty(1, tall * side, wide * side), size).shape[1:]
        base = torch.arange(side * side).view(side, side)
        fine = side * side + torch.arange(rows * (columns + 1)).view(rows, columns + 1)[:, :columns]
        layouts.append(ImageLayout(side * side + rows * (columns + 1), (base, fine)))
    return layouts


def merged_grid(config, inputs, total):
    """Qwen-VL: a grid of its own for every image and frame, after the merger has joined neighbours."""
    merge = config.vision_config.spatial_merge_size
    layouts = []
    for name in ("image_grid_thw", "video_grid_thw"):
        for frames, rows, columns in inputs[name].tolist() if name in inputs else ():
            ranks = torch.arange(frames * (rows // merge) * (columns // merge)).view(frames, rows // merge, columns // merge)
            layouts.append(ImageLayout(ranks.numel(), tuple(ranks)))
    return layouts


FAMILIES: dict[str, Family] = {
    "llava": Family(layout=centre_square),
    "llava_next": Family(layout=tiles),
    "llava_onevision": Family(),
    "qwen2_vl": Family(layout=merged_grid),
    "qwen2_5_vl": Family(layout=merged_grid),
    "qwen3_vl": Family(layout=merged_grid),
    "internvl": Family(),
    "gemma3": Family(layout=square),
    "idefics3": Family(decoder="text_model"),
    "smolvlm": Family(decoder="text_model"),
}


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
    ids = [getattr(config, name) for name in family.image_tokens if getattr(config, name, None) is not None]
    if not ids:
        raise ValueError(
            f"the config of {config.model_type!r} names no image token: it has none of {', '.join(family.image_tokens)}; "
            "give the names: dart.Family(image_tokens=...)"
        )
    return ids
