"""`dart data check`: what is missing, cut short or not as published is found, and nothing else."""

import zipfile

import published
import pytest

from dart import cli, tasks
from dart.tasks import files


def found(root, *names):
    return [str(finding).replace(str(root), "ROOT") for finding in files.check(root, names)]


def test_every_task_has_files_and_a_source():
    assert list(files.FILES) == list(tasks.TASKS)
    for wanted in files.FILES.values():
        for file in wanted:
            assert "http" in file.source and not file.path.startswith("/")
            assert file.sha256 is None or len(file.sha256) == 64


def test_whole_files_give_no_finding(tmp_path):
    for name, folder in (("mme", "MME"), ("gqa", "gqa"), ("mmbench", "mmbench"), ("vizwiz", "vizwiz")):
        published.WRITERS[name](tmp_path / folder)
    assert found(tmp_path, "mme", "gqa", "mmbench", "vizwiz") == []


def test_missing_files_say_where_and_whence(tmp_path):
    assert found(tmp_path, "gqa") == [
        "gqa: ROOT/gqa/data/testdev_balanced_questions.json is missing; get "
        "https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip (1.4 GB) and unpack it into data/",
        "gqa: ROOT/gqa/data/images is missing; get "
        "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip (20 GB) and unpack it into data/",
    ]
    both = found(tmp_path, "textvqa")
    assert "or TextVQA_Rosetta_OCR_v0.2_val.json in its place" in both[2]
    published.textvqa(tmp_path / "textvqa")
    assert found(tmp_path, "textvqa") == [], "one of the two OCR files is enough"


def test_archives_beside_their_contents(tmp_path):
    home = tmp_path / "vizwiz"
    published.vizwiz(home / "unpacked")
    with zipfile.ZipFile(home / "Annotations.zip", "w") as archive:
        archive.write(home / "unpacked" / "val.json", "val.json")
    with zipfile.ZipFile(home / "val.zip", "w") as archive:
        for number in (0, 1):
            archive.write(home / "unpacked" / "val" / f"VizWiz_val_{number:08}.jpg", f"val/VizWiz_val_{number:08}.jpg")
    assert found(tmp_path, "vizwiz") == [
        "vizwiz: ROOT/vizwiz/val.json is missing; Annotations.zip lies there and only has to be unpacked",
        "vizwiz: ROOT/vizwiz/val is missing; val.zip lies there and only has to be unpacked",
    ]
    (home / "val.zip").write_bytes((home / "val.zip").read_bytes()[:-30])
    assert found(tmp_path, "vizwiz")[1].startswith("vizwiz: ROOT/vizwiz/val.zip is cut short or no archive; get https://vizwiz")


def test_files_cut_short(tmp_path):
    path = published.gqa(tmp_path / "gqa") / "data" / "testdev_balanced_questions.json"
    path.write_bytes(path.read_bytes()[:100])
    (finding,) = found(tmp_path, "gqa")
    assert finding.startswith("gqa: ROOT/gqa/data/testdev_balanced_questions.json is cut short or broken (")
    path.write_bytes(b"")
    assert found(tmp_path, "gqa")[0].startswith("gqa: ROOT/gqa/data/testdev_balanced_questions.json is empty; get")
    path = published.mmbench(tmp_path / "mmbench") / "mmbench_dev_20230712.tsv"
    path.write_text(path.read_text()[:-40])
    assert "tsv, line 5: cut short or broken row '1000007'" in found(tmp_path, "mmbench")[0]


def test_checksums(tmp_path):
    published.pope(tmp_path / "pope"), published.scienceqa(tmp_path / "scienceqa"), published.vqav2(tmp_path / "vqav2")
    shorter = found(tmp_path, "pope")
    assert len(shorter) == 3 and all("is cut short: " in each and " of 3" in each for each in shorter)
    assert [each.split(";")[0] for each in found(tmp_path, "scienceqa")] == [
        "scienceqa: ROOT/scienceqa/problems.json is not the published file (its git blob id is not 3920b762556a...)",
        "scienceqa: ROOT/scienceqa/pid_splits.json is cut short: 49 of 502,927 bytes",
    ]
    assert found(tmp_path, "vqav2") == []
    with zipfile.ZipFile(tmp_path / "vqav2" / "v2_Questions_Val_mscoco.zip", "w") as archive:
        archive.writestr("a", "b")
    (finding,) = found(tmp_path, "vqav2")
    assert "v2_Questions_Val_mscoco.zip is not the published file (its SHA-256 is not e71f6c5c3e97...)" in finding


def test_a_known_other_version_is_called_that(tmp_path, monkeypatch):
    home = published.pope(tmp_path / "pope")
    path = home / "coco" / "coco_pope_random.json"
    first = files.FILES["pope"][0]
    digest = files._sha256(path)
    other = files.File(first.path, first.source, sha256="0" * 64, other=((digest, "a later version"),))
    monkeypatch.setitem(files.FILES, "pope", (other,))
    assert found(tmp_path, "pope") == [f"pope: ROOT/pope/coco/coco_pope_random.json is a later version; {first.get}"]
    monkeypatch.setitem(files.FILES, "pope", (files.File(first.path, first.source, sha256=digest),))
    assert found(tmp_path, "pope") == []


def test_a_blob_id_is_gits(tmp_path):
    (tmp_path / "a").write_text("hello\n")
    assert files._git_blob(tmp_path / "a") == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


def test_lost_pictures_are_counted(tmp_path):
    home = published.vizwiz(tmp_path / "vizwiz")
    (home / "val" / "VizWiz_val_00000001.jpg").unlink()
    lost = "vizwiz: ROOT/vizwiz/val/VizWiz_val_00000001.jpg is missing, the other 1 pictures are there"
    assert found(tmp_path, "vizwiz") == [lost]
    (home / "val" / "VizWiz_val_00000000.jpg").rename(home / "val" / "other.jpg")
    assert found(tmp_path, "vizwiz") == ["vizwiz: ROOT/vizwiz/val/VizWiz_val_00000000.jpg is missing, and 1 more of 2 pictures"]


def test_the_command(tmp_path, capsys):
    published.gqa(tmp_path / "gqa")
    assert cli.main(["data", "check", "gqa", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "gqa: nothing is missing\n"
    assert cli.main(["data", "check", "gqa", "pope", "--folder", str(tmp_path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "gqa: nothing is missing" and len(said) == 1 + 4 and said[1].startswith("pope: ")
    assert cli.main(["data", "check", "gqaa"]) == 2
    assert "'gqaa' is no task with files to check; try gqa" in capsys.readouterr().err


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="try textvqa"):
        files.check("/", ["text-vqa"])
