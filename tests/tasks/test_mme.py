import published
import pytest

from dart.tasks import mme
from dart.tasks.prompts import SHORT


@pytest.fixture
def folder(tmp_path):
    return published.mme(tmp_path)


def test_questions_as_llava_asks_them(folder):
    asked = mme.questions(folder)
    assert len(asked) == 14 * 2 * 2
    first, second = asked[:2]
    assert first.text == f"Is this existence 1?\n{SHORT}" and second.text == f"Is this a lie?\n{SHORT}"
    assert (first.answer, second.answer) == ("yes", "no") and first.group == second.group
    assert {q.stratum for q in asked if q.kind == "OCR"} == {"perception"}
    assert {q.stratum for q in asked if q.kind == "text_translation"} == {"cognition"}
    poster = next(q for q in asked if q.kind == "posters")
    assert poster.source.parent.name == "images" and poster.picture_key == "posters/0001.jpg"


def test_a_folder_inside_the_folder_is_read_too(folder):
    release = folder / "MME_Benchmark_release_version"
    release.rename(folder / "MME_Benchmark")
    release.mkdir()
    (folder / "MME_Benchmark").rename(release / "MME_Benchmark")
    assert len(mme.questions(folder)) == 56


def test_scores_by_hand(folder):
    asked = mme.questions(folder)
    answers = ["Yes" if q.kind == "color" else q.answer for q in asked]
    scores = mme.score(asked, answers)
    # color: always yes is right on one of two questions and on no whole picture: 100 (0.5 + 0)
    assert scores["accuracy/color"] == 0.5 and scores["accuracy_plus/color"] == 0 and scores["score/color"] == 50
    assert scores["score/OCR"] == 200
    assert scores["perception"] == 9 * 200 + 50 and scores["cognition"] == 4 * 200 and scores["score"] == 2650
    # one of four wrong in code_reasoning: accuracy 3/4, one of two pictures whole
    answers = [q.answer for q in asked]
    answers[-1] = "perhaps"
    scores = mme.score(asked, answers)
    assert scores["score/code_reasoning"] == 100 * (0.75 + 0.5) and scores["cognition"] == 3 * 200 + 125


def test_floors(folder):
    floors = mme.floors(folder)
    assert floors["blind"]["score"] == 14 * 50 and floors["chance"]["score"] == 14 * 75


@pytest.mark.parametrize("answer, label", [
    ("Yes", "yes"), ("no.", "no"), ("Oh yes", "other"), ("A yes", "other"), ("a no", "no"), ("NO", "no"), ("", "other"),
    ("y", "other"), ("noyes", "no"), ("eyes", "yes"),
])
def test_the_first_four_characters_decide(answer, label):
    assert mme.label(answer) == label


def test_submission(folder, tmp_path):
    asked = mme.questions(folder)
    out = mme.submission(asked, ["Yes,\n it is"] * len(asked), tmp_path / "out")
    lines = (out / "existence.txt").read_text().splitlines()
    assert lines[1].split("\t") == ["0001.txt", "Is this a lie?  Please answer yes or no.", "No", "Yes, it is"]
    assert len(list(out.iterdir())) == 14 and len(lines) == 4


def test_bad_files_are_named(folder):
    place = folder / "MME_Benchmark_release_version" / "count"
    file = place / "0002.txt"
    whole = file.read_text()
    file.write_text("Is it?\tYes\n")
    with pytest.raises(ValueError, match="0002.txt has 1 questions; MME has two"):
        mme.questions(folder)
    file.write_text("Is it?\tYes\nIs it not? No\n")
    with pytest.raises(ValueError, match="0002.txt, line 2: no tab"):
        mme.questions(folder)
    file.write_text("Is it?\tYes\nIs it not?\tPerhaps\n")
    with pytest.raises(ValueError, match="0002.txt, line 2: answer 'perhaps'"):
        mme.questions(folder)
    file.write_text(whole)
    (place / "0002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"0002.txt has no picture 0002.jpg or .png in .*count; get https://github.com/"):
        mme.questions(folder)
    (place / "0001.txt").unlink(), (place / "0002.txt").unlink(), (place / "0001.jpg").unlink(), place.rmdir()
    with pytest.raises(FileNotFoundError, match="subtask count is missing at .*count"):
        mme.questions(folder)
