import json

import published
import pytest

from dart.tasks import pope
from dart.tasks.prompts import SHORT


@pytest.fixture
def folder(tmp_path):
    return published.pope(tmp_path)


def test_questions_as_llava_asks_them(folder):
    asked = pope.questions(folder)
    assert [question.kind for question in asked] == ["random"] * 3 + ["popular"] * 3 + ["adversarial"] * 3
    assert asked[4].text == f"Is there a person in the image?\n{SHORT}"
    assert asked[4].answer == "no" and asked[4].choices == ("yes", "no")
    assert asked[4].picture_key == "val2014/COCO_val2014_000000000001.jpg"


def test_scores_by_hand(folder):
    asked = pope.questions(folder)  # truths are yes, no, yes in each split
    answers = ["Yes", "No", "No",                    # random: tp 1, fn 1, tn 1
               "Yes, there is.", "Yes", "yes",       # popular: tp 2, fp 1
               "No.", "no", "There is not"]          # adversarial: fn 2, tn 1
    scores = pope.score(asked, answers)
    assert scores["f1/random"] == pytest.approx(2 * 1 / (2 + 1))             # 2 tp / (positives + said yes)
    assert scores["precision/random"] == 1 and scores["recall/random"] == 0.5
    assert scores["f1/popular"] == pytest.approx(2 * 2 / (2 + 3))
    assert scores["precision/popular"] == pytest.approx(2 / 3) and scores["recall/popular"] == 1
    assert scores["f1/adversarial"] == 0 and scores["precision/adversarial"] == 0, "nothing was claimed"
    assert scores["accuracy/random"] == pytest.approx(2 / 3) and scores["accuracy/adversarial"] == pytest.approx(1 / 3)
    assert scores["yes_rate/popular"] == 1 and scores["yes_rate/adversarial"] == 0
    assert scores["f1"] == pytest.approx((2 / 3 + 4 / 5 + 0) / 3)
    assert scores["accuracy"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)
    assert scores["yes_rate"] == pytest.approx((1 / 3 + 1 + 0) / 3)


@pytest.mark.parametrize("answer, yes", [
    ("Yes", True), ("No", False), ("no", False), ("No, there is no dog", False), ("It is not there", False),
    ("", True), ("NO", True), ("no!", True), ("Yes. No dog though", True), ("No\nYes", True), ("nothing", True),
    ("Well, no.", False),
])
def test_yes_as_the_script_reads_it(answer, yes):
    assert pope.yes(answer) is yes


def test_floors(folder):
    floors = pope.floors(folder)
    assert floors["blind"]["f1"] == pytest.approx(2 * 2 / (2 + 3))     # always yes: all positives found, 3 claimed
    assert floors["chance"]["f1"] == pytest.approx(2 * 0.5 * (2 / 3) / (2 / 3 + 0.5))


def test_submission(folder, tmp_path):
    asked = pope.questions(folder)
    out = pope.submission(asked, ["Yes\n"] * 9, tmp_path / "out")
    rows = [json.loads(line) for line in (out / "coco_pope_popular.json").read_text().splitlines()]
    assert rows[1] == {"question": "Is there a person in the image?", "answer": "Yes"} and len(rows) == 3


def test_a_bad_line_is_named(folder):
    path = folder / "coco" / "coco_pope_popular.json"
    lines = path.read_text().splitlines()
    for bad, message in (
        ('{"question_id": 2, "ima', "popular.json, line 2: not JSON"),
        ('{"question_id": 2, "image": "a", "text": "?"}', "line 2: no 'label'; it has 'question_id', 'image', 'text'"),
        ('{"question_id": 2, "image": "a", "text": "?", "label": "maybe"}', "popular.json, line 2: label 'maybe' is not"),
        ("7", "popular.json, line 2: no 'question_id'; it is '7'"),
    ):
        path.write_text("\n".join([lines[0], bad, lines[2]]))
        with pytest.raises(ValueError, match=message):
            pope.questions(folder)
