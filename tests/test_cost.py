"""Costs against torch's own counter, against real caches, and against the limits worked out by hand."""

from dataclasses import dataclass

import pytest
import tiny
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

import dart
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


def counted(model, **inputs):
    """What torch's counter sees of one call, by module."""
    with FlopCounterMode(display=False, depth=None) as counter, torch.no_grad():
        out = model(**inputs, logits_to_keep=1)
    counts = {name.split(".", 1)[-1]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return out, {**counts, "total": counter.get_total_flops()}


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
    _, counts = counted(model, input_ids=ids, **pixels)

    decoder = sum(cost.layer_flops(config, cost.layer_lengths(config, ids.shape[1], image_tokens), causal=False))
    vision, projector = cost.vision_flops(config, patches), cost.projector_flops(config, patches)
    head = cost.head_flops(config)

    assert decoder == pytest.approx(counts["model.language_model"], rel=0.01)
    assert head == counts["lm_head"]
    assert decoder + vision + projector + head == pytest.approx(counts["total"], rel=0.01)
    if config.model_type == "qwen2_vl":
        assert vision + projector == pytest.approx(counts["model.visual"], rel=0.01)
        assert projector == counts["model.visual.merger"]
    else:
        assert vision == pytest.approx(counts["model.vision_tower"], rel=0.01)
        assert projector == counts["model.multi_modal_projector"]


@pytest.mark.parametrize("name", [name for name in tiny.CONFIGS if name != "phi4_multimodal"])
def test_every_family_is_counted_as_torch_counts_it(name):
    model, inputs = tiny.tiny(name, "eager"), tiny.prompt(name, [[3, "I", 6]])
    _, counts = counted(model, **inputs)
    pixels, vision = inputs["pixel_values"], model.config.vision_config
    if name.startswith("qwen"):
        patches = [int(grid.prod()) for grid in inputs["image_grid_thw"]]
    else:
        side = pixels.shape[-1] // (vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0])
        patches = [side**2] * (pixels.numel() // pixels.shape[-1] ** 2 // 3)
    decoder = counts.get("model.language_model") or counts["model.text_model"]
    seen = counts["total"] - decoder - counts["lm_head"]
    layers = cost.layer_flops(model.config, [inputs["input_ids"].shape[1]] * tiny.LAYERS, causal=False)
    assert sum(layers) == pytest.approx(decoder, rel=0.01)
    assert cost.vision_flops(model.config, patches) + cost.projector_flops(model.config, patches) == pytest.approx(seen, rel=0.01)


def test_windows_of_a_tower_see_only_themselves():
    config = tiny.CONFIGS["qwen2_5_vl"]()                    # 16 patches a window; one of two layers has windows
    width = config.vision_config.hidden_size
    whole = cost.vision_flops(config, [64])
    config.vision_config.fullatt_block_indexes = [0, 1]
    assert cost.vision_flops(config, [64]) - whole == 4 * (64**2 - 4 * 16**2) * width
    config.vision_config.fullatt_block_indexes = [1]
    assert cost.vision_flops(config, [70]) < cost.vision_flops(config, [80])


def test_the_pooling_head_of_a_tower_is_counted():
    text = LlamaConfig(**LLAMA)
    vision = AutoConfig.for_model("siglip_vision_model", **{**CLIP, "num_hidden_layers": 2})
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_select_strategy="full")
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    _, counts = counted(model, input_ids=torch.tensor([[1] + [IMAGE] * 36 + [2]]), pixel_values=torch.rand(1, 3, 24, 24))
    assert vision.vision_use_head
    assert cost.vision_flops(config, [36]) == pytest.approx(counts["model.vision_tower"], rel=0.01)


@pytest.mark.parametrize("schedule", [[36, 36, 9, 9, 9], [36, 20, 20, 7, 7]])
def test_any_schedule_costs_what_torch_counts_on_a_pruned_model(schedule):
    @dataclass(frozen=True)
    class Steps(dart.Method):
        """Keeps the first tokens, as many as the schedule says."""

        def places(self, n_layers):
            return tuple(i for i in range(1, n_layers) if schedule[i] != schedule[i - 1])

        def select(self, view):
            order = view.image_mask.cumsum(1)
            return view.image_mask & (order <= schedule[view.layer])

    model, inputs = tiny.tiny("llava", "eager"), tiny.prompt("llava", [[3, "I", 6]])
    with dart.prune(model, Steps()) as report:
        out, prefill = counted(model, **inputs)
        token = torch.tensor([[5]])
        _, decode = counted(model, input_ids=token, past_key_values=out.past_key_values)
    lengths = [9 + count for count in schedule]
    assert report.lengths() == lengths
    assert sum(cost.layer_flops(model.config, lengths, causal=False)) == pytest.approx(prefill["model.language_model"], rel=0.01)
    assert sum(cost.decode_flops(model.config, lengths)) == pytest.approx(decode["model.language_model"], rel=0.01)


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


def answering(name, image_tokens, keep, patches, **options):
    """Stages of the plain and of the pruned model, cut behind layer 2, with 60 text tokens."""
    config = cost.shape(name)
    lengths = [cost.layer_lengths(config, image_tokens + 60, image_tokens, each) for each in (None, keep)]
    return [cost.stages(config, each, patches, **options) for each in lengths]


def test_stages_hold_what_the_counts_say():
    config = cost.shape("qwen2-vl-7b")
    lengths, size = cost.layer_lengths(config, 1360, 1300, keep=144), 2
    found = cost.stages(config, lengths, [5200], batch=4, new_tokens=3)
    assert list(found) == ["vision", "prefill", "decode"]
    assert cost.total_flops(found["vision"]) == 4 * (cost.vision_flops(config, [5200]) + cost.projector_flops(config, [5200]))
    assert cost.total_flops(found["prefill"]) == 4 * (sum(cost.layer_flops(config, lengths)) + cost.head_flops(config))
    later = [length + 1 for length in lengths]
    two = sum(cost.decode_flops(config, lengths)) + sum(cost.decode_flops(config, later)) + 2 * cost.head_flops(config)
    assert cost.total_flops(found["decode"]) == 4 * two
    assert len(found["decode"]) == 2 * (28 + 1)
    # all weights are moved once but embeddings, norms and biases; caches on top of that are written, or read
    with_cache = sum(step.bytes for step in found["prefill"]) + sum(step.bytes for step in found["vision"])
    weights = with_cache - 4 * sum(cost.kv_bytes(config, lengths))
    embeddings = size * config.text_config.vocab_size * config.text_config.hidden_size
    assert weights == pytest.approx(cost.weight_bytes(config) - embeddings, rel=0.001)
    assert found["decode"][3].bytes - found["prefill"][3].bytes == 0
    assert cost.stages(config, lengths, [5200])["decode"] == []


def test_an_h100_waits_for_weights_at_batch_1():
    h100 = cost.MACHINES["h100"]
    assert h100.flops / h100.bandwidth == pytest.approx(295, abs=1)
    layer = cost.stages(cost.shape("llava-1.5-7b"), [290] * 32, [576])["prefill"][0]
    assert layer.flops / h100.flops < layer.bytes / h100.bandwidth
    longer = cost.stages(cost.shape("llava-1.5-7b"), [300] * 32, [576])["prefill"][0]
    assert longer.flops / h100.flops > longer.bytes / h100.bandwidth


@pytest.mark.parametrize("batch, limit", [(1, 1.9), (8, 3.6)])
def test_known_roofline(batch, limit):
    plain, pruned = answering("llava-1.5-7b", 576, 64, [576], batch=batch)
    h100 = cost.MACHINES["h100"]
    seconds = [sum(cost.roofline(each[stage], h100) for stage in ("vision", "prefill")) for each in (plain, pruned)]
    assert round(seconds[0] / seconds[1], 1) == limit


def test_a_roof_is_arithmetic_or_bytes_step_by_step():
    machine = cost.Machine("toy", flops=10, bandwidth=2)
    assert cost.roofline([cost.Work(100, 1), cost.Work(10, 8)], machine) == 10 + 4
    assert cost.roofline([], machine) == 0


def test_the_printed_formula_lacks_the_gate_and_counts_multiply_adds():
    config = cost.shape("llava-1.5-7b")
    printed, ours = cost.printed_layer_flops(config, [636] * 32), cost.layer_flops(config, [636] * 32, causal=False)
    assert ours[0] - 2 * printed[0] == 2 * 636 * 4096 * 11008
    lengths = cost.layer_lengths(config, 2880, 2880, keep=320)
    share = sum(cost.printed_layer_flops(config, lengths)) / sum(cost.printed_layer_flops(config, [2880] * 32))
    assert round(share, 3) == 0.155                          # Table 2 prints 0.128


@pytest.mark.parametrize("wrong", [dict(batch=0), dict(new_tokens=0)])
def test_stages_of_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="give 1 or more"):
        answering("llava-1.5-7b", 576, 64, [576], **wrong)


BILLIONS = {
    "llava-1.5-7b": 7.06, "llava-next-7b": 7.06, "qwen2-vl-7b": 8.29, "qwen2.5-vl-7b": 8.29, "qwen3-vl-8b": 8.77,
    "llava-onevision-7b": 8.03, "internvl3-8b": 7.94, "gemma3-4b": 4.30, "idefics3-8b": 8.46, "smolvlm2-2.2b": 2.25,
    "video-llava-7b": 7.37,
}  # fmt: skip


@pytest.mark.parametrize("name", cost.SHAPES)
def test_shapes_have_the_published_number_of_weights(name):
    billions = BILLIONS[name]
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
    with pytest.raises(ValueError, match="'phi4_multimodal_vision' is not counted yet; known: clip_vision_model"):
        cost.vision_flops(tiny.CONFIGS["phi4_multimodal"](), [196])
    with pytest.raises(ValueError, match="'phi4_multimodal' is not counted yet; known: llava"):
        cost.projector_flops(tiny.CONFIGS["phi4_multimodal"](), [196])
    with pytest.raises(ValueError, match="mixture of experts"):
        cost.layer_flops(AutoConfig.for_model("mixtral", num_hidden_layers=2), [9, 9])
    with pytest.raises(ValueError, match="3 lengths, but the model has 4"):
        cost.kv_bytes(LlamaConfig(**LLAMA), [9, 9, 9])
