"""`dart` on the command line, also `python -m dart`."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, product
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils.logging import disable_progress_bar

import dart
from dart import budgets, bundled, claims, cost, evaluation, reproduction, results, scenes, timing
from dart.methods.base import NoPlan
from dart.tasks import base, files

KEEP = (192, 128, 64)
USUAL = ("unpruned", "dart", "random")
BENCH = {"methods": ["dart"], "keep": None, "batch": [1], "new_tokens": [1], "attn": ["sdpa"], "compile": ["no"], "words": 0}
# of the authors' code for LLaVA-NeXT, which no script of theirs changes
NEXT_BUDGET = 320


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dart", description="Prune vision tokens and measure what it costs.")
    parser.add_argument("--version", action="version", version=f"dart-mllm {dart.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    ask = commands.add_parser("eval", help="measure a model on tasks, pruned and unpruned", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                           description="Ask a model the questions of each task under each method and budget, and print a table of scores with 95 % "
                           "intervals over the blind floor. Example: dart eval --model FOLDER --tasks existence --methods unpruned dart --keep 64. "
                           "Several GPUs share the questions under `accelerate launch -m dart eval ...`")
    ask.add_argument("--model", help="folder that from_pretrained reads, or owner/name on the Hub; if left out data/model, which "
                     "`make train` makes")
    ask.add_argument("--revision", help="of a model on the Hub: branch, tag or commit")
    ask.add_argument("--tasks", nargs="+", default=["all"], help=f"all (the six scene tasks), {', '.join(evaluation.TASKS)}")
    ask.add_argument("--methods", nargs="+", help=f"all, {', '.join(evaluation.METHODS)}; settings behind a colon, as in "
                     f"dart:pivot_rule=random,image_pivots=8; if left out {' '.join(USUAL)}, with a released budget dart")
    ask.add_argument("--keep", nargs="+", type=int, help=f"image tokens that stay, exactly; if left out {' '.join(map(str, KEEP))}")
    ask.add_argument("--reduction-ratio", type=float, help="released budget of DART, as the authors' scripts take it: the fraction "
                     "of image tokens that goes")
    ask.add_argument("--max-num-trunction", type=int, help="released budget of DART as a number; it overrides --reduction-ratio")
    ask.add_argument("--layer", nargs="+", type=int, help="first decoder layers that see the short sequence; if left out each method's own")
    ask.add_argument("--budget", choices=budgets.CONVENTIONS, default="kept", help="what --keep counts: tokens left behind the last place, tokens "
                     "in a layer on average, or the work of so many from layer 2 on")
    ask.add_argument("--limit", type=int, help="only the first questions of each task")
    ask.add_argument("--out", type=Path, default=Path("build/eval"), help="where runs are kept; the same call resumes")
    ask.add_argument("--store", action="store_true", help="put the finished runs into data/results, where pages read them")
    ask.add_argument("--batch", type=int, default=16, help="questions a call; halved where memory does not suffice")
    ask.add_argument("--skip-bad", action="store_true", help="go on with files that are not as published, and leave out "
                     "questions that cannot be read and those whose picture cannot; the record says which")
    ask.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the computation; bfloat16 if there is CUDA",
                     default="bfloat16" if torch.cuda.is_available() else "float32")
    ask.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="as torch names it")
    ask.set_defaults(run=evaluate)

    tables = commands.add_parser("tables", help="make the runs of the results notebooks, and run these", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                 description="Make all runs that the tables and figures need, every task in one pass, then execute the notebooks "
                                 "through papermill. The same call goes on where it stopped. Example: dart tables table-1 figure-7 --limit 20")
    tables.add_argument("names", nargs="*", help="notebooks; all if left out")
    tables.add_argument("--scale", choices=["bundled", "paper"], default="bundled", help="the small model and our tasks, or the paper's")
    tables.add_argument("--model", help="a folder that from_pretrained reads, or a name on the Hub; each notebook's own if left out")
    tables.add_argument("--limit", type=int, default=300, help="only the first questions of each task")
    tables.add_argument("--device", help="as torch names it; CUDA if there is one")
    tables.add_argument("--jobs", type=int, default=2, help="tasks, and then notebooks, at a time")
    tables.add_argument("--notebooks", type=Path, default=Path("book/results"), help="folder of the notebooks")
    tables.add_argument("--out", type=Path, default=Path("build/tables"), help="folder of the executed notebooks")
    tables.add_argument("--store", action="store_true", help="put the runs into data/results, where the book reads them")
    tables.set_defaults(run=make_tables)

    store = commands.add_parser("results", help="look at stored runs, and verify them with today's code")
    store.add_argument("action", choices=["list", "verify"], help="list all runs; or answer some questions of the runs made by older code anew")
    store.add_argument("--task", help="only runs of this task")
    store.add_argument("--label", help="only runs of this label, as dart-64")
    store.add_argument("--all", action="store_true", help="verify current runs too")
    store.add_argument("--questions", type=int, default=100, help="questions of each run to answer anew")
    store.add_argument("--model", type=Path, help="folder of the model that the runs were made with; by default data/model")
    store.set_defaults(run=stored_runs)

    data = commands.add_parser("data", help="the files of the paper's benchmarks").add_subparsers(dest="what", required=True)
    check = data.add_parser("check", help="what is missing or broken, where it belongs and where it comes from",
                            description="Say which files of the benchmarks are missing, cut short or not as published; "
                            "exit code 1 if any are.")
    check.add_argument("tasks", nargs="*", metavar="TASK", help=f"{', '.join(files.FILES)}; all if left out")
    check.add_argument("--folder", type=Path, help="of all benchmarks; by default DART_BENCHMARKS, else benchmarks in the data folder")
    check.set_defaults(run=check_data)

    speed = commands.add_parser(
        "bench", help="measure how much faster, and beside what limit", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Answer turn by turn with the plain model and under each method; print the time of every stage, and the speed-up beside "
        "what arithmetic (FLOPs) and the machine (roofline) allow. Latency depends neither on weights nor on pictures, so prompts are "
        "random. Example: dart bench --random-weights llava-1.5-7b --keep 64 --batch 1 8")
    what = speed.add_mutually_exclusive_group()
    what.add_argument("--model", help="a folder that from_pretrained reads, a name on the Hub, or a shape; by default data/model")
    what.add_argument("--random-weights", metavar="SHAPE", choices=cost.SHAPES, help="a published architecture in full, made on the device "
                      f"with random weights: {', '.join(cost.SHAPES)}")
    speed.add_argument("--suite", action="store_true", help="all cases worth measuring, or those of the model that is named: on CUDA the "
                       "paper's efficiency tables, families, batches, kernels and lengths of answers; elsewhere the bundled model. The record is "
                       "written after every setting, what cannot be run is written down, and the same call goes on where it stopped")
    speed.add_argument("--methods", nargs="+", help="as in dart eval; the plain model is always there")
    speed.add_argument("--keep", nargs="+", type=int, help="image tokens that stay; by default one in nine")
    speed.add_argument("--batch", nargs="+", type=int, help="prompts a call")
    speed.add_argument("--new-tokens", nargs="+", type=int, help="tokens of an answer")
    speed.add_argument("--words", type=int, help="also time so many words behind the prompt, inside the context and without it, on the same "
                       "short caches")
    speed.add_argument("--attn", nargs="+", choices=timing.ATTENTION, help="kernel, the same for all: "
                       + "; ".join(f"{name}: {meaning}" for name, meaning in timing.ATTENTION.items()))
    speed.add_argument("--compile", nargs="+", choices=timing.COMPILED, help="how prompts are read: "
                       + "; ".join(f"{name}: {meaning}" for name, meaning in timing.COMPILED.items()))
    speed.add_argument("--rounds", type=int, default=9, help="times of each")
    speed.add_argument("--minutes", type=float, default=math.inf, help="begin no setting of the suite after so long")
    speed.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="by default bfloat16 on CUDA, else float32")
    speed.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="as torch names it")
    speed.add_argument("--machine", choices=[*cost.MACHINES, "measured"], default="measured", help="whose peak rates make the roofline")
    speed.add_argument("--out", type=Path, default=Path("build/bench"), help="where the record goes")
    speed.add_argument("--store", action="store_true", help="put the record into data/results/bench, where pages read it")
    speed.set_defaults(run=bench, **BENCH)

    judged = commands.add_parser("claims", help="judge every claim of the paper", description="Judge every claim of the paper by stored runs and "
                                 "short measurements on the bundled model, and print the verdicts.")
    judged.add_argument("--write", action="store_true", help="write the ledger to data/results/claims.json, which the book compares with")
    judged.set_defaults(run=judge_claims)
    return parser


def check_data(given: argparse.Namespace) -> int:
    found = files.check(given.folder, given.tasks or None)
    for task in given.tasks or files.FILES:
        print(*[finding for finding in found if finding.task == task] or [f"{task}: nothing is missing"], sep="\n")
    return 1 if found else 0


def evaluate(given: argparse.Namespace) -> None:
    processes = evaluation.Processes()
    if not processes.main:                                  # the first one speaks for all
        disable_progress_bar()
    check_choice(given)
    tasks = [name for name in evaluation.TASKS if name in scenes.TASKS] if given.tasks == ["all"] else given.tasks
    found = [evaluation.find_task(name) for name in tasks]
    unlike = {name: [str(each) for each in files.check(tasks=[name])] for name in tasks if name in files.FILES}
    strange = [each for name in unlike for each in unlike[name]]
    if strange and not given.skip_bad:
        raise ValueError("\n".join([*strange, "`dart eval --skip-bad` goes on with what can be read"]))
    with base.passing_over(given.skip_bad):
        asked = evaluation.asked_of(found[0].name, given.limit)
        model, processor = load(given)
        first = next((each for each in asked if not given.skip_bad or readable(each)), asked[0])
        asking = {name: reproduction.asking(name, model, processor) for name in tasks}
        methods, notes = choose_methods(given, model, size_of(model, asking[tasks[0]][0], first))
        options = {name: getattr(given, name) for name in ("limit", "batch", "skip_bad")} | {"folder": given.out}
        records = [
            evaluation.sweep(model, methods, name, tokens=getattr(task, "tokens", 8), processor=asking[name][0], **options)
            for name, task in zip(tasks, found)
        ]
        if processes.main:
            for record in (record for column in records for record in column):
                task = record.settings["task"]
                reproduction.note(record, unlike=unlike.get(task), prompt=asking[task][1])
                keep(record, given.store)
            published = [(task, column) for task, column in zip(found, records) if task.name in files.FILES]
            notes += [hand_in(task, record) for task, column in published for record in column]
            notes += [f"prompts of {name}: {words}" for name, (_, words) in asking.items() if words]
            print(table(found, records), *notes, *strange, sep="\n")


def load(given: argparse.Namespace) -> tuple[PreTrainedModel, ProcessorMixin]:
    try:
        return bundled.load(given.model, dtype=getattr(torch, given.dtype), device=given.device, revision=given.revision)
    except ValueError as reason:
        if "Unrecognized configuration class" not in str(reason):
            raise
        raise ValueError(f"{given.model} takes no pictures, so there is no image token to prune ({str(reason).splitlines()[0]}); give a "
                         "vision-language model") from reason


def size_of(model: PreTrainedModel, processor: ProcessorMixin, question) -> tuple[int, int]:
    """What `evaluation.prompt_size` gives; where the processor refuses the question, whose fault that is."""
    try:
        return evaluation.prompt_size(model, processor, question)
    except ValueError as reason:
        if "holds no image token" in str(reason) or not readable(question):
            raise
        raise ValueError(f"{model.name_or_path} cannot be asked about a picture: {reason} It takes a chat template "
                         "(chat_template.jinja beside its files) that puts an image token into the prompt") from reason


def readable(question) -> bool:
    try:
        question.pictures() if hasattr(question, "pictures") else question.picture()
    except (ValueError, OSError):
        return False
    return True


def hand_in(task: base.Benchmark, record: evaluation.Record) -> str:
    """Write the benchmark's official answer file beside a run, and say where it is, or why there is none."""
    try:
        return f"submission: {task.submission(record.questions, record.answers, record.folder / 'submission')}"
    except (FileNotFoundError, ModuleNotFoundError) as reason:
        return f"no submission of {record.folder.name}: {reason}"


def keep(record: evaluation.Record, store: bool) -> None:
    """Put a run into the store if it is to go there and is whole."""
    if store and {"unlike", "skipped"} & set(record.environment):
        raise ValueError(f"{record.folder} is of files that are not as published, or lacks questions: it is not stored; get the files "
                         "first")
    if store:
        results.keep(record)


def check_choice(given: argparse.Namespace) -> None:
    """Refuse budgets that cannot be meant together, before anything is loaded."""
    released = {"--reduction-ratio": given.reduction_ratio, "--max-num-trunction": given.max_num_trunction}
    released = {name: value for name, value in released.items() if value is not None}
    if not released:
        return
    said = " ".join(f"{name} {value}" for name, value in released.items())
    if given.keep is not None:
        exact = " ".join(map(str, given.keep))
        raise ValueError(f"{said} is a released budget and --keep {exact} an exact one; give one of them")
    if given.budget != "kept":
        raise ValueError(f"{said} says itself what stays; leave --budget {given.budget} out, or give --keep in its place")
    others = [name for name in given.methods or () if name.partition(":")[0] not in ("unpruned", "dart")]
    if others:
        raise ValueError(f"{said} is a budget of dart only, not of {', '.join(others)}; give --keep N for these")
    if given.methods and set(given.methods) == {"unpruned"}:
        raise ValueError(f"{said} is a budget of dart, which --methods unpruned leaves out; give --methods unpruned dart")
    if given.reduction_ratio is not None and not 0 <= given.reduction_ratio <= 1:
        raise ValueError(f"--reduction-ratio {given.reduction_ratio}; it is the fraction that goes, give 0 to 1")
    if given.max_num_trunction is not None and given.max_num_trunction < 0:
        raise ValueError(f"--max-num-trunction {given.max_num_trunction}; give 0 or more")


def choose_methods(given: argparse.Namespace, model, size: tuple[int, int]) -> tuple[list[dart.Method | None], list[str]]:
    """The methods that were asked for at each budget and layer, and what to say about the budgets under the table."""
    released = given.reduction_ratio is not None or given.max_num_trunction is not None
    everything = given.methods == ["all"]
    if released and (everything or given.methods is None):
        names = ["dart"]
    else:
        names = list(evaluation.METHODS) if everything else given.methods or USUAL
    methods, notes = [None] if "unpruned" in names else [], []
    asked = [name for name in names if name != "unpruned"]
    if released:
        budget = released_budget(given.reduction_ratio, given.max_num_trunction, model, size[1])
        for layer, name in product(given.layer or [None], asked):
            method = with_released(partial(evaluation.find_method, name, layer=layer), budget)
            methods.append(method)
            stay = method.kept(size[1], method.layer + 1)[-1]
            notes.append(f"{evaluation.label(method)}: released budget, {stay} of {size[1]} image tokens stay")
        return methods, notes
    for layer, keep, name in product(given.layer or [None], given.keep or KEEP, asked):
        make = partial(evaluation.find_method, name, layer=layer)
        try:
            methods.append(budgets.meet(make, keep, given.budget, model.config, *size))
        except ValueError as reason:
            if not everything and not isinstance(reason, budgets.OutOfReach | NoPlan):
                raise
            notes.append(f"not run: {name} at {keep}: {reason}")
    return methods, [f"budgets: {budgets.MEANING[given.budget]}", *notes]


def released_budget(ratio: float | None, number: int | None, model, image_tokens: int) -> float:
    """Image tokens that the authors' code sets out with, before it shares them among the pivots.

    On LLaVA that is `number`, and without one what `ratio` leaves; LLaVA-NeXT takes neither.

    Raises
    ------
    ValueError
        For other families, where the budget of every picture is another.
    """
    kind = model.config.model_type
    if kind == "llava_next":
        warn(f"the authors' code takes neither --reduction-ratio nor --max-num-trunction on LLaVA-NeXT, but always a budget of "
             f"{NEXT_BUDGET}; --keep N is met exactly")
        return NEXT_BUDGET
    if kind != "llava":
        raise ValueError(f"the released budget of {kind} is another for every picture; give --keep N, or run lmms-eval with "
                         "--model dart --model_args method=dart,reduction_ratio=...")
    if number is None:
        return image_tokens * (1 - ratio)
    if ratio is not None:
        warn(f"--max-num-trunction {number} overrides --reduction-ratio {ratio}, as in the authors' code")
    return number


def with_released(make: Callable[..., dart.DART], budget: float) -> dart.DART:
    """The method with as many tokens for each pivot as the authors' code gives: a whole number, rounded down."""
    plain = make(keep=0)
    return replace(plain, keep=None, per_pivot=int(budget // (plain.image_pivots + plain.text_pivots)))


def warn(text: str) -> None:
    if evaluation.Processes().main:
        print(f"dart: warning: {text}", file=sys.stderr)


def make_tables(given: argparse.Namespace) -> None:
    found, known = reproduction.notebooks(given.notebooks), reproduction.targets()
    if not found:
        raise FileNotFoundError(f"no notebook with a parameter cell in {given.notebooks}; call this in the project's folder or give --notebooks")
    for name in given.names:
        evaluation.find_name("notebook", name, found)
    chosen = {name: path for name, path in found.items() if not given.names or name in given.names}
    parameters = {name: getattr(given, name) for name in ("scale", "model", "limit", "device")}
    experiments = [reproduction.Experiment(name, reproduction.Parameters(**parameters)) for name in chosen if name in known]
    groups: dict[str | None, list[reproduction.Experiment]] = {}
    for each in experiments:                                # at paper scale tables differ in their model
        groups.setdefault(None if given.scale == "bundled" else given.model or each.target.model, []).append(each)
    failed = {}
    for group in groups.values():
        store = results.root() if given.store else None
        failed |= {f"task {name}": why for name, why in reproduction.sweep(group, jobs=given.jobs, store=store).items()}
    failed |= reproduction.execute(chosen, parameters, given.out, jobs=given.jobs)
    print(f"{len(chosen)} notebooks in {given.out}")
    if failed:
        raise ValueError("\n".join(["some failed, the others are done:", *(f"  {name}: {why}" for name, why in failed.items())]))


def stored_runs(given: argparse.Namespace) -> None:
    runs = results.find(given.task, given.label)
    if not runs:
        raise ValueError(f"no run of task {given.task or 'any'} and label {given.label or 'any'} in {results.root()}")
    if given.action == "list":
        for run in runs:
            metric = evaluation.find_task(run.settings["task"]).metric
            print(f"{run.folder.parent.name}/{run.folder.name}  {metric} {run.metrics[metric]}  n={run.settings['n']}" + "  older code" * (not run.current))
        return
    todo = [run for run in runs if given.all or not run.current]
    print(f"{len(todo)} of {len(runs)} runs to verify")
    together: dict[tuple, list] = {}
    for run in sorted(todo, key=lambda run: run.settings["model"]):
        together.setdefault((run.settings["model"], *results.asked_alike(run)), []).append(run)
    differ, loaded = [], None
    for (name, *_), several in together.items():
        if name != loaded:
            model, processor = bundled.load(given.model or dart.data_root() / name)
            loaded = name
        asked_by, _ = reproduction.asking(several[0].settings["task"], model, processor)
        for run, agree in zip(several, results.verify(several, model, asked_by, n=given.questions)):
            print(f"{run.folder.parent.name}/{run.folder.name}: {agree:.0%} of {min(given.questions, run.settings['n'])} answers agree", flush=True)
            differ += [run.folder.name] if agree < 0.99 else []
    if differ:
        raise ValueError(f"these runs are answered otherwise now, and stay marked as older: {', '.join(differ)}")


def judge_claims(given: argparse.Namespace) -> None:
    for entry in claims.write() if given.write else claims.ledger():
        print(f"{entry.claim.id}: {entry.verdict.verdict}\n    {entry.claim.text}\n    {entry.verdict.sentence}")


def bench(given: argparse.Namespace) -> None:
    cuda = timing.find_device(given.device).type == "cuda"
    dtype = getattr(torch, given.dtype or ("bfloat16" if cuda else "float32"))
    name = given.random_weights or given.model
    if given.suite:
        if own := [f"--{option.replace('_', '-')}" for option, usual in BENCH.items() if getattr(given, option) != usual]:
            raise ValueError(f"--suite has settings of its own; leave out {', '.join(own)}, or leave out --suite")
        suite = timing.LARGE if cuda else timing.SMALL
        cases = [case for case in suite if name in (None, case.model)]
        if not cases:
            known = ", ".join(sorted({str(case.model or "the bundled model") for case in suite}))
            raise ValueError(f"the suite on {given.device} has no cases of {name}; it has {known}")
    elif given.minutes != math.inf:
        raise ValueError(f"--minutes {given.minutes:g} is for --suite; give fewer settings or --rounds instead")
    else:
        keep = given.keep and tuple(given.keep)
        cases = [timing.Case(name, tuple(given.methods), keep, tuple(given.batch), tuple(given.new_tokens), tuple(given.attn),
                             tuple(given.compile), given.words)]
    if given.words < 0 or given.rounds < 1:
        raise ValueError(f"--words {given.words} --rounds {given.rounds}; give 0 or more words, and 1 round or more")
    end = time.monotonic() + 60 * given.minutes
    machine = timing.measure(given.device, dtype) if given.machine == "measured" else cost.MACHINES[given.machine]
    left = sum(measured(given, name, list(group), dtype, machine, end) for name, group in groupby(cases, key=lambda case: case.model))
    if left:
        print(f"stopped after {given.minutes:g} minutes with {left} settings left; the same call goes on from there")


def measured(given: argparse.Namespace, name: str | None, cases: Sequence[timing.Case], dtype: torch.dtype, machine: cost.Machine,
             end: float) -> int:
    """Measure all cases of one model that are not on record yet; how many settings there was no time for.

    The record is written after each of them: who is cut off, or finds that one cannot be run, loses no other.
    """
    folder = results.root() / "bench" if given.store else given.out
    random, cuda = name in cost.SHAPES, torch.device(given.device).type == "cuda"
    model = None if random else bundled.load(name, dtype=dtype, device=given.device)[0]
    config = cost.shape(name) if random else model.config
    _, image_tokens = timing.prompt_size(config)
    environment = {
        "device": timing.device_name(given.device), "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, **({"cuda": torch.version.cuda} if cuda else {}), "commit": results._commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S"), "load before": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    called = name if random else Path(name).name if name else "bundled"
    record = timing.Record(called, "random" if random else evaluation.fingerprint(model), str(dtype).removeprefix("torch."), machine,
                           environment, [])
    alike = ("device", "torch", "transformers", "commit")
    before = [
        each for each in timing.records(called, folder)
        if given.suite and (each.weights, each.dtype) == (record.weights, record.dtype)
        and all(each.environment[what] == environment[what] for what in alike)
    ]

    settings: list[tuple[timing.Case, dict[str, dart.Method], dict]] = []
    for case in cases:
        named = product(case.methods, case.keep or (round(image_tokens / 9),))
        methods = {evaluation.label(method): method for method in (evaluation.find_method(each, keep) for each, keep in named)}
        for attention, batch, new_tokens in product(case.attention, case.batch, case.new_tokens):
            setting = {"attention": attention, "batch": batch, "new_tokens": new_tokens}
            if not any(all(each.find(methods, **setting, compiled=mode) for mode in case.compiled) for each in before):
                settings.append((case, methods, {**setting, "compiled": case.compiled}))
        for batch, label in product(case.batch if case.words else (), methods):
            timed = [(words.label, words.batch, words.count) for each in before for words in each.words]
            if (label, batch, case.words) not in timed:
                settings.append((case, {label: methods[label]}, {"batch": batch, "count": case.words}))
    if not settings:
        print(f"{called}: every setting of this commit is in {folder}; to measure anew, move its records away")

    place, done = None, 0
    for case, methods, setting in settings:
        if time.monotonic() > end:
            break
        done, rounds, started = done + 1, min(case.rounds or given.rounds, given.rounds), time.monotonic()
        words = {what: " ".join(value) if isinstance(value, tuple) else value for what, value in setting.items()}
        why = ""
        try:
            if model is None:
                timing.release()
                model = timing.build(name, dtype=dtype, device=given.device)
            if "count" in setting:
                record.words.extend(timing.later_words(model, *each, **setting, rounds=rounds) for each in methods.items())
            else:
                record.runs.extend(timing.bench(model, methods, machine=machine, **setting, rounds=rounds))
        except Exception as reason:                         # memory, a missing package, a kernel that gives up: all are answers
            if not given.suite:
                raise
            why = f"{type(reason).__name__}: {str(reason).strip().partition(chr(10))[0]}"
        if why:
            record.not_run.append({"methods": " ".join(methods), **words, "why": why})
            timing.release()                                # here, for the error held on to what was computed
        record.environment["load after"] = round(os.getloadavg()[0], 1)
        place = record.write(folder, place)
        if given.suite:
            said = ", ".join([*methods, *(f"{what.replace('_', ' ')} {value}" for what, value in words.items())])
            print(f"{called}: {said}: {why or 'measured'} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)
    if place:
        show(record, place, given.rounds)
    return len(settings) - done


def show(record: timing.Record, place: Path, rounds: int) -> None:
    """Print what was measured beside its limits, and what could not be."""
    print(f"{record.model}, {record.weights} weights, {record.dtype}, {record.environment['device']}; "
          f"roofline of {record.machine.name}; medians of {rounds} turns at most, quartiles of speed-ups in brackets")
    if rows := record.table():
        print(columns([rows[0], *(row.values() for row in rows)]))
    for words in record.words:
        middle, low, high = words.more
        print(f"{words.label}, batch {words.batch}: a word after the first takes {middle:+.1%} ({low:+.1%} to {high:+.1%}) "
              "inside the context")
    print(*(f"not run: {', '.join(map(str, case.values()))}" for case in record.not_run), f"record: {place}", sep="\n")


def table(tasks: Sequence[evaluation.Task], records: Sequence[Sequence[evaluation.Record]]) -> str:
    """Rows of methods, columns of tasks; each cell is the task's metric with its 95 % interval.

    `records[column][row]` belongs to `tasks[column]`. The last row is what answering without the picture gets.
    """
    head = ["", *(f"{task.name} ({task.metric})" for task in tasks)]
    rows = [
        [row[0].settings["label"], *(scored(record.metrics[task.metric]) for task, record in zip(tasks, row))]
        for row in zip(*records)
    ]
    rows.append(["blind floor", *(scored(task.floors()["blind"][task.metric]) for task in tasks)])
    rows.append(["questions", *(str(column[0].settings["n"]) for column in records)])
    skipped = [len(column[0].environment.get("skipped", ())) for column in records]
    rows += [["skipped", *map(str, skipped)]] if any(skipped) else []
    return columns([head, *rows])


def scored(value: evaluation.Interval | float) -> str:
    """A score in words: answers to a test set may be known to its server only."""
    number = getattr(value, "value", value)
    return "by its server" if math.isnan(number) else f"{number:.3f}" if number is value else str(value)


def columns(rows: Sequence[Iterable]) -> str:
    """Rows of cells as text, each column as wide as its widest cell."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def main(arguments: Sequence[str] | None = None) -> int:
    given = build_parser().parse_args(arguments)
    try:
        return given.run(given) or 0
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        # each process says so, for the launcher ends the others as soon as one has failed
        processes = evaluation.Processes()
        print(f"dart{'' if processes.main else f' (process {processes.index})'}: {error}", file=sys.stderr)
        return 2
