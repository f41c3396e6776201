"""Scenes: the same everywhere, answers that hold in the scene, balance, protocols, floors."""

import hashlib
import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import PIL
import pytest

import dart
from dart import easy_vqa, scenes

SEEDS = range(scenes.TEST_SEED, scenes.TEST_SEED + 300)

# First characters of dart.scenes.checksum: they may only change together with every number measured on the tasks.
CHECKSUMS = {
    "existence": "8e2d77c28ad1",
    "relations": "4dc572633173",
    "attributes": "4a37b7cf3d10",
    "reading": "7471d2cae889",
    "pairs": "3223fcfec372",
    "choice": "bf440e9d3d01",
}
PIXELS = {
    "plain": "7ac88dd97527",
    "texture": "f22b190b7daf",
    "photo": "83d5b94bc7ee",
}


def pixel_checksum(background: str) -> str:
    digest = hashlib.sha256()
    for seed in range(4):
        digest.update(scenes.draw(scenes.compose(seed, background=background)).tobytes())
    return digest.hexdigest()[:12]


def singular(word: str) -> str:
    found = [name for name in scenes.NAMES if scenes.plural(name) == word]
    assert len(found) == 1, word
    return found[0]


def answer_from_description(scene: scenes.Scene, text: str) -> str:
    """The answer, found from the words of the question and the list of things alone; written apart from dart.scenes."""
    centers = [(t.name, t.color, t.x + t.size / 2, t.y + t.size / 2) for t in scene.things]

    def the(name):
        (found,) = [c for c in centers if c[0] == name]
        return found

    def place(x, y):
        column = "left" if x < 112 else "right" if x > 224 else ""
        row = "top" if y < 112 else "bottom" if y > 224 else ""
        return f"{row} {column}".strip() or "center"

    def side(x, y, other_x, other_y, direction):
        return {"left of": x < other_x, "right of": x > other_x, "above": y < other_y, "below": y > other_y}[direction]

    directions = "left of|right of|above|below"
    if found := re.fullmatch(r"is there an? (\w+)\?", text):
        return "yes" if found[1] in [c[0] for c in centers] else "no"
    if found := re.fullmatch(r"where is the (\w+)\?", text):
        return place(*the(found[1])[2:])
    if found := re.fullmatch(r"what is at the ([a-z ]+)\?", text):
        (name,) = [c[0] for c in centers if place(*c[2:]) == found[1]]
        return name
    if found := re.fullmatch(rf"is the (\w+) ({directions}) the (\w+)\?", text):
        return "yes" if side(*the(found[1])[2:], *the(found[3])[2:], found[2]) else "no"
    if found := re.fullmatch(rf"what is directly ({directions}) the (\w+)\?", text):
        _, _, x, y = the(found[2])
        level = [c for c in centers if abs(c[3] - y if found[1].endswith("of") else c[2] - x) <= 42]
        (name,) = [c[0] for c in level if side(c[2], c[3], x, y, found[1]) and max(abs(c[2] - x), abs(c[3] - y)) >= 28]
        return name
    if found := re.fullmatch(r"what color is the (\w+)\?", text):
        return the(found[1])[1]
    if found := re.fullmatch(r"how many (\w+) are there\?", text):
        return ["zero", "one", "two", "three", "four"][sum(c[0] == singular(found[1]) for c in centers)]
    if found := re.fullmatch(r"what word is on the (\w+) sign\?", text):
        (word,) = [sign.word for sign in scene.signs if sign.color == found[1]]
        return word
    raise AssertionError(f"no rule for {text!r}")


def statement_holds(scene: scenes.Scene, text: str) -> bool:
    """Truth of a question of the pairs task, by way of the open question that it answers."""
    for pattern, open_question in (
        (r"is the number of (\w+) (\w+)\?", "how many {} are there?"),
        (r"is the (\w+) at the ([a-z ]+)\?", "where is the {}?"),
        (r"is the (\w+) (\w+)\?", "what color is the {}?"),
        (r"does the (\w+) sign say (\w+)\?", "what word is on the {} sign?"),
    ):
        if found := re.fullmatch(pattern, text):
            return answer_from_description(scene, open_question.format(found[1])) == found[2]
    return answer_from_description(scene, text) == "yes"


def which_is_there(scene: scenes.Scene, options: dict[str, str]) -> str:
    (letter,) = [letter for letter, name in options.items() if name in scene.names]
    return letter


def test_vocabulary():
    assert len(scenes.NAMES) == len(set(scenes.NAMES)) == 80
    assert len(scenes.WORDS) == len(set(scenes.WORDS)) == 100
    assert not set(scenes.WORDS) & set(scenes.NAMES), "a word on a sign must not read like the name of a thing"
    assert scenes.PAINTED <= set(scenes.NAMES)
    assert [scenes.plural(name) for name in ("dog", "bus", "cactus", "tomato")] == ["dogs", "buses", "cactuses", "tomatoes"]


def test_sprites_are_whole():
    folder = dart.data_root() / "scenes"
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("task", scenes.TASKS)
def test_questions_are_fixed(task):
    assert scenes.checksum(task)[:12] == CHECKSUMS[task]


@pytest.mark.parametrize("background", scenes.BACKGROUNDS)
def test_pixels_are_fixed(background):
    if PIL.__version__.split(".")[0] != "13":
        pytest.skip(f"pixel checksums are of Pillow 13, this is {PIL.__version__}")
    assert pixel_checksum(background) == PIXELS[background]


def test_a_fresh_process_draws_the_same():
    code = "import hashlib; from dart import scenes; print(hashlib.sha256(scenes.draw(scenes.compose(5)).tobytes()).hexdigest())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert runs == {hashlib.sha256(scenes.draw(scenes.compose(5)).tobytes()).hexdigest()}


def test_scenes_are_small_crowded_and_do_not_overlap():
    made = [scenes.compose(seed) for seed in SEEDS]
    for scene in made:
        boxes = [item.box for item in (*scene.things, *scene.signs)]
        for index, (left, top, right, bottom) in enumerate(boxes):
            assert 0 <= left < right <= scenes.SIZE and 0 <= top < bottom <= scenes.SIZE
            for l, t, r, b in boxes[:index]:
                assert right <= l or r <= left or bottom <= t or b <= top
        assert all(3 <= scene.patches(thing).sum() <= 16 for thing in scene.things)
    things = [len(scene.things) for scene in made]
    assert min(things) == 3 and max(things) == 8
    assert Counter(scene.background for scene in made).keys() == set(scenes.BACKGROUNDS)
    assert {len(scene.signs) for scene in made} == {0, 1, 2}


def test_a_thing_changes_its_patches_and_no_other_pixel():
    scene = scenes.compose(7, background="photo")
    bare = np.asarray(scenes.draw(scenes.replace(scene, things=()))).astype(int)
    for thing in scene.things:
        alone = np.asarray(scenes.draw(scenes.replace(scene, things=(thing,)))).astype(int)
        changed = (alone != bare).any(-1)
        left, top, right, bottom = thing.box
        outside = changed.copy()
        outside[top:bottom, left:right] = False
        assert not outside.any()
        assert changed[top:bottom, left:right].mean() > 0.3


def test_colors_can_be_seen():
    for color, value in scenes.COLORS.items():
        thing = scenes.Thing("heart", 100, 100, 48, color)
        pixels = np.asarray(scenes.draw(scenes.Scene(0, "plain", (thing,), ())))[112:136, 112:136].reshape(-1, 3)
        nearest = min(scenes.COLORS, key=lambda other: np.abs(np.median(pixels, 0) - scenes.COLORS[other]).sum())
        assert nearest == color


def test_unseen_drawings_change_the_picture_and_nothing_else():
    seen, unseen = scenes.questions("existence"), scenes.questions("existence-unseen")
    assert [(q.text, q.answer) for q in seen] == [(q.text, q.answer) for q in unseen]
    assert {q.scene.drawings for q in unseen} == {"fluent"}
    assert scenes.draw(seen[0].scene).tobytes() != scenes.draw(unseen[0].scene).tobytes()


def test_test_scenes_are_held_out():
    for task in scenes.TASKS:
        assert all(question.scene.seed >= scenes.TEST_SEED for question in scenes.questions(task))


@pytest.mark.parametrize("task", ["existence", "relations", "attributes", "reading"])
def test_answers_hold_in_the_scene(task):
    for question in scenes.questions(task):
        assert question.answer == answer_from_description(question.scene, question.text), question.text
        assert question.answer in question.choices


def test_pairs_are_one_true_and_one_false():
    groups = {}
    for question in scenes.questions("pairs"):
        assert (question.answer == "yes") == statement_holds(question.scene, question.text), question.text
        groups.setdefault(question.group, []).append(question.answer)
    assert set(map(tuple, groups.values())) == {("yes", "no")}


def test_choices_have_one_right_option_in_four_rotations():
    groups = {}
    for question in scenes.questions("choice"):
        text, listed = re.fullmatch(r"(.*\?) (A\..*)", question.text).groups()
        options = dict(zip("ABCD", re.split(r" ?[A-D]\. ", listed)[1:]))
        assert len(set(options.values())) == 4
        if question.kind == "existence":
            assert question.answer == which_is_there(question.scene, options)
        else:
            assert options[question.answer] == answer_from_description(question.scene, text)
        groups.setdefault(question.group, []).append((question.answer, options[question.answer]))
    for turned in groups.values():
        assert {letter for letter, _ in turned} == set("ABCD") and len({option for _, option in turned}) == 1


def test_evidence_is_what_is_asked_about():
    for task in ("existence", "relations", "attributes", "reading"):
        for question in scenes.questions(task):
            items = (*question.scene.things, *question.scene.signs)
            assert all(item in items for item in question.evidence)
            assert bool(question.evidence) == (question.answer != "no" or "is there" not in question.text)


def test_sizes_and_balance():
    for task, made in scenes.TASKS.items():
        assert len(scenes.questions(task)) == made.size >= 500
        assert "protocol" in made.title
    answers = lambda task, kind: Counter(q.answer for q in scenes.questions(task) if q.kind == kind)
    for split in scenes.SPLITS:
        assert answers("existence", split) == {"yes": 252, "no": 252}
    for task, kind, n in (("attributes", "color", 8), ("attributes", "count", 4), ("relations", "where", 9)):
        found = answers(task, kind)
        assert len(found) == n and max(found.values()) - min(found.values()) <= 2
    assert abs(answers("relations", "relation")["yes"] - answers("relations", "relation")["no"]) <= 2


def test_splits_of_existence_differ_as_pope_wants():
    alone, together = scenes._company()
    absent = {split: [] for split in scenes.SPLITS}
    for question in scenes.questions("existence"):
        if question.answer == "no":
            name = re.findall(r"\w+", question.text)[-1]
            company = sum(together[name][present] for present in question.scene.names)
            absent[question.kind].append((alone[name], company))
    mean = {split: np.mean(rows, 0) for split, rows in absent.items()}
    assert mean["popular"][0] > 1.3 * mean["random"][0]
    assert mean["adversarial"][1] > max(mean["popular"][1], 1.5 * mean["random"][1])


def test_existence_scores_by_hand():
    asked = [q for q in scenes.questions("existence") if q.kind == "random"][:6]
    assert [q.answer for q in asked] == ["yes", "no"] * 3
    scores = scenes.score("existence", asked, ["Yes.", "yes", "no", "no", "yes", "perhaps"])
    # hits 2, misses 1, false alarms 1: precision 2/3, recall 2/3
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["accuracy"] == pytest.approx(3 / 6), "an answer that is neither yes nor no is wrong"
    assert scores["yes_rate"] == pytest.approx(1 / 2)


def test_pairs_and_choice_scores_by_hand():
    pairs = scenes.questions("pairs")[:20]
    truth = [q.answer for q in pairs]
    scores = scenes.score("pairs", pairs, truth)
    assert (scores["accuracy"], scores["accuracy_plus"], scores["score"]) == (1, 1, 1000)
    scores = scenes.score("pairs", pairs, ["yes"] * 20)
    assert (scores["accuracy"], scores["accuracy_plus"], scores["score"]) == (0.5, 0, 250)
    choice = scenes.questions("choice")[:8]
    truth = [q.answer for q in choice]
    wrong = ["A" if truth[0] != "A" else "B", *truth[1:]]
    scores = scenes.score("choice", choice, wrong)
    assert (scores["accuracy"], scores["circular"]) == (7 / 8, 1 / 2)
    with pytest.raises(ValueError, match="8 questions but 3 answers"):
        scenes.score("choice", choice, truth[:3])


@pytest.mark.parametrize("task", scenes.TASKS)
def test_pictures_are_needed(task):
    """What blind answering gets must leave room: the floors of the model are 0.85 to 0.95."""
    floors = scenes.floors(task)
    metric = {"existence": "f1", "choice": "circular", "pairs": "accuracy"}.get(task, "accuracy")
    limit = {"existence": 0.70, "pairs": 0.56, "relations": 0.22, "attributes": 0.24, "reading": 0.05, "choice": 0.05}
    assert floors["blind"][metric] <= limit[task]
    assert floors["chance"][metric] <= floors["blind"][metric] + 0.02


def test_chance_is_what_guessing_gives():
    dice = random.Random(0)
    for task in ("relations", "pairs", "existence"):
        asked = scenes.questions(task)
        runs = [scenes.score(task, asked, [dice.choice(q.choices) for q in asked]) for _ in range(30)]
        for metric, expected in scenes.floors(task)["chance"].items():
            assert np.mean([run[metric] for run in runs]) == pytest.approx(expected, rel=0.05)


def test_wrong_names_are_answered_with_right_ones():
    with pytest.raises(KeyError, match="existence"):
        scenes.questions("existance")
    with pytest.raises(ValueError, match="plain, texture, photo"):
        scenes.compose(0, background="marble")
    with pytest.raises(ValueError, match="noto, fluent"):
        scenes.compose(0, drawings="twemoji")


def test_easy_vqa_reads_the_package():
    pytest.importorskip("easy_vqa")
    asked = easy_vqa.questions()
    assert (len(asked), len(easy_vqa.questions("train"))) == (9673, 38575)
    assert asked[0].text == "what is the red shape?" and asked[0].answer == "triangle"
    assert asked[0].picture().size == (64, 64)
    assert easy_vqa.floors()["blind"]["accuracy"] == pytest.approx(0.670, abs=5e-4)
