"""Differences between rows are paired, and words follow from their intervals."""

import pytest

from dart import evaluation, reproduction
from dart.evaluation import Interval, Record

TASK = evaluation.find_task("attributes")
ASKED = list(TASK.questions())[:200]


def answered(right):
    """A run that is right on the questions for which `right(number)` is true."""
    answers = [question.answer if right(number) else "no answer" for number, question in enumerate(ASKED)]
    return Record(None, {"task": "attributes", "right": sum(map(right, range(200)))}, {}, {}, ASKED, answers)


@pytest.fixture
def experiment():
    found = reproduction.Experiment("figure-7", reproduction.Parameters(tasks="attributes"))
    both, image, text = found.at(128)
    runs = {
        found.unpruned: lambda n: n % 10 != 0,      # 180 of 200
        both: lambda n: n % 5 != 0,                 # 160 of these
        image: lambda n: n % 5 != 0 and n % 20 != 1,
    }
    for row, right in runs.items():
        found.runs["attributes", found.methods(row)[0]] = answered(right)
    return found


def test_a_difference_is_paired(experiment):
    both, image, text = experiment.at(128)
    found = experiment.difference(image, both)
    assert found.value == pytest.approx(-10 / 180)
    alone = experiment.average(image).interval
    assert found.high < 0 and found.high - found.low < 0.7 * (alone.high - alone.low), "the same questions stand on both sides"
    assert experiment.difference(both, both) == Interval(0, 0, 0)
    assert experiment.difference(text, both) is None


def test_words_follow_the_interval(experiment):
    both, image, text = experiment.at(128)
    assert experiment.verdict(image, both).startswith("clearly below image and text (−5.6 points [−")
    assert experiment.verdict(both, image).startswith("clearly above image only (+5.6 points [")
    assert experiment.verdict(both, both) == "not clearly different from image and text (+0.0 points [0.0, 0.0])"
    assert experiment.verdict(text, both) == "not run"
    assert [reproduction.sign(each) for each in (None, Interval(1, 0.1, 2), Interval(-1, -2, -0.1), Interval(1, -0.1, 2))] == [0, 1, -1, 0]


def test_pictures_come_once_each():
    experiment = reproduction.Experiment("figure-1", reproduction.Parameters(limit=40))
    asked = experiment.pictures(30)
    assert len({question.picture_key for question in asked}) == len(asked) == 30
    assert asked[0] == evaluation.asked_of("existence")[0] and asked[-1] in evaluation.asked_of("relations")
    assert len(experiment.pictures(5)) == 5
