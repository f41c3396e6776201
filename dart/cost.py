"""What a prompt costs: floating-point operations and bytes, counted from a transformers config alone.

Everything is per sample (batch 1) and counts matrix products only, two operations per multiply-add: that is what
`torch.utils.flop_counter.FlopCounterMode` counts too, and norms, softmax and activations add less than 1 %.

Pruning enters through one list, the *lengths*: how many tokens each decoder layer sees.

    layer         0     1     2     3   ...  31
    plain       636   636   636   636   ... 636
    layer=2     636   636   124   124   ... 124      keep=64 of 576 image tokens, 60 text tokens
"""

from collections.abc import Sequence
from copy import deepcopy

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

SHAPES = {
    "llava-1.5-7b": dict(model_type="llava", vision_config=_CLIP_L_336, text_config=_VICUNA_7B),
    "llava-next-7b": dict(model_type="llava_next", vision_config=_CLIP_L_336, text_config=_VICUNA_7B),
    "qwen2-vl-7b": dict(model_type="qwen2_vl", vision_config=_QWEN2_VISION, text_config=_QWEN2_7B),
}


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
        Patches of every crop or image, each attending within itself only: [576] for LLaVA-1.5, [576] * 5 for
        LLaVA-NeXT at its largest, [4 * image tokens] for Qwen2-VL, whose projector merges 2 x 2 patches.

    Raises
    ------
    ValueError
        If the tower is of a kind this function does not know.
    """
    vision = config.vision_config
    if vision.model_type == "clip_vision_model":
        width, inner, layers = vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers
        pixels, class_tokens = vision.num_channels * vision.patch_size**2, 1
    elif vision.model_type == "qwen2_vl_vision":
        width, inner, layers = vision.embed_dim, vision.embed_dim * vision.mlp_ratio, vision.depth
        pixels, class_tokens = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2, 0
    else:
        raise ValueError(f"vision tower {vision.model_type!r} is not counted yet; known: clip_vision_model, qwen2_vl_vision")
    embedding = 2 * sum(patches) * pixels * width
    lengths = [count + class_tokens for count in patches]
    per_layer = sum(2 * n * (4 * width**2 + 2 * width * inner) + 4 * n**2 * width for n in lengths)
    return embedding + layers * per_layer


def projector_flops(config: PreTrainedConfig, patches: Sequence[int]) -> int:
    """FLOPs of the two linear layers between vision tower and decoder, for the same `patches`.

    Raises
    ------
    ValueError
        If the model is of a family this function does not know.
    """
    width = config.get_text_config().hidden_size
    if config.model_type in ("llava", "llava_next"):
        return 2 * sum(patches) * (config.vision_config.hidden_size * width + width**2)
    if config.model_type == "qwen2_vl":
        merged = config.vision_config.spatial_merge_size**2
        joined = merged * config.vision_config.embed_dim
        return 2 * (sum(patches) // merged) * (joined**2 + joined * width)
    raise ValueError(f"projector of {config.model_type!r} is not counted yet; known: llava, llava_next, qwen2_vl")


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
