"""Train the bundled model: a small stock LLaVA that answers questions about scenes and reads its image late.

    python train/bundled.py --out data/model            # about four hours on two CPU cores; CUDA if there is one
    python train/bundled.py --out data/model --minutes 9   # a piece; the same command goes on where it stopped

Five stages, each resumed from its last checkpoint after a kill; scene `i` of a stage has a seed of its own, so a resumed
run sees what an uninterrupted one sees.

1. *crowd*: tower, projector and word embeddings learn one thing: a patch's projected vector points, by cosine, to the
   embeddings of the words for it: what lies there (an object's name, a sign's word, or nothing), its colour, its letter,
   its place (top, left, ...), and "one" at the middle of an object, "zero" around it, so that objects can be counted.
   Labels are free, since scenes are composited. The tower starts as a convolutional net, scenes are as full as they get,
   and each is seen in four windows: all that makes a tower learn fast on few cores.
2. *see*: the same on whole pictures, half of them real scenes and pictures of easy-VQA. Afterwards the projector is
   rescaled to the length of word embeddings, and the tower stays as it is.
3. *talk*: the decoder learns to answer, from image tokens that are computed once. Many questions about one scene share one
   sequence; each sees the image and itself only and has the positions it has alone. Beside the answers, a few heads of
   one layer are shown where to look: the last token of a question attends to the patches of what is asked for, or to the
   first token where there is nothing to see. Most image tokens show nothing, and most of those are left out until the end.
4. *see-again*: the tower goes on, now with half of its scenes full of signs, since letters take longest. Word embeddings
   stay where the decoder knows them.
5. *talk-again*: the decoder goes on with what the tower says now, on scenes that have something to count and to read.

The first two decoder layers are local: their window is shorter than any question, so no answer can come from the image
before layer 2. In every second step of *talk* the last quarter of the layers does without the image, so that reading is
over by then. That gives the model LLaVA's depth profile, which a decoder trained from scratch does not have by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

import dart
from dart import bundled, easy_vqa, scenes
from dart.evaluation import given_features

LOCAL_LAYERS, WINDOW = 2, 4  # "is there a dog?" has five tokens
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


@dataclass(frozen=True)
class Recipe:
    """Sizes and lengths; the defaults are for two CPU cores and about four hours."""

    width: int = 128
    layers: int = 8
    heads: int = 8
    ffn: int = 352
    rope_theta: float = 1e6  # slow rotations, so that alike states match over the whole image
    vision_width: int = 192
    vision_layers: int = 5
    vision_heads: int = 8
    crowd_steps: int = 4800
    see_steps: int = 750
    talk_steps: int = 3100
    see_again_steps: int = 1800
    talk_again_steps: int = 5000
    see_batch: int = 4
    batch: int = 8
    scenes: int = 4800  # a multiple of the batch; whose image tokens are kept for a language stage
    shown: int = 160  # image tokens a scene in most of it: all that show something and some that show nothing
    questions: int = 20
    count_weight: float = 2.0  # of an answer to "how many" in talk-again, which is learned last
    rate: float = 1e-3
    later_rate: float = 5e-4  # of all stages but the first of the tower and of the decoder, which have learned most by then
    seed: int = 0
    look_layer: int = LOCAL_LAYERS + 1
    look_heads: int = 4
    prune: int = 0  # image tokens that DART keeps while a finished model goes on; 0 makes the model (the paper's dagger rows)
    prune_steps: int = 300
    prune_rate: float = 5e-5  # one question a scene, where a lesson has twenty: at ten times that rate even the control forgot a seventh
    exam_every: int = 500


# ------------------------------------------------------------------------------------------------ model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words for everything the tasks say, letters for everything else."""
    asked = "is there a an where the what at directly left of right above below color how many are word on sign number"
    asked += " does say which yes no top center bottom it in image picture shape not present contain this"
    shapes = "circle rectangle triangle gray teal brown white zero five six"
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [*asked.split(), *scenes.NUMBERS, *scenes.NAMES, *scenes.COLORS, *scenes.WORDS, *shapes.split()]
    pieces = ["##s", "##es", *letters, *("##" + letter for letter in letters), *"?.,!:;'-()"]
    vocabulary = list(dict.fromkeys(["<pad>", "<s>", "</s>", "<unk>", "<image>", *words, *pieces]))
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def make_processor() -> LlavaProcessor:
    """Tokenizer and PIL image processor, as they are saved beside the weights."""
    size = {"height": scenes.SIZE, "width": scenes.SIZE}
    pictures = CLIPImageProcessorPil(
        size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3, do_center_crop=False
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=make_tokenizer(),
        patch_size=scenes.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A stock LLaVA with random weights: CLIP tower, two-layer projector, Qwen2 decoder that starts with local layers."""
    vision = CLIPVisionConfig(
        hidden_size=recipe.vision_width,
        intermediate_size=4 * recipe.vision_width,
        num_hidden_layers=recipe.vision_layers,
        num_attention_heads=recipe.vision_heads,
        image_size=scenes.SIZE,
        patch_size=scenes.PATCH,
        projection_dim=recipe.vision_width,
        attention_dropout=0.0,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.ffn,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=WINDOW,
        layer_types=["sliding_attention"] * LOCAL_LAYERS + ["full_attention"] * (recipe.layers - LOCAL_LAYERS),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=scenes.GRID**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(recipe.seed)
    model = LlavaForConditionalGeneration(config)
    # Word embeddings as long as what layers add: short ones, as usual, are drowned by the first layer, and what a patch
    # showed cannot be read two layers later. The final norm makes up for it, since the head shares the embeddings.
    nn.init.normal_(model.get_input_embeddings().weight)
    nn.init.constant_(model.model.language_model.norm.weight, 0.1)
    spell(model.get_input_embeddings().weight, tokenizer)
    return model


@torch.no_grad()
def spell(table: Tensor, tokenizer: PreTrainedTokenizerFast) -> None:
    """Put the embeddings of words on signs together from their letters, so that what is learned of one word serves others."""
    letters = torch.randn(max(map(len, scenes.WORDS)), 26, table.shape[1])
    for word in scenes.WORDS:
        parts = [letters[place, ord(letter) - ord("a")] for place, letter in enumerate(word)]
        table[tokenizer.convert_tokens_to_ids(word)] = sum(parts) / len(parts) ** 0.5


RING = [(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1) if x or y]
OFFSETS = (RING, RING, [(2 * x, 2 * y) for x, y in RING], [(x, 0) for x in (-4, -3, -2, -1, 1, 2, 3, 4)])
FREQUENCIES = np.linspace(0.27, 2.87, 6)  # the sum of their cosines is 6 at distance 0 and below 0.4 from 1 to 23


@torch.no_grad()
def structure(tower: nn.Module, images: Tensor) -> None:
    """Start the tower as a convolutional net, which learns small things from few pictures (as arXiv 2103.10697 does).

    Some channels hold the place of a patch as sines and cosines and nothing else; heads compare those alone, turned by an
    offset, so that each takes over one neighbour, in the last of these layers along the lines that words stand in. Places
    have four fifths of the energy: layer norms would else blur them where a patch shows much. The patch embedding starts
    as principal components of `images` (batch, height, width, 3), all made equally strong.
    """
    model = getattr(tower, "vision_model", tower)
    embeddings, config = model.embeddings, model.config
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    few = len(FREQUENCIES)
    place = 4 * few
    at = torch.arange(scenes.GRID)[:, None] * torch.from_numpy(FREQUENCIES).float()
    wave = torch.cat([at.cos(), at.sin()], -1)
    across, down = wave.expand(scenes.GRID, -1, -1), wave[:, None].expand(-1, scenes.GRID, -1)

    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    patches = F.unfold(pixels, scenes.PATCH, stride=scenes.PATCH).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    strength, axes = torch.linalg.eigh((patches - mean).T.cov())
    strength, axes = strength[place - width :], axes[:, place - width :]
    strength = strength + 0.002
    turn = nn.init.orthogonal_(torch.empty(width - place, width - place))
    filters = turn @ (axes / strength.sqrt()).T
    embeddings.patch_embedding.weight.zero_()[place:] = filters.view(-1, 3, scenes.PATCH, scenes.PATCH)
    embeddings.class_embedding.zero_()
    table = embeddings.position_embedding.weight.zero_()
    table[1:, :place] = (8 * (width - place) / place) ** 0.5 * torch.cat([across, down], -1).flatten(0, 1)
    table[1:, place:] = -filters @ mean

    for layer, offsets in zip(model.encoder.layers, OFFSETS):
        attention = layer.self_attn
        for each in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            each.weight.zero_()
            each.bias.zero_()
        for head, offset in zip(range(config.num_attention_heads), offsets):
            rows = slice(head * size, head * size + place)
            attention.k_proj.weight[rows, :place] = torch.eye(place)
            for axis, steps in enumerate(offset):
                cos, sin = (torch.diag(torch.from_numpy(f(FREQUENCIES * steps)).float()) for f in (np.cos, np.sin))
                mine = slice(head * size + axis * 2 * few, head * size + (axis + 1) * 2 * few)
                turned = torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])
                attention.q_proj.weight[mine, axis * 2 * few : (axis + 1) * 2 * few] = 0.7 * turned
        nn.init.orthogonal_(attention.v_proj.weight[:, place:], 2)
        nn.init.orthogonal_(attention.out_proj.weight[place:], 0.3)
        layer.mlp.fc1.weight[:, place:] *= 2
        layer.mlp.fc2.weight[:place] = 0


@torch.no_grad()
def wire(decoder: nn.Module) -> None:
    """Start attention as "look for what is like me, and take it over" (mimetic initialisation, arXiv 2305.09828).

    Queries and keys share one orthogonal map and so do values and outputs, up to its transpose and a scale that brings
    what is taken over to half the length of a word embedding. Image tokens lie where their words lie, so that the name in
    a question finds the patches that show it from the first step on.
    """
    length = 0.5 * decoder.embed_tokens.weight.norm(dim=-1).mean() / decoder.config.hidden_size**0.5
    for layer in decoder.layers:
        for one, other, scale in (("q_proj", "k_proj", 1.0), ("v_proj", "o_proj", float(length))):
            one, other = getattr(layer.self_attn, one), getattr(layer.self_attn, other)
            turn = nn.init.orthogonal_(torch.empty_like(one.weight))
            one.weight.copy_(turn)
            other.weight.copy_(scale * (turn.T if other is layer.self_attn.o_proj else turn))


# ------------------------------------------------------------------------------------------------ lessons


def ask(scene: scenes.Scene, number: int, turn: int = 0, easy: bool = False) -> list[scenes.Question]:
    """About `number` training questions on a scene, others in each turn; the `easy` ones have one answer in one place."""
    dice = scenes.Dice(f"lesson {scene.seed} {turn}")
    asked: list[scenes.Question | None] = []
    present = dice.several(scene.names, 3)
    for split in scenes.SPLITS:
        asked.append(scenes.ask_existence(scene, dice, scenes.absent(scene, dice, split, 1)[0]))
    asked += [scenes.ask_existence(scene, dice, name) for name in present]
    asked += [scenes.ask_where(scene, dice), scenes.ask_where(scene, dice)]
    asked += [scenes.ask_what_is_there(scene, dice), scenes.ask_what_is_there(scene, dice)]
    asked += [scenes.ask_color(scene, dice), scenes.ask_color(scene, dice)]
    asked += [scenes.ask_word(scene, dice) for _ in scene.signs]
    if easy:
        return dice.several([question for question in asked if question], number)
    asked += [scenes.ask_relation(scene, dice, answer) for answer in scenes.YES_NO]
    # any scene has one of something: asked each time, "one" would be the answer to most such questions
    asked += [scenes.ask_neighbour(scene, dice), *(scenes.ask_count(scene, dice, n) for n in (2, 3, 4))]
    asked += [scenes.ask_count(scene, dice, 1)] if dice.random() < 0.5 else []
    pair = scenes.ask_pair(scene, dice, dice.pick(("count", "color", "position", "text")))
    choice = scenes.ask_choice(scene, dice, dice.pick(("existence", "name", "color", "position", "text")))
    asked += (pair or []) + (dice.several(choice, 2) if choice else [])
    return dice.several([question for question in asked if question], number)


@lru_cache(maxsize=1)
def easy_pictures() -> list[list[easy_vqa.Question]]:
    """Training questions of easy-VQA, those on one picture together."""
    pictures = defaultdict(list)
    for question in easy_vqa.questions("train"):
        pictures[question.picture_key].append(question)
    return list(pictures.values())


KINDS = ("existence", "where", "name", "relation", "neighbour", "color", "count", "word", "statement", "choice", "easy-vqa")


def kind_of(question: scenes.Question | easy_vqa.Question) -> str:
    """Which of `KINDS` a training question is."""
    if isinstance(question, easy_vqa.Question):
        return "easy-vqa"
    if question.choices == scenes.LETTERS:
        return "choice"
    if question.kind in KINDS and (question.choices != scenes.YES_NO or question.kind in ("existence", "relation")):
        return question.kind
    return "statement"


def crowd(seed: int, number_of_signs: int = 9, names: Sequence[str] | None = None) -> scenes.Scene:
    """A scene as full as it gets, all names and words equally often: ten times as much to learn from as a real one.

    Or with these `names` only, in this order.
    """
    dice, noise = scenes.Dice(f"crowd {seed}"), np.random.RandomState(seed)
    taken = np.empty((0, 4), int)

    def place(width: int, height: int) -> tuple[int, int] | None:
        nonlocal taken
        x, y = noise.randint(2, scenes.SIZE - np.array([width, height]) - 1, (150, 2)).T
        left, top, right, bottom = taken.T[..., None]
        free = ((x + width + 4 <= left) | (right + 4 <= x) | (y + height + 4 <= top) | (bottom + 4 <= y)).all(0)
        if not free.any():
            return None
        x, y = int(x[free.argmax()]), int(y[free.argmax()])
        taken = np.vstack([taken, [x, y, x + width, y + height]])
        return x, y

    signs, things = [], []
    for _ in range(number_of_signs):
        color, word, font = dice.pick(list(scenes.COLORS)), dice.pick(scenes.WORDS), dice.pick(scenes.FONTS)
        height = dice.between(24, 30)
        width = scenes._word_width(word, font, height - 8) + 10
        if spot := place(width, height):
            signs.append(scenes.Sign(word, color, font, *spot, width, height))
    for name in names or [dice.pick(scenes.NAMES) for _ in range(50)]:
        size, mirrored = dice.between(28, 48), dice.random() < 0.5
        color = dice.pick(list(scenes.COLORS)) if name in scenes.PAINTED else None
        if spot := place(size, size):
            things.append(scenes.Thing(name, *spot, size, color, mirrored))
    return scenes.Scene(seed, dice.pick(scenes.BACKGROUNDS), tuple(things), tuple(signs))


def crowd_or_scene(seed: int) -> scenes.Scene:
    return scenes.compose(seed) if seed % 2 else crowd(seed)


def signs_or_scene(seed: int) -> scenes.Scene:
    return scenes.compose(seed) if seed % 2 else crowd(seed, number_of_signs=30)


def herds(seed: int) -> scenes.Scene:
    """A scene with one to four of each of four things: a real one has several of one thing at most."""
    dice = scenes.Dice(f"herds {seed}")
    names = [name for name in dice.several(scenes.NAMES, 4) for _ in range(dice.between(1, 4))]
    return crowd(seed, number_of_signs=dice.pick((0, 0, 1, 2)), names=names)


def rich(seed: int) -> scenes.Scene:
    """By turns any scene, one with a sign and several of one thing, and two of herds."""
    if seed % 4 >= 2:
        return herds(seed)
    scene = scenes.compose(seed)
    for other in range(32 if seed % 4 else 0):
        if scene.signs and len(scene.things) > len(scene.names):
            break
        scene = scenes.compose(seed + 2**20 * (other + 1))
    return scene


COMPOSE = {"crowd": crowd, "see": crowd_or_scene, "see-again": signs_or_scene, "talk-again": rich}


def words_of(item: scenes.Thing | scenes.Sign) -> str:
    return item.name if isinstance(item, scenes.Thing) else item.word


class Lessons(torch.utils.data.Dataset):
    """Scenes labelled and, if wanted, drawn and asked about, every eighth a picture of easy-VQA; items have one shape.

    An item holds `scene`, its number; `image` uint8 (H, W, 3) if `drawn`; `names`, `colors`, `middles` and `letters` int64
    (patches,) token ids with -100 where nothing is to be learned; `kept` int64 (shown,), rising: all patches that show
    something and random others; and for the packed questions `tokens`, `labels`, `segment`,
    `position` int64 (T,), `last` and `kind` int64 (Q,), `look` bool (Q, 1 + patches): the row that answers, its index in
    `KINDS` or -1, and where that row should look, the first column being the first token.

    Item `i` is scene `i`. With `number` there are only so many, which come again with other questions; the first `easy`
    items ask easy questions only.
    """

    def __init__(
        self,
        recipe: Recipe,
        first: int = 0,
        compose: Callable[[int], scenes.Scene] = scenes.compose,
        drawn: bool = True,
        number: int = 2**25,
        easy: int = 0,
    ):
        self.recipe, self.first, self.compose, self.drawn, self.number, self.easy = recipe, first, compose, drawn, number, easy
        self.tokenizer = make_tokenizer()
        self.length = recipe.questions * 12
        self.nothing = self.tokenizer.convert_tokens_to_ids("<image>")

    def __len__(self) -> int:
        return 2**25

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        turn, number = divmod(index, self.number)
        if number % 8 == 7:
            image, labels, asked = self.shape(number // 8, turn)
        else:
            scene = self.compose(self.first + number)
            image, labels = scenes.draw(scene) if self.drawn else None, self.label(scene)
            asked = ask(scene, self.recipe.questions, turn, index < self.easy) if self.compose in (scenes.compose, rich) else []
        order = np.random.RandomState(index).rand(scenes.GRID**2) + (labels["names"] == self.nothing)
        labels["kept"] = np.sort(order.argsort()[: self.recipe.shown])
        item = {"scene": torch.tensor(number), **{name: torch.from_numpy(array) for name, array in labels.items()}}
        return item | ({"image": torch.from_numpy(np.array(image))} if self.drawn else {}) | self.pack(asked)

    def label(self, scene: scenes.Scene) -> dict[str, np.ndarray]:
        """What each patch is to say."""
        ids = self.tokenizer.convert_tokens_to_ids
        names, colors = np.full(scenes.GRID**2, self.nothing), np.full(scenes.GRID**2, -100)
        middles, letters = np.full((2, scenes.GRID, scenes.GRID), -100)
        for item in (*scene.things, *scene.signs):
            inside = scene.patches(item).ravel()
            names[inside] = ids(words_of(item))
            if item.color:
                colors[inside] = ids(item.color)
        for thing in scene.things:
            middles[scene.patches(thing)] = ids("zero")
            x, y = (int(value // scenes.PATCH) for value in thing.center)
            middles[y, x] = ids("one")
        for sign in scene.signs:
            right = sign.x + 5
            for letter in sign.word:
                left, right = right, right + scenes._word_width(letter, sign.font, sign.height - 8)
                center = np.arange(scenes.GRID) * scenes.PATCH + scenes.PATCH // 2
                letters[scene.patches(sign) & (left <= center) & (center < right)] = ids(letter)
        return {"names": names, "colors": colors, "middles": middles.ravel(), "letters": letters.ravel()}

    def shape(self, index: int, turn: int) -> tuple[Image.Image, dict[str, np.ndarray], list[easy_vqa.Question]]:
        """A picture of easy-VQA, its labels and questions; the shape is whatever differs from the upper left corner."""
        pictures = easy_pictures()
        asked = pictures[index % len(pictures)]
        picture = asked[0].picture().resize((scenes.SIZE, scenes.SIZE), Image.Resampling.BICUBIC)
        pixels = np.asarray(picture).astype(int)
        differs = np.abs(pixels - pixels[0, 0]).sum(-1) > 60
        inside = differs.reshape(scenes.GRID, scenes.PATCH, scenes.GRID, scenes.PATCH).mean((1, 3)).ravel() >= 0.5
        names, colors, nothing = np.full((3, scenes.GRID**2), -100)
        names[~inside] = self.nothing
        for question in asked:
            for labels, words in ((names, easy_vqa.SHAPES), (colors, easy_vqa.COLORS)):
                if question.answer in words:
                    labels[inside] = self.tokenizer.convert_tokens_to_ids(question.answer)
        asked = scenes.Dice(f"shape {index} {turn}").several(asked, self.recipe.questions)
        return picture, {"names": names, "colors": colors, "middles": nothing, "letters": nothing}, asked

    def pack(self, asked: Sequence[scenes.Question | easy_vqa.Question]) -> dict[str, Tensor]:
        patches = scenes.GRID**2
        tokens = np.full(self.length, self.tokenizer.pad_token_id)
        labels = np.full(self.length, -100)
        segment = np.zeros(self.length, int)  # 0 is padding, the questions count from 1
        position = np.zeros(self.length, int)
        last = np.zeros(self.recipe.questions, int)
        kind = np.full(self.recipe.questions, -1)
        look = np.zeros((self.recipe.questions, 1 + patches), np.int8)
        start = 0
        for number, question in enumerate(asked):
            prompt = self.tokenizer(question.text, add_special_tokens=False)["input_ids"]
            answer = self.tokenizer(question.answer, add_special_tokens=False)["input_ids"]
            line = [*prompt, *answer, self.tokenizer.eos_token_id]
            end = start + len(line)
            if end > self.length:
                break
            tokens[start:end] = line
            labels[start + len(prompt) - 1 : end - 1] = line[len(prompt) :]  # each row's label is the next token
            segment[start:end] = number + 1
            position[start:end] = 1 + patches + np.arange(len(line))
            last[number] = start + len(prompt) - 1
            kind[number] = KINDS.index(kind_of(question))
            if isinstance(question, scenes.Question):
                for place, item in enumerate(question.evidence):
                    look[number, 1:][question.scene.patches(item).ravel()] = 1 + place * (question.kind == "count")
                look[number, 0] = 1 + len(question.evidence) if question.kind == "count" else not question.evidence
            start = end
        arrays = {"tokens": tokens, "labels": labels, "segment": segment, "position": position}
        arrays |= {"last": last, "kind": kind, "look": look}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def packed_masks(segment: Tensor, position: Tensor, prefix: Tensor) -> dict[str, Tensor]:
    """Masks under which each packed question sees the prefix and itself, as if it stood alone.

    Parameters
    ----------
    segment, position : Tensor
        int64 (batch, T): which question a token belongs to (0 is padding), and its position.
    prefix : Tensor
        int64 (batch, P): positions of the first token and the image tokens.

    Returns
    -------
    dict of Tensor
        `full_attention` and `sliding_attention`: bool (batch, 1, P + T, P + T), True is seen.
    """
    where = torch.cat([prefix, position], 1)
    segment = torch.cat([torch.full_like(prefix, -1), segment], 1)  # -1 is what all questions see
    order = torch.arange(where.shape[1], device=where.device)
    ours = (segment[:, :, None] == segment[:, None]) | (segment[:, None] == -1)
    full = ours & (order[:, None] >= order)
    near = where[:, :, None] - where[:, None] < WINDOW
    alone = torch.eye(where.shape[1], dtype=torch.bool, device=where.device)  # a row that sees nothing would give NaN
    return {"full_attention": full[:, None], "sliding_attention": ((full & near) | alone)[:, None]}


# ------------------------------------------------------------------------------------------------ losses


class Labels:
    """Which words a patch may be told to point to: one choice each for name, colour, middle, letter, row, column.

    "center" stands for the middle row and the middle column, so that beside "top" or "left" it has to come second. From
    the middle of one third to that of the next, a patch turns from one word to the other, so that relations can be read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, device: torch.device):
        ids = tokenizer.convert_tokens_to_ids
        third = (torch.arange(scenes.GRID, device=device)[:, None] + 0.5) * 3 / scenes.GRID - 0.5
        near = (1 - (third.clip(0, 2) - torch.arange(3, device=device)).abs()).clip(0)
        choices = {
            "names": ["<image>", *scenes.NAMES, *scenes.WORDS, *easy_vqa.SHAPES],
            "colors": list(dict.fromkeys([*scenes.COLORS, *easy_vqa.COLORS])),
            "middles": ["zero", "one"],
            "letters": [chr(ord("a") + i) for i in range(26)],
            "rows": ["top", "center", "bottom"],
            "columns": ["left", "center", "right"],
        }
        self.choices = {name: torch.tensor(ids(words), device=device) for name, words in choices.items()}
        self.places = {"rows": near.repeat_interleave(scenes.GRID, 0), "columns": near.repeat(scenes.GRID, 1)}

    def compare(
        self, model, features: Tensor, batch: dict[str, Tensor], kept: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """For each choice, cosines (labelled patches, words) of features with the words, and which word is right.

        `features` are of the patches `kept`, int64 (batch, features). What is right is an index for names, colours,
        middles and letters, and a share for each word for rows and columns.
        """
        table = F.normalize(model.get_input_embeddings().weight, dim=-1)
        features, found = F.normalize(features, dim=-1), {}
        for name, words in self.choices.items():
            if name in self.places:
                found[name] = features @ table[words].T, self.places[name][kept]
                continue
            target = batch[name].gather(1, kept)
            known = target >= 0
            if known.any():  # pictures of easy-VQA have no middles
                found[name] = features[known] @ table[words].T, (target[known][:, None] == words).int().argmax(-1)
        return found


def see_loss(model, features: Tensor, batch: dict[str, Tensor], kept: Tensor, labels: Labels) -> Tensor:
    """Cross-entropy of patches against word embeddings by scaled cosine, summed over the choices of `labels`.

    `features` (batch, patches, width) are projected, of the patches `kept`. Objects cover a twentieth of a scene and their middles a tenth of
    that: patches with and without something weigh the same.
    """
    total = features.new_zeros(())
    for name, (cosine, slot) in labels.compare(model, features, batch, kept).items():
        if name in labels.places:
            total = total + F.cross_entropy(16 * cosine.flatten(0, 1), slot.flatten(0, 1))
            continue
        losses = F.cross_entropy(16 * cosine, slot, reduction="none")
        if name in ("names", "middles"):
            total = total + losses[slot == 0].mean() + losses[slot > 0].mean()
        else:
            total = total + losses.mean()
    return total


class Look:
    """Attention of chosen rows to the prefix in one layer, recomputed from its input so that any kernel may run."""

    def __init__(self, layer: nn.Module, heads: int):
        self.attention, self.heads, self.seen = layer.self_attn, heads, threading.local()
        self.hook = self.attention.register_forward_pre_hook(self.keep, with_kwargs=True)

    def keep(self, module, args, kwargs) -> None:
        self.seen.hidden = kwargs.get("hidden_states", args[0] if args else None)
        self.seen.turn = kwargs["position_embeddings"]

    def loss(self, rows: Tensor, look: Tensor) -> Tensor:
        """Mean negative log of the attention that `rows` (batch, Q) pay to where `look` int8 (batch, Q, prefix) is not 0.

        Where it has several numbers, as for a count, each gets its share, and that of the first token tells how many there are.
        """
        prefix, size = look.shape[-1], self.attention.head_dim
        hidden, (cos, sin) = self.seen.hidden, self.seen.turn
        gather = rows[..., None] + prefix

        def turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            states = states.unflatten(-1, (-1, size)).transpose(1, 2)
            first, second = states.chunk(2, -1)
            return states * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

        def chosen(states: Tensor) -> Tensor:
            return states.expand(len(rows), -1, -1).gather(1, gather.expand(-1, -1, states.shape[-1]))

        query = turned(self.attention.q_proj(chosen(hidden)), chosen(cos), chosen(sin))
        key = turned(self.attention.k_proj(hidden[:, :prefix]), cos[:, :prefix], sin[:, :prefix])
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scores = (query[:, : self.heads] @ key[:, : self.heads].transpose(2, 3)).float() * size**-0.5
        scores = scores.log_softmax(-1)
        groups = torch.arange(1, int(look.max()) + 1, dtype=look.dtype, device=look.device)
        inside = look[:, :, None] == groups[:, None]  # (batch, Q, groups, prefix)
        shares = scores[:, :, :, None].masked_fill(~inside[:, None], -torch.inf).logsumexp(-1)
        there = inside.any(-1)
        lost = -shares.masked_fill(~there[:, None], 0).sum(-1) / there.sum(-1)[:, None].clamp(min=1)
        return lost[there.any(-1)[:, None].expand_as(lost)].mean()


def image_features(model, images: Tensor, parts: int = 1) -> Tensor:
    """Projected image tokens (batch, patches, width) of uint8 images (batch, height, width, 3).

    With `parts` above one the tower sees each of parts x parts windows of an image alone, at its place, which costs less.
    """
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    states, side = tower.pre_layrnorm(tower.embeddings(pixels)), scenes.GRID // parts
    first, patches = states[:, :1], states[:, 1:].unflatten(1, (parts, side, parts, side)).transpose(2, 3)
    windows = torch.cat([first.repeat_interleave(parts**2, 0), patches.reshape(len(images) * parts**2, side**2, -1)], 1)
    seen = tower.encoder(inputs_embeds=windows).last_hidden_state[:, 1:]
    seen = seen.reshape(len(images), parts, parts, side, side, -1).transpose(2, 3).flatten(1, 4)
    return model.model.multi_modal_projector(seen)


@contextmanager
def blind_from(decoder: nn.Module, layer: int, patches: int) -> Iterator[None]:
    """Inside the block no text sees the image from `layer` on."""

    def hide(module, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        mask[:, :, 1 + patches :, 1 : 1 + patches] = False
        return args, {**kwargs, "attention_mask": mask}

    hooks = [each.register_forward_pre_hook(hide, with_kwargs=True) for each in decoder.layers[layer:]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def all_patches(features: Tensor) -> Tensor:
    """Indices (batch, patches) of features that come from every patch."""
    return torch.arange(features.shape[1], device=features.device).expand(len(features), -1)


def talk(model, features: Tensor, batch: dict[str, Tensor], kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Answer the packed questions, each told the true tokens before; `features` are of the patches `kept`.

    Returns
    -------
    logits : Tensor
        float32 (answer tokens, vocabulary).
    labels : Tensor
        int64 (answer tokens,).
    owner : Tensor
        int64 (answer tokens,): row of the batch times questions a row, plus number of the question.
    """
    longest = int((batch["segment"] > 0).sum(1).max())
    batch = {name: batch[name][:, :longest] for name in ("tokens", "labels", "segment", "position")} | {"last": batch["last"]}
    table = model.get_input_embeddings()
    first = table.weight[model.config.text_config.bos_token_id].expand(len(features), 1, -1)
    inputs = torch.cat([first, features, table(batch["tokens"])], 1)
    prefix = F.pad(kept + 1, (1, 0))
    hidden = model.model.language_model(
        inputs_embeds=inputs,
        attention_mask=packed_masks(batch["segment"], batch["position"], prefix),
        position_ids=torch.cat([prefix, batch["position"]], 1),
        use_cache=False,
    ).last_hidden_state[:, prefix.shape[1] :]
    taught = batch["labels"] >= 0
    rows = torch.arange(len(features), device=inputs.device)[:, None] * batch["last"].shape[1]
    return model.lm_head(hidden[taught]).float(), batch["labels"][taught], (rows + batch["segment"] - 1)[taught]


def pruned_loss(model, features: Tensor, batch: dict[str, Tensor], keep: int) -> Tensor:
    """Cross-entropy of answers with DART at work: the first question of each scene, as a user asks it."""
    config = model.config
    table_of_ids = torch.full((features.shape[1],), config.image_token_id, device=features.device)
    first = torch.full((len(features), 1), config.text_config.bos_token_id, device=features.device)
    mine = batch["segment"] == 1
    longest = int(mine.sum(1).max())
    tokens = torch.cat([first, table_of_ids.expand(len(features), -1), batch["tokens"][:, :longest]], 1)
    seen = torch.cat([torch.ones_like(tokens[:, : -longest]), mine[:, :longest].long()], 1)
    with dart.prune(model, dart.DART(keep=keep)), given_features(model, features):
        hidden = model.model(
            input_ids=tokens, attention_mask=seen, pixel_values=torch.zeros(1), use_cache=False
        ).last_hidden_state[:, -longest:]
    labels = batch["labels"][:, :longest].masked_fill(~mine[:, :longest], -100)
    return F.cross_entropy(model.lm_head(hidden[labels >= 0]).float(), labels[labels >= 0])


# ------------------------------------------------------------------------------------------------ training

STAGES = ("crowd", "see", "talk", "see-again", "talk-again")
SEEING = ("crowd", "see", "see-again")  # stages that teach the tower; the others teach the decoder
EXAM_SEED, EXAM_SCENES = scenes.TEST_SEED // 2, 48


class Run:
    """One training run in a folder: what it has learned, how far it is, and the curve so far."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device, start: Path | None = None):
        self.recipe, self.device = recipe, device
        self.file, self.cache = folder / "state.safetensors", folder / "features.npy"
        self.processor = make_processor()
        self.model = make_model(recipe, self.processor.tokenizer).to(device)
        self.look = Look(self.model.model.language_model.layers[recipe.look_layer], recipe.look_heads)
        self.labels = Labels(self.processor.tokenizer, device)
        self.stage, self.step, self.curve = "prune" if recipe.prune else STAGES[0], 0, []
        self.pool = ThreadPoolExecutor()
        if recipe.prune:
            self.model.load_state_dict(bundled.load(start)[0].state_dict())
        else:
            structure(self.model.model.vision_tower, next(iter(self.lessons(0, 1)))["image"])
        self.new_optimizer()
        if self.file.exists():
            self.load()

    @property
    def steps(self) -> int:
        return getattr(self.recipe, f"{self.stage.replace('-', '_')}_steps")

    @property
    def shown(self) -> int:
        """Image tokens that the decoder gets: few in most of the language stage, which costs a third."""
        few = self.step < {"talk": 0.95, "talk-again": 0.7}.get(self.stage, 0) * self.steps
        return self.recipe.shown if few else scenes.GRID**2

    @property
    def batch(self) -> int:
        return self.recipe.see_batch if self.stage in SEEING else self.recipe.batch

    @property
    def rate(self) -> float:
        if self.stage == "prune":
            return self.recipe.prune_rate
        return self.recipe.rate if self.stage in ("crowd", "talk") else self.recipe.later_rate

    def new_optimizer(self) -> None:
        self.model.zero_grad()
        for part in (self.model.model.vision_tower, self.model.model.multi_modal_projector):
            part.requires_grad_(self.stage in SEEING)
        self.model.get_input_embeddings().requires_grad_(self.stage != "see-again")  # the decoder knows them by then
        taught = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in taught if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in taught if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.rate, betas=(0.9, 0.95))

    def save(self) -> None:
        """Write everything that going on needs into one file, so that a kill leaves the old state or the new one."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        tensors = {f"weight/{name}": tensor.detach().clone() for tensor, name in names.items()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"{key}/{names[parameter]}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        progress = {"recipe": asdict(self.recipe), "stage": self.stage, "step": self.step, "curve": self.curve}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(".new")
        save_file(tensors, fresh, {"progress": json.dumps(progress)})
        os.replace(fresh, self.file)

    def load(self) -> None:
        with safe_open(self.file, "pt", device=str(self.device)) as file:
            progress = json.loads(file.metadata()["progress"])
            if progress["recipe"] != asdict(self.recipe):
                raise ValueError(f"{self.file} was made by another recipe; give another --run folder or delete it")
            self.stage, self.step, self.curve = progress["stage"], progress["step"], progress["curve"]
            self.new_optimizer()
            stored = set(file.keys())
            for name, parameter in self.model.named_parameters():
                parameter.data.copy_(file.get_tensor(f"weight/{name}"))
                if f"exp_avg/{name}" in stored:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(self.step)),
                        **{key: file.get_tensor(f"{key}/{name}") for key in ("exp_avg", "exp_avg_sq")},
                    }

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.stage in SEEING:
            features = image_features(self.model, batch["image"], parts=2 if self.stage == "crowd" else 1)
            see = see_loss(self.model, features, batch, all_patches(features), self.labels)
            return {"loss": see, "see": see}
        features = torch.from_numpy(self.features[batch["scene"].cpu().numpy()]).to(self.device).float()
        kept = all_patches(features)
        if self.stage == "prune":
            see = see_loss(self.model, features, batch, kept, self.labels)
            answer = pruned_loss(self.model, features, batch, self.recipe.prune)
            return {"loss": answer + 0.1 * see, "see": see, "answer": answer}
        look = batch["look"]
        if self.shown < kept.shape[1]:
            kept = batch["kept"]
            features = features.gather(1, kept[..., None].expand(-1, -1, features.shape[-1]))
            look = look.gather(2, F.pad(kept + 1, (1, 0))[:, None].expand(-1, look.shape[1], -1))
        see = see_loss(self.model, features, batch, kept, self.labels)
        logits, labels, owner = talk(self.model, features, batch, kept)
        counts = batch["kind"] == KINDS.index("count")
        weight = 1 + (self.recipe.count_weight - 1) * (counts.flatten()[owner] & (self.stage == "talk-again"))
        answer = (weight * F.cross_entropy(logits, labels, reduction="none")).sum() / weight.sum()
        look = self.look.loss(batch["last"], look)
        right = (logits.argmax(-1) == labels).float().mean()
        return {"loss": answer + 0.1 * see + 0.3 * look, "see": see, "answer": answer, "look": look, "right": right}

    def learn(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put the gradients of a batch into the parameters: mean losses over shares of it, one for each core of a CPU.

        Cores that share every product wait for each other at each of them, which costs half the time once anything else
        runs on the machine; with a share each they meet once a step.
        """

        def share(part: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                losses = self.loss(part)
            return losses, torch.autograd.grad(losses["loss"], taught, allow_unused=True)

        taught = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        late = 3 * self.recipe.layers // 4 if self.stage.startswith("talk") and self.step % 2 else self.recipe.layers
        with blind_from(self.model.model.language_model, late, self.shown):
            losses, gradients = zip(*self.pool.map(share, self.shares(batch)))
        for parameter, *each in zip(taught, *gradients):
            known = [gradient for gradient in each if gradient is not None]
            parameter.grad = sum(known) / self.cores if known else None
        return {name: sum(each[name].detach() for each in losses) / self.cores for name in losses[0]}

    @property
    def cores(self) -> int:
        """Into how many shares a batch is split; a model can only be pruned once at a time."""
        return 1 if self.device.type == "cuda" or self.stage == "prune" else min(2, os.cpu_count() or 1)

    def shares(self, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        return [{name: tensor[i :: self.cores] for name, tensor in batch.items()} for i in range(self.cores)]

    def load_features(self) -> None:
        """Let the tower look at the scenes of the language stage once, since it stays as it is from there on."""

        @torch.no_grad()
        def look(part: dict[str, Tensor]) -> None:
            array[part["scene"].numpy()] = image_features(self.model, part["image"].to(self.device)).cpu().numpy()

        if not self.cache.exists():
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            fresh, shape = self.cache.with_suffix(".new"), (self.recipe.scenes, scenes.GRID**2, self.recipe.width)
            array = np.lib.format.open_memmap(fresh, "w+", np.float16, shape)
            lessons = self.lessons(0, self.recipe.scenes // self.batch, drawn=True)
            for batch in tqdm(lessons, desc="image tokens", dynamic_ncols=True):
                list(self.pool.map(look, self.shares(batch)))
            array.flush()
            os.replace(fresh, self.cache)
        self.features = np.load(self.cache, mmap_mode="r")

    @torch.no_grad()
    def exam(self) -> dict[str, float]:
        """Shares that are right on some scenes that are never trained on: patches by choice, questions by kind.

        Of names and middles, patches that have none are left out; questions are told the tokens before.
        """
        hits = defaultdict(list)
        for batch in self.lessons(0, EXAM_SCENES // self.batch, first=EXAM_SEED):
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                features = image_features(self.model, batch["image"])
                kept = all_patches(features)
                for name, (cosine, slot) in self.labels.compare(self.model, features, batch, kept).items():
                    right = cosine.argmax(-1) == (slot.argmax(-1) if name in self.labels.places else slot)
                    if name == "names":
                        start = 0
                        for part, many in (("nothing", 1), ("names", len(scenes.NAMES)), ("words", len(scenes.WORDS)), ("shapes", 3)):
                            hits["patch " + part] += right[(start <= slot) & (slot < start + many)].tolist()
                            start += many
                    else:
                        hits["patch " + name] += (right[slot > 0] if name == "middles" else right.flatten()).tolist()
                if self.stage in ("crowd", "see"):
                    continue
                logits, labels, owner = talk(self.model, features, batch, kept)
            wrong = torch.zeros(batch["kind"].numel(), device=self.device)
            wrong.index_add_(0, owner, (logits.argmax(-1) != labels).float())
            for kind, miss in zip(batch["kind"].flatten().tolist(), wrong.tolist()):
                if kind >= 0:
                    hits[KINDS[kind]].append(miss == 0)
        return {kind: round(float(np.mean(right)), 4) for kind, right in hits.items() if right}

    def end_stage(self) -> None:
        if self.stage in ("see", "see-again"):
            self.cache.unlink(missing_ok=True)
            rescale_projector(self.model, next(iter(self.lessons(self.steps, 1)))["image"].to(self.device))
        if self.stage == "see":
            torch.manual_seed(self.recipe.seed)
            wire(self.model.model.language_model)
        self.stage, self.step = STAGES[STAGES.index(self.stage) + 1], 0
        self.new_optimizer()

    @property
    def finished(self) -> bool:
        return self.stage in ("prune", STAGES[-1]) and self.step >= self.steps

    def lessons(self, start: int, steps: int, first: int | None = None, drawn: bool = False) -> torch.utils.data.DataLoader:
        """Batches for `steps` steps from step `start` of the present stage on, or drawn scenes from seed `first` on."""
        seeing, training, batch = self.stage in SEEING, first is None, self.batch
        stage = STAGES[-1] if self.stage == "prune" else self.stage
        lessons = Lessons(
            self.recipe,
            first=STAGES.index(stage) * 2**26 if training else first,  # scenes are not shared
            compose=COMPOSE.get(stage, scenes.compose) if training else scenes.compose,
            drawn=drawn or seeing or not training,
            number=2**25 if seeing or not training else self.recipe.scenes,
            easy=self.steps // 4 * batch if training and stage == "talk" else 0,
        )
        workers = (os.cpu_count() or 1) if self.device.type == "cuda" else 1
        return torch.utils.data.DataLoader(
            lessons,
            batch_size=batch,
            sampler=range(start * batch, (start + steps) * batch),
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if workers else None,
        )

    def train(self, seconds: float = math.inf, save_every: float = 60.0) -> None:
        """Go on until the recipe is finished or `seconds` are over."""
        end, saved = time.monotonic() + seconds, time.monotonic()
        while not self.finished and time.monotonic() < end:
            if self.stage not in SEEING:
                self.load_features()
            bar = tqdm(total=self.steps, initial=self.step, desc=self.stage, dynamic_ncols=True)
            for batch in self.lessons(self.step, self.steps - self.step):
                batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
                warm = (self.step + 1) / max(1, min(300, self.steps // 10))
                cool = (1 - self.step / self.steps) / 0.4
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rate * min(1, warm, cool)
                losses = self.learn(batch)
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.step += 1
                bar.update()
                if self.step % 50 == 0 or self.step == self.steps:
                    point = {name: round(loss.item(), 4) for name, loss in losses.items()}
                    self.curve.append({"stage": self.stage, "step": self.step, **point})
                    bar.set_postfix(point)
                if self.step % self.recipe.exam_every == 0 or self.step == self.steps:
                    self.curve.append({"stage": self.stage, "step": self.step, "exam": self.exam()})
                    bar.write(f"step {self.step}: " + "  ".join(f"{k} {v:.2f}" for k, v in self.curve[-1]["exam"].items()))
                if time.monotonic() > saved + save_every:
                    self.save()
                    saved = time.monotonic()
                if time.monotonic() > end:
                    break
            bar.close()
            if self.step >= self.steps and not self.finished:
                self.end_stage()
            self.save()

    def export(self, folder: Path) -> None:
        """Weights in bfloat16, config, tokenizer and processor, for `from_pretrained`, and checksums."""
        self.model.to(torch.bfloat16).save_pretrained(folder)
        self.processor.save_pretrained(folder)
        files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
        sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
        (folder / "SHA256SUMS").write_text("".join(sums))


@torch.no_grad()
def rescale_projector(model, images: Tensor) -> None:
    """Give image tokens the mean length of word embeddings; the cosine loss leaves it free, and it grows."""
    length = image_features(model, images).norm(dim=-1).mean()
    wanted = model.get_input_embeddings().weight.norm(dim=-1).mean()
    last = model.model.multi_modal_projector.linear_2
    last.weight.mul_(wanted / length)
    last.bias.mul_(wanted / length)


def main() -> None:
    model, results = dart.data_root() / "model", dart.data_root() / "results"
    parser = argparse.ArgumentParser(description="Train the bundled model, or a finished one further; the same command resumes.")
    parser.add_argument("--out", type=Path, help="folder for the model that comes out; data/model by default, with --prune it has to be given")
    parser.add_argument("--run", type=Path, default=Path("build/bundled"), help="folder of the state to resume from")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this long; the next call goes on")
    parser.add_argument("--curves", type=Path, help="file for the curves; by default training.json in data/results, or named after --out")
    parser.add_argument("--prune", type=int, default=0, metavar="KEEP",
                        help="train a finished model further with DART at work on this budget; all 576 is the same without pruning")
    parser.add_argument("--start", type=Path, default=model, help="the finished model that --prune starts from")
    given = parser.parse_args()
    if given.prune and given.out is None:
        parser.error("--prune leaves data/model as it is: give --out, a folder for the model that comes out")
    out = given.out or model
    curves = given.curves or results / (f"training-{out.name}.json" if given.prune else "training.json")
    recipe = Recipe(prune=given.prune)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # see Run.learn
    run = Run(recipe, given.run, device, given.start)
    run.train(60 * given.minutes)
    if not run.finished:
        print(f"stopped at step {run.step} of {run.steps} of stage {run.stage}; the same command goes on from there")
        return
    run.export(out)
    curves.parent.mkdir(parents=True, exist_ok=True)
    curves.write_text(json.dumps({"recipe": asdict(recipe), "curve": run.curve}, indent=1) + "\n")
    print(f"model in {out}, curves in {curves}")


if __name__ == "__main__":
    main()
