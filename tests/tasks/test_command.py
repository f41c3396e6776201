"""`dart eval`: the authors' budgets by their own names, and what it says when something is wrong."""

import json
import shutil
from types import SimpleNamespace

import httpx
import published
import pytest
import torch
import transformers
from huggingface_hub import errors
from test_sweeps import MODEL
from tiny import tiny
from transformers.utils import hub

import dart
from dart import bundled, cli, evaluation

# ------------------------------------------------------------------------------------------------ budgets


def chosen(command, kind="llava", image_tokens=576):
    """Methods and notes of a command line, for a model whose first prompt has so many image tokens."""
    given = cli.build_parser().parse_args(["eval", *command.split()])
    cli.check_choice(given)
    model = SimpleNamespace(config=SimpleNamespace(model_type=kind))
    return cli.choose_methods(given, model, (image_tokens + 60, image_tokens))


@pytest.mark.parametrize("command, per_pivot, stays", [
    ("--max-num-trunction 192", 24, 196), ("--max-num-trunction 128", 16, 132), ("--max-num-trunction 64", 8, 68),
    ("--max-num-trunction 32", 4, 36), ("--max-num-trunction 71", 8, 68), ("--max-num-trunction 7", 0, 4),
    ("--reduction-ratio 0.667", 23, 188), ("--reduction-ratio 0.778", 15, 124), ("--reduction-ratio 0.889", 7, 60),
    ("--reduction-ratio 0.778 --max-num-trunction 128", 16, 132), ("--reduction-ratio 0.778 --layer 5 --max-num-trunction 64", 8, 68),
])
def test_released_budgets_are_those_of_the_authors_code(command, per_pivot, stays):
    (method,), (note,) = chosen(command)
    assert isinstance(method, dart.DART) and method.per_pivot == per_pivot and method.keep is method.reduction_ratio is None
    assert method.layer == (5 if "--layer" in command else 2)
    assert method.kept(576, 32) == [576] * method.layer + [stays] * (32 - method.layer)
    assert f"{stays} of 576 image tokens stay" in note
    assert evaluation.label(method).startswith("dart-") and "None" not in evaluation.label(method)


def test_a_number_overrides_the_ratio_and_says_so(capsys):
    chosen("--reduction-ratio 0.778 --max-num-trunction 128")
    assert "--max-num-trunction 128 overrides --reduction-ratio 0.778" in capsys.readouterr().err
    chosen("--reduction-ratio 0.778"), chosen("--max-num-trunction 128"), chosen("--keep 64 --methods dart")
    assert capsys.readouterr().err == ""


def test_on_llava_next_the_authors_code_takes_neither(capsys):
    (method,), (note,) = chosen("--reduction-ratio 0.9 --max-num-trunction 64", "llava_next", 2880)
    assert method.per_pivot == 40 and "324 of 2880 image tokens stay" in note
    assert "takes neither --reduction-ratio nor --max-num-trunction on LLaVA-NeXT" in capsys.readouterr().err


def test_pivots_share_the_released_budget():
    (plain, method), _ = chosen("--max-num-trunction 128 --methods unpruned dart:image_pivots=12,text_pivots=0")
    assert plain is None and method == dart.DART(per_pivot=10, image_pivots=12, text_pivots=0)


def test_exact_budgets_stay_exact():
    methods, notes = chosen("--methods unpruned dart --keep 130 64")
    assert methods == [None, dart.DART(keep=130), dart.DART(keep=64)] and notes == ["budgets: " + cli.budgets.MEANING["kept"]]
    assert [method.keep for method in chosen("--methods dart")[0]] == [192, 128, 64]
    assert [evaluation.label(method) for method in chosen("--keep 128 64")[0]] == ["unpruned", "dart-128", "random-128", "dart-64", "random-64"]
    assert len(chosen("--keep 64 --methods all")[0]) > 20


@pytest.mark.parametrize("command, said", [
    ("--max-num-trunction 128 --keep 64", "--max-num-trunction 128 is a released budget and --keep 64 an exact one; give one of them"),
    ("--reduction-ratio 0.9 --budget flops", "--reduction-ratio 0.9 says itself what stays; leave --budget flops out"),
    ("--reduction-ratio 0.9 --methods dart fastv tome", "is a budget of dart only, not of fastv, tome; give --keep N"),
    ("--reduction-ratio 0.9 --methods unpruned", "is a budget of dart, which --methods unpruned leaves out"),
    ("--reduction-ratio 90", "--reduction-ratio 90.0; it is the fraction that goes, give 0 to 1"),
    ("--max-num-trunction -1", "--max-num-trunction -1; give 0 or more"),
    ("--max-num-trunction 8 --methods dart:per_pivot=2", "give exactly one of keep, per_pivot"),
])
def test_budgets_that_cannot_be_meant_together(command, said):
    with pytest.raises(ValueError) as error:
        chosen(command)
    assert said in str(error.value)


def test_families_whose_released_budget_is_another_for_every_picture():
    with pytest.raises(ValueError, match="released budget of qwen2_vl is another for every picture; give --keep N"):
        chosen("--reduction-ratio 0.778", "qwen2_vl")


# ------------------------------------------------------------------------------------------------ bad input


@pytest.fixture
def pope(tmp_path, monkeypatch):
    """POPE's fixture where `dart eval` looks for it, and a model that says yes to all of it."""
    monkeypatch.setenv("DART_BENCHMARKS", str(tmp_path / "benchmarks"))
    monkeypatch.setattr(bundled, "load", lambda *args, **options: (MODEL, None))
    monkeypatch.setattr(evaluation, "prompt_size", lambda model, processor, question: question.picture() and (600, 576))

    def answer(model, processor, questions, methods, *, tokens):
        [question.picture() for question in questions]
        return [["yes"] * len(questions) for _ in methods]

    monkeypatch.setattr(evaluation, "answer", answer)
    return published.pope(tmp_path / "benchmarks" / "pope")


def run(tmp_path, *more):
    return cli.main(["eval", "--tasks", "pope", "--methods", "unpruned", "--batch", "1", "--out", str(tmp_path / "out"), *more])


def record(tmp_path):
    (folder,) = tmp_path.glob("out/pope/*")
    return folder, json.loads((folder / "environment.json").read_text())


def test_missing_files_are_named_with_their_place_and_source(tmp_path, pope, capsys):
    shutil.rmtree(pope)
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    assert f"{pope / 'coco' / 'coco_pope_random.json'} is missing; get https://" in said and "val2014.zip" in said
    assert run(tmp_path, "--skip-bad") == 2, "without questions there is nothing to go on with"


def test_files_that_are_not_as_published_are_refused_and_counted_if_passed_over(tmp_path, pope, capsys):
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    assert "coco_pope_random.json is cut short: " in said and " of 360,212 bytes" in said and "--skip-bad" in said
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, "--skip-bad") == 0
    said = capsys.readouterr().out
    assert "unpruned" in said and said.count("is cut short: ") == 3
    assert len(record(tmp_path)[1]["unlike"]) == 3
    assert run(tmp_path, "--skip-bad", "--store") == 2 and "is not stored; get the files first" in capsys.readouterr().err


def published_as_it_is(monkeypatch):
    monkeypatch.setattr(cli.files, "check", lambda tasks: [])


@pytest.mark.parametrize("number", [1, 2])
def test_a_picture_that_does_not_decode(tmp_path, pope, capsys, monkeypatch, number):
    published_as_it_is(monkeypatch)
    (pope / "val2014" / f"COCO_val2014_{number:012}.jpg").write_bytes(b"<html>")
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    assert f"picture {pope / 'val2014'}/COCO_val2014_{number:012}.jpg does not decode" in said
    if number == 2:
        (folder,) = tmp_path.glob("out/pope/*")
        assert len((folder / "predictions.jsonl").read_text().splitlines()) == 2, "the finished part is kept"
    with pytest.warns(UserWarning, match="left out"):
        assert run(tmp_path, "--skip-bad") == 0
    assert "skipped      " + str({1: 6, 2: 3}[number]) in capsys.readouterr().out
    assert len(record(tmp_path)[1]["skipped"]) == {1: 6, 2: 3}[number]


def test_a_question_file_with_a_bad_line(tmp_path, pope, capsys, monkeypatch):
    published_as_it_is(monkeypatch)
    path = pope / "coco" / "coco_pope_random.json"
    path.write_text(path.read_text().replace("{", "", 1))
    assert run(tmp_path) == 2
    assert f"{path}, line 1: not JSON" in capsys.readouterr().err
    assert run(tmp_path, "--skip-bad") == 0
    (why,) = record(tmp_path)[1]["skipped"]
    assert f"{path}, line 1: not JSON" in why and "skipped      1" in capsys.readouterr().out


def copy(folder):
    """The bundled model's files, but its weights, which are named only."""
    folder.mkdir()
    for path in (dart.data_root() / "model").iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    return folder


def test_weights_that_are_cut_short(tmp_path, capsys):
    folder = copy(tmp_path / "model")
    arguments = ["eval", "--model", str(folder), "--tasks", "existence", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert f"{folder / 'model.safetensors'} is missing, which {folder / 'SHA256SUMS'} names" in capsys.readouterr().err
    whole = (dart.data_root() / "model" / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert cli.main(arguments) == 2
    assert f"{folder / 'model.safetensors'} is cut short or another file (its SHA-256 is not" in capsys.readouterr().err
    (folder / "SHA256SUMS").unlink()
    assert cli.main(arguments) == 2
    assert f"weights of {folder} are cut short or broken" in capsys.readouterr().err
    (folder / "model.safetensors").unlink()
    assert cli.main(arguments) == 2
    assert f"the model in {folder} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("error, said", [
    (errors.RevisionNotFoundError, "owner/name has no revision 'v9'; its branches, tags and commits are on https://huggingface.co/owner"),
    (errors.RepositoryNotFoundError, "no model owner/name on the Hub; check owner and name"),
    (errors.GatedRepoError, "owner/name is open only to those who accepted its terms"),
    (errors.LocalEntryNotFoundError, "owner/name cannot be got from the Hub: .* Is there a network"),
])
def test_what_the_hub_refuses(tmp_path, capsys, monkeypatch, error, said):
    def refuse(*args, **options):
        local = error is errors.LocalEntryNotFoundError
        raise error("no") if local else error("no", response=httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co")))

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    arguments = ["eval", "--model", "owner/name", "--revision", "v9", "--tasks", "existence", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=said):
        bundled.load("owner/name", revision="v9")
    assert message.startswith("dart: owner/name ") or message.startswith("dart: no model owner/name")
    assert not (tmp_path / "out").exists()


def test_a_folder_has_no_revisions(tmp_path, capsys):
    assert cli.main(["eval", "--model", str(copy(tmp_path / "model")), "--revision", "v9", "--tasks", "existence"]) == 2
    assert "revision='v9'" in capsys.readouterr().err


def test_a_model_that_takes_no_pictures(tmp_path, capsys):
    transformers.LlamaConfig().save_pretrained(tmp_path)
    assert cli.main(["eval", "--model", str(tmp_path), "--tasks", "existence", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"dart: {tmp_path} takes no pictures, so there is no image token to prune (Unrecognized" in said and said.count("\n") == 1


def test_a_prompt_without_an_image_token():
    model = tiny("llava")
    question = SimpleNamespace(text="is there a dog?", picture=lambda: None)

    class Processor:
        ids = [[5, 6, 7]]

        def apply_chat_template(self, turns, **options):
            return "is there a dog?"

        def __call__(self, **given):
            return {"input_ids": torch.tensor(self.ids)}

    with pytest.raises(ValueError, match=r"holds no image token \(id \d+\), so nothing can be pruned; give a model whose"):
        evaluation.prompt_size(model, Processor(), question)
    Processor.ids = [[5, model.config.image_token_id, 7]]
    assert evaluation.prompt_size(model, Processor(), question) == (3, 1)
