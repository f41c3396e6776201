"""Measure a model under a reduction method on a task: `run` for one, `sweep` for many at once.

What was answered is kept question by question in a folder of its own per run, and written as it comes, so that a killed
run goes on where it stopped. Questions on one picture share the work on the picture, and so do all methods. Under
`accelerate launch` the processes share the questions.

    record = run(model, dart.DART(keep=64), "existence", processor=processor, limit=200)
    print(record.metrics["f1"])        # 0.912 [0.884, 0.936]
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import platform
import re
import time
import warnings
from ast import literal_eval
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from tqdm.auto import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

import dart
from dart import easy_vqa, families, methods, scenes, videos
from dart.tasks import TASKS as PUBLISHED
from dart.tasks import Benchmark
from dart.tasks.base import passing_over

# ------------------------------------------------------------------------------------------------ names


@dataclass(frozen=True)
class Task:
    """What evaluation needs of a benchmark.

    `questions()` gives them in a fixed order; each has `text`, `answer`, `kind`, `group` (scored only together), `stratum`,
    `picture_key` and `picture()`, or `pictures()` where it is about several. `score(questions, answers, weights=None)` gives metrics by name, `floors()` what
    guessing gets, and `metric` is the one that tables show.
    """

    name: str
    title: str
    metric: str
    questions: Callable[[], Sequence] = field(repr=False)
    score: Callable[..., dict[str, np.ndarray]] = field(repr=False)
    floors: Callable[[], dict[str, dict[str, float]]] = field(repr=False)


def _scene_task(name: str) -> Task:
    found, _ = scenes.find_task(name)
    title = found.title + (", unseen drawings" if name.endswith(scenes.UNSEEN) else "")
    ask, score, floors = (partial(each, name) for each in (scenes.questions, scenes.score, scenes.floors))
    return Task(name, title, found.metric, ask, score, floors)


TASKS: dict[str, Callable[[], Task | Benchmark]] = {
    **{name: partial(_scene_task, name) for name in scenes.TASKS},
    "easy-vqa": lambda: Task(
        "easy-vqa", easy_vqa.TITLE, "accuracy", easy_vqa.questions, easy_vqa.score, easy_vqa.floors
    ),
    "videos": lambda: Task("videos", videos.TITLE, "accuracy", videos.questions, videos.score, videos.floors),
    **{name + scenes.UNSEEN: partial(_scene_task, name + scenes.UNSEEN) for name in scenes.TASKS},
    **PUBLISHED,
}
METHODS: dict[str, type[dart.Method] | None] = {"unpruned": None, **methods.METHODS}


def find_name(what: str, name: str, known: Iterable[str]) -> str:
    """`name` itself if it is known, else an error with the nearest names."""
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        raise ValueError(f"{what} {name!r} is not known; " + (f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"))
    return name


def find_task(name: str) -> Task | Benchmark:
    """The task of that name.

    Raises
    ------
    ValueError
        With the nearest valid names.
    """
    return TASKS[find_name("task", name, TASKS)]()


def find_method(name: str, keep: int | None, layer: int | None = None) -> dart.Method | None:
    """The method of that name with a budget of `keep` image tokens; None for "unpruned".

    Parameters
    ----------
    name : str
        A name from `METHODS`, with settings behind a colon if they are to differ from the method's own:
        ``"dart:pivot_rule=random,image_pivots=8"``.
    keep : int
        None is the adaptive rule of methods that have one.
    layer : int, optional
        First decoder layer that sees the short sequence; the method's own if left out.

    Raises
    ------
    ValueError
        With the nearest valid names, or what the method says to its settings.
    """
    name, _, given = name.partition(":")
    method = METHODS[find_name("method", name, METHODS)]
    if method is None:
        return None
    known = {each.name: each for each in fields(method) if each.name != "keep"}
    settings = {}
    for setting in filter(None, re.split(r",(?![^(]*\))", given)):
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting!r} in {name}:{given} is no setting; write {name}:name=value,name=value")
        find_name(f"setting of {name}", key, known)
        try:
            settings[key] = literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key] = value                           # a word
    if layer is not None:
        if settings.setdefault("layer", layer) != layer:
            raise ValueError(f"{name}:{given} and layer={layer} do not agree; give one of them")
    if "layer" in settings and not known["layer"].init:
        raise ValueError(f"{name} has places of its own; leave the layer out")
    try:
        return method(keep=keep, **settings)
    except TypeError as reason:
        raise ValueError(f"{name}:{given}: {reason}") from reason


def label(method: dart.Method | None) -> str:
    """A method in one word, as tables and folders show it: `unpruned`, `dart-64`, `random-16-layer-6-seed-1`."""
    if method is None:
        return "unpruned"
    keep = getattr(method, "keep", None)
    words = [type(method).__name__.lower(), *([] if keep is None else [str(keep)])]
    for each in fields(method):
        value = getattr(method, each.name)
        if each.name != "keep" and value != each.default:
            words += [each.name, str(value)]
    return "-".join(words).replace("_", "-")


# ------------------------------------------------------------------------------------------------ records


@dataclass(frozen=True)
class Interval:
    """A metric and its 95 % interval from a bootstrap over pictures."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Stopped(ValueError):
    """A run that could not go on. What was answered is kept, and the same call goes on after it."""


@dataclass(frozen=True)
class Record:
    """One finished run: where it lies, what was asked for, what came out; `answers` stand in the order of `questions`.

    `environment["skipped"]`, if it is there, says of each question that was left out why; `settings["n"]` counts it all the same.
    """

    folder: Path | None
    settings: dict[str, Any]
    metrics: dict[str, Interval]
    environment: dict[str, Any]
    questions: Sequence = field(repr=False)
    answers: Sequence[str] = field(repr=False)


def resamples(questions: Sequence, times: int = 1000, seed: int = 0) -> np.ndarray:
    """How often each question counts in each bootstrap resample: float32 (times, n).

    Whole pictures are drawn, with all their questions: answers on one picture are right or wrong together.
    """
    pictures: dict[Any, int] = {}
    of_question = np.array([pictures.setdefault(question.picture_key, len(pictures)) for question in questions])
    drawn = np.random.default_rng(seed).multinomial(len(pictures), np.full(len(pictures), 1 / len(pictures)), times)
    return drawn[:, of_question].astype(np.float32)


def intervals(task: Task, questions: Sequence, answers: Sequence[str]) -> dict[str, Interval]:
    """Every metric of a task with its 95 % interval, and the task's own metric in each stratum as `metric@stratum`."""
    values, drawn = task.score(questions, answers), task.score(questions, answers, resamples(questions))
    found = {name: _interval(values[name], drawn[name]) for name in values}
    strata = np.array([question.stratum for question in questions])
    for stratum in dict.fromkeys(strata.tolist()):
        rows = np.flatnonzero(strata == stratum)
        ours, said = [questions[row] for row in rows], [answers[row] for row in rows]
        value, drawn = task.score(ours, said)[task.metric], task.score(ours, said, resamples(ours))[task.metric]
        found[f"{task.metric}@{stratum}"] = _interval(value, drawn)
    return found


def paired_differences(task: Task, questions: Sequence, answers: Sequence[str], reference: Sequence[str]) -> dict[str, Interval]:
    """Every metric minus the same metric of `reference` answers, resampled together: 0 inside means no clear change."""
    weights = resamples(questions)
    ours, theirs = (task.score(questions, each) for each in (answers, reference))
    drawn, drawn_theirs = (task.score(questions, each, weights) for each in (answers, reference))
    return {name: _interval(ours[name] - theirs[name], drawn[name] - drawn_theirs[name]) for name in ours}


def _interval(value: np.ndarray, drawn: np.ndarray) -> Interval:
    low, high = np.nanpercentile(drawn, (2.5, 97.5)) if not np.isnan(drawn).all() else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))


def fingerprint(model: torch.nn.Module) -> str:
    """Twelve hex digits that change with the model's weights: SHA-256 over about a thousand values of every tensor."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        some = tensor.detach().flatten()[:: max(1, tensor.numel() // 1024)]
        digest.update(name.encode() + some.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def questions_hash(questions: Sequence) -> str:
    """Twelve hex digits that change with texts, answers and pictures of questions."""
    return hashlib.sha256(repr([(q.text, q.answer, q.picture_key) for q in questions]).encode()).hexdigest()[:12]


class _Answers:
    """Answers of one run, in memory and, line by line, in a file that survives a kill; each process has a file of its own."""

    def __init__(self, folder: Path | None, settings: dict[str, Any], process: int = 0):
        self.given: dict[int, str] = {}
        self.folder, self.file = None, None
        if folder is None:
            return
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        self.folder = Path(folder) / settings["task"] / f"{settings['label']}-{key}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if process == 0:
            (self.folder / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
        own = self.folder / ("predictions.jsonl" if process == 0 else f"predictions-{process}.jsonl")
        own.touch()
        whole = 0
        for path in self.folder.glob("predictions*.jsonl"):
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break  # the kill came in the middle of this line
                entry = json.loads(line)
                self.given[entry["index"]] = entry["answer"]
                whole += len(line) if path == own else 0
        self.file = own.open("ab")
        self.file.truncate(whole)

    def add(self, indices: Sequence[int], answers: Sequence[str]) -> None:
        self.given.update(zip(indices, answers))
        if self.file:
            lines = (json.dumps({"index": index, "answer": answer}) + "\n" for index, answer in zip(indices, answers))
            self.file.write("".join(lines).encode())
            self.file.flush()

    def join(self) -> None:
        """Make one file of those that several processes wrote."""
        parts = sorted(self.folder.glob("predictions-*.jsonl"))
        if parts:
            lines = (json.dumps({"index": index, "answer": self.given[index]}) + "\n" for index in sorted(self.given))
            joined = self.folder / "predictions.joined"
            joined.write_text("".join(lines))
            joined.replace(self.folder / "predictions.jsonl")
        for part in parts:
            part.unlink()


# ------------------------------------------------------------------------------------------------ processes


class Processes:
    """The processes that `accelerate launch` started for one run; a process on its own is the first of one.

    Attributes
    ----------
    index, count : int
        Which process this is, from 0, and how many there are.
    """

    def __init__(self):
        self.index, self.count = 0, 1
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from accelerate import PartialState

            # who is done first waits for the others, however long
            state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30))
            self.index, self.count = state.process_index, state.num_processes

    @property
    def main(self) -> bool:
        return self.index == 0

    def gather(self, thing: Any) -> list:
        """What each process has, on every process; it waits for all."""
        if self.count == 1:
            return [thing]
        from accelerate.utils import gather_object

        return gather_object([thing])


# ------------------------------------------------------------------------------------------------ answering


@contextmanager
def given_features(model, features: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block the model takes these image features, one (tokens, width) a picture, and looks at no pixels.

    It wants `pixel_values` all the same, of any content.
    """
    body = model.model
    before = vars(body).get("get_image_features")

    @wraps(body.get_image_features)  # generate reads its signature
    def given(*args, **kwargs):
        return BaseModelOutputWithPooling(pooler_output=list(features))

    body.get_image_features = given
    try:
        yield
    finally:
        del body.get_image_features
        if before is not None:
            body.get_image_features = before


def _pictures(question) -> list:
    """What a question is about, in the order of the prompt: frames of a video, or one picture."""
    return question.pictures() if hasattr(question, "pictures") else [question.picture()]


def _prompt(processor, question, pictures: int) -> str:
    turn = {"role": "user", "content": [{"type": "image"}] * pictures + [{"type": "text", "text": question.text}]}
    return processor.apply_chat_template([turn], add_generation_prompt=True)


def _tower_layers(model) -> Sequence[torch.nn.Module]:
    """Layers of the vision tower up to the one whose output the projector takes; none where the tower is not described."""
    family, body, _ = families.find(model)
    feature = getattr(body.config, "vision_feature_layer", None)
    if family.tower is None or not isinstance(feature, int):
        return []
    layers = body.get_submodule(family.tower).encoder.layers
    return list(layers[: feature % (len(layers) + 1)])


def _looks_at(method: dart.Method, depth: int) -> set[int] | None:
    """Which of `depth` tower layers a method looks into; None if it changes what the tower does."""
    if method.tower_places(depth) or type(method).resize is not dart.Method.resize:
        return None
    return {number % depth for number in method.tower_layers}


class _Seen:
    """What the vision tower made of the pictures of a batch, each different one seen once, for all methods that leave it as it is.

    `sources[i]` is the first picture that is the same as picture `i`. `features` is None, and nothing shared, for a model that
    takes its images as anything but one tensor of pixels.
    """

    def __init__(self, model, inputs: dict[str, Tensor], sources: Sequence[int], methods: Sequence[dart.Method | None]):
        self.model, self.features, self.states = model, None, {}
        images = set(inputs) - {"input_ids", "attention_mask"}
        if images != {"pixel_values"} or len(inputs["pixel_values"]) != len(sources):
            return
        self.layers = _tower_layers(model)
        looks = [_looks_at(method, len(self.layers)) for method in methods if method and method.reads_tower and self.layers]
        # a layer that is looked into runs again, on the output of the layer before it
        before = {number - 1 for look in looks if look for number in look if number}
        hooks = [self.layers[number].register_forward_hook(partial(self._note, number)) for number in before]
        first = sorted(set(sources))
        try:
            features = model.get_image_features(pixel_values=inputs["pixel_values"][first], return_dict=True).pooler_output
        finally:
            for hook in hooks:
                hook.remove()
        index = [first.index(source) for source in sources]
        self.features = [features[row] for row in index]
        self.states = {number: states[index] for number, states in self.states.items()}

    def _note(self, number: int, layer, args, output: Tensor) -> None:
        self.states[number] = output

    @contextmanager
    def shared(self, method: dart.Method | None) -> Iterator[None]:
        """Inside the block the model does of all this again only what the method has to see happen."""
        if self.features is None:
            yield
            return
        if not (method and method.reads_tower):
            with given_features(self.model, self.features):
                yield
            return
        look = _looks_at(method, len(self.layers)) if self.layers else None
        still = [] if look is None else [(number, layer) for number, layer in enumerate(self.layers) if number not in look]
        for number, layer in still:
            # in between nobody looks at what is handed on
            layer.forward = lambda hidden_states, *_, number=number, **__: self.states.get(number, hidden_states)
        try:
            yield
        finally:
            for _, layer in still:
                del layer.forward


def prompt_size(model, processor, question) -> tuple[int, int]:
    """Tokens of the prompt that a question becomes, and how many of them are image tokens.

    Raises
    ------
    ValueError
        If none of them is one.
    """
    pictures = _pictures(question)
    text = _prompt(processor, question, len(pictures))
    ids = processor(text=[text], images=pictures, return_tensors="pt")["input_ids"]
    family, body, _ = families.find(model)
    wanted = families.image_token_ids(body.config, family)
    image = torch.isin(ids, torch.tensor(wanted))
    if not image.any():
        raise ValueError(
            f"the prompt of {model.name_or_path or type(model).__name__} holds no image token (id {', '.join(map(str, wanted))}), so "
            "nothing can be pruned; give a model whose processor and chat template put images into the prompt"
        )
    return ids.shape[1], int(image.sum())


def prompts(model, processor, questions: Sequence) -> tuple[dict[str, Tensor], list[int]]:
    """What the model takes for a batch of questions, and which pictures of it are the same.

    Parameters
    ----------
    model, processor
        As `from_pretrained` gives them; prompts are made by the processor's chat template.
    questions : sequence
        With `text`, `picture_key` and `picture()` or `pictures()`.

    Returns
    -------
    inputs : mapping of str to Tensor
        Of the processor, on the model's device, padded on the left.
    sources : list of int
        For each picture of the batch the first one that is the same.
    """
    pictures: dict[Any, list] = {}                          # of each key, drawn once
    starts: dict[Any, int] = {}                             # where they stand first among all pictures of the batch
    images, sources, texts = [], [], []
    for question in questions:
        key = question.picture_key
        if key not in pictures:
            pictures[key], starts[key] = _pictures(question), len(images)
        images += pictures[key]
        sources += range(starts[key], starts[key] + len(pictures[key]))
        texts.append(_prompt(processor, question, len(pictures[key])))
    # padded on the left, so that every answer starts at the end of its row
    inputs = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt").to(model.device)
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return inputs, sources


def answer(model, processor, questions: Sequence, methods: Sequence[dart.Method | None], *, tokens: int = 8) -> list[list[str]]:
    """What a model answers to a batch of questions, greedily, under each of several methods.

    Parameters
    ----------
    model, processor, questions
        As `prompts` takes them.
    methods : sequence of Method or None
        None leaves the model alone.
    tokens : int
        Longest answer.

    Returns
    -------
    list of list of str
        One list for each method.
    """
    inputs, sources = prompts(model, processor, questions)
    answers = []
    with torch.inference_mode():
        seen = _Seen(model, inputs, sources, methods)
        for method in methods:
            with dart.prune(model, method) if method else nullcontext(), seen.shared(method):
                said = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
            answers.append(processor.batch_decode(said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def asked_of(task: str, limit: int | None = None) -> list:
    """The first `limit` questions of a task, or all; groups that are scored together stay whole.

    Raises
    ------
    ValueError
        For a task that is not known, with the nearest names, or a limit that leaves nothing.
    """
    asked = list(find_task(task).questions())
    end = len(asked) if limit is None else min(limit, len(asked))
    while 0 < end < len(asked) and asked[end].group is not None and asked[end].group == asked[end - 1].group:
        end += 1
    if not asked[:end]:
        raise ValueError(f"limit={limit} leaves no question; give 1 or more")
    return asked[:end]


def settings_of(
    model, methods: Sequence[dart.Method | None], task: str, limit: int | None = None, tokens: int = 8
) -> list[dict[str, Any]]:
    """What identifies the run of each method on a task, as `settings.json` has it; parameters as those of `sweep`."""
    asked = asked_of(task, limit)
    common = {
        "task": task,
        "questions": questions_hash(asked),
        "n": len(asked),
        "model": Path(str(model.name_or_path)).name,
        "weights": fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "tokens": tokens,
    }
    return [{"label": label(m), "method": m and {"name": type(m).__name__, **asdict(m)}, **common} for m in methods]


def sweep(
    model,
    methods: Sequence[dart.Method | None],
    task: str,
    *,
    processor,
    folder: str | Path | None = None,
    limit: int | None = None,
    batch: int = 16,
    tokens: int = 8,
    progress: bool | Callable[[int], Any] = True,
    skip_bad: bool = False,
) -> list[Record]:
    """Measure several methods on a task, each picture seen once by the vision tower for all of them.

    Under `accelerate launch` each process answers its share of the batches, which are those of a process on its own, and all of
    them return the records of the whole.

    Parameters
    ----------
    model, processor
        As `from_pretrained` gives them.
    methods : sequence of Method or None
        None is the unpruned model.
    task : str
        A name from `TASKS`.
    folder : path, optional
        Where runs are kept, each in a folder named by task, method and a hash of its settings: `settings.json`,
        `predictions.jsonl`, `metrics.json`, `environment.json`. Calling again with the same settings goes on after what
        is there. Nothing is written if it is left out.
    limit : int, optional
        Only the first questions; groups that are scored together stay whole.
    batch : int
        Questions a call; halved, with a warning, where memory does not suffice. Padding and batching may move the last bits of a
        result.
    tokens : int
        Longest answer.
    progress : bool or callable
        Whether to show a bar; or what is called with the number of answers that came, for a bar of the caller's.
    skip_bad : bool
        Whether questions that cannot be read, or whose picture cannot, are left out of answers and metrics, with a warning;
        `environment["skipped"]` then says which.

    Returns
    -------
    list of Record
        In the order of `methods`.

    Raises
    ------
    ValueError
        For a task that is not known, with the nearest names.
    Stopped
        For a picture that is missing or does not decode, and where memory does not suffice for one question. What was answered
        is kept.
    """
    with passing_over(skip_bad) as unread:
        found, asked = find_task(task), asked_of(task, limit)
        settings = settings_of(model, methods, task, limit, tokens)
    processes = Processes()
    runs = [_Answers(folder and Path(folder), setting, processes.index) for setting in settings]
    _exchange(processes, runs)

    started = time.perf_counter()
    done = sum(len(run.given) for run in runs)
    missing = [index for index in range(len(asked)) if any(index not in run.given for run in runs)]
    # whole batches, for another padding may move last bits
    todo = deque([missing[start : start + batch] for start in range(0, len(missing), batch)][processes.index :: processes.count])
    ours = sum(index not in run.given for indices in todo for index in indices for run in runs)
    shown = progress is True and processes.main
    bar = tqdm(total=done + ours, initial=done, desc=task, unit="q", disable=not shown, dynamic_ncols=True)
    skipped: dict[int, str] = {}
    while todo:
        indices = todo.popleft()
        # after a kill some methods have this batch already
        needing = [number for number, run in enumerate(runs) if any(index not in run.given for index in indices)]
        try:
            answers = _answer(model, processor, [asked[i] for i in indices], [methods[n] for n in needing], tokens)
        except (ValueError, OSError):
            bad = _without_picture(task, asked, indices)
            if not bad:
                raise
            if not skip_bad:
                first = next(iter(bad.values()))
                raise Stopped(f"{first}; what was answered is kept, --skip-bad leaves such questions out") from None
            skipped |= bad
            warnings.warn("left out: " + "; ".join(bad.values()), stacklevel=2)
            todo.extendleft([[index for index in indices if index not in bad]] if len(bad) < len(indices) else [])
            continue
        if answers is None:
            if len(indices) == 1:
                raise Stopped(
                    f"{task}, question {indices[0] + 1}: out of memory with one question at a time; what was answered is kept, "
                    "give a smaller model, a smaller --dtype or a larger device"
                )
            half = (len(indices) + 1) // 2
            warnings.warn(f"out of memory with {len(indices)} questions at a time; going on with {half}", stacklevel=2)
            rest = [index for each in (indices, *todo) for index in each]
            todo = deque(rest[start : start + half] for start in range(0, len(rest), half))
            continue
        for number, texts in zip(needing, answers):
            run = runs[number]
            new = [(index, text) for index, text in zip(indices, texts) if index not in run.given]
            run.add(*zip(*new))
            bar.update(len(new))
            if callable(progress):
                progress(len(new))
    bar.close()
    for run in runs:
        if run.file:
            run.file.close()
    _exchange(processes, runs)
    for each in processes.gather(skipped):
        skipped |= each
    if len(skipped) == len(asked):
        raise Stopped(f"{task}: no question is left; {next(iter(skipped.values()))}")

    environment = {
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "attention": model.config._attn_implementation,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seconds": round(time.perf_counter() - started, 1),
        "answered": sum(len(run.given) for run in runs) - done,
    }
    if unread or skipped:
        environment["skipped"] = [*unread, *(skipped[index] for index in sorted(skipped))]
    kept = [index for index in range(len(asked)) if index not in skipped]
    questions, records = [asked[index] for index in kept], []
    for run, setting in zip(runs, settings):
        answers = [run.given[index] for index in kept]
        metrics = intervals(found, questions, answers)
        if run.folder and processes.main:
            run.join()
            written = {name: asdict(metric) for name, metric in metrics.items()}
            (run.folder / "metrics.json").write_text(json.dumps(written, indent=1) + "\n")
            if environment["answered"] or not (run.folder / "environment.json").exists():
                (run.folder / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")
        records.append(Record(run.folder, setting, metrics, environment, questions, answers))
    processes.gather(None)                                  # nobody begins anew before the files are joined
    return records


def _exchange(processes: Processes, runs: Sequence[_Answers]) -> None:
    """Tell each process the answers of all."""
    for theirs in processes.gather([run.given for run in runs]):
        for run, given in zip(runs, theirs):
            run.given |= given


def _answer(model, processor, questions: Sequence, methods: Sequence[dart.Method | None], tokens: int) -> list[list[str]] | None:
    """What `answer` gives, or None where memory does not suffice for so many questions."""
    try:
        return answer(model, processor, questions, methods, tokens=tokens)
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()                                # here, for the error holds on to what was computed
    return None


def _without_picture(task: str, asked: Sequence, indices: Sequence[int]) -> dict[int, str]:
    """Those of some questions whose pictures cannot be read, each with the reason."""
    found = {}
    for index in indices:
        try:
            _pictures(asked[index])
        except (ValueError, OSError) as reason:
            found[index] = f"{task}, question {index + 1}: {reason}"
    return found


def run(model, method: dart.Method | None, task: str, **options) -> Record:
    """Measure one method on a task; the options are those of `sweep`."""
    return sweep(model, [method], task, **options)[0]
