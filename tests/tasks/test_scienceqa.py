import json

import published
import pytest

from dart.tasks import scienceqa
from dart.tasks.prompts import LETTER


def test_questions_and_scores_by_hand(tmp_path):
    asked = scienceqa.questions(published.scienceqa(tmp_path))
    assert [q.id for q in asked] == ["5", "8"], "problem 6 has no picture"
    assert asked[0].text == f"Context: Fish swim.\nWhat is shown?\nA. a wing\nB. a fin\nC. a leg\n{LETTER}"
    assert asked[1].text == f"Which colony?\nA. Ohio\nB. Maine\n{LETTER}"
    assert asked[0].answer == "B" and asked[0].choices == ("A", "B", "C") and asked[0].picture_key == "test/5/image.png"
    scores = scienceqa.score(asked, ["B. a fin", "b"])
    assert scores == {"accuracy": 0.5, "accuracy/natural science": 1, "accuracy/social science": 0}
    assert scienceqa.floors(tmp_path)["chance"]["accuracy"] == pytest.approx((1 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("answer, letter", [
    ("B", "B"), ("B. a fin", "B"), ("The answer is B.", "B"), ("So: The answer is C. Really", "C"), ("The answer is B", None),
    ("b", None), ("B.", None), ("B)", None), ("AB", None), ("", None), ("F", None), ("The answer is A. The answer is B.", None),
])
def test_letters_as_the_script_reads_them(answer, letter):
    assert scienceqa.letter(answer) == letter


def test_submission(tmp_path):
    asked = scienceqa.questions(published.scienceqa(tmp_path))
    record = json.loads(scienceqa.submission(asked, ["B", "D"], tmp_path / "out").read_text())
    assert record["results"] == {"5": 1, "8": -1} and record["outputs"] == {"5": "B", "8": "D"}, "D is no option of two"
    assert (record["acc"], record["correct"], record["count"]) == (50, 1, 2)


def test_bad_files_are_named(tmp_path):
    published.scienceqa(tmp_path)
    problems = json.loads((tmp_path / "problems.json").read_text())
    published.document(tmp_path / "problems.json", {**problems, "8": {**problems["8"], "answer": 2}})
    with pytest.raises(ValueError, match="problems.json, problem 8: answer 2 of 2 choices"):
        scienceqa.questions(tmp_path)
    published.document(tmp_path / "problems.json", {"5": problems["5"]})
    with pytest.raises(ValueError, match="lacks problem 6, which the test split of pid_splits.json names"):
        scienceqa.questions(tmp_path)
