"""Tiny random models of every family, built from configs, and prompts for them.

A sample is a list of segments: a number is that many text tokens, ``"I"`` an image, ``"V"`` a video, ``"A"`` a sound:
``[3, "I", 6]`` is three tokens, an image, six tokens.
"""

from dataclasses import dataclass
from functools import cache

import torch
from transformers import (
    AutoModelForMultimodalLM,
    CLIPVisionConfig,
    Gemma3Config,
    Idefics3Config,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    Phi4MultimodalConfig,
    Qwen2Config,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
    VideoLlavaConfig,
)

LAYERS = 5
IMAGE, VIDEO, AUDIO, PAD = 90, 91, 92, 0
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=96, pad_token_id=PAD, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
)
TOWER = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=2)
MROPE = dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])


def clip(size):
    return CLIPVisionConfig(**TOWER, image_size=size, patch_size=8, projection_dim=32)


def siglip(size, patch=8):
    return SiglipVisionConfig(**TOWER, image_size=size, patch_size=patch, vision_use_head=False)


def qwen_tower(**more):
    return dict(depth=2, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2, in_channels=3, **more)


CONFIGS = {
    "llava": lambda: LlavaConfig(
        vision_config=clip(48), text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, vision_feature_layer=-2),
    "llava_next": lambda: LlavaNextConfig(
        vision_config=clip(24), text_config=LlamaConfig(**TEXT), image_token_id=IMAGE, vision_feature_layer=-2,
        image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]]),
    "llava_onevision": lambda: LlavaOnevisionConfig(
        vision_config=siglip(32), text_config=Qwen2Config(**TEXT), image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]], vision_feature_layer=-1),
    "qwen2_vl": lambda: Qwen2VLConfig(
        vision_config=qwen_tower(embed_dim=32, hidden_size=32), text_config=dict(**TEXT, rope_parameters=MROPE),
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=93, vision_end_token_id=94),
    "qwen2_5_vl": lambda: Qwen2_5_VLConfig(
        vision_config=qwen_tower(hidden_size=32, intermediate_size=48, out_hidden_size=32, window_size=16,
                                 fullatt_block_indexes=[1]),
        text_config=dict(**TEXT, rope_parameters=MROPE),
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=93, vision_end_token_id=94),
    "qwen3_vl": lambda: Qwen3VLConfig(
        vision_config=qwen_tower(hidden_size=32, intermediate_size=48, out_hidden_size=32, num_position_embeddings=64,
                                 deepstack_visual_indexes=[0, 1, 1]) | dict(depth=2),
        text_config=dict(**TEXT, head_dim=8, rope_parameters=MROPE),
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=93, vision_end_token_id=94),
    "internvl": lambda: InternVLConfig(
        vision_config=dict(**TOWER, image_size=[32, 32], patch_size=[4, 4]), text_config=Qwen2Config(**TEXT), image_token_id=IMAGE),
    "gemma3": lambda: Gemma3Config(
        vision_config=siglip(48), text_config=dict(
            **TEXT, head_dim=8, sliding_window=512, query_pre_attn_scalar=8,
            layer_types=["sliding_attention"] * 3 + ["full_attention", "sliding_attention"]),
        image_token_id=IMAGE, mm_tokens_per_image=36, boi_token_index=93, eoi_token_index=94),
    "idefics3": lambda: Idefics3Config(
        vision_config=dict(**TOWER, image_size=48, patch_size=4), text_config=LlamaConfig(**TEXT), image_token_id=IMAGE),
    "smolvlm": lambda: SmolVLMConfig(
        vision_config=dict(**TOWER, image_size=48, patch_size=4), text_config=LlamaConfig(**TEXT), image_token_id=IMAGE),
    "video_llava": lambda: VideoLlavaConfig(
        vision_config=clip(32), text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, video_token_index=VIDEO,
        vision_feature_layer=-2),
    "phi4_multimodal": lambda: Phi4MultimodalConfig(
        **TEXT, rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.75),
        vision_config=dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=4,
                           crop_size=32, image_token_id=IMAGE),
        audio_config=dict(hidden_size=32, intermediate_size=48, num_blocks=2, num_attention_heads=2, ext_pw_out_channel=32,
                          depthwise_separable_out_channel=32, nemo_conv_channels=8, input_size=16, bias_max_distance=32,
                          audio_token_id=AUDIO)),
}
VIDEO_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "video_llava")


@cache
def _model(name):
    torch.manual_seed(0)
    model = AutoModelForMultimodalLM.from_config(CONFIGS[name]()).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():        # weights large enough that the image and every layer matter
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 1.5 / parameter.shape[-1] ** 0.5
        else:                                   # norms with weights of their own, as trained ones have
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None     # every generation runs to its full length
    model.generation_config.suppress_tokens = [IMAGE, VIDEO, AUDIO]
    return model


def tiny(name, attention="sdpa"):
    """The tiny model of a family; built once, so put back whatever you change."""
    model = _model(name)
    if model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)
    return model


@dataclass
class Picture:
    pixels: torch.Tensor
    tokens: int
    size: tuple = ()
    grid: tuple = ()


def picture(name, number, video=False):
    """Image (or video) `number` of a family; sizes differ where the family allows it."""
    generator = torch.Generator().manual_seed(100 + number + 50 * video)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    if name.startswith("qwen"):
        grid = (2, 4, 8) if video else ((1, 8, 8), (1, 6, 10), (1, 12, 8))[number % 3]
        patches = grid[0] * grid[1] * grid[2]
        return Picture(noise(patches, 3 * 2 * 4 * 4), patches // 4, grid=grid)
    if name == "llava_next":
        size = ((24, 48), (48, 48), (40, 24))[number % 3]
        return Picture(noise(5 if size == (48, 48) else 3, 3, 24, 24), {(24, 48): 9 + 21, (48, 48): 9 + 42, (40, 24): 9 + 24}[size],
                       size=size)
    if name == "llava_onevision":
        if video:
            return Picture(noise(2, 3, 32, 32), 2 * 4 + 1)
        size = ((32, 64), (64, 64), (64, 32))[number % 3]
        return Picture(noise(5 if size == (64, 64) else 3, 3, 32, 32), {(32, 64): 16 + 36, (64, 64): 16 + 72, (64, 32): 16 + 40}[size],
                       size=size)
    if name == "phi4_multimodal":               # crops behind a view of the whole; 4 x 4 tokens each and one behind every row
        size = ((32, 32), (32, 64), (64, 32))[number % 3]
        crops = size[0] * size[1] // 32**2
        return Picture(noise(1 + crops, 3, 32, 32), 4 * 5 + 1 + size[0] // 8 * (size[1] // 8 + 1), size=size)
    if name == "video_llava":
        return Picture(noise(3, 3, 32, 32), 3 * (16 + 1)) if video else Picture(noise(3, 32, 32), 16)
    side = 32 if name == "internvl" else 48
    return Picture(noise(3, side, side), {"internvl": 16}.get(name, 36))


SOUND = 16                                      # tokens of a sound: one for eight steps in time


def sound(number):
    """Sound `number`, float (steps, bands); all are equally long, as transformers lets the tower hear padding."""
    return torch.randn(8 * SOUND, 16, generator=torch.Generator().manual_seed(200 + number))


def prompt(name, samples, padding="left", mask=True):
    """Model inputs for samples of segments; shorter rows are padded on the side named."""
    rows, pictures, videos, sounds = [], [], [], []
    brackets = [93, 94] if name.startswith("qwen") else []      # by which transformers counts a sample's images
    for number, segments in enumerate(samples):
        generator = torch.Generator().manual_seed(1000 + sum(s for s in segments if isinstance(s, int)) + 7 * len(segments))
        row = []
        for segment in segments:
            if segment == "I":
                image = picture(name, len(row) + len(segments))
                pictures.append((number, image))
                row += brackets[:1] + [IMAGE] * image.tokens + brackets[1:]
            elif segment == "V":
                video = picture(name, len(row) + len(segments), video=True)
                videos.append((number, video))
                frames = video.grid[0] if name == "qwen3_vl" else 1         # Qwen3-VL: a timestamp before every frame
                for frame in range(frames):
                    row += [50 + frame] * (frames > 1) + brackets[:1] + [VIDEO] * (video.tokens // frames) + brackets[1:]
            elif segment == "A":
                sounds.append(sound(len(row) + len(segments)))
                row += [AUDIO] * SOUND
            else:
                row += torch.randint(3, 88, (segment,), generator=generator).tolist()
        rows.append(row)
    length = max(map(len, rows))
    fill = [[PAD] * (length - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    join = (lambda f, r: f + r) if padding == "left" else (lambda f, r: r + f)
    inputs = {"input_ids": torch.tensor([join(f, r) for f, r in zip(fill, rows)])}
    if mask:
        inputs["attention_mask"] = torch.tensor([join(f, o) for f, o in zip(fill, ones)])
        if not name.startswith("qwen"):         # as generate gives them; without, positions count from the padding
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    ids = inputs["input_ids"]
    if name.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    if name == "gemma3":
        inputs["token_type_ids"] = (ids == IMAGE).long()
    if sounds:
        steps = torch.ones(len(sounds), 8 * SOUND, dtype=torch.bool)
        inputs |= {"audio_input_features": torch.stack(sounds), "audio_embed_sizes": torch.full((len(sounds),), SOUND),
                   "audio_attention_mask": steps}
    return inputs | _pixels(name, pictures, videos, len(samples))


def _pixels(name, pictures, videos, batch):
    if not pictures and not videos:
        return {}
    out = {}
    if name.startswith("qwen"):
        for given, key, grid in ((pictures, "pixel_values", "image_grid_thw"), (videos, "pixel_values_videos", "video_grid_thw")):
            if given:
                out |= {key: torch.cat([p.pixels for _, p in given]), grid: torch.tensor([p.grid for _, p in given])}
    elif name in ("llava_next", "llava_onevision", "phi4_multimodal"):
        if pictures:
            most = max(len(p.pixels) for _, p in pictures)
            padded = [torch.cat([p.pixels, torch.zeros(most - len(p.pixels), *p.pixels.shape[1:])]) for _, p in pictures]
            pixels = "image_pixel_values" if name == "phi4_multimodal" else "pixel_values"
            out |= {pixels: torch.stack(padded), "image_sizes": torch.tensor([p.size for _, p in pictures])}
            if name == "phi4_multimodal":
                out["image_attention_mask"] = torch.ones(len(padded), most, 8, 8)
    elif name in ("idefics3", "smolvlm"):
        of_row = [[p.pixels for row, p in pictures if row == number] for number in range(batch)]
        most = max(map(len, of_row))
        blank = torch.zeros(3, 48, 48)
        out["pixel_values"] = torch.stack([torch.stack(row + [blank] * (most - len(row))) for row in of_row])
    elif pictures:
        out["pixel_values"] = torch.stack([p.pixels for _, p in pictures])
    if videos and not name.startswith("qwen"):
        out["pixel_values_videos"] = torch.stack([p.pixels for _, p in videos])
    return out


def image_mask(inputs):
    return torch.isin(inputs["input_ids"], torch.tensor([IMAGE, VIDEO, AUDIO]))
