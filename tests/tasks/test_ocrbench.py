import json

import published
import pytest

from dart.tasks import ocrbench
from dart.tasks.prompts import SHORT


def test_questions_and_scores_by_hand(tmp_path):
    asked = ocrbench.questions(published.ocrbench(tmp_path))
    assert asked[0].text == f"what is written in the image?\n{SHORT}" and asked[0].picture_key == "OCRBench/IIIT5K/1.png"
    assert [q.stratum for q in asked[:3]] == ["Text Recognition", "Text Recognition", "Doc-oriented VQA"]
    # contained without case; a second true answer; a line end as a space; a formula without any space
    right = ["The word is Centre!", "antonio's pizza", "on May\n5, 1990", "$y_{2}=-1$"]
    scores = ocrbench.score(asked, right)
    assert scores["score"] == 4 and scores["recognition"] == 2 and scores["accuracy"] == 1
    assert scores["score/Handwritten Mathematical Expression Recognition"] == 1
    # a part of the word; another word; spaces count outside formulas; case counts in formulas
    assert ocrbench.score(asked, ["CENT", "Anton", "May5", "Y_{2}=-1"])["score"] == 0


def test_weighted_points_are_out_of_the_number_of_questions(tmp_path):
    asked = ocrbench.questions(published.ocrbench(tmp_path))
    scores = ocrbench.score(asked, ["centre", "", "", ""], [3, 1, 0, 0])
    assert scores["score"] == 4 * 3 / 4 and scores["recognition"] == 2 * 3 / 4


def test_submission(tmp_path):
    asked = ocrbench.questions(published.ocrbench(tmp_path))
    rows = json.loads(ocrbench.submission(asked, ["centre", "", "", ""], tmp_path / "out").read_text())
    assert rows[0]["predict"] == "centre" and rows[0]["dataset_name"] == "IIIT5K"
    assert [row["result"] for row in rows] == [1, 0, 0, 0]


def test_an_unknown_type_is_named(tmp_path):
    path = published.ocrbench(tmp_path) / "OCRBench" / "OCRBench.json"
    path.write_text(path.read_text().replace("Doc-oriented VQA", "Documents"))
    with pytest.raises(ValueError, match="OCRBench.json, question 3: type 'Documents' is not one of Regular Text"):
        ocrbench.questions(tmp_path)
