"""Scene videos: a few frames of one scene in which things move, come and go, and questions that the frames answer.

Every frame is a scene of `dart.scenes` and is drawn by it. Ground, signs and most things are the same in all of them; one thing,
the *visitor*, is there in some frames only, and one or two others, the *movers*, go along straight lines. A model gets the frames
as several images of one prompt, in order. Questions are open and short, like those of MSVD-QA (Xu et al., 2017), and an answer is
right if it is the same word for word; no language model judges it, as in the paper's Table 6.

=========  ==============================  ==================================================================
kind       question                        why the answer is one
=========  ==============================  ==================================================================
existence  is there a dog?                 the visitor (yes), or what is in no frame (no)
where      where is the dog?               the visitor, which stands still while it is there
name       what is at the top left?        the visitor, where nothing else is in any frame
color      what color is the bus?          a mover, which keeps its colour
relation   is the dog left of the cat?     one of them moves, and the answer is the same in every frame
=========  ==============================  ==================================================================

"How many" is not asked: a model that was taught on single pictures counts a thing again in every frame.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count

import numpy as np
from PIL import Image

from dart import easy_vqa, scenes
from dart.scenes import COLORS, DIRECTIONS, NAMES, REGIONS, SIZE, TEST_SEED, YES_NO, Dice, Scene, Sign, Thing

TITLE = "scene videos (open questions over frames)"
FRAMES = 4  # 2,304 image tokens at 576 a frame, near the 2,048 that the paper's eight frames have
STEP = 24  # pixels that a mover goes from one frame to the next, at least: nearly two patches


@dataclass(frozen=True)
class Video:
    """A scene in time: what each of its `frames` shows, the `visitor`, and the names of the `movers`."""

    frames: tuple[Scene, ...]
    visitor: Thing
    movers: tuple[str, ...]

    @property
    def whole(self) -> Scene:
        """All that is ever there, at its place in the first frame (the visitor at its own)."""
        first = self.frames[0]
        return first if self.visitor in first.things else replace(first, things=(*first.things, self.visitor))

    def walk(self, name: str) -> tuple[Thing, ...] | None:
        """Frame by frame the thing of that name, if every frame shows exactly one."""
        found = [frame.only(name) for frame in self.frames]
        return tuple(found) if all(found) else None


def compose(seed: int, frames: int = FRAMES) -> Video | None:
    """Set the scene of a seed in motion; None where it has no room for that, or nothing that is alone of its name.

    Parameters
    ----------
    seed : int
        Decides everything. Training uses seeds below `dart.scenes.TEST_SEED` only.
    frames : int
        Two or more.

    Raises
    ------
    ValueError
        For fewer frames.
    """
    if frames < 2:
        raise ValueError(f"frames={frames}: nothing moves in a single picture; use 2 or more")
    scene, dice = scenes.compose(seed), Dice(f"video {seed}")
    alone = [thing for name in scene.names if (thing := scene.only(name))]
    if not alone:
        return None
    visitor = dice.pick(alone)
    walks, movers = {thing: (thing,) * frames for thing in scene.things}, []
    for thing in dice.several([thing for thing in scene.things if thing != visitor], len(scene.things)):
        others = [[*scene.signs, *(walks[other][at] for other in scene.things if other != thing)] for at in range(frames)]
        if len(movers) < 2 and (walk := _free_walk(thing, others, dice)):
            walks[thing] = walk
            movers.append(thing.name)
    if not movers:
        return None
    turn, comes = dice.between(1, frames - 1), dice.random() < 0.5

    def frame(at: int) -> Scene:
        there = (at >= turn) == comes
        return replace(scene, things=tuple(walks[thing][at] for thing in scene.things if there or thing != visitor))

    return Video(tuple(map(frame, range(frames))), visitor, tuple(movers))


def _free_walk(thing: Thing, others: Sequence[Sequence[Thing | Sign]], dice: Dice) -> tuple[Thing, ...] | None:
    """A straight, even walk from where `thing` is that touches none of what else each frame holds."""
    last = len(others) - 1
    for _ in range(60):
        dx, dy = (dice.between(2, SIZE - thing.size - 2) - start for start in (thing.x, thing.y))
        steps = [replace(thing, x=thing.x + round(dx * at / last), y=thing.y + round(dy * at / last)) for at in range(last + 1)]
        if max(abs(dx), abs(dy)) >= STEP * last and all(
            _apart(step, other) for step, there in zip(steps, others) for other in there
        ):
            return tuple(steps)
    return None


def _apart(one: Thing, other: Thing | Sign, gap: int = 4) -> bool:
    left, top, right, bottom = one.box
    l, t, r, b = other.box
    return right + gap <= l or r + gap <= left or bottom + gap <= t or b + gap <= top


# ------------------------------------------------------------------------------------------------ questions


@dataclass(frozen=True)
class Question:
    """A question about a video; the fields mean what they mean in `dart.scenes.Question`."""

    video: Video
    text: str
    answer: str
    choices: tuple[str, ...]
    kind: str
    group: int | None = None

    @property
    def picture_key(self) -> tuple:
        return self.video.frames[0].seed, len(self.video.frames)

    @property
    def stratum(self) -> str:
        return self.video.frames[0].background

    def pictures(self) -> list[Image.Image]:
        """The frames in order, RGB, 336 x 336."""
        return [scenes.draw(frame) for frame in self.video.frames]

    def picture(self) -> Image.Image:
        """The first frame."""
        return scenes.draw(self.video.frames[0])


def ask_existence(video: Video, dice: Dice) -> Question:
    answer = dice.pick(YES_NO)
    name = video.visitor.name if answer == "yes" else scenes.absent(video.whole, dice, "adversarial", 1)[0]
    return Question(video, f"is there {scenes.a(name)}?", answer, YES_NO, "existence")


def ask_where(video: Video, dice: Dice) -> Question | None:
    place = scenes.region(video.visitor)
    return Question(video, f"where is the {video.visitor.name}?", place, REGIONS, "where") if place else None


def ask_name(video: Video, dice: Dice) -> Question | None:
    place = scenes.region(video.visitor)
    others = (thing for frame in video.frames for thing in frame.things if thing != video.visitor)
    if not place or any(scenes.region(thing, margin=0) == place for thing in others):
        return None
    return Question(video, f"what is at the {place}?", video.visitor.name, tuple(NAMES), "name")


def ask_color(video: Video, dice: Dice) -> Question | None:
    able = [walk[0] for name in video.movers if (walk := video.walk(name)) and walk[0].color]
    if not able:
        return None
    thing = dice.pick(able)
    return Question(video, f"what color is the {thing.name}?", thing.color, tuple(COLORS), "color")


def ask_relation(video: Video, dice: Dice) -> Question | None:
    """`is the dog left of the cat?`: never asked where the two are nearly level in some frame."""
    answer, direction = dice.pick(YES_NO), dice.pick(list(DIRECTIONS))
    walks = {name: walk for name in video.whole.names if (walk := video.walk(name))}

    def holds(one: str, two: str) -> bool:
        return all(scenes.beyond(here, there, direction) for here, there in zip(walks[one], walks[two]))

    able = [
        (one, two)
        for one in walks
        for two in walks
        if one != two
        and (one in video.movers or two in video.movers)
        and (holds(one, two) if answer == "yes" else holds(two, one))
    ]
    if not able:
        return None
    one, two = dice.pick(able)
    return Question(video, f"is the {one} {direction} the {two}?", answer, YES_NO, "relation")


ASKS: tuple[Callable[[Video, Dice], Question | None], ...] = (ask_existence, ask_where, ask_name, ask_color, ask_relation)


def _asked(seeds: Iterator[int], frames: int) -> Iterator[Question]:
    """One question a video; the kinds take turns, and so do the answers of a kind that has few."""
    turn, used = 0, Counter()
    for seed in seeds:
        video, dice = compose(seed, frames), Dice(f"question {seed}")
        question = ASKS[turn % len(ASKS)](video, dice) if video else None
        if question is None:
            continue
        rivals = [used[question.kind, choice] for choice in question.choices]
        if len(rivals) <= 9 and used[question.kind, question.answer] > min(rivals):
            continue  # an answer that is ahead of the others waits for them
        used[question.kind, question.answer] += 1
        turn += 1
        yield question


@lru_cache(maxsize=8)
def questions(*, frames: int = FRAMES, start: int = TEST_SEED, size: int = 400) -> tuple[Question, ...]:
    """The fixed questions.

    Parameters
    ----------
    frames : int
        Of every video, two or more.
    start : int
        First seed; the default gives the held-out questions, a seed below `dart.scenes.TEST_SEED` training questions.
    size : int
        Number of questions.
    """
    asked = _asked(count(start), frames)
    return tuple(next(asked) for _ in range(size))


# ------------------------------------------------------------------------------------------------ scores


def score(asked: Sequence[Question], answers: Sequence[str], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Accuracy in all and of each kind, 0 to 1; `weights` as in `dart.scenes.score`."""
    return easy_vqa.score(asked, answers, weights)


@lru_cache(maxsize=1)
def floors() -> dict[str, dict[str, float]]:
    """As `dart.scenes.floors`: what an answerer gets that reads only the question, and what an even guess does."""
    asked, seen = questions(), defaultdict(Counter)
    for question in questions(start=TEST_SEED // 2, size=4 * len(asked)):
        seen[question.text][question.answer] += 1
        seen[question.kind][question.answer] += 1
    learned = [(seen.get(question.text) or seen[question.kind]).most_common(1)[0][0] for question in asked]
    guess = float(np.mean([1 / len(question.choices) for question in asked]))
    return {"blind": {name: float(value) for name, value in score(asked, learned).items()}, "chance": {"accuracy": guess}}
