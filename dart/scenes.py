"""The bundled benchmark: draw scenes from a seed, ask about them, score the answers.

A scene is 336 x 336 pixels, the 24 x 24 grid of 14-pixel patches that LLaVA-1.5 sees. Small pictures of 80 named
objects, some in one of eight colours, and signs with a word stand on a plain, textured or photographic ground.
Everything about a scene follows from an integer seed; seeds from `TEST_SEED` on are never trained on.

Six tasks follow the *protocols* of public benchmarks on these scenes; they are not those benchmarks:

==========  =========================================================================  ========================
task        questions                                                                  protocol
==========  =========================================================================  ========================
existence   is there a dog? (random, popular and adversarial negatives)                POPE, arXiv 2305.10355
relations   where, what is there, left of or above, what is beside it (two hops)      GQA, arXiv 1902.09506
attributes  what color, how many                                                       VQA, arXiv 1505.00468
reading     what word is on the red sign?                                              TextVQA, arXiv 1904.08920
pairs       a yes and a no question on one scene: five subjects                        MME, arXiv 2306.13394
choice      four options in four rotations                                             MMBench, arXiv 2307.06281
==========  =========================================================================  ========================

`<task>-unseen` asks the same questions about the same scenes in drawings that training never shows.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import count

import numpy as np
from PIL import Image, ImageDraw

from dart import data_root

SIZE, PATCH = 336, 14  # pixels
GRID = SIZE // PATCH
TEST_SEED = 10**9

THEMES = {
    "animals": "dog cat rabbit bear panda tiger lion cow pig frog monkey penguin "
    "duck owl horse elephant camel turtle snake snail bee spider crab whale",
    "food": "apple banana lemon pear melon pineapple tomato carrot mushroom egg pizza burger cookie cake pretzel cup",
    "travel": "car bus truck tractor bike train plane rocket boat house tent tree cactus balloon kite anchor",
    "things": "star moon flower clock key lock hammer bell book phone camera umbrella "
    "guitar drum crown hat shoe shirt gift heart chair bucket ring teapot",
}
THEMES = {theme: names.split() for theme, names in THEMES.items()}
NAMES = [name for names in THEMES.values() for name in names]
PAINTED = frozenset(
    "car bus boat balloon star key lock bell book phone umbrella crown hat shoe shirt gift heart chair bucket teapot".split()
)
COLORS = {
    "red": (214, 38, 40),
    "orange": (245, 136, 16),
    "yellow": (247, 216, 44),
    "green": (44, 150, 66),
    "blue": (36, 92, 214),
    "purple": (128, 56, 176),
    "pink": (246, 140, 190),
    "black": (44, 44, 48),
}
WORDS = (
    "open exit stop sale cafe bank park hotel taxi food milk salt rice wine news post mail shop toys gym "
    "zoo bar inn spa pub farm lake hill wood gold iron east west north south rain snow wind fire ice "
    "wash free sold rent help push pull wait slow fast keep turn walk road gate door room wall lamp desk "
    "jazz rock band film show game quiz club team golf swim dive ride race jump surf ski fly dock "
    "soup cream honey sugar toast pasta curry olive lunch dinner menu juice water cola mint lime plum fig nut tea pie"
).split()
REGIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
NUMBERS = ("one", "two", "three", "four")
BACKGROUNDS = ("plain", "texture", "photo")
PHOTOS = ("brick", "grass", "gravel", "stars")
DRAWINGS = ("noto", "fluent")
SPLITS = ("random", "popular", "adversarial")
FONTS = ("sans", "serif", "mono")


def plural(name: str) -> str:
    """`dog` -> `dogs`, `bus` -> `buses`."""
    return name + ("es" if name.endswith(("s", "to")) else "s")


def a(name: str) -> str:
    """`dog` -> `a dog`, `owl` -> `an owl`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


# ------------------------------------------------------------------------------------------------ scenes


@dataclass(frozen=True)
class Thing:
    """One object: `(x, y)` is its upper left corner, `size` its side, in pixels; `color` is None unless painted."""

    name: str
    x: int
    y: int
    size: int
    color: str | None = None
    mirrored: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels."""
        return self.x, self.y, self.x + self.size, self.y + self.size

    @property
    def center(self) -> tuple[float, float]:
        return self.x + self.size / 2, self.y + self.size / 2


@dataclass(frozen=True)
class Sign:
    """A coloured board with a word on it; `(x, y)` is its upper left corner in pixels."""

    word: str
    color: str
    font: str
    x: int
    y: int
    width: int
    height: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.x, self.y, self.x + self.width, self.y + self.height


@dataclass(frozen=True)
class Scene:
    """What is in a picture. `draw` makes the picture, the `ask_*` functions make questions."""

    seed: int
    background: str
    things: tuple[Thing, ...]
    signs: tuple[Sign, ...]
    drawings: str = "noto"

    @property
    def names(self) -> list[str]:
        """Distinct names of the things, in the order in which they were placed."""
        return list(dict.fromkeys(thing.name for thing in self.things))

    def only(self, name: str) -> Thing | None:
        """The thing of that name if there is exactly one."""
        found = [thing for thing in self.things if thing.name == name]
        return found[0] if len(found) == 1 else None

    def patches(self, item: Thing | Sign) -> np.ndarray:
        """Mark the patches of which `item`'s box covers at least half: bool (24, 24)."""
        left, top, right, bottom = item.box
        edge = np.arange(GRID) * PATCH
        across = np.clip(np.minimum(edge + PATCH, right) - np.maximum(edge, left), 0, None)
        down = np.clip(np.minimum(edge + PATCH, bottom) - np.maximum(edge, top), 0, None)
        return down[:, None] * across[None] >= PATCH * PATCH / 2


class Dice(random.Random):
    """Random choices that rest on `random()` alone, whose stream Python promises never to change."""

    def below(self, n: int) -> int:
        return int(self.random() * n)

    def between(self, low: int, high: int) -> int:
        """An integer in `low..high`, both included."""
        return low + self.below(high - low + 1)

    def pick(self, items: Sequence, weights: Sequence[float] | None = None):
        if weights is None:
            return items[self.below(len(items))]
        point = self.random() * sum(weights)
        for item, weight in zip(items, weights):
            point -= weight
            if point < 0:
                return item
        return items[-1]

    def several(self, items: Sequence, n: int) -> list:
        """`n` different items in random order."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(min(n, len(left)))]


def compose(seed: int, *, background: str | None = None, drawings: str = "noto") -> Scene:
    """Decide what stands where.

    Three to six different objects lean to one theme and, inside a theme, to its first names, so that some objects are
    popular and some come together, which POPE's splits need. One of them may stand there up to four times, and there
    may be one or two signs; nothing overlaps.

    Parameters
    ----------
    seed : int
        Decides everything. Training uses seeds below `TEST_SEED` only.
    background : {"plain", "texture", "photo"}, optional
        Wanted stratum; the seed decides when left out.
    drawings : {"noto", "fluent"}
        Which set of pictures; what stands where does not depend on it.
    """
    for value, valid, what in ((background or "plain", BACKGROUNDS, "background"), (drawings, DRAWINGS, "drawings")):
        if value not in valid:
            raise ValueError(f"{what}={value!r} is not known; use one of {', '.join(valid)}")
    dice = Dice(seed)
    ground = dice.pick(BACKGROUNDS)
    theme = dice.pick(list(THEMES))

    chosen: list[str] = []
    wanted = dice.between(3, 6)
    while len(chosen) < wanted:
        pool = THEMES[theme if dice.random() < 0.5 else dice.pick(list(THEMES))]
        name = dice.pick(pool, [1 / (rank + 6) for rank in range(len(pool))])
        if name not in chosen:
            chosen.append(name)
    if dice.random() < 0.5:
        chosen += [chosen[0]] * min(dice.between(1, 3), 8 - len(chosen))

    taken: list[tuple[int, int, int, int]] = []

    def place(width: int, height: int) -> tuple[int, int] | None:
        for _ in range(60):
            x, y = dice.between(2, SIZE - width - 2), dice.between(2, SIZE - height - 2)
            if all(x + width + 4 <= l or r + 4 <= x or y + height + 4 <= t or b + 4 <= y for l, t, r, b in taken):
                taken.append((x, y, x + width, y + height))
                return x, y
        return None

    signs = []
    for color in dice.several(list(COLORS), dice.pick((0, 0, 1, 2))):
        word, font, height = dice.pick(WORDS), dice.pick(FONTS), dice.between(24, 30)
        width = _word_width(word, font, height - 8) + 10
        if spot := place(width, height):
            signs.append(Sign(word, color, font, *spot, width, height))
    things = []
    for name in chosen:
        size = dice.between(28, 48)
        color = dice.pick(list(COLORS)) if name in PAINTED else None
        mirrored = dice.random() < 0.5
        if spot := place(size, size):
            things.append(Thing(name, *spot, size, color, mirrored))
    return Scene(seed, background or ground, tuple(things), tuple(signs), drawings)


# ------------------------------------------------------------------------------------------------ drawing


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene: RGB, 336 x 336."""
    noise = np.random.RandomState(scene.seed % 2**32)  # the legacy stream is frozen, unlike Generator's
    picture = {"plain": _plain, "texture": _texture, "photo": _photo}[scene.background](noise)
    _clutter(picture, noise)
    for sign in scene.signs:
        _paint_sign(picture, sign)
    for thing in scene.things:
        sprite = _sprite(thing.name, thing.size, thing.color, thing.mirrored, scene.drawings)
        picture.paste(sprite, (thing.x, thing.y), sprite)
    return picture


def _soft_color(noise: np.random.RandomState, low: int = 110, high: int = 235) -> np.ndarray:
    """A colour that is never as saturated as a painted thing: float (3,), 0 to 255."""
    gray = noise.randint(low, high)
    return np.clip(gray + noise.randint(-22, 23, 3), 0, 255).astype(float)


def _plain(noise: np.random.RandomState) -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), tuple(int(value) for value in _soft_color(noise)))


def _texture(noise: np.random.RandomState) -> Image.Image:
    """Cloudy noise, stripes, checks or tiles between two soft colours."""
    y, x = np.mgrid[:SIZE, :SIZE]
    kind, period, angle = noise.randint(4), noise.randint(8, 40), noise.rand() * np.pi
    if kind == 0:
        blend = np.zeros((SIZE, SIZE))
        for cells in (4, 9, 21, 48, 112):
            octave = Image.fromarray(noise.rand(cells, cells).astype(np.float32))
            blend += np.asarray(octave.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) * cells**-0.4
        blend = (blend - blend.min()) / (np.ptp(blend) + 1e-9)
    elif kind == 1:
        blend = 0.5 + 0.5 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    elif kind == 2:
        blend = ((x // period + y // period) % 2).astype(float)
    else:
        tiles = noise.rand(SIZE // period + 2, SIZE // period + 2)
        blend = tiles[y // period, x // period] * ((x % period > 1) & (y % period > 1))
    low, high = _soft_color(noise), _soft_color(noise)
    picture = low + (high - low) * blend[..., None] + noise.normal(0, 4, (SIZE, SIZE, 1))
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def _photo(noise: np.random.RandomState) -> Image.Image:
    """A crop of a photograph, mirrored, scaled and tinted at random."""
    source = _photograph(PHOTOS[noise.randint(len(PHOTOS))])
    side = noise.randint(source.width // 2, source.width + 1)
    left, top = noise.randint(0, source.width - side + 1, 2)
    crop = source.resize((SIZE, SIZE), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    pixels = np.asarray(crop).astype(float)
    if noise.rand() < 0.5:
        pixels = pixels[:, ::-1]
    pixels = 40 + pixels * noise.uniform(0.6, 1.0, 3)  # never so dark that a black thing is lost on it
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _clutter(picture: Image.Image, noise: np.random.RandomState) -> None:
    """Small dots and strokes that mean nothing."""
    pen = ImageDraw.Draw(picture)
    for _ in range(noise.randint(6, 25)):
        x, y = noise.randint(0, SIZE, 2)
        dx, dy = noise.randint(-9, 10, 2)
        color = tuple(int(value) for value in noise.randint(30, 240, 3))
        if noise.rand() < 0.5:
            pen.line((x, y, x + dx, y + dy), color, width=2)
        else:
            pen.ellipse((x, y, x + abs(dx) // 2 + 2, y + abs(dx) // 2 + 2), color)


def _paint_sign(picture: Image.Image, sign: Sign) -> None:
    left, top, right, bottom = sign.box
    ink = (255, 255, 255) if sum(COLORS[sign.color]) < 420 else (20, 20, 20)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((left, top, right - 1, bottom - 1), COLORS[sign.color], ink)
    x, height = left + 5, sign.height - 8
    for letter in sign.word:
        glyph = _glyph(letter, sign.font, height)
        picture.paste(ink, (x, top + 4), glyph)
        x += glyph.width


@lru_cache(maxsize=None)
def _sheet(drawings: str) -> Image.Image:
    return Image.open(data_root() / "scenes" / f"{drawings}.png").convert("RGBA")


@lru_cache(maxsize=None)
def _photograph(name: str) -> Image.Image:
    return Image.open(data_root() / "scenes" / f"{name}.jpg").convert("RGB")


@lru_cache(maxsize=8192)
def _sprite(name: str, size: int, color: str | None, mirrored: bool, drawings: str) -> Image.Image:
    column, row = NAMES.index(name) % 10, NAMES.index(name) // 10
    sprite = _sheet(drawings).crop((column * 64, row * 64, column * 64 + 64, row * 64 + 64))
    sprite = sprite.resize((size, size), Image.Resampling.BOX if size < 32 else Image.Resampling.BILINEAR)
    if mirrored:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if color is None:
        return sprite
    pixels = np.asarray(sprite).astype(float)
    light = pixels[..., :3] @ (0.299, 0.587, 0.114)
    solid = light[pixels[..., 3] > 128]
    shade = (light - np.median(solid)) / (np.ptp(solid) + 1e-9)  # 0 at the median, so that most pixels show the pure colour
    paint = COLORS[color] + 130 * shade[..., None]
    return Image.fromarray(np.dstack([np.clip(paint, 0, 255), pixels[..., 3]]).astype(np.uint8), "RGBA")


@lru_cache(maxsize=None)
def _letters() -> tuple[Image.Image, dict[str, dict[str, list[int]]]]:
    folder = data_root() / "scenes"
    return Image.open(folder / "letters.png").convert("L"), json.loads((folder / "letters.json").read_text())


def _glyph_width(box: Sequence[int], height: int) -> int:
    left, top, right, bottom = box
    return max(1, (right - left) * height // (bottom - top))


@lru_cache(maxsize=4096)
def _glyph(letter: str, font: str, height: int) -> Image.Image:
    sheet, boxes = _letters()
    left, top, right, bottom = boxes[font][letter]
    size = _glyph_width(boxes[font][letter], height), height
    return sheet.resize(size, Image.Resampling.BILINEAR, (left, top, right, bottom))


def _word_width(word: str, font: str, height: int) -> int:
    boxes = _letters()[1][font]
    return sum(_glyph_width(boxes[letter], height) for letter in word)


# ------------------------------------------------------------------------------------------------ questions


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    `kind` is what scores are split by (POPE's split, MME's subject, ...), `choices` holds every answer that the wording
    allows, `group` joins questions that are only right together, `evidence` are the things and signs one has to look at.
    """

    scene: Scene
    text: str
    answer: str
    choices: tuple[str, ...]
    kind: str
    group: int | None = None
    evidence: tuple[Thing | Sign, ...] = field(default=(), repr=False)

    @property
    def picture_key(self) -> tuple:
        """The same for questions on the same picture, and for them only."""
        return self.scene.seed, self.scene.background, self.scene.drawings

    @property
    def stratum(self) -> str:
        """What scores are also reported for apart: duplication is a property of pictures."""
        return self.scene.background

    def picture(self) -> Image.Image:
        return draw(self.scene)


YES_NO = ("yes", "no")


def region(thing: Thing, margin: int = 8) -> str | None:
    """Which ninth of the picture a thing's centre is in; None within `margin` pixels of a border between ninths."""
    cells = []
    for value in thing.center:
        if min(abs(value - SIZE / 3), abs(value - 2 * SIZE / 3)) < margin:
            return None
        cells.append(int(value * 3 / SIZE))
    return REGIONS[cells[1] * 3 + cells[0]]


def beyond(thing: Thing, other: Thing, direction: str, least: int = 28) -> bool:
    """Whether `thing` lies at least `least` pixels further than `other` in a direction (between centres)."""
    dx, dy = DIRECTIONS[direction]
    return dx * (thing.center[0] - other.center[0]) + dy * (thing.center[1] - other.center[1]) >= least


def _aside(thing: Thing, other: Thing, direction: str) -> bool:
    """Whether `thing` is what one meets going from `other` in a direction: beyond it, at most 42 pixels off the line."""
    across = 1 if DIRECTIONS[direction][0] else 0
    return beyond(thing, other, direction) and abs(thing.center[across] - other.center[across]) <= 42


@lru_cache(maxsize=1)
def _company() -> tuple[Counter, dict[str, Counter]]:
    """How often names occur, and occur together, in 4,000 training scenes: POPE's popular and adversarial lists."""
    alone, together = Counter(), defaultdict(Counter)
    for seed in range(4000):
        names = compose(seed).names
        alone.update(names)
        for name in names:
            together[name].update(other for other in names if other != name)
    return alone, together


def absent(scene: Scene, dice: Dice, split: str, n: int) -> list[str]:
    """Names of `n` objects that are not in a scene, by POPE's rules.

    "random": any; "popular": from the quarter of them that is most frequent; "adversarial": from the quarter that most
    often stands beside what is in the scene.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not known; use one of {', '.join(SPLITS)}")
    alone, together = _company()
    others = [name for name in NAMES if name not in scene.names]
    if split == "popular":
        others.sort(key=lambda name: -alone[name])
    elif split == "adversarial":
        others.sort(key=lambda name: -sum(together[present][name] for present in scene.names))
    return dice.several(others if split == "random" else others[: len(others) // 4], n)


def ask_existence(scene: Scene, dice: Dice, name: str, kind: str = "existence") -> Question:
    seen = tuple(thing for thing in scene.things if thing.name == name)
    return Question(scene, f"is there {a(name)}?", "yes" if seen else "no", YES_NO, kind, evidence=seen)


def ask_where(scene: Scene, dice: Dice) -> Question | None:
    able = [thing for name in scene.names if (thing := scene.only(name)) and region(thing)]
    if not able:
        return None
    thing = dice.pick(able)
    return Question(scene, f"where is the {thing.name}?", region(thing), REGIONS, "where", evidence=(thing,))


def ask_what_is_there(scene: Scene, dice: Dice) -> Question | None:
    inside = defaultdict(list)
    for thing in scene.things:
        inside[region(thing)].append(thing)
    unclear = inside.pop(None, [])
    able = [place for place, things in inside.items() if len(things) == 1]
    able = [place for place in able if not any(region(thing, 0) == place for thing in unclear)]
    if not able:
        return None
    place = dice.pick(able)
    thing = inside[place][0]
    return Question(scene, f"what is at the {place}?", thing.name, tuple(NAMES), "name", evidence=(thing,))


def ask_relation(scene: Scene, dice: Dice, answer: str | None = None) -> Question | None:
    """`is the dog left of the cat?`: never asked where the two are nearly level."""
    able = [thing for name in scene.names if (thing := scene.only(name))]
    answer = answer or dice.pick(YES_NO)
    direction = dice.pick(list(DIRECTIONS))
    pairs = [
        (one, two)
        for one in able
        for two in able
        if (beyond(one, two, direction) if answer == "yes" else beyond(two, one, direction))
    ]
    if not pairs:
        return None
    one, two = dice.pick(pairs)
    text = f"is the {one.name} {direction} the {two.name}?"
    return Question(scene, text, answer, YES_NO, "relation", evidence=(one, two))


def ask_neighbour(scene: Scene, dice: Dice) -> Question | None:
    """`what is directly left of the dog?`: two hops, and only one thing may be the answer."""
    able = []
    for name in scene.names:
        if start := scene.only(name):
            for direction in DIRECTIONS:
                met = [thing for thing in scene.things if _aside(thing, start, direction)]
                if len(met) == 1:
                    able.append((start, direction, met[0]))
    if not able:
        return None
    start, direction, thing = dice.pick(able)
    text = f"what is directly {direction} the {start.name}?"
    return Question(scene, text, thing.name, tuple(NAMES), "neighbour", evidence=(start, thing))


def ask_color(scene: Scene, dice: Dice) -> Question | None:
    able = [thing for name in scene.names if (thing := scene.only(name)) and thing.color]
    if not able:
        return None
    thing = dice.pick(able)
    return Question(scene, f"what color is the {thing.name}?", thing.color, tuple(COLORS), "color", evidence=(thing,))


def ask_count(scene: Scene, dice: Dice, number: int | None = None) -> Question | None:
    counts = Counter(thing.name for thing in scene.things)
    number = number or dice.pick((1, 2, 3, 4), (1, 6, 6, 6))  # about one scene in six allows each number above one
    able = [name for name, n in counts.items() if n == number]
    if not able:
        return None
    name = dice.pick(able)
    seen = tuple(thing for thing in scene.things if thing.name == name)
    text = f"how many {plural(name)} are there?"
    return Question(scene, text, NUMBERS[number - 1], NUMBERS, "count", evidence=seen)


def ask_word(scene: Scene, dice: Dice) -> Question | None:
    if not scene.signs:
        return None
    sign = dice.pick(scene.signs)
    text = f"what word is on the {sign.color} sign?"
    return Question(scene, text, sign.word, tuple(WORDS), "word", evidence=(sign,))


def ask_pair(scene: Scene, dice: Dice, subject: str) -> list[Question] | None:
    """Two statements on one subject as questions, the true one answered yes and the false one no, as MME has them."""
    if subject == "existence":
        right, wrong = dice.pick(scene.names), absent(scene, dice, "adversarial", 1)[0]
        return [ask_existence(scene, dice, name, "existence") for name in (right, wrong)]
    asked = {"count": ask_count, "color": ask_color, "position": ask_where, "text": ask_word}[subject](scene, dice)
    if asked is None:
        return None
    thing = asked.evidence[0]
    wrong = dice.pick([choice for choice in asked.choices if choice != asked.answer])
    texts = {
        "count": lambda answer: f"is the number of {plural(thing.name)} {answer}?",
        "color": lambda answer: f"is the {thing.name} {answer}?",
        "position": lambda answer: f"is the {thing.name} at the {answer}?",
        "text": lambda answer: f"does the {thing.color} sign say {answer}?",
    }
    return [
        Question(scene, texts[subject](option), answer, YES_NO, subject, evidence=asked.evidence)
        for option, answer in ((asked.answer, "yes"), (wrong, "no"))
    ]


LETTERS = ("A", "B", "C", "D")


def ask_choice(scene: Scene, dice: Dice, subject: str) -> list[Question] | None:
    """One question with four options, asked in all four rotations of the options: MMBench's circular evaluation."""
    if subject == "existence":
        name = dice.pick(scene.names)
        text, right, wrong = "which is there?", name, absent(scene, dice, "adversarial", 3)
        seen = tuple(thing for thing in scene.things if thing.name == name)
    else:
        ask = {"name": ask_what_is_there, "color": ask_color, "position": ask_where, "text": ask_word}[subject]
        asked = ask(scene, dice)
        if asked is None:
            return None
        pool = scene.names if subject == "name" else asked.choices
        wrong = dice.several([choice for choice in pool if choice != asked.answer], 3)
        if subject == "name" and len(wrong) < 3:
            wrong += absent(scene, dice, "adversarial", 3 - len(wrong))
        text, right, seen = asked.text, asked.answer, asked.evidence
    options = dice.several([right, *wrong], 4)
    questions = []
    for turn in range(4):
        turned = options[turn:] + options[:turn]
        listed = " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, turned))
        answer = LETTERS[turned.index(right)]
        questions.append(Question(scene, f"{text} {listed}", answer, LETTERS, subject, evidence=seen))
    return questions


# ------------------------------------------------------------------------------------------------ tasks


def _existence(seeds: Iterator[int], drawings: str) -> Iterator[list[Question]]:
    """POPE: six questions a scene and split, three of them on objects that are there."""
    for seed in seeds:
        scene, dice = compose(seed, drawings=drawings), Dice(f"existence {seed}")
        if len(scene.names) >= 3:
            there = dice.several(scene.names, 3)
            for split in SPLITS:
                names = [name for pair in zip(there, absent(scene, dice, split, 3)) for name in pair]
                yield [ask_existence(scene, dice, name, split) for name in names]


def _single(asks: dict[str, Callable], balance: Callable[[Question], tuple]) -> Callable:
    """A task of single questions; `asks` take turns, and so do the answers that `balance` tells apart."""

    def make(seeds: Iterator[int], drawings: str) -> Iterator[list[Question]]:
        turn, used = 0, Counter()
        for seed in seeds:
            scene, dice = compose(seed, drawings=drawings), Dice(f"single {seed}")
            asked = list(asks.values())[turn % len(asks)](scene, dice)
            if asked is None:
                continue
            rivals = [used[balance(replace(asked, answer=choice))] for choice in asked.choices]
            if len(rivals) <= 9 and used[balance(asked)] > min(rivals) + 1:
                continue  # an answer that is ahead of the others waits for them
            used[balance(asked)] += 1
            turn += 1
            yield [asked]

    return make


def _grouped(ask: Callable, subjects: Sequence[str]) -> Callable:
    """A task of questions that are scored in groups; the subjects take turns."""

    def make(seeds: Iterator[int], drawings: str) -> Iterator[list[Question]]:
        turn = 0
        for seed in seeds:
            scene, dice = compose(seed, drawings=drawings), Dice(f"grouped {seed}")
            if group := ask(scene, dice, subjects[turn % len(subjects)]):
                yield [replace(question, group=turn) for question in group]
                turn += 1

    return make


@dataclass(frozen=True)
class Task:
    """How a task is made and scored; `size` is the number of its questions."""

    title: str
    size: int
    make: Callable[[Iterator[int], str], Iterator[list[Question]]] = field(repr=False)
    metric: str = "accuracy"


def _kind_and_answer(question: Question) -> tuple:
    return question.kind, question.answer


TASKS = {
    "existence": Task("scene existence (POPE protocol)", 1512, _existence, "f1"),
    "relations": Task(
        "scene relations (GQA protocol)",
        600,
        _single(
            {"where": ask_where, "name": ask_what_is_there, "relation": ask_relation, "neighbour": ask_neighbour},
            _kind_and_answer,
        ),
    ),
    "attributes": Task(
        "scene attributes (VQA protocol)", 600, _single({"color": ask_color, "count": ask_count}, _kind_and_answer)
    ),
    "reading": Task("scene words (TextVQA protocol)", 500, _single({"word": ask_word}, _kind_and_answer)),
    "pairs": Task(
        "scene pairs (MME protocol)",
        600,
        _grouped(ask_pair, ("existence", "count", "color", "position", "text")),
        "score",
    ),
    "choice": Task(
        "scene choices (MMBench protocol)",
        600,
        _grouped(ask_choice, ("existence", "name", "color", "position", "text")),
        "circular",
    ),
}
UNSEEN = "-unseen"


def find_task(name: str) -> tuple[Task, str]:
    """The task of that name and the drawings it uses.

    Raises
    ------
    KeyError
        With the nearest valid names.
    """
    base = name.removesuffix(UNSEEN)
    if base not in TASKS:
        valid = [*TASKS, *(task + UNSEEN for task in TASKS)]
        near = difflib.get_close_matches(name, valid, n=3, cutoff=0.4) or list(TASKS)
        raise KeyError(f"task {name!r} is not known; did you mean {' or '.join(near)}?")
    return TASKS[base], "fluent" if base != name else "noto"


@lru_cache(maxsize=32)
def questions(task: str, *, start: int = TEST_SEED, size: int | None = None) -> tuple[Question, ...]:
    """The fixed questions of a task.

    Parameters
    ----------
    task : str
        A name from `TASKS`, or one with `-unseen` behind it.
    start : int
        First scene seed; the default gives the held-out questions, a seed below `TEST_SEED` training questions.
    size : int, optional
        Number of questions; the task's own by default. Groups are never cut, so a few more may come.
    """
    found, drawings = find_task(task)
    size = size or found.size
    groups = found.make(count(start), drawings)
    made: list[Question] = []
    while len(made) < size:
        made.extend(next(groups))
    return tuple(made)


def checksum(task: str) -> str:
    """SHA-256 over everything that the questions of a task say and show, pixels aside."""
    lines = "\n".join(repr((q.scene, q.text, q.answer, q.choices, q.kind, q.group)) for q in questions(task))
    return hashlib.sha256(lines.encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ scores


def normal(answer: str) -> str:
    """An answer as it is compared: lower case, single spaces, no full stop at the end."""
    return " ".join(answer.lower().strip().rstrip(".").split())


def correct(asked: Sequence[Question], answers: Sequence[str]) -> np.ndarray:
    """Which answers are right: bool (n,)."""
    if len(asked) != len(answers):
        raise ValueError(f"{len(asked)} questions but {len(answers)} answers; give one answer to each question")
    return np.array([normal(answer) == normal(question.answer) for question, answer in zip(asked, answers)], bool)


def score(
    task: str, asked: Sequence[Question], answers: Sequence[str], weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Scores of a task by the protocol that it follows, all from 0 to 1 except the sum named `score`.

    - existence: per split F1, accuracy and share of yes (what is not yes counts as no, as in POPE's script); `f1`,
      `accuracy` and `yes_rate` are means over the splits;
    - relations, attributes, reading: accuracy, and accuracy of each kind (with one true answer, VQA's soft accuracy over
      ten annotators is the exact match);
    - pairs: per subject accuracy and accuracy+ (both questions right); `score` adds both in percent over the subjects,
      as MME does, so that it runs to 200 for each subject;
    - choice: accuracy, and `circular`, for which all four rotations have to be right.

    Parameters
    ----------
    task : str
    asked, answers : sequences of length n
    weights : array, (..., n), optional
        How often each question counts, for resampling; the scores then have shape (...). A group is counted as often as
        its first question.
    """
    base = task.removesuffix(UNSEEN)
    find_task(task)
    right = correct(asked, answers)
    weights = np.ones(len(asked)) if weights is None else np.asarray(weights, float)
    kinds = list(dict.fromkeys(question.kind for question in asked))
    of_kind = {kind: np.flatnonzero([question.kind == kind for question in asked]) for kind in kinds}

    def mean(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # a resample may miss a kind: nan
            return weights[..., rows] @ values[rows] / weights[..., rows].sum(-1)

    scores: dict[str, np.ndarray] = {}
    if base == "existence":
        truth = np.array([question.answer == "yes" for question in asked])
        said = np.array([normal(answer) == "yes" for answer in answers])
        for kind, rows in of_kind.items():
            scores[f"f1/{kind}"] = f1_score(truth[rows], said[rows], weights[..., rows])
            scores[f"accuracy/{kind}"] = mean(right, rows)
            scores[f"yes_rate/{kind}"] = mean(said, rows)
        for name in ("f1", "accuracy", "yes_rate"):
            scores[name] = np.mean([scores[f"{name}/{kind}"] for kind in kinds], axis=0)
        return scores
    scores["accuracy"] = mean(right, np.arange(len(asked)))
    for kind, rows in of_kind.items():
        scores[f"accuracy/{kind}"] = mean(right, rows)
    if base in ("pairs", "choice"):
        name = "accuracy_plus" if base == "pairs" else "circular"
        members = defaultdict(list)
        for index, question in enumerate(asked):
            members[question.group].append(index)
        first = np.array([rows[0] for rows in members.values()])
        whole = np.zeros(len(asked), bool)
        whole[first] = [right[rows].all() for rows in members.values()]
        scores[name] = mean(whole, first)
        for kind, rows in of_kind.items():
            scores[f"{name}/{kind}"] = mean(whole, np.intersect1d(first, rows))
        if base == "pairs":
            parts = ("accuracy", "accuracy_plus")
            scores["score"] = 100 * sum(scores[f"{part}/{kind}"] for kind in kinds for part in parts)
    return scores


def f1_score(truth: np.ndarray, said: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """F1 of "yes", 0 to 1: `truth` and `said` are bool (n,), `weights` (..., n) says how often each counts."""
    weights = np.ones(len(truth)) if weights is None else weights
    return 2 * weights @ (truth & said) / np.maximum(weights @ truth + weights @ said, 1)


@lru_cache(maxsize=32)
def floors(task: str) -> dict[str, dict[str, float]]:
    """What a task gives away without its pictures.

    Returns
    -------
    dict
        `blind`: for each metric the best score of an answerer that reads only the question. Those tried are the
        commonest answer to the same words among four times as many training questions (else the commonest to that
        kind), and each constant answer. `chance`: expected accuracy of an even guess among the allowed answers, with
        the metrics that follow from it.
    """
    asked = questions(task)
    taught = questions(task.removesuffix(UNSEEN), start=TEST_SEED // 2, size=4 * len(asked))
    by_text, by_kind = defaultdict(Counter), defaultdict(Counter)
    for question in taught:
        by_text[question.text][question.answer] += 1
        by_kind[question.kind][question.answer] += 1
    learned = [(by_text.get(q.text) or by_kind[q.kind]).most_common(1)[0][0] for q in asked]
    tries = [learned, *([answer] * len(asked) for answer in sorted({answer for c in by_kind.values() for answer in c}))]
    scored = [score(task, asked, answers) for answers in tries]
    blind = {name: float(max(each[name] for each in scored)) for name in scored[0] if not name.startswith("yes_rate")}

    guess = float(np.mean([1 / len(question.choices) for question in asked]))
    chance = {"accuracy": guess}
    base = task.removesuffix(UNSEEN)
    if base == "existence":
        chance["f1"] = 0.5  # half of all answers yes, half of those right
    elif base == "pairs":
        subjects = len({question.kind for question in asked})
        chance |= {"accuracy_plus": 0.25, "score": 100 * subjects * (0.5 + 0.25)}
    elif base == "choice":
        chance["circular"] = guess**4
    return {"blind": blind, "chance": chance}
