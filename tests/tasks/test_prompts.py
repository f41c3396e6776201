"""The paper's LLaVA models are asked as LLaVA's evaluation asks them, and no other model is."""

from types import SimpleNamespace

import checkpoints
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from PIL import Image
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from dart import evaluation, reproduction
from dart.tasks import base, prompts

TURN = "USER: <image>\nIs it red?\nAnswer the question using a single word or phrase. ASSISTANT:"


def model(kind="llava", text=LlamaConfig):
    return SimpleNamespace(config=SimpleNamespace(model_type=kind, text_config=text()))


def question(text):
    return base.Question(id=1, text=text, answer="yes", choices=(), kind="all", picture_key="1", source="")


def asked(processor, text):
    return evaluation._prompt(processor, question(text), 1)


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_the_system_sentence_comes_before_the_stock_turn(kind):
    own = checkpoints.processor(kind)
    official, words = prompts.official(model(kind), own)
    text = "Is it red?\n" + prompts.SHORT
    assert asked(own, text) == TURN
    assert asked(official, text) == prompts.vicuna_v1(text) == f"{prompts.SYSTEM} {TURN}"
    assert asked(own, text) == TURN, "the processor that was given stays as it is"
    assert words.startswith("vicuna_v1") and ("pad" in words) == (kind == "llava")


@settings(max_examples=60, deadline=None)
@given(strategies.text(strategies.characters(codec="utf-8", exclude_characters="\0\r")).filter(lambda text: "<" not in text))
def test_every_question_has_the_text_and_the_tokens_of_vicuna_v1(text):
    official, _ = OFFICIAL
    assert asked(official, text) == prompts.vicuna_v1(text)
    ids = official.tokenizer(asked(official, text))["input_ids"]
    assert ids == official.tokenizer(prompts.vicuna_v1(text))["input_ids"] and ids.count(3) == 1


OFFICIAL = prompts.official(model(), checkpoints.processor())


def test_the_image_stands_behind_the_system_sentence_and_the_role():
    official, _ = OFFICIAL
    picture = Image.new("RGB", (8, 6))
    ids = official(text=[asked(official, "what?")], images=[picture], return_tensors="pt")["input_ids"][0]
    before = official.tokenizer(f"{prompts.SYSTEM} USER: ")["input_ids"]
    after = official.tokenizer("\nwhat? ASSISTANT:", add_special_tokens=False)["input_ids"]
    assert ids.tolist() == [*before, *[3] * 576, *after]


@pytest.mark.parametrize(("kind", "text", "template"), [
    ("llava_next", MistralConfig, checkpoints.MISTRAL),         # llava-v1.6-mistral
    ("llava", MistralConfig, checkpoints.STOCK),                # Vicuna's words in another model
    ("llava", Qwen2Config, checkpoints.STOCK),
    ("llava", LlamaConfig, checkpoints.MISTRAL),                # a Llama that learned other turns
    ("llava", LlamaConfig, None),
    ("qwen2_vl", Qwen2Config, checkpoints.STOCK),
    ("vipllava", LlamaConfig, checkpoints.STOCK),
])
def test_other_models_keep_their_own_words(kind, text, template):
    own = checkpoints.processor(template=template)
    assert prompts.official(model(kind, text), own) == (own, "")


def test_only_published_tasks_are_asked_so():
    own = checkpoints.processor()
    assert reproduction.asking("existence", model(), own) == (own, "")
    assert reproduction.asking("pope", model(), own)[0].chat_template == prompts.TEMPLATE


def squared(picture):
    """As `expand2square` of LLaVA pads, from its description: the longer side, mean colour, the picture in the middle."""
    side = max(picture.size)
    whole = Image.new("RGB", (side, side), (122, 116, 104))     # 255 times the mean of CLIP, rounded down
    whole.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return whole


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (20, 20)])
def test_pictures_are_padded_not_cut(size):
    own = checkpoints.processor()
    official, _ = prompts.official(model(), own)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    see = lambda processor, image: processor.image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(see(official, picture), see(own, squared(picture)))
    assert torch.equal(see(own, picture), see(official, picture)) == (size[0] == size[1])
