"""The lmms-eval plugin as far as it goes without lmms-eval: settings, prompts, answers."""

import logging
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

import dart
from dart import evaluation, lmms

sys.path.insert(0, str(Path(__file__).parent))
from test_evaluation import folder, loaded  # noqa: E402, F401  a tiny model

ARGUMENTS = ["pretrained", "method", "batch_size", "device"]


def question_as_messages(question):
    content = [{"type": "image", "url": picture} for picture in evaluation._pictures(question)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question.text}]}]


def test_the_entry_point_names_what_is_there():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["lmms_eval.models"]["dart"].split(":")
    assert callable(getattr(import_module(module), name))


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(("name", "settings", "method"), [
    ("unpruned", {}, None),
    ("dart", {"reduction_ratio": 0.889}, dart.DART(reduction_ratio=0.889)),
    ("dart", {"keep": 64, "layer": 3, "pivot_rule": "random"}, dart.DART(keep=64, layer=3, pivot_rule="random")),
    ("fitprune", {"keep": 64, "recipe": "[0, 3, 9]"}, dart.FitPrune(keep=64, recipe=(0, 3, 9))),
])
def test_fields_of_a_method_are_model_arguments(name, settings, method):
    assert lmms.find_method(name, settings, ARGUMENTS) == method


@pytest.mark.parametrize("name", [name for name, method in evaluation.METHODS.items() if method])
def test_every_method_can_be_named(name):
    assert lmms.find_method(name, {"keep": 64}) == evaluation.find_method(name, 64)


@pytest.mark.parametrize(("name", "settings", "said"), [
    ("drt", {}, "method 'drt' is not known; did you mean dart"),
    ("dart", {"kep": 64}, "'kep' is not known; did you mean keep"),
    ("dart", {"keep": 64, "pivot_rul": "random"}, "did you mean pivot_rule"),
    ("dart", {"keep": 64, "pretraned": "x"}, "did you mean pretrained"),
    ("dart", {}, "give exactly one of keep, per_pivot, reduction_ratio"),
    ("dart", {"keep": 64, "pivot_rule": "rando"}, "give one of 'key-norm-max'"),
    ("fastv", {"layer": 2}, "method=fastv wants keep"),
    ("unpruned", {"keep": 64}, "method=unpruned leaves the model alone; drop keep"),
    ("unpruned", {"pretraned": "x"}, "did you mean pretrained"),
])
def test_what_cannot_be_meant_is_refused_with_help(name, settings, said):
    with pytest.raises(ValueError) as refusal:
        lmms.find_method(name, settings, ARGUMENTS)
    assert said in str(refusal.value)


@pytest.mark.parametrize(("arguments", "said"), [
    ({"batch_size": "auto"}, "batch_size=auto; give a whole number"),
    ({"batch_size": 0}, "batch_size=0; give a whole number"),
    ({"max_num_frames": 0}, "max_num_frames=0; give a whole number"),
    ({"dtype": "float61", "device": "cpu"}, "dtype 'float61' is not known; did you mean float16"),
    ({"pretrained": "/nowhere", "device": "cpu"}, "no model in /nowhere"),
    ({"revision": "main", "device": "cpu"}, "leave the revision out"),
    ({"max_pixels": 9999, "device": "cpu"}, "leave max_pixels out"),
])
def test_arguments_of_the_model_are_checked(folder, arguments, said):  # noqa: F811
    with pytest.raises((ValueError, FileNotFoundError)) as refusal:
        lmms.Pruned(**{"pretrained": folder, "method": "unpruned", **arguments})
    assert said in str(refusal.value)


def test_greedy_unless_a_temperature_is_given(caplog):
    given = {"max_new_tokens": 16, "temperature": 0, "top_p": None, "num_beams": 1, "do_sample": False, "until": ["\n\n"]}
    how, until = lmms.generation(given)
    assert how == {"max_new_tokens": 16, "num_beams": 1, "do_sample": False} and until == ["\n\n"]
    how, until = lmms.generation({"temperature": 0.7, "top_p": 0.9, "until": "."})
    assert how == {"max_new_tokens": lmms.TOKENS, "temperature": 0.7, "top_p": 0.9, "do_sample": True} and until == ["."]
    with caplog.at_level(logging.WARNING):
        how, _ = lmms.generation({"image_aspect_ratio": "pad"})
    assert "image_aspect_ratio=pad" in caplog.text and "image_aspect_ratio" not in how


def test_an_answer_ends_before_the_first_of_the_ends():
    assert lmms.cut("a cat. and\n\na dog", ["\n\n", ". "]) == "a cat"
    assert lmms.cut("a cat", ["\n\n", ""]) == "a cat"


# ------------------------------------------------------------------------------------------------ prompts


def test_prompts_are_those_of_dart_eval(loaded):  # noqa: F811
    """Rows of several lengths, one picture or several each."""
    model, processor = loaded
    asked = [evaluation.asked_of(task, 1)[0] for task in ("existence", "relations", "videos")]
    ours, _ = evaluation.prompts(model, processor, asked)
    theirs = lmms.prompts(model, processor, [question_as_messages(question) for question in asked])
    assert set(ours) == set(theirs) and bool((ours["attention_mask"] == 0).any())
    for name in ours:
        assert torch.equal(ours[name], theirs[name])


def test_a_batch_may_hold_prompts_without_a_picture(loaded):  # noqa: F811
    model, processor = loaded
    words = [{"role": "user", "content": [{"type": "text", "text": "is there a dog?"}]}]
    seen = question_as_messages(evaluation.asked_of("existence", 1)[0])
    said = lmms.answer(model, processor, [words, seen], dart.DART(keep=64), {"max_new_tokens": 2, "do_sample": False})
    assert len(said.texts) == 2 and said.images == [(576, 64)]


def test_frames_are_evenly_spaced():
    grey = [Image.new("L", (4, 3), value) for value in range(0, 110, 10)]
    shown, metadata = lmms.frames(grey, most=3)
    assert shown.shape == (3, 3, 4, 3) and shown[:, 0, 0, 0].tolist() == [0, 50, 100]
    assert metadata.frames_indices.tolist() == [0, 5, 10]
    assert len(lmms.frames(grey, most=32)[0]) == 11


@pytest.mark.parametrize(("start", "end", "indices"), [
    (None, None, [0, 50, 99]), (2, 4, [20, 30, 40]), (9, 60, [90, 94, 99]), (60, None, [99]),
])
def test_a_part_of_a_video_is_given_in_seconds(monkeypatch, start, end, indices):
    ten_a_second = VideoMetadata(total_num_frames=100, fps=10.0)
    monkeypatch.setattr(lmms, "load_video", lambda name, sample_indices_fn: (name, sample_indices_fn(ten_a_second)))
    name, chosen = lmms.frames("a.mp4", 3, start, end)
    assert name == "a.mp4" and chosen.tolist() == indices


def test_a_video_becomes_pictures_for_a_model_that_takes_none():
    film = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((4, 2, 2, 3), np.uint8)
    messages = [{"role": "user", "content": [{"type": "video", "url": film}, {"type": "text", "text": "what happens?"}]}]
    ((turn,), metadata) = lmms.conversation(messages, 2, videos=False)
    assert [part["type"] for part in turn["content"]] == ["image", "image", "text"] and not metadata
    assert [part["image"].getpixel((0, 0))[0] for part in turn["content"][:2]] == [0, 3]
    ((turn,), metadata) = lmms.conversation(messages, 2, videos=True)
    assert turn["content"][0]["video"].shape == (2, 2, 2, 3) and metadata[0].frames_indices.tolist() == [0, 3]


def test_sound_is_refused():
    with pytest.raises(ValueError, match="part of type 'audio'"):
        lmms.conversation([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], 2, videos=True)


# ------------------------------------------------------------------------------------------------ answers


def test_answers_are_those_of_dart_eval(loaded):  # noqa: F811
    model, processor = loaded
    asked = evaluation.asked_of("existence", 6)[:6]
    methods = [None, dart.DART(keep=64), dart.Random(keep=0, seed=0)]
    ours = evaluation.answer(model, processor, asked, methods, tokens=4)
    assert len(set(map(tuple, ours))) > 1, "methods that all say the same would prove nothing"
    messages = [question_as_messages(question) for question in asked]
    for method, texts in zip(methods, ours):
        said = lmms.answer(model, processor, messages, method, {"max_new_tokens": 4, "do_sample": False})
        assert said.texts == texts
        assert said.images == ([(576, method.keep)] * 6 if method else [])


def requests(*kinds):
    arguments = [("", None, {"max_new_tokens": kind}, number, "task", "test") for number, kind in enumerate(kinds)]
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.fixture
def model():
    """One that is not loaded, as lmms-eval calls it."""
    made = object.__new__(lmms.Pruned)
    made.model = made.processor = made.method = None
    made.batch_size, made.options = 4, {}
    return made


def test_requests_of_one_kind_share_batches_in_their_order(model):
    assert list(model._batches(requests(8, 8, 16, 8, 8, 8, 16))) == [[0, 1, 3, 4], [5], [2, 6]]


def test_where_memory_does_not_suffice_the_batch_is_halved(model, monkeypatch, caplog):
    def two_at_most(model, processor, asked, *_, **__):
        if len(asked) > 2:
            raise torch.OutOfMemoryError
        return lmms.Said(list(asked), [1] * len(asked), [])

    monkeypatch.setattr(lmms, "answer", two_at_most)
    batches = model._batches(requests(*[8] * 10))
    with caplog.at_level(logging.WARNING):
        answered = [model._answer(batch, {}).texts for batch in batches]
    assert answered == [[0, 1, 2, 3], [4, 5], [6, 7], [8, 9]] and model.batch_size == 2
    assert "out of memory with 4 questions at a time; going on with 2" in caplog.text


def test_memory_that_does_not_suffice_for_one_question_is_said(model, monkeypatch):
    def never(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(lmms, "answer", never)
    with pytest.raises(ValueError, match="out of memory with one question at a time"):
        model._answer([0], {})


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until_multi_round"])
def test_other_kinds_of_tasks_are_refused(model, kind):
    with pytest.raises(NotImplementedError, match="output_type generate_until"):
        getattr(model, kind)([])
