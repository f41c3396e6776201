"""Tiny random LLaVA checkpoints on disk, as the stock ones are laid out: 336 pixels, 576 patches, Vicuna's turns."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForMultimodalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

# what the stock template of llava-hf/llava-1.5-7b-hf and llava-hf/llava-v1.6-vicuna-7b-hf makes of a turn
STOCK = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = "[INST] <image>\n{{ messages[0]['content'][1]['text'] }} [/INST]"
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte."""
    special = ["<pad>", "<s>", "</s>", "<image>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE({word: row for row, word in enumerate([*special, *letters])}, []))
    found.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="<pad>", bos_token="<s>", eos_token="</s>", additional_special_tokens=["<image>"],
        padding_side="left", clean_up_tokenization_spaces=False,
    )


def processor(kind: str = "llava", template: str = STOCK):
    size = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    given = dict(tokenizer=tokenizer(), patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
                 chat_template=template)
    if kind == "llava":
        return LlavaProcessor(image_processor=CLIPImageProcessorPil(**size), **given)
    return LlavaNextProcessor(image_processor=LlavaNextImageProcessorPil(**size, image_grid_pinpoints=PINPOINTS), **given)


def config(kind: str = "llava"):
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1, image_size=336, patch_size=14, projection_dim=16
    )
    text = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=1, num_key_value_heads=1, vocab_size=260,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=8192,
    )
    made, more = (LlavaConfig, {}) if kind == "llava" else (LlavaNextConfig, {"image_grid_pinpoints": PINPOINTS})
    return made(vision_config=vision, text_config=text, image_token_id=3, vision_feature_layer=-2, **more)


def save(folder: Path, kind: str = "llava") -> Path:
    """A whole checkpoint; every second token ends an answer, so that answers are short."""
    torch.manual_seed(0)
    model = AutoModelForMultimodalLM.from_config(config(kind))
    model.generation_config.eos_token_id = list(range(0, 260, 2))
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor(kind).save_pretrained(folder)
    return folder
