"""Which files a benchmark wants, where they lie, where they come from, and whether what lies there is whole.

Everything lies under one folder, `root()`, in the layout of LLaVA's evaluation data, so that an existing
`playground/data/eval` serves as it is (`DART_BENCHMARKS=playground/data/eval`). Nothing is downloaded here.

    $ dart data check pope
    pope: pope/val2014/ is missing; get http://images.cocodataset.org/zips/val2014.zip (6 GB) and unpack it there
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import dart


@dataclass(frozen=True)
class File:
    """One file or folder that a benchmark wants.

    Parameters
    ----------
    path : str
        Inside the benchmark's folder; a folder ends with a slash.
    source : str
        Where it is published, an address or a page. An address that ends in .zip holds it.
    about : str
        Rough size in words.
    size : int, optional
        Exact number of bytes of what the source gives.
    sha256 : str, optional
        Of what the source gives: the archive if it is one.
    git : str, optional
        The blob id that git publishes for the file, for files too large to be shown by their repository.
    other : tuple, optional
        SHA-256 of other published versions, each with a word on it.
    instead : str, optional
        Another file of the same table that serves as well.
    """

    path: str
    source: str
    about: str = ""
    size: int | None = None
    sha256: str | None = None
    git: str | None = None
    other: tuple[tuple[str, str], ...] = ()
    instead: str | None = None

    @property
    def archive(self) -> str | None:
        """Name of the archive that holds it, None if the source is the file itself."""
        name = self.source.rsplit("/", 1)[-1]
        return name if name.endswith(".zip") else None

    @property
    def get(self) -> str:
        """What to do about it, in words."""
        about = f" ({self.about})" if self.about else ""
        where = self.path.rsplit("/", 2 if self.path.endswith("/") else 1)
        place = f"into {where[0]}/" if len(where) > (2 if self.path.endswith("/") else 1) else "there"
        return f"get {self.source}{about} and {'unpack' if self.archive else 'put'} it {place}"


_COCO = "http://images.cocodataset.org/zips"
_POPE = "https://raw.githubusercontent.com/AoiDragon/POPE/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
_LATER = "a later version with 3,000 questions a split and other wording; LLaVA's evaluation uses commit e3e39262"
_VQA = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
_SQA = "https://raw.githubusercontent.com/lupantech/ScienceQA/main/data/scienceqa"
_TEXTVQA = "https://dl.fbaipublicfiles.com/textvqa"
_VIZWIZ = "https://vizwiz.cs.colorado.edu/VizWiz_final"
_MMBENCH = "https://download.openmmlab.com/mmclassification/datasets/mmbench"
_LLAVA_EVAL = "eval.zip of https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md"
_VAL2014 = File("val2014/", f"{_COCO}/val2014.zip", "6 GB, 40,504 pictures")

# SHA-256 of VQA's archives as ParlAI publishes them; those of files in git repositories are of the files themselves
_VQA_TEST = "982e2e687a86514b78ea83af356d151976c5e3fb4168a29ca543610574082ad7"
_OCR_LLAVA = File(
    "llava_textvqa_val_v051_ocr.jsonl", _LLAVA_EVAL, size=1548730,
    sha256="9f60db6fb89e369263ed676dc26b48d00d4a462e73f0930c09d23394e9dcf3a3", instead="TextVQA_Rosetta_OCR_v0.2_val.json",
)
_TEXTVQA_FILES = (
    File("TextVQA_0.5.1_val.json", f"{_TEXTVQA}/data/TextVQA_0.5.1_val.json", "5,000 questions"),
    File("train_images/", f"{_TEXTVQA}/images/train_val_images.zip", "7 GB"),
)

FILES: dict[str, tuple[File, ...]] = {
    "pope": (
        File("coco/coco_pope_random.json", f"{_POPE}/coco_pope_random.json", size=360212,
             sha256="c16b65d2df6d70bb0814c8a4375833d39cdb09928fd936d3fc546491efa37f35",
             other=(("ac25245170b975a5bdf9080b23fd431dfe6be458bc038259c1f4f09a6bef7994", _LATER),)),
        File("coco/coco_pope_popular.json", f"{_POPE}/coco_pope_popular.json", size=370234,
             sha256="5b16653023bf4f64d57eb0d168259de6627f5cde7538b85ebed3cc33034aa6cc",
             other=(("72c1a8ad45d0c13514f5f22598261df41d3b533854d29682e924db50ed8aa753", _LATER),)),
        File("coco/coco_pope_adversarial.json", f"{_POPE}/coco_pope_adversarial.json", size=370459,
             sha256="1d8f0906a9b50c05640f6f23abfac97523be2a1bed28f7eadc63b811699b2d26",
             other=(("420b3407db1fa9f1187a805dca41cb7b97fd91504e6c2179706188c107fb8ef8", _LATER),)),
        _VAL2014,
    ),
    "mme": (
        File("MME_Benchmark_release_version/",
             "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation", "2,374 questions"),
    ),
    "gqa": (
        File("data/testdev_balanced_questions.json", "https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip", "1.4 GB"),
        File("data/images/", "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip", "20 GB"),
    ),
    "mmbench": (File("mmbench_dev_20230712.tsv", f"{_MMBENCH}/mmbench_dev_20230712.tsv", "4,377 rows, pictures inside"),),
    "mmbench-cn": (File("mmbench_dev_cn_20231003.tsv", f"{_MMBENCH}/mmbench_dev_cn_20231003.tsv", "pictures inside"),),
    "scienceqa": (
        File("problems.json", f"{_SQA}/problems.json", git="3920b762556abfbfa001f298c9740c36d4e041e1"),
        File("pid_splits.json", f"{_SQA}/pid_splits.json", size=502927,
             sha256="85c7820b9f136e572579a01dab2c77a7f8140b59211e421fa5182491d45ee3a7"),
        File("images/test/", "https://scienceqa.s3.us-west-1.amazonaws.com/images/test.zip", "2,017 pictures"),
    ),
    "vqav2": (
        File("v2_OpenEnded_mscoco_val2014_questions.json", f"{_VQA}/v2_Questions_Val_mscoco.zip",
             sha256="e71f6c5c3e97a51d050f28243e262b28cd0c48d11a6b4632d769d30d3f93222a"),
        File("v2_mscoco_val2014_annotations.json", f"{_VQA}/v2_Annotations_Val_mscoco.zip",
             sha256="0caae7c8d1dafd852727f5ac046bc1efca9b72026bd6ffa34fc489f3a7b3291e"),
        _VAL2014,
    ),
    "vqav2-testdev": (
        File("v2_OpenEnded_mscoco_test-dev2015_questions.json", f"{_VQA}/v2_Questions_Test_mscoco.zip", sha256=_VQA_TEST),
        File("v2_OpenEnded_mscoco_test2015_questions.json", f"{_VQA}/v2_Questions_Test_mscoco.zip", sha256=_VQA_TEST),
        File("test2015/", f"{_COCO}/test2015.zip", "12 GB, 81,434 pictures"),
    ),
    "textvqa": (
        *_TEXTVQA_FILES,
        _OCR_LLAVA,
        File("TextVQA_Rosetta_OCR_v0.2_val.json", f"{_TEXTVQA}/data/TextVQA_Rosetta_OCR_v0.2_val.json", instead=_OCR_LLAVA.path),
    ),
    "textvqa-plain": _TEXTVQA_FILES,
    "vizwiz": (
        File("val.json", f"{_VIZWIZ}/vqa_data/Annotations.zip"),
        File("val/", f"{_VIZWIZ}/images/val.zip", "4,319 pictures"),
    ),
    "vizwiz-test": (
        File("test.json", f"{_VIZWIZ}/vqa_data/Annotations.zip"),
        File("test/", f"{_VIZWIZ}/images/test.zip", "8,000 pictures"),
    ),
    "ocrbench": (
        File("OCRBench/OCRBench.json",
             "https://raw.githubusercontent.com/Yuliang-Liu/MultimodalOCR/main/OCRBench/OCRBench/OCRBench.json", size=296682,
             sha256="df75957e75ea052e9f38f2c67a4f6676103998517345cf49ef7d03b62c835864"),
        File("OCRBench_Images/",
             "the link OCRBench Images of https://github.com/Yuliang-Liu/MultimodalOCR/tree/main/OCRBench", "930 pictures"),
    ),
}
HOMES = {
    "mme": "MME", "mmbench-cn": "mmbench_cn", "vqav2-testdev": "vqav2", "textvqa-plain": "textvqa", "vizwiz-test": "vizwiz",
    "ocrbench": "OCRBench",
}


def root() -> Path:
    """Folder of all benchmarks: `DART_BENCHMARKS` if it is set, else `benchmarks` in the data folder."""
    named = os.environ.get("DART_BENCHMARKS")
    return Path(named) if named else dart.data_root() / "benchmarks"


def home(task: str, folder: str | Path | None = None) -> Path:
    """Folder of one benchmark: `folder` if given, else its place under `root()`."""
    return Path(folder) if folder is not None else root() / HOMES.get(task, task)


def need(task: str, path: str, folder: str | Path | None = None) -> Path:
    """The place of a file that a benchmark cannot do without.

    Raises
    ------
    FileNotFoundError
        If nothing is there: which file, where it should lie, and its official source.
    """
    place = home(task, folder) / path
    if not place.exists():
        file = next(file for file in FILES[task] if file.path == path)
        raise FileNotFoundError(f"{task} wants {place}, which is missing; {file.get}")
    return place


@dataclass(frozen=True)
class Finding:
    """Something wrong with the files of a task."""

    task: str
    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.task}: {self.path} {self.what}"


def check(folder: str | Path | None = None, tasks: Iterable[str] | None = None) -> list[Finding]:
    """What is missing, cut short or not as published among the files of some tasks.

    Archives that still lie beside their contents are tested too. Where all files are whole, the questions are read and
    each picture that they name is looked for (it is opened only when it is asked about).

    Parameters
    ----------
    folder : path, optional
        Folder of all benchmarks; `root()` by default.
    tasks : iterable of str, optional
        Names from `dart.tasks.TASKS`; all of them by default.

    Returns
    -------
    list of Finding
        Empty if nothing is wrong.

    Raises
    ------
    ValueError
        For a task that is not known.
    """
    from dart.tasks import TASKS  # the tasks read their files through this module

    found = []
    for task in FILES if tasks is None else tasks:
        if task not in FILES:
            near = difflib.get_close_matches(task.lower(), FILES, n=3, cutoff=0.4) or FILES
            raise ValueError(f"{task!r} is no task with files to check; try {', '.join(near)}")
        place = (Path(folder) if folder is not None else root()) / HOMES.get(task, task)
        ours = [finding for file in FILES[task] for finding in _examine(task, file, place)]
        if not ours:
            try:
                ours = list(_pictures(task, TASKS[task]().questions(place)))
            except (ValueError, FileNotFoundError) as reason:
                ours = [Finding(task, place, f"cannot be read: {reason}")]
        found += dict.fromkeys(ours)  # two files may share one bad archive
    return found


def _examine(task: str, file: File, place: Path) -> Iterable[Finding]:
    target = place / file.path
    archives = [folder / file.archive for folder in (place, target.parent)] if file.archive else []
    archive = next((each for each in archives if each.is_file()), None)
    if archive:
        if not zipfile.is_zipfile(archive):
            yield Finding(task, archive, f"is cut short or no archive; {file.get}")
            return
        if file.sha256 and _sha256(archive) != file.sha256:
            yield Finding(task, archive, f"is not the published file (its SHA-256 is not {file.sha256[:12]}...); {file.get}")
    if not target.exists():
        if file.instead and (place / file.instead).exists():
            return
        also = f", or {file.instead} in its place" if file.instead else ""
        beside = f"; {archive.name} lies there and only has to be unpacked" if archive else f"; {file.get}"
        yield Finding(task, target, f"is missing{also}{beside}")
    elif file.path.endswith("/"):
        if not any(target.iterdir()):
            yield Finding(task, target, f"is empty; {file.get}")
    else:
        yield from _examine_file(task, file, target)


def _examine_file(task: str, file: File, target: Path) -> Iterable[Finding]:
    size = target.stat().st_size
    if not size:
        yield Finding(task, target, f"is empty; {file.get}")
    elif not file.archive and file.sha256 and (digest := _sha256(target)) != file.sha256:
        if version := dict(file.other).get(digest):
            yield Finding(task, target, f"is {version}; {file.get}")
        elif file.size and size < file.size:
            yield Finding(task, target, f"is cut short: {size:,} of {file.size:,} bytes; {file.get}")
        else:
            yield Finding(task, target, f"is not the published file (its SHA-256 is not {file.sha256[:12]}...); {file.get}")
    elif file.git and _git_blob(target) != file.git:
        yield Finding(task, target, f"is not the published file (its git blob id is not {file.git[:12]}...); {file.get}")
    elif target.suffix == ".json" and not target.name.startswith("coco_pope"):  # POPE's hold one document a line
        try:
            json.loads(target.read_bytes())
        except ValueError as reason:
            yield Finding(task, target, f"is cut short or broken ({reason}); {file.get}")


def _pictures(task: str, asked: Iterable) -> Iterable[Finding]:
    places = dict.fromkeys(question.source for question in asked if isinstance(question.source, Path))
    lost = [path for path in places if not path.is_file()]
    if lost:
        yield Finding(task, lost[0], f"is missing, and {len(lost) - 1:,} more of {len(places):,} pictures" if lost[1:] else
                      f"is missing, the other {len(places) - 1:,} pictures are there")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_blob(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
