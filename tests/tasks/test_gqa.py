import json

import published
import pytest

from dart.tasks import gqa
from dart.tasks.prompts import SHORT


def test_questions_and_scores_by_hand(tmp_path):
    asked = gqa.questions(published.gqa(tmp_path))
    assert [q.id for q in asked] == ["10", "11", "12"], "questions that are not balanced are left out"
    assert asked[1].text == f"Who is wearing the dress?\n{SHORT}" and asked[1].picture_key == "gqa/n1.jpg"
    assert (asked[2].kind, asked[2].stratum) == ("query", "attr")
    scores = gqa.score(asked, ["No.", "The woman", "dark brown.."])   # exact match of lower case, full stops off the end
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["binary"] == 1 and scores["open"] == 0.5
    assert scores["accuracy/verify"] == 1 and scores["accuracy/query"] == 0.5
    assert gqa.floors(tmp_path) == {"blind": {"accuracy": pytest.approx(2 / 3), "accuracy/verify": 1, "accuracy/query": 0.5,
                                              "binary": 1, "open": 0.5}, "chance": {}}


def test_submission(tmp_path):
    asked = gqa.questions(published.gqa(tmp_path))
    path = gqa.submission(asked, ["No.", "Woman", "red"], tmp_path / "out")
    assert path.name == "testdev_balanced_predictions.json"
    assert json.loads(path.read_text())[1] == {"questionId": "11", "prediction": "woman"}


def test_bad_files_are_named(tmp_path):
    path = published.gqa(tmp_path) / "data" / "testdev_balanced_questions.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"testdev_balanced_questions.json, line 1: not JSON \(.*\); get the file again"):
        gqa.questions(tmp_path)
    published.document(path, {"10": {"question": "Is it?", "answer": "no", "imageId": "n1", "types": {"structural": "verify"}}})
    with pytest.raises(ValueError, match="questions.json, question 10: no 'semantic'"):
        gqa.questions(tmp_path)
    published.document(path, [1])
    with pytest.raises(ValueError, match="questions.json holds a list where a dict is published"):
        gqa.questions(tmp_path)
    path.write_bytes(b'{"10": "caf\xe9"}')
    with pytest.raises(ValueError, match="questions.json: not UTF-8 text at byte 11"):
        gqa.questions(tmp_path)
