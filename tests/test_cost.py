"""Costs against torch's own counter, against real caches, and against the limits worked out by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    Qwen2VLConfig,
)

from dart import cost

IMAGE, TEXT_TOKENS = 90, 7
CLIP = dict(hidden_size=24, intermediate_size=56, num_hidden_layers=3, num_attention_heads=2, image_size=24, patch_size=4)
# grouped queries and a head dimension of its own, so that no two widths can be confused
LLAMA = dict(
    hidden_size=48, intermediate_size=88, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=12,
    vocab_size=100,
)  # fmt: skip


def tiny_llava():
    config = LlavaConfig(vision_config=CLIPVisionConfig(**CLIP), text_config=LlamaConfig(**LLAMA), image_token_index=IMAGE)
    return config, dict(pixel_values=torch.rand(1, 3, 24, 24)), [36], 36


def tiny_llava_next():
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**CLIP), text_config=LlamaConfig(**LLAMA), image_token_index=IMAGE,
        image_grid_pinpoints=[[48, 48]],
    )  # fmt: skip
    # a square image fills its 2 x 2 grid of crops: 36 tokens of the overview, 12 x 12 of the grid, 12 line ends
    pixels = dict(pixel_values=torch.rand(1, 5, 3, 24, 24), image_sizes=torch.tensor([[48, 48]]))
    return config, pixels, [36] * 5, 36 + 144 + 12


def tiny_qwen2_vl():
    text = dict(
        hidden_size=48, intermediate_size=88, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2,
        vocab_size=100, rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1]),
    )  # fmt: skip
    vision = dict(depth=3, embed_dim=32, hidden_size=48, num_heads=2, mlp_ratio=3, patch_size=4)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, vision_start_token_id=91)
    # two images of different size: each attends within itself
    pixels = dict(
        pixel_values=torch.rand(24 + 40, 3 * 2 * 4 * 4), image_grid_thw=torch.tensor([[1, 4, 6], [1, 4, 10]])
    )
    return config, pixels, [24, 40], 6 + 10


FAMILIES = pytest.mark.parametrize("family", [tiny_llava, tiny_llava_next, tiny_qwen2_vl])


@FAMILIES
def test_flops_match_the_counter_of_torch(family):
    config, pixels, patches, image_tokens = family()
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    image = [IMAGE] * image_tokens
    if config.model_type == "qwen2_vl":
        image = [91] + [IMAGE] * 6 + [92, 91] + [IMAGE] * 10 + [92]
    ids = torch.tensor([[1, *image, *range(2, 2 + TEXT_TOKENS)]])
    if config.model_type == "qwen2_vl":
        pixels["mm_token_type_ids"] = (ids == IMAGE).int()
    with FlopCounterMode(display=False, depth=None) as counter, torch.no_grad():
        model(input_ids=ids, logits_to_keep=1, **pixels)
    counts = {name.split(".", 1)[-1]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    counted = dict(
        decoder=counts["model.language_model"],
        head=counts["lm_head"],
        total=counter.get_total_flops(),
    )

    decoder = sum(cost.layer_flops(config, cost.layer_lengths(config, ids.shape[1], image_tokens), causal=False))
    vision, projector = cost.vision_flops(config, patches), cost.projector_flops(config, patches)
    head = cost.head_flops(config)

    assert decoder == pytest.approx(counted["decoder"], rel=0.01)
    assert head == counted["head"]
    assert decoder + vision + projector + head == pytest.approx(counted["total"], rel=0.01)
    if config.model_type == "qwen2_vl":
        assert vision + projector == pytest.approx(counts["model.visual"], rel=0.01)
        assert projector == counts["model.visual.merger"]
    else:
        assert vision == pytest.approx(counts["model.vision_tower"], rel=0.01)
        assert projector == counts["model.multi_modal_projector"]


@FAMILIES
def test_weights_match_a_real_model(family):
    config, *_ = family()
    model = AutoModelForImageTextToText.from_config(config)
    real = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    assert cost.weight_bytes(config, torch.float32) == real
    assert cost.weight_bytes(config, torch.bfloat16) == real / 2


def test_kv_bytes_match_a_real_cache_with_sliding_layers():
    config = Gemma3TextConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        vocab_size=50, sliding_window=5, layer_types=["sliding_attention", "full_attention"] * 3,
    )  # fmt: skip
    for length in (3, 4, 5, 12):
        cache = DynamicCache(config=config)
        with torch.no_grad():
            Gemma3ForCausalLM(config)(torch.arange(length)[None], past_key_values=cache)
        real = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
        assert cost.kv_bytes(config, [length] * 6, torch.float32) == real


@pytest.mark.parametrize("window", [None, 1, 4, 7, 20])
def test_pairs_are_what_the_mask_leaves(window):
    for length in range(1, 12):
        query, key = torch.arange(length)[:, None], torch.arange(length)
        mask = (key <= query) & (key > query - (window or length))
        assert cost._pairs(length, window, causal=True) == mask.sum()


def test_sliding_layers_cost_less_than_full_ones():
    config = Gemma3TextConfig(num_hidden_layers=2, sliding_window=16, layer_types=["sliding_attention", "full_attention"])
    local, everywhere = cost.layer_flops(config, [1000, 1000])
    assert local < everywhere
    assert cost.layer_flops(config, [10, 10])[0] == cost.layer_flops(config, [10, 10])[1]


@pytest.mark.parametrize(
    "name, image_tokens, keep, patches, prefill, with_vision, kv_mib",
    [
        ("llava-1.5-7b", 576, 64, [576], 4.1, 3.6, (318, 78)),
        ("llava-next-7b", 2880, 320, [576] * 5, 5.6, 4.6, (1470, 270)),
        ("qwen2-vl-7b", 1300, 144, [5200], 4.8, 2.0, (74.375, 15.671875)),
    ],
)
def test_known_limits(name, image_tokens, keep, patches, prefill, with_vision, kv_mib):
    config = cost.shape(name)
    plain = cost.layer_lengths(config, image_tokens + 60, image_tokens)
    pruned = cost.layer_lengths(config, image_tokens + 60, image_tokens, keep=keep, layer=2)
    before, after = sum(cost.layer_flops(config, plain)), sum(cost.layer_flops(config, pruned))
    vision = cost.vision_flops(config, patches) + cost.projector_flops(config, patches)
    assert round(before / after, 1) == prefill
    assert round((before + vision) / (after + vision), 1) == with_vision
    assert (sum(cost.kv_bytes(config, plain)) / 2**20, sum(cost.kv_bytes(config, pruned)) / 2**20) == kv_mib
    if name == "qwen2-vl-7b":
        assert round(vision / (vision + before), 2) == 0.38


@pytest.mark.parametrize("name, billions", [("llava-1.5-7b", 7.06), ("llava-next-7b", 7.06), ("qwen2-vl-7b", 8.29)])
def test_shapes_have_the_published_number_of_weights(name, billions):
    assert cost.weight_bytes(cost.shape(name)) / 2 / 1e9 == pytest.approx(billions, abs=0.01)


def test_a_shape_can_be_changed_without_changing_the_next_one():
    cost.shape("qwen2-vl-7b").get_text_config().rope_parameters["mrope_section"].clear()
    assert cost.shape("qwen2-vl-7b").get_text_config().rope_parameters["mrope_section"] == [16, 24, 24]


def test_lengths_step_down_at_the_layer_and_nowhere_else():
    config = AutoConfig.for_model("llama", num_hidden_layers=5)
    assert cost.layer_lengths(config, 20, 12) == [20] * 5
    assert cost.layer_lengths(config, 20, 12, keep=4) == [20, 20, 12, 12, 12]
    assert cost.layer_lengths(config, 20, 12, keep=0, layer=0) == [8] * 5
    assert cost.layer_lengths(config, 20, 12, keep=12) == cost.layer_lengths(config, 20, 12, keep=99) == [20] * 5


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(prompt_length=20, image_tokens=21), "image_tokens=21"),
        (dict(prompt_length=20, image_tokens=12, layer=5), "use 0 <= layer < 5"),
        (dict(prompt_length=20, image_tokens=12, layer=-1), "use 0 <= layer < 5"),
        (dict(prompt_length=20, image_tokens=12, keep=-1), "keep=-1"),
    ],
)
def test_impossible_lengths_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cost.layer_lengths(AutoConfig.for_model("llama", num_hidden_layers=5), **arguments)


def test_what_is_not_counted_is_refused_with_its_name():
    with pytest.raises(ValueError, match="known: llava-1.5-7b, "):
        cost.shape("llava-2-7b")
    siglip = LlavaConfig(vision_config=AutoConfig.for_model("siglip_vision_model"), text_config=LlamaConfig(**LLAMA))
    with pytest.raises(ValueError, match="siglip_vision_model"):
        cost.vision_flops(siglip, [196])
    with pytest.raises(ValueError, match="gemma3"):
        cost.projector_flops(AutoConfig.for_model("gemma3"), [196])
    with pytest.raises(ValueError, match="mixture of experts"):
        cost.layer_flops(AutoConfig.for_model("mixtral", num_hidden_layers=2), [9, 9])
    with pytest.raises(ValueError, match="3 lengths, but the model has 4"):
        cost.kv_bytes(LlamaConfig(**LLAMA), [9, 9, 9])
