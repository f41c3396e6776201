"""Scene videos: something really moves, and the answers follow from the frames alone."""

import hashlib
import re
from collections import Counter

import numpy as np
import pytest

from dart import scenes, videos

ASKED = videos.questions()
VIDEOS = [question.video for question in ASKED[:150]]


def answer_from_frames(frames, text):
    """The answer, found from the words of the question and the list of things of each frame; written apart from dart.videos."""
    there = [{thing.name: [t for t in frame.things if t.name == thing.name] for thing in frame.things} for frame in frames]

    def place(thing):
        x, y = thing.x + thing.size / 2, thing.y + thing.size / 2
        column = "left" if x < 112 else "right" if x > 224 else ""
        row = "top" if y < 112 else "bottom" if y > 224 else ""
        return f"{row} {column}".strip() or "center"

    def further(one, two, direction):
        across = one.x + one.size / 2 - two.x - two.size / 2
        down = one.y + one.size / 2 - two.y - two.size / 2
        return {"left of": -across, "right of": across, "above": -down, "below": down}[direction] > 0

    if found := re.fullmatch(r"is there an? (\w+)\?", text):
        answers = {"yes" if any(found[1] in names for names in there) else "no"}
    elif found := re.fullmatch(r"where is the (\w+)\?", text):
        answers = {place(thing) for names in there for thing in names.get(found[1], [])}
    elif found := re.fullmatch(r"what is at the ([a-z ]+)\?", text):
        answers = {thing.name for frame in frames for thing in frame.things if place(thing) == found[1]}
    elif found := re.fullmatch(r"what color is the (\w+)\?", text):
        answers = {thing.color for names in there for thing in names[found[1]]}
    else:
        one, direction, two = re.fullmatch(r"is the (\w+) (left of|right of|above|below) the (\w+)\?", text).groups()
        pairs = [(here, other) for names in there for here in names[one] for other in names[two]]
        answers = {"yes" if further(*pair, direction) else "no" for pair in pairs}
    (answer,) = answers
    return answer


def test_answers_follow_from_the_frames():
    for question in ASKED:
        assert question.answer == answer_from_frames(question.video.frames, question.text), question.text
        assert question.answer in question.choices


def test_the_visitor_comes_or_goes_and_the_rest_stays():
    comings = Counter()
    for video in VIDEOS:
        shown = [video.visitor in frame.things for frame in video.frames]
        assert sum(abs(a - b) for a, b in zip(shown, shown[1:])) == 1
        comings[shown[0]] += 1
        others = [Counter(thing.name for thing in frame.things if thing != video.visitor) for frame in video.frames]
        assert all(each == others[0] and video.visitor.name not in each for each in others)
        assert len({(frame.signs, frame.background, frame.seed) for frame in video.frames}) == 1
    assert min(comings[True], comings[False]) > len(VIDEOS) / 3


def test_movers_go_straight_and_far_and_touch_nothing():
    for video in VIDEOS:
        tracks = list(zip(*([thing for thing in frame.things if thing != video.visitor] for frame in video.frames)))
        moving = [track for track in tracks if len(set(track)) > 1]
        assert sorted(track[0].name for track in moving) == sorted(video.movers) and 1 <= len(moving) <= 2
        for track in moving:
            assert len({(thing.name, thing.size, thing.color, thing.mirrored) for thing in track}) == 1
            steps = np.diff([(thing.x, thing.y) for thing in track], axis=0)
            assert abs(steps - steps.mean(0)).max() <= 1 and abs(steps).max(1).min() >= videos.STEP - 1
        for frame in video.frames:
            boxes = [item.box for item in (*frame.things, *frame.signs)]
            for number, (left, top, right, bottom) in enumerate(boxes):
                assert 0 <= left < right <= scenes.SIZE and 0 <= top < bottom <= scenes.SIZE
                assert all(right <= l or r <= left or bottom <= t or b <= top for l, t, r, b in boxes[:number])


def test_pixels_change_where_something_moves_and_nowhere_else():
    for question in ASKED[:4]:
        drawn, frames = [np.asarray(picture) for picture in question.pictures()], question.video.frames
        assert len(drawn) == len(frames) == videos.FRAMES and drawn[0].shape == (336, 336, 3)
        assert np.array_equal(np.asarray(question.picture()), drawn[0])
        for at in range(1, len(frames)):
            changed = (drawn[at] != drawn[at - 1]).any(-1)
            for thing in set(frames[at].things) ^ set(frames[at - 1].things):
                left, top, right, bottom = thing.box
                assert changed[top:bottom, left:right].mean() > 0.2
                changed[top:bottom, left:right] = False
            assert not changed.any()


def test_one_frame_is_not_enough():
    """Of yes-answers the first frame shows about half; what is asked about a mover is true wherever it is."""
    yes = [question for question in ASKED if question.kind == "existence" and question.answer == "yes"]
    first = [question.video.visitor in question.video.frames[0].things for question in yes]
    assert 0.25 < np.mean(first) < 0.75
    for question in ASKED:
        if question.kind in ("color", "relation"):
            assert any(re.search(rf"\b{name}\b", question.text) for name in question.video.movers)


def test_size_balance_and_held_out_seeds():
    assert len(ASKED) == 400 and Counter(question.kind for question in ASKED) == dict.fromkeys(
        ("existence", "where", "name", "color", "relation"), 80)
    for kind in ("existence", "where", "color", "relation"):
        counts = Counter(question.answer for question in ASKED if question.kind == kind)
        assert set(counts) == set(next(q.choices for q in ASKED if q.kind == kind))
        assert max(counts.values()) - min(counts.values()) <= 1
    assert all(frame.seed >= scenes.TEST_SEED for question in ASKED for frame in question.video.frames)
    assert all(question.video.frames[0].seed < scenes.TEST_SEED for question in videos.questions(start=0, size=5))
    assert len({question.picture_key for question in ASKED}) == 400


def test_questions_are_fixed():
    """The checksum may only change together with every number measured on the task."""
    said = repr([(question.video, question.text, question.answer) for question in ASKED])
    assert hashlib.sha256(said.encode()).hexdigest()[:12] == "58c62c11c955"


def test_the_same_seed_gives_the_same_video():
    assert videos.questions(size=40) == ASKED[:40]
    assert [len(question.pictures()) for question in videos.questions(frames=2, size=3)] == [2, 2, 2]
    with pytest.raises(ValueError, match="frames=1: nothing moves"):
        videos.compose(0, frames=1)


def test_the_bundled_model_knows_every_word():
    from transformers import AutoTokenizer

    from dart import data_root

    tokenizer = AutoTokenizer.from_pretrained(data_root() / "model")
    for question in ASKED:
        words = re.findall(r"\w+|\?", question.text)
        assert tokenizer.tokenize(question.text) == words, "a word in pieces"
        assert tokenizer.tokenize(question.answer) == question.answer.split()


def test_scores_by_hand():
    asked = ASKED[:5]                                       # one of each kind
    scores = videos.score(asked, [question.answer.upper() + "." for question in asked[:3]] + ["", "perhaps"])
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert [scores[f"accuracy/{question.kind}"] for question in asked] == [1, 1, 1, 0, 0]
    answers = [question.answer for question in asked[:3]] + ["", ""]
    weighted = videos.score(asked, answers, np.array([[1, 1, 1, 1, 1], [0, 0, 1, 3, 0]]))
    assert weighted["accuracy"].tolist() == pytest.approx([3 / 5, 1 / 4])
    with pytest.raises(ValueError, match="5 questions but 1 answers"):
        videos.score(asked, ["yes"])


def test_pictures_are_needed():
    floors = videos.floors()
    assert floors["blind"]["accuracy"] < 0.3 and floors["blind"]["accuracy/existence"] < 0.6
    assert floors["chance"]["accuracy"] == pytest.approx(np.mean([1 / 2, 1 / 9, 1 / 80, 1 / 8, 1 / 2]))
