"""What a prompt costs: floating-point operations and bytes, counted from a transformers config alone.

Counts are per sample (batch 1) and of matrix products only, two operations per multiply-add: that is what
`torch.utils.flop_counter.FlopCounterMode` counts too, and norms, softmax and activations add less than 1 %.
`stages` puts them together for a batch, and `roofline` says how fast a machine can be at it at best.

Pruning enters through one list, the *lengths*: how many tokens each decoder layer sees::

    layer         0     1     2     3   ...  31
    plain       636   636   636   636   ... 636
    layer=2     636   636   124   124   ... 124      keep=64 of 576 image tokens, 60 text tokens

`layer_lengths` makes the list for one cut; any other schedule is the text tokens plus `dart.Method.kept`, or what a
`dart.Report` saw.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

# The published architectures, so that costs (and models with random weights) need no download.
_CLIP_L_336 = dict(
    model_type="clip_vision_model", hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
    num_attention_heads=16, image_size=336, patch_size=14, projection_dim=768,
)  # fmt: skip
_VICUNA_7B = dict(
    model_type="llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=32, vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5,
)  # fmt: skip
_QWEN2_7B = dict(
    model_type="qwen2_vl_text", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4, vocab_size=152064, max_position_embeddings=32768, rms_norm_eps=1e-6,
    rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[16, 24, 24]),
)  # fmt: skip
_QWEN2_VISION = dict(
    model_type="qwen2_vl_vision", depth=32, embed_dim=1280, hidden_size=3584, mlp_ratio=4, num_heads=16,
    patch_size=14, spatial_merge_size=2, temporal_patch_size=2,
)  # fmt: skip
_SO400M = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, patch_size=14)
_SIGLIP = dict(**_SO400M, model_type="siglip_vision_model", image_size=384, vision_use_head=False)
_QWEN2_TEXT = {name: value for name, value in _QWEN2_7B.items() if name != "rope_parameters"} | dict(model_type="qwen2")

SHAPES = {
    "llava-1.5-7b": dict(model_type="llava", vision_config=_CLIP_L_336, text_config=_VICUNA_7B),
    "llava-next-7b": dict(model_type="llava_next", vision_config=_CLIP_L_336, text_config=_VICUNA_7B),
    "qwen2-vl-7b": dict(model_type="qwen2_vl", vision_config=_QWEN2_VISION, text_config=_QWEN2_7B),
    "qwen2.5-vl-7b": dict(
        model_type="qwen2_5_vl", text_config={**_QWEN2_7B, "model_type": "qwen2_5_vl_text"},
        vision_config=dict(
            model_type="qwen2_5_vl_vision", depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16,
            out_hidden_size=3584, patch_size=14, spatial_merge_size=2, temporal_patch_size=2, window_size=112,
            fullatt_block_indexes=[7, 15, 23, 31],
        ),
    ),
    "qwen3-vl-8b": dict(
        model_type="qwen3_vl",
        text_config=dict(
            model_type="qwen3_vl_text", hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128, vocab_size=151936,
            rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[24, 20, 20]),
        ),
        vision_config=dict(
            model_type="qwen3_vl_vision", depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16, out_hidden_size=4096,
            patch_size=16, spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=2304,
            deepstack_visual_indexes=[8, 16, 24],
        ),
    ),
    "llava-onevision-7b": dict(
        model_type="llava_onevision", vision_config={**_SIGLIP, "num_hidden_layers": 26},
        text_config={**_QWEN2_TEXT, "vocab_size": 152000}, image_token_index=151646, video_token_index=151647,
    ),
    "internvl3-8b": dict(
        model_type="internvl", text_config={**_QWEN2_TEXT, "vocab_size": 151674}, tie_word_embeddings=False,
        image_token_id=151667,
        vision_config=dict(
            model_type="internvl_vision", hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
            num_attention_heads=16, image_size=[448, 448], patch_size=[14, 14], attention_bias=True,
        ),
    ),
    "gemma3-4b": dict(
        model_type="gemma3", vision_config={**_SIGLIP, "image_size": 896}, mm_tokens_per_image=256, image_token_id=262144,
        text_config=dict(
            model_type="gemma3_text", hidden_size=2560, intermediate_size=10240, num_hidden_layers=34, num_attention_heads=8,
            num_key_value_heads=4, head_dim=256, vocab_size=262208, sliding_window=1024,
        ),
    ),
    "idefics3-8b": dict(
        model_type="idefics3", scale_factor=2, image_token_id=128257,
        vision_config=dict(**_SO400M, model_type="idefics3_vision", image_size=364),
        text_config=dict(
            model_type="llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=8, vocab_size=128259, max_position_embeddings=10240, pad_token_id=128002,
        ),
    ),
    "smolvlm2-2.2b": dict(
        model_type="smolvlm", scale_factor=3, image_token_id=49190,
        vision_config=dict(**_SO400M, model_type="smolvlm_vision", image_size=384),
        text_config=dict(
            model_type="llama", hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=32,
            num_key_value_heads=32, vocab_size=49280, max_position_embeddings=8192,
        ),
    ),
    "video-llava-7b": dict(
        model_type="video_llava", text_config=_VICUNA_7B, image_token_index=32000, video_token_index=32001,
        vision_config={**_CLIP_L_336, "image_size": 224},
    ),
}  # fmt: skip


def shape(name: str) -> PreTrainedConfig:
    """Config of a published model, built offline from the numbers in `SHAPES`.

    Raises
    ------
    ValueError
        If `name` is not one of `SHAPES`.
    """
    if name not in SHAPES:
        raise ValueError(f"no shape named {name!r}; known: {', '.join(SHAPES)}")
    return AutoConfig.for_model(**deepcopy(SHAPES[name]))


def layer_lengths(
    config: PreTrainedConfig, prompt_length: int, image_tokens: int, keep: int | None = None, layer: int = 2
) -> list[int]:
    """Number of tokens that each decoder layer sees during prefill.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the whole model or of its language model.
    prompt_length : int
        All tokens of the prompt, image tokens included.
    image_tokens : int
        How many of them are image tokens.
    keep : int, optional
        Image tokens kept from `layer` on. Without it nothing is pruned; at or above `image_tokens` all stay.
    layer : int
        First decoder layer that sees the short sequence (the paper's K = 2, "after the second layer").

    Raises
    ------
    ValueError
        If there are more image tokens than tokens, `keep` is negative or the model has no such layer.
    """
    layers = config.get_text_config().num_hidden_layers
    if not 0 <= image_tokens <= prompt_length:
        raise ValueError(f"image_tokens={image_tokens} of prompt_length={prompt_length}: use 0 <= image_tokens <= prompt_length")
    if not 0 <= layer < layers:
        raise ValueError(f"layer={layer}, but the model has {layers} decoder layers; use 0 <= layer < {layers}")
    if keep is None:
        keep = image_tokens
    if keep < 0:
        raise ValueError(f"keep={keep}: use a number of image tokens, 0 or more")
    short = prompt_length - max(image_tokens - keep, 0)
    return [prompt_length] * layer + [short] * (layers - layer)


def layer_flops(config: PreTrainedConfig, lengths: Sequence[int], causal: bool = True) -> list[int]:
    """Prefill FLOPs of each decoder layer: projections, attention, gated feed-forward network.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the whole model or of its language model.
    lengths : sequence of int
        Tokens that each layer sees, as `layer_lengths` gives them.
    causal : bool
        True counts the pairs that a causal (and, where the layer has one, sliding) mask leaves: what a fused
        kernel computes. False counts the full square: what eager attention computes.

    Notes
    -----
    The paper (appendix D) has 4 n d^2 + 2 n^2 d + 2 n d m, multiply-adds of a two-matrix network with as many key
    heads as query heads. Here keys and values have their own width, the network has its three matrices, and a
    multiply-add counts as two.
    """
    text = _dense_text_config(config, lengths)
    _, heads, _, head_dim = _attention_shape(text)
    return [
        2 * length * _layer_weights(text) + 4 * _pairs(length, _window(text, index), causal) * heads * head_dim
        for index, length in enumerate(lengths)
    ]


def printed_layer_flops(config: PreTrainedConfig, lengths: Sequence[int]) -> list[int]:
    """Each decoder layer by the formula that the paper prints: 4 n d^2 + 2 n^2 d + 2 n d m (appendix D).

    To stand beside :func:`layer_flops`, never to be mixed with it: the unit is a multiply-add, the network has two
    matrices, the attention the full square, and keys and values are as wide as queries.
    """
    text = _dense_text_config(config, lengths)
    width, inner = text.hidden_size, text.intermediate_size
    return [4 * n * width**2 + 2 * n**2 * width + 2 * n * width * inner for n in lengths]


def decode_flops(config: PreTrainedConfig, lengths: Sequence[int]) -> list[int]:
    """FLOPs of each decoder layer for one new token, when its cache holds as many entries as `lengths` says."""
    text = _dense_text_config(config, lengths)
    _, heads, _, head_dim = _attention_shape(text)
    seen = [min(length + 1, _window(text, index, default=length + 1)) for index, length in enumerate(lengths)]
    return [2 * _layer_weights(text) + 4 * count * heads * head_dim for count in seen]


def head_flops(config: PreTrainedConfig, positions: int = 1) -> int:
    """FLOPs of the output layer (`lm_head`); `generate` asks for the last position of the prompt only."""
    text = config.get_text_config()
    return 2 * positions * text.hidden_size * text.vocab_size


def vision_flops(config: PreTrainedConfig, patches: Sequence[int]) -> int:
    """FLOPs of the vision tower, patch embedding included, projector excluded.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the whole model.
    patches : sequence of int
        Patches of every crop, image or frame, each attending within itself only: [576] for LLaVA-1.5, [576] * 5 for
        LLaVA-NeXT at its largest, [4 * image tokens] for Qwen-VL, whose projector merges 2 x 2 patches.

    Raises
    ------
    ValueError
        If the tower is of a kind this function does not know.

    Notes
    -----
    All layers of the tower are counted, for transformers runs them all, also where the projector takes an earlier one
    (LLaVA: the last but one). The windows of Qwen2.5-VL count as full but the last: a picture that cuts them at its
    edges needs a little less.
    """
    tower = _tower(config.vision_config)
    total = 2 * sum(patches) * tower.pixels * tower.width
    for count in patches:
        length = count + tower.class_tokens
        windows = length**2 if tower.window is None else length // tower.window * tower.window**2 + (length % tower.window) ** 2
        pairs = (tower.layers - tower.windowed) * length**2 + tower.windowed * windows
        total += 2 * length * tower.layers * tower.layer_weights + 4 * pairs * tower.width
        if tower.pools:                                     # one query looks at all patches, then a network of its own
            total += 2 * (2 * length * tower.width**2 + tower.layer_weights - 2 * tower.width**2) + 4 * length * tower.width
    return total


def projector_flops(config: PreTrainedConfig, patches: Sequence[int]) -> int:
    """FLOPs of the linear layers between vision tower and decoder, for the same `patches`.

    Raises
    ------
    ValueError
        If the model is of a family this function does not know.
    """
    return sum(2 * tokens * weights for tokens, weights in _projector(config, patches))


def kv_bytes(config: PreTrainedConfig, lengths: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> list[int]:
    """Bytes of keys and values that each decoder layer caches after a prefill of these lengths."""
    text = _dense_text_config(config, lengths)
    _, _, kv_heads, head_dim = _attention_shape(text)
    # a sliding layer holds what the next token may look back at: its window less that token
    held = [min(length, _window(text, index, default=length + 1) - 1) for index, length in enumerate(lengths)]
    return [2 * length * kv_heads * head_dim * dtype.itemsize for length in held]


def weight_bytes(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> int:
    """Bytes of all weights of the model; built without storage, so that nothing of that size is ever allocated."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    return sum(weight.numel() for weight in model.parameters()) * dtype.itemsize


class Work(NamedTuple):
    """One step that a device does as a whole: operations, and bytes that it has to move for them at least."""

    flops: int
    bytes: int


@dataclass(frozen=True)
class Machine:
    """What a device can do at best: operations a second in the dtype that is used, and bytes a second of its memory."""

    name: str
    flops: float
    bandwidth: float


# Dense bfloat16 and memory of the SXM modules, from the manufacturer's data sheets.
MACHINES = {
    "a100": Machine("A100 80 GB, data sheet", 312e12, 2.039e12),
    "h100": Machine("H100 80 GB, data sheet", 989e12, 3.35e12),
    "h200": Machine("H200, data sheet", 989e12, 4.8e12),
}


def stages(
    config: PreTrainedConfig,
    lengths: Sequence[int],
    patches: Sequence[int],
    *,
    batch: int = 1,
    new_tokens: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    causal: bool = True,
) -> dict[str, list[Work]]:
    """The steps of answering a batch: "vision", "prefill" up to the first word, "decode" of the words after it.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the whole model.
    lengths : sequence of int
        Tokens of a prompt that each decoder layer sees.
    patches : sequence of int
        Of one prompt's pictures, as for :func:`vision_flops`. A method that reduces in the tower does less than this.
    batch, new_tokens : int
        Prompts, all alike, and tokens of each answer.
    dtype : torch.dtype
        Of weights and cache.
    causal : bool
        As for :func:`layer_flops`.

    Returns
    -------
    dict of str to list of Work
        Tower and projector; each decoder layer and the output layer; the same once more for every further token. Bytes
        are weights, once a step, and keys and values: a prompt writes its own, a new token reads what is there.

    Raises
    ------
    ValueError
        A batch or an answer of less than one; what the counting functions refuse.
    """
    if batch < 1 or new_tokens < 1:
        raise ValueError(f"batch={batch}, new_tokens={new_tokens}; give 1 or more of both")
    text, size = _dense_text_config(config, lengths), dtype.itemsize
    tower, projector = _tower(config.vision_config), _projector(config, patches)
    seen = tower.layers * tower.layer_weights + tower.pixels * tower.width
    layer, head = size * _layer_weights(text), Work(batch * head_flops(config), size * text.hidden_size * text.vocab_size)
    decode: list[Work] = []
    for new in range(1, new_tokens):
        held = [length + new - 1 for length in lengths]
        each = zip(decode_flops(config, held), kv_bytes(config, held, dtype))
        decode += [*(Work(batch * flops, layer + batch * kept) for flops, kept in each), head]
    each = zip(layer_flops(config, lengths, causal), kv_bytes(config, lengths, dtype))
    return {
        "vision": [
            Work(batch * vision_flops(config, patches), size * seen),
            Work(batch * projector_flops(config, patches), size * sum(weights for _, weights in projector)),
        ],
        "prefill": [*(Work(batch * flops, layer + batch * kept) for flops, kept in each), head],
        "decode": decode,
    }


def total_flops(steps: Iterable[Work]) -> int:
    """FLOPs of some steps together."""
    return sum(step.flops for step in steps)


def roofline(steps: Iterable[Work], machine: Machine) -> float:
    """Seconds that a machine needs for some steps at least, one after the other.

    A step takes as long as its arithmetic or as its bytes, whichever is longer. On an H100 a layer with fewer than about
    295 tokens in its batch waits for its weights: making it shorter still gains nothing.
    """
    return sum(max(step.flops / machine.flops, step.bytes / machine.bandwidth) for step in steps)


@dataclass(frozen=True)
class _Tower:
    """A vision tower in numbers: sizes, weights that every token meets in a layer, values that a patch is made of."""

    width: int
    layers: int
    layer_weights: int
    pixels: int
    class_tokens: int = 0
    window: int | None = None       # patches that see each other in a windowed layer
    windowed: int = 0               # layers that have windows
    pools: bool = False             # whether an attention head of its own sums the picture up


def _tower(vision: PreTrainedConfig) -> _Tower:
    kind, windows = vision.model_type, {}
    if kind == "qwen2_vl_vision":
        width, inner, layers, matrices = vision.embed_dim, vision.embed_dim * vision.mlp_ratio, vision.depth, 2
    elif kind == "qwen2_5_vl_vision":
        width, inner, layers, matrices = vision.hidden_size, vision.intermediate_size, vision.depth, 3
        windows = dict(window=(vision.window_size // vision.patch_size) ** 2, windowed=layers - len(vision.fullatt_block_indexes))
    elif kind == "qwen3_vl_vision":
        width, inner, layers, matrices = vision.hidden_size, vision.intermediate_size, vision.depth, 2
    elif kind in _CLASS_TOKENS:
        width, inner, layers, matrices = vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers, 2
    else:
        known = [*_CLASS_TOKENS, "qwen2_vl_vision", "qwen2_5_vl_vision", "qwen3_vl_vision"]
        raise ValueError(f"vision tower {kind!r} is not counted yet; known: {', '.join(known)}")
    rows, columns = (vision.patch_size,) * 2 if isinstance(vision.patch_size, int) else vision.patch_size
    colours = vision.in_channels if kind.startswith("qwen") else vision.num_channels
    pixels = colours * rows * columns * getattr(vision, "temporal_patch_size", 1)
    pools = kind == "siglip_vision_model" and getattr(vision, "vision_use_head", True)
    weights = 4 * width**2 + matrices * width * inner
    return _Tower(width, layers, weights, pixels, _CLASS_TOKENS.get(kind, 0), pools=pools, **windows)


# Plain towers by their class tokens.
_CLASS_TOKENS = {
    "clip_vision_model": 1, "internvl_vision": 1, "siglip_vision_model": 0, "idefics3_vision": 0, "smolvlm_vision": 0,
}  # fmt: skip


def _projector(config: PreTrainedConfig, patches: Sequence[int]) -> list[tuple[int, int]]:
    """Linear maps between tower and decoder: how many tokens go through them, and their weights."""
    kind, vision, width = config.model_type, config.vision_config, config.get_text_config().hidden_size
    if kind in ("llava", "llava_next", "llava_onevision", "video_llava"):
        taken = config.vision_feature_layer
        seen = vision.hidden_size * (1 if isinstance(taken, int) else len(taken))
        return [(sum(patches), seen * width + width**2)]
    if kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        merged = vision.spatial_merge_size**2
        joined = merged * _tower(vision).width
        depths = 1 + len(set(getattr(vision, "deepstack_visual_indexes", ())))      # DeepStack: one more for each depth
        return [(sum(patches) // merged, depths * (joined**2 + joined * width))]
    if kind == "internvl":
        merged = round(1 / config.downsample_ratio) ** 2
        return [(sum(patches) // merged, merged * vision.hidden_size * width + width**2)]
    if kind in ("idefics3", "smolvlm"):
        merged = config.scale_factor**2
        return [(sum(patches) // merged, merged * vision.hidden_size * width)]
    if kind == "gemma3":
        return [(len(patches) * config.mm_tokens_per_image, vision.hidden_size * width)]
    raise ValueError(f"projector of {kind!r} is not counted yet; known: llava, llava_next, llava_onevision, video_llava, "
                     "qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, idefics3, smolvlm, gemma3")


def _dense_text_config(config: PreTrainedConfig, lengths: Sequence[int]) -> PreTrainedConfig:
    text = config.get_text_config()
    if len(lengths) != text.num_hidden_layers:
        raise ValueError(f"{len(lengths)} lengths, but the model has {text.num_hidden_layers} decoder layers")
    if getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None):
        raise ValueError(f"{text.model_type!r} is a mixture of experts; only dense feed-forward networks are counted")
    return text


def _attention_shape(text: PreTrainedConfig) -> tuple[int, int, int, int]:
    """Hidden size, query heads, key-value heads, head dimension."""
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return text.hidden_size, heads, getattr(text, "num_key_value_heads", None) or heads, head_dim


def _layer_weights(text: PreTrainedConfig) -> int:
    """Weights that every token meets in one decoder layer: q, k, v, o and gate, up, down."""
    width, heads, kv_heads, head_dim = _attention_shape(text)
    return 2 * width * heads * head_dim + 2 * width * kv_heads * head_dim + 3 * width * text.intermediate_size


def _window(text: PreTrainedConfig, index: int, default: int | None = None) -> int | None:
    """Tokens that layer `index` may look at, itself included; `default` where it sees everything."""
    types = getattr(text, "layer_types", None)
    return text.sliding_window if types and types[index] == "sliding_attention" else default


def _pairs(length: int, window: int | None, causal: bool) -> int:
    """Query-key pairs that are computed."""
    if not causal:
        return length**2
    seen = length if window is None else min(window, length)
    return seen * (seen + 1) // 2 + (length - seen) * seen
