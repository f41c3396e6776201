"""The paper's benchmarks in their published file formats, with the prompts of LLaVA's evaluation and the official scoring.

`TASKS[name]()` gives a benchmark, which has what `dart.evaluation.Task` has, and a submission. Files are read from
`DART_BENCHMARKS` or `benchmarks` in the data folder; `dart data check` says what is missing there and where it comes from.

================  =====================================================================  =============================
task              questions                                                              metric
================  =====================================================================  =============================
pope              is there a ...? three splits of negatives                              F1, 0 to 1
mme               a yes and a no question on each picture                                perception + cognition, to 2,800
gqa               questions from scene graphs, test-dev balanced                         accuracy
mmbench, -cn      options in rotations, dev                                              circular accuracy
scienceqa         options, questions with a picture                                      accuracy
vqav2, -testdev   open questions, ten annotators                                         soft accuracy
textvqa, -plain   text in pictures, with and without OCR tokens in the prompt            soft accuracy
vizwiz, -test     questions of blind people                                              soft accuracy
ocrbench          reading in ten types                                                   points of 1,000
================  =====================================================================  =============================
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dart.tasks import gqa, mmbench, mme, ocrbench, pope, scienceqa, textvqa, vizwiz, vqav2
from dart.tasks.base import Benchmark, Question
from dart.tasks.prompts import vicuna_v1

__all__ = ["Benchmark", "Question", "SCRIPTS", "TASKS", "vicuna_v1"]

TASKS: dict[str, Callable[[], Benchmark]] = {
    "pope": pope.task,
    "mme": mme.task,
    "gqa": gqa.task,
    "mmbench": mmbench.task,
    "mmbench-cn": partial(mmbench.task, "mmbench-cn"),
    "scienceqa": scienceqa.task,
    "vqav2": vqav2.task,
    "vqav2-testdev": partial(vqav2.task, "vqav2-testdev"),
    "textvqa": textvqa.task,
    "textvqa-plain": partial(textvqa.task, "textvqa-plain"),
    "vizwiz": vizwiz.task,
    "vizwiz-test": partial(vizwiz.task, "vizwiz-test"),
    "ocrbench": ocrbench.task,
}

# what each script `scripts/<version>/eval/<name>.sh` of the authors asks; those of LLaVA-NeXT leave OCR tokens out of TextVQA
_SCRIPTS = {
    "gqa": "gqa", "mmbench": "mmbench", "mmbench_cn": "mmbench-cn", "mme": "mme", "ocrbench": "ocrbench", "pope": "pope",
    "sqa": "scienceqa", "textvqa": "textvqa", "vqav2": "vqav2-testdev",
}
SCRIPTS: dict[str, dict[str, str]] = {
    "v1_5": _SCRIPTS, "v1_6": {**_SCRIPTS, "textvqa": "textvqa-plain", "vizwiz": "vizwiz-test"},
}
