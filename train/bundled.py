"""Train the bundled model: a small stock LLaVA that answers questions about scenes and reads its image late.

    python train/bundled.py --out data/model            # a CUDA machine if there is one, else the CPU
    python train/bundled.py --out data/model --minutes 9   # a piece; the same command goes on where it stopped

Two stages, each resumed from its last checkpoint after a kill; scene `i` of the run is seed `i`, so a resumed run sees
what an uninterrupted one sees.

1. *see*: tower, projector and word embeddings learn one thing: a patch's projected vector points, by cosine, to the
   embeddings of the words for it: what lies there (an object's name, a sign's word, or nothing), its colour, its place
   (top, left, ...), and "one" at the middle of an object, "zero" around it, so that objects can be counted. Labels are
   free, since scenes are composited. Afterwards the projector is rescaled to the length of word embeddings.
2. *talk*: everything learns to answer. Many questions about one scene share one sequence; each sees the image and itself
   only and has the positions it has alone. Beside the answers, stage 1's loss goes on, and a few heads of one layer
   are shown where to look: the last token of a question attends to the patches of what is asked for, or to the first
   token where there is nothing to see.

The first two decoder layers are local: their window is shorter than any question, so no answer can come from the image
before layer 2. In every second step of *talk* the last quarter of the layers does without the image, so that reading is
over by then. That gives the model LLaVA's depth profile, which a decoder trained from scratch does not have by itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
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
from dart import easy_vqa, scenes
from dart.evaluation import given_features

LOCAL_LAYERS, WINDOW = 2, 4  # "is there a dog?" has five tokens
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


@dataclass(frozen=True)
class Recipe:
    """Sizes and lengths; the defaults are for a CUDA machine."""

    width: int = 256
    layers: int = 8
    heads: int = 8
    ffn: int = 704
    rope_theta: float = 1e6  # slow rotations, so that alike states match over the whole image
    vision_width: int = 192
    vision_layers: int = 6
    see_steps: int = 4000
    talk_steps: int = 12000
    batch: int = 64
    questions: int = 20
    rate: float = 1e-3
    seed: int = 0
    look_layer: int = LOCAL_LAYERS + 1
    look_heads: int = 4
    prune: int = 0  # image tokens that DART keeps in a last stage; 0 is no such stage (the dagger rows of the paper)
    prune_steps: int = 2000
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
        num_attention_heads=max(1, recipe.vision_width // 64),
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
    return model


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


def ask(scene: scenes.Scene, number: int) -> list[scenes.Question]:
    """About `number` training questions on a scene, of every kind that the tasks ask."""
    dice = scenes.Dice(f"lesson {scene.seed}")
    asked: list[scenes.Question | None] = []
    present = dice.several(scene.names, 3)
    for split in scenes.SPLITS:
        asked.append(scenes.ask_existence(scene, dice, scenes.absent(scene, dice, split, 1)[0]))
    asked += [scenes.ask_existence(scene, dice, name) for name in present]
    asked += [scenes.ask_where(scene, dice), scenes.ask_where(scene, dice)]
    asked += [scenes.ask_what_is_there(scene, dice), scenes.ask_what_is_there(scene, dice)]
    asked += [scenes.ask_relation(scene, dice, answer) for answer in scenes.YES_NO]
    asked += [scenes.ask_neighbour(scene, dice), scenes.ask_color(scene, dice), scenes.ask_color(scene, dice)]
    asked += [scenes.ask_count(scene, dice, n) for n in (1, 2, 3, 4)]
    asked += [scenes.ask_word(scene, dice) for _ in scene.signs]
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


def words_of(item: scenes.Thing | scenes.Sign) -> str:
    return item.name if isinstance(item, scenes.Thing) else item.word


class Lessons(torch.utils.data.Dataset):
    """Scene `i` drawn, labelled and asked about, every eighth a picture of easy-VQA instead; all items have one shape.

    Each item holds `image` uint8 (H, W, 3), `names`, `colors` and `middles` int64 (patches,) token ids with -100 where
    nothing is to be learned, and for the packed questions `tokens`, `labels`, `segment`, `position` int64 (T,), `last` and `kind`
    int64 (Q,), `look` bool (Q, 1 + patches): the row that answers, its index in `KINDS` or -1, and where that row should
    look, the first column being the first token.
    """

    def __init__(self, recipe: Recipe, first: int = 0):
        self.recipe, self.first, self.tokenizer = recipe, first, make_tokenizer()
        self.length = recipe.questions * 12
        self.nothing = self.tokenizer.convert_tokens_to_ids("<image>")

    def __len__(self) -> int:
        return scenes.TEST_SEED // 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index % 8 == 7:
            return self.easy(index // 8)
        scene = scenes.compose(self.first + index)
        names = np.full(scenes.GRID**2, self.nothing)
        colors = np.full(scenes.GRID**2, -100)
        middles = np.full((scenes.GRID, scenes.GRID), -100)
        for item in (*scene.things, *scene.signs):
            inside = scene.patches(item).ravel()
            names[inside] = self.tokenizer.convert_tokens_to_ids(words_of(item))
            if item.color:
                colors[inside] = self.tokenizer.convert_tokens_to_ids(item.color)
        for thing in scene.things:
            middles[scene.patches(thing)] = self.tokenizer.convert_tokens_to_ids("zero")
            x, y = (int(value // scenes.PATCH) for value in thing.center)
            middles[y, x] = self.tokenizer.convert_tokens_to_ids("one")
        return {
            "image": torch.from_numpy(np.array(scenes.draw(scene))),
            "names": torch.from_numpy(names),
            "colors": torch.from_numpy(colors),
            "middles": torch.from_numpy(middles.ravel()),
            **self.pack(ask(scene, self.recipe.questions)),
        }

    def easy(self, index: int) -> dict[str, Tensor]:
        """A picture of easy-VQA with its questions, and no word on what lies where."""
        pictures = easy_pictures()
        asked = pictures[index % len(pictures)]
        picture = asked[0].picture().resize((scenes.SIZE, scenes.SIZE), Image.Resampling.BICUBIC)
        unknown = torch.full((scenes.GRID**2,), -100)
        packed = self.pack(asked[: self.recipe.questions])
        labels = dict.fromkeys(("names", "colors", "middles"), unknown)
        return {"image": torch.from_numpy(np.array(picture)), **labels, **packed}

    def pack(self, asked: Sequence[scenes.Question | easy_vqa.Question]) -> dict[str, Tensor]:
        patches = scenes.GRID**2
        tokens = np.full(self.length, self.tokenizer.pad_token_id)
        labels = np.full(self.length, -100)
        segment = np.zeros(self.length, int)  # 0 is padding, the questions count from 1
        position = np.zeros(self.length, int)
        last = np.zeros(self.recipe.questions, int)
        kind = np.full(self.recipe.questions, -1)
        look = np.zeros((self.recipe.questions, 1 + patches), bool)
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
                for item in question.evidence:
                    look[number, 1:] |= question.scene.patches(item).ravel()
                look[number, 0] = not question.evidence
            start = end
        arrays = {"tokens": tokens, "labels": labels, "segment": segment, "position": position}
        arrays |= {"last": last, "kind": kind, "look": look}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def packed_masks(segment: Tensor, position: Tensor, patches: int) -> dict[str, Tensor]:
    """Masks under which each packed question sees the first token, the image and itself, as if it stood alone.

    Parameters
    ----------
    segment, position : Tensor
        int64 (batch, T): which question a token belongs to (0 is padding), and its position.
    patches : int
        Number of image tokens.

    Returns
    -------
    dict of Tensor
        `full_attention` and `sliding_attention`: bool (batch, 1, 1 + patches + T, 1 + patches + T), True is seen.
    """
    batch, device = len(segment), segment.device
    prefix = torch.arange(1 + patches, device=device).expand(batch, -1)
    where = torch.cat([prefix, position], 1)
    segment = torch.cat([torch.full_like(prefix, -1), segment], 1)  # -1 is what all questions see
    order = torch.arange(where.shape[1], device=device)
    ours = (segment[:, :, None] == segment[:, None]) | (segment[:, None] == -1)
    full = ours & (order[:, None] >= order)
    near = where[:, :, None] - where[:, None] < WINDOW
    alone = torch.eye(where.shape[1], dtype=torch.bool, device=device)  # a row that sees nothing would give NaN
    return {"full_attention": full[:, None], "sliding_attention": ((full & near) | alone)[:, None]}


# ------------------------------------------------------------------------------------------------ losses


class Labels:
    """Which words a patch may be told to point to: one choice each for name, colour, middle, row and column.

    "center" stands for the middle row and the middle column, so that beside "top" or "left" it has to come second.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, device: torch.device):
        ids = tokenizer.convert_tokens_to_ids
        third = np.arange(scenes.GRID) * 3 // scenes.GRID
        rows, columns = np.meshgrid(third, third, indexing="ij")
        choices = {
            "names": ["<image>", *scenes.NAMES, *scenes.WORDS],
            "colors": list(scenes.COLORS),
            "middles": ["zero", "one"],
            "rows": ["top", "center", "bottom"],
            "columns": ["left", "center", "right"],
        }
        self.choices = {name: torch.tensor(ids(words), device=device) for name, words in choices.items()}
        places = {"rows": rows, "columns": columns}
        self.places = {name: self.choices[name][torch.from_numpy(each.ravel()).to(device)] for name, each in places.items()}

    def compare(self, model, features: Tensor, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """For each choice, cosines (labelled patches, words) of features with the words, and which word is right."""
        table = F.normalize(model.get_input_embeddings().weight, dim=-1)
        features, found = F.normalize(features, dim=-1), {}
        for name, words in self.choices.items():
            target = batch[name] if name in batch else self.places[name].expand(len(features), -1)
            known = target >= 0
            if known.any():  # pictures of easy-VQA have places only
                found[name] = features[known] @ table[words].T, (target[known][:, None] == words).int().argmax(-1)
        return found


def see_loss(model, features: Tensor, batch: dict[str, Tensor], labels: Labels) -> Tensor:
    """Cross-entropy of patches against word embeddings by scaled cosine, summed over the choices of `labels`.

    `features` (batch, patches, width) are projected. Objects cover a twentieth of a scene and their middles a tenth of
    that: patches with and without something weigh the same.
    """
    total = features.new_zeros(())
    for name, (cosine, slot) in labels.compare(model, features, batch).items():
        losses = F.cross_entropy(16 * cosine, slot, reduction="none")
        if name in ("names", "middles"):
            total = total + losses[slot == 0].mean() + losses[slot > 0].mean()
        else:
            total = total + losses.mean()
    return total


class Look:
    """Attention of chosen rows to the prefix in one layer, recomputed from its input so that any kernel may run."""

    def __init__(self, layer: nn.Module, heads: int):
        self.attention, self.heads = layer.self_attn, heads
        self.hook = self.attention.register_forward_pre_hook(self.keep, with_kwargs=True)

    def keep(self, module, args, kwargs) -> None:
        self.hidden = kwargs.get("hidden_states", args[0] if args else None)
        self.cos, self.sin = kwargs["position_embeddings"]

    def loss(self, rows: Tensor, look: Tensor) -> Tensor:
        """Mean negative log of the attention that `rows` (batch, Q) pay to where `look` (batch, Q, prefix) is True."""
        prefix, size = look.shape[-1], self.attention.head_dim
        gather = rows[..., None] + prefix

        def turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            states = states.unflatten(-1, (-1, size)).transpose(1, 2)
            first, second = states.chunk(2, -1)
            return states * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

        def chosen(states: Tensor) -> Tensor:
            return states.expand(len(rows), -1, -1).gather(1, gather.expand(-1, -1, states.shape[-1]))

        query = turned(self.attention.q_proj(chosen(self.hidden)), chosen(self.cos), chosen(self.sin))
        key = turned(self.attention.k_proj(self.hidden[:, :prefix]), self.cos[:, :prefix], self.sin[:, :prefix])
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scores = (query[:, : self.heads] @ key[:, : self.heads].transpose(2, 3)).float() * size**-0.5
        share = scores.log_softmax(-1).masked_fill(~look[:, None], -torch.inf).logsumexp(-1)
        asked = look.any(-1)[:, None].expand_as(share)
        return -share[asked].mean()


def image_features(model, images: Tensor) -> Tensor:
    """Projected image tokens (batch, patches, width) of uint8 images (batch, height, width, 3)."""
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    tower = model.model.vision_tower(pixels).last_hidden_state[:, 1:]
    return model.model.multi_modal_projector(tower)


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


def talk(model, features: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Answer the packed questions, each told the true tokens before.

    Returns
    -------
    logits : Tensor
        float32 (answer tokens, vocabulary).
    labels : Tensor
        int64 (answer tokens,).
    owner : Tensor
        int64 (answer tokens,): row of the batch times questions a row, plus number of the question.
    """
    table = model.get_input_embeddings()
    first = table.weight[model.config.text_config.bos_token_id].expand(len(features), 1, -1)
    inputs = torch.cat([first, features, table(batch["tokens"])], 1)
    prefix = torch.arange(1 + features.shape[1], device=inputs.device).expand(len(features), -1)
    hidden = model.model.language_model(
        inputs_embeds=inputs,
        attention_mask=packed_masks(batch["segment"], batch["position"], features.shape[1]),
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
            input_ids=tokens, attention_mask=seen, pixel_values=batch["image"], use_cache=False
        ).last_hidden_state[:, -longest:]
    labels = batch["labels"][:, :longest].masked_fill(~mine[:, :longest], -100)
    return F.cross_entropy(model.lm_head(hidden[labels >= 0]).float(), labels[labels >= 0])


# ------------------------------------------------------------------------------------------------ training

STAGES = ("see", "talk", "prune")
EXAM_SEED = scenes.TEST_SEED // 2


class Run:
    """One training run in a folder: what it has learned, how far it is, and the curve so far."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device):
        self.recipe, self.device = recipe, device
        self.file = folder / "state.safetensors"
        self.processor = make_processor()
        self.model = make_model(recipe, self.processor.tokenizer).to(device)
        self.look = Look(self.model.model.language_model.layers[recipe.look_layer], recipe.look_heads)
        self.labels = Labels(self.processor.tokenizer, device)
        self.stage, self.step, self.curve = STAGES[0], 0, []
        self.new_optimizer()
        if self.file.exists():
            self.load()

    @property
    def steps(self) -> int:
        return {"see": self.recipe.see_steps, "talk": self.recipe.talk_steps, "prune": self.recipe.prune_steps}[self.stage]

    def new_optimizer(self) -> None:
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.recipe.rate, betas=(0.9, 0.95))

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
            stored = set(file.keys())
            for name, parameter in self.model.named_parameters():
                parameter.data.copy_(file.get_tensor(f"weight/{name}"))
                if f"exp_avg/{name}" in stored:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(self.step)),
                        **{key: file.get_tensor(f"{key}/{name}") for key in ("exp_avg", "exp_avg_sq")},
                    }

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = image_features(self.model, batch["image"])
        see = see_loss(self.model, features, batch, self.labels)
        if self.stage == "see":
            return {"loss": see, "see": see}
        if self.stage == "prune":
            answer = pruned_loss(self.model, features, batch, self.recipe.prune)
            return {"loss": answer + 0.1 * see, "see": see, "answer": answer}
        late = 3 * self.recipe.layers // 4 if self.step % 2 else self.recipe.layers
        with blind_from(self.model.model.language_model, late, features.shape[1]):
            logits, labels, _ = talk(self.model, features, batch)
        answer, look = F.cross_entropy(logits, labels), self.look.loss(batch["last"], batch["look"])
        right = (logits.argmax(-1) == labels).float().mean()
        return {"loss": answer + 0.1 * see + 0.3 * look, "see": see, "answer": answer, "look": look, "right": right}

    @torch.no_grad()
    def exam(self, batches: int = 4) -> dict[str, float]:
        """Shares that are right on scenes that are never trained on: patches by choice, questions by kind.

        Of names and middles, patches that have none are left out; questions are told the tokens before.
        """
        hits = defaultdict(list)
        for batch in self.lessons(0, batches, first=EXAM_SEED):
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                features = image_features(self.model, batch["image"])
                for name, (cosine, slot) in self.labels.compare(self.model, features, batch).items():
                    some = slot > 0 if name in ("names", "middles") else slot >= 0
                    hits["patch " + name] += (cosine.argmax(-1) == slot)[some].tolist()
                if self.stage == "see":
                    continue
                logits, labels, owner = talk(self.model, features, batch)
            wrong = torch.zeros(batch["kind"].numel(), device=self.device)
            wrong.index_add_(0, owner, (logits.argmax(-1) != labels).float())
            for kind, miss in zip(batch["kind"].flatten().tolist(), wrong.tolist()):
                if kind >= 0:
                    hits[KINDS[kind]].append(miss == 0)
        return {kind: round(float(np.mean(right)), 4) for kind, right in hits.items()}

    def end_stage(self) -> None:
        if self.stage == "see":
            rescale_projector(self.model, next(iter(self.lessons(self.steps, 1)))["image"].to(self.device))
            torch.manual_seed(self.recipe.seed)
            wire(self.model.model.language_model)
        following = STAGES[STAGES.index(self.stage) + 1 :]
        if following:
            self.stage, self.step = following[0], 0
            self.new_optimizer()

    @property
    def finished(self) -> bool:
        return self.stage == ("prune" if self.recipe.prune else "talk") and self.step >= self.steps

    def lessons(self, start: int, steps: int, first: int | None = None) -> torch.utils.data.DataLoader:
        """Batches for `steps` steps from step `start` of the present stage on, or on scenes from seed `first` on."""
        first = STAGES.index(self.stage) * 2**26 if first is None else first  # each stage has scenes of its own
        workers = (os.cpu_count() or 1) if self.device.type == "cuda" else 0
        return torch.utils.data.DataLoader(
            Lessons(self.recipe, first),
            batch_size=self.recipe.batch,
            sampler=range(start * self.recipe.batch, (start + steps) * self.recipe.batch),
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if workers else None,
        )

    def train(self, seconds: float = math.inf, save_every: float = 60.0) -> None:
        """Go on until the recipe is finished or `seconds` are over."""
        end, saved = time.monotonic() + seconds, time.monotonic()
        while not self.finished and time.monotonic() < end:
            bar = tqdm(total=self.steps, initial=self.step, desc=self.stage, dynamic_ncols=True)
            for batch in self.lessons(self.step, self.steps - self.step):
                batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
                warm = min(1.0, (self.step + 1) / max(1, min(300, self.steps // 10)))
                for group in self.optimizer.param_groups:
                    decay = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
                    group["lr"] = self.recipe.rate * warm * decay
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                    losses = self.loss(batch)
                self.optimizer.zero_grad(set_to_none=True)
                losses["loss"].backward()
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
        """Weights in bfloat16, config, tokenizer and processor, for `from_pretrained`."""
        self.model.to(torch.bfloat16).save_pretrained(folder)
        self.processor.save_pretrained(folder)


@torch.no_grad()
def rescale_projector(model, images: Tensor) -> None:
    """Give image tokens the mean length of word embeddings; the cosine loss leaves it free, and it grows."""
    length = image_features(model, images).norm(dim=-1).mean()
    wanted = model.get_input_embeddings().weight.norm(dim=-1).mean()
    last = model.model.multi_modal_projector.linear_2
    last.weight.mul_(wanted / length)
    last.bias.mul_(wanted / length)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled model; the same command resumes.")
    parser.add_argument("--out", type=Path, default=dart.data_root() / "model", help="folder for the finished model")
    parser.add_argument("--run", type=Path, default=Path("build/bundled"), help="folder of the state to resume from")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this long; the next call goes on")
    parser.add_argument("--curves", type=Path, default=dart.data_root() / "results" / "training.json")
    parser.add_argument("--steps", type=int, nargs=2, metavar=("SEE", "TALK"), help="other lengths of the two stages")
    parser.add_argument("--batch", type=int, default=Recipe.batch, help="scenes a step")
    parser.add_argument("--prune", type=int, default=0, metavar="KEEP", help="end with DART at work on this budget")
    given = parser.parse_args()
    see, talk = given.steps or (Recipe.see_steps, Recipe.talk_steps)
    recipe = Recipe(see_steps=see, talk_steps=talk, batch=given.batch, prune=given.prune)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(recipe, given.run, device)
    run.train(60 * given.minutes)
    if not run.finished:
        print(f"stopped at step {run.step} of {run.steps} of stage {run.stage}; the same command goes on from there")
        return
    run.export(given.out)
    given.curves.parent.mkdir(parents=True, exist_ok=True)
    given.curves.write_text(json.dumps({"recipe": asdict(recipe), "curve": run.curve}, indent=1) + "\n")
    print(f"model in {given.out}, curves in {given.curves}")


if __name__ == "__main__":
    main()
