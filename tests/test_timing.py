"""Times belong to their calls and stages, warm-up is not counted, the order turns, and CUDA is waited for."""

import logging
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tiny import CONFIGS, LAYERS, tiny
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

import dart
from dart import cost, evaluation, timing
from dart.cli import main


@pytest.fixture
def clock(monkeypatch):
    """A clock that only calls move."""
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_each_call_gets_its_own_seconds(clock):
    def takes(seconds):
        def call():
            clock[0] += seconds
        return call

    found = timing.interleaved({"long": takes(3.0), "short": takes(0.5)}, rounds=4)
    assert list(found) == ["long", "short"]
    np.testing.assert_array_equal(found["long"], [3.0] * 4)
    np.testing.assert_array_equal(found["short"], [0.5] * 4)


def test_warm_up_is_not_counted(clock):
    calls = []

    def slow_at_first():
        clock[0] += 9.0 if len(calls) < 2 else 1.0
        calls.append(clock[0])

    assert timing.interleaved({"a": slow_at_first}, rounds=3, warmup=2)["a"].tolist() == [1.0] * 3
    assert len(calls) == 5


def test_calls_take_turns_and_every_other_round_goes_backwards():
    order = []
    timing.interleaved({name: lambda name=name: order.append(name) for name in "abc"}, rounds=2, warmup=0)
    assert "".join(order) == "abccba"


def test_a_machine_that_grows_slower_favours_none(clock):
    def call():
        clock[0] *= 1.01

    found = timing.interleaved({"a": call, "b": call}, rounds=2, warmup=0)
    assert found["a"].sum() == pytest.approx(found["b"].sum(), rel=1e-3)


def test_the_device_is_waited_for_before_and_after_each_call(monkeypatch):
    said = []
    monkeypatch.setattr(timing.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(timing.torch.cuda, "synchronize", lambda: said.append("wait"))
    timing.interleaved({"a": lambda: said.append("call")}, rounds=2, warmup=0)
    assert said == ["wait", "call", "wait"] * 2


@pytest.mark.parametrize("wrong", [{"calls": {}}, {"rounds": 0}, {"warmup": -1}])
def test_nothing_to_measure_is_refused(wrong):
    with pytest.raises(ValueError, match="give"):
        timing.interleaved(**{"calls": {"a": lambda: None}, **wrong})


# ------------------------------------------------------------------------------------------------ the bench

TOY = cost.Machine("toy", 1e9, 1e9)


@dataclass(frozen=True)
class Slow(dart.Random):
    """Random, but a second of the fake clock goes by."""

    def select(self, view):
        CLOCK[0] += 1
        return super().select(view)


CLOCK = [0.0]


@pytest.fixture
def stages_by_clock(monkeypatch):
    """The tiny LLaVA: its tower takes 100 seconds, its first decoder layer 10 every time it is called."""
    monkeypatch.setattr(timing.time, "perf_counter", lambda: CLOCK[0])
    model = tiny("llava")

    def takes(seconds):
        def hook(*_):
            CLOCK[0] += seconds
        return hook

    handles = [model.model.vision_tower.register_forward_hook(takes(100)),
               model.model.language_model.layers[0].register_forward_hook(takes(10))]
    yield model
    for handle in handles:
        handle.remove()


def test_every_second_belongs_to_its_stage(stages_by_clock):
    plain, pruned = timing.bench(stages_by_clock, {"slow": Slow(4, seed=0)}, machine=TOY, batch=2, new_tokens=4, rounds=3)
    same = {"vision": [100] * 3, "prefill": [10] * 3, "decode": [30] * 3}
    assert plain.seconds == {**same, "selection": [0] * 3, "total": [140] * 3}
    assert pruned.seconds == {**same, "selection": [1] * 3, "total": [141] * 3}
    assert pruned.per_token.tolist() == [10] * 3
    assert timing.speedup(plain, pruned, *timing.READING)[0] == 110 / 111


def test_a_run_says_what_was_read_and_what_that_costs():
    model = tiny("llava")
    plain, pruned = timing.bench(model, {"dart": dart.DART(9)}, machine=TOY, batch=2, new_tokens=3, text_tokens=20, rounds=1)
    assert (plain.label, plain.image_tokens, plain.text_tokens, plain.patches) == ("unpruned", 36, 20, [36])
    assert plain.lengths == [56] * LAYERS
    assert pruned.lengths == [56, 56, 29, 29, 29]
    work = cost.stages(model.config, pruned.lengths, [36], batch=2, new_tokens=3, dtype=torch.float32)
    assert pruned.flops == {stage: cost.total_flops(steps) for stage, steps in work.items()}
    assert pruned.roofline == {stage: cost.roofline(steps, TOY) for stage, steps in work.items()}
    assert plain.peak_bytes is None
    both = [sum(cost.layer_flops(model.config, run.lengths)) + cost.head_flops(model.config) for run in (plain, pruned)]
    assert timing.limit(plain, pruned, "prefill", "selection") == both[0] / both[1]


def test_eager_attention_is_counted_in_full():
    runs = [timing.bench(tiny("llava"), {}, machine=TOY, attention=name, rounds=1)[0] for name in ("eager", "sdpa")]
    assert runs[0].flops["prefill"] > runs[1].flops["prefill"]


def test_an_answer_has_as_many_tokens_as_were_asked_for():
    model = tiny("llava")
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    timing.bench(model, {}, machine=TOY, new_tokens=5, rounds=1, warmup=1)
    handle.remove()
    assert len(calls) == 2 * 5


@pytest.mark.parametrize("wrong, message", [
    ({"batch": 0}, "batch=0; give 1 or more"), ({"new_tokens": 0}, "new_tokens=0; give 1 or more"),
])
def test_a_bench_of_nothing_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        timing.bench(tiny("llava"), {}, machine=TOY, **wrong)


@pytest.mark.parametrize("compiled, before", [(("no",), 2), (("no", "reduce-overhead"), 3)])
def test_a_graph_is_tried_and_recorded_before_it_is_timed(monkeypatch, compiled, before):
    monkeypatch.setattr(timing, "_graph", lambda *_: nullcontext())
    rounds = []
    turns = timing._turns
    monkeypatch.setattr(timing, "_turns", lambda names, count, warmup: rounds.append(warmup) or turns(names, count, warmup))
    timing.bench(tiny("llava"), {}, machine=TOY, rounds=1, warmup=2, compiled=compiled)
    assert rounds == [before]


def test_what_a_context_costs_later_words(monkeypatch, stages_by_clock):
    """Ten seconds a word of the first layer, one more where the context looks at the cache."""
    go_on = dart.pruning._Pruner._continue

    def slowly(*given):
        CLOCK[0] += 1
        go_on(*given)

    monkeypatch.setattr(dart.pruning._Pruner, "_continue", slowly)
    found = timing.later_words(stages_by_clock, "dart-9", dart.DART(9), batch=2, count=3, rounds=4)
    assert found.seconds == {"inside": [11] * 4, "no hooks": [10] * 4}
    assert found.more == pytest.approx((0.1, 0.1, 0.1))
    assert (found.label, found.batch, found.count) == ("dart-9", 2, 3)
    assert found.cache == [96, 96, 69, 69, 69]
    with pytest.raises(ValueError, match="count=0; give 1 or more"):
        timing.later_words(stages_by_clock, "dart-9", dart.DART(9), count=0)


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl"])
def test_later_words_are_the_same_with_hooks_and_without(family):
    """On the short caches the plain model computes what the pruned one does: only then is their time to be compared."""
    model = tiny(family)
    said = defaultdict(list)
    twin = timing._twin

    def listening(given):
        made, mine = twin(given), len(said)
        said[mine] = []
        made.register_forward_hook(lambda module, args, output: said[mine].append(output.logits[:, -1]))
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(timing, "_twin", listening)
        timing.later_words(model, "dart-4", dart.DART(4), count=3, rounds=1, warmup=0)
    inside, plain = said.values()
    assert len(inside) == 1 + len(plain) == 4               # one prompt was read
    torch.testing.assert_close(inside[1:], plain)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "sdpa-flash"])
def test_plain_and_pruned_take_turns_under_one_kernel(monkeypatch, attention):
    model, said = tiny("llava"), []
    answer = timing.answer

    def listening(model, inputs, new_tokens, report):
        used = {each._attn_implementation for each in (model.config, model.config.text_config, model.config.vision_config)}
        said.append((report and report.method, *used, torch.backends.cuda.math_sdp_enabled()))
        return answer(model, inputs, new_tokens, report)

    monkeypatch.setattr(timing, "answer", listening)
    method = dart.Random(4, seed=0)
    timing.bench(model, {"random": method}, machine=TOY, attention=attention, rounds=2, warmup=1)
    kernel = (attention.removesuffix("-flash"), attention != "sdpa-flash")
    assert said == [(each, *kernel) for each in (method, None, None, method, method, None)]


def test_a_model_is_left_as_it_was():
    @dataclass(frozen=True)
    class Fails(dart.Method):
        def select(self, view):
            raise KeyError("planted")

    model = tiny("llava")
    with torch.no_grad():
        model(**timing.example(model.config)[0], output_hidden_states=True)

    def hooks():
        return [(*module._forward_hooks, *module._forward_pre_hooks) for module in model.modules()]

    before = hooks()
    with pytest.raises(KeyError, match="planted"):
        timing.bench(model, {"fails": Fails()}, machine=TOY, attention="eager", rounds=1)
    assert "get_image_features" not in vars(model.model)
    assert model.config._attn_implementation == "sdpa"
    assert hooks() == before


def test_a_bench_leaves_the_weights_where_they_are_and_the_model_alone(monkeypatch):
    model, used = tiny("llava"), []
    answer = timing.answer
    monkeypatch.setattr(timing, "answer", lambda twin, *rest: used.append(twin) or answer(twin, *rest))
    timing.bench(model, {"dart": dart.DART(9)}, machine=TOY, rounds=1, warmup=1)
    assert len(set(map(id, used))) == 2 and all(twin is not model for twin in used)
    for twin in used:
        assert all(mine is its for mine, its in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without its compiler: for each mode how often something was traced."""
    counters, compile = defaultdict(CompileCounter), torch.compile

    def standing_in(function, **options):
        return compile(function, backend=counters[options.pop("mode")], **options)

    monkeypatch.setattr(torch, "compile", standing_in)
    monkeypatch.setattr(timing, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)       # pytest would have it write down everything
    return counters


@pytest.mark.filterwarnings("ignore")
def test_compiled_and_not_take_turns_and_nothing_is_compiled_twice(traced):
    methods = {"keep": dart.DART(9), "ratio": dart.DART(reduction_ratio=2 / 3)}
    runs = timing.bench(tiny("llava"), methods, machine=TOY, batch=2, new_tokens=3, rounds=2, compiled=tuple(timing.COMPILED))
    assert [(run.label, run.compiled) for run in runs] == [
        (name, mode) for mode in timing.COMPILED for name in ("unpruned", *methods)]
    # three models, in each of two modes; a second round and two words more compile nothing
    assert {mode: each.frame_count for mode, each in traced.items()} == {None: 3, "reduce-overhead": 3}
    short = {"unpruned": 96, "keep": 69, "ratio": 72}
    assert all(run.lengths == [96] * 2 + [short[run.label]] * 3 for run in runs)
    timed = [(run.label, run.compiled) for run in runs if max(run.seconds["selection"]) > 0]
    assert timed == [("keep", "no"), ("ratio", "no")]
    assert all(len(run.seconds["prefill"]) == 2 and min(run.seconds["prefill"]) > 0 for run in runs)
    record = replace(RECORD, runs=runs)
    assert [{run.compiled for run in setting} for setting in record.settings()] == [{mode} for mode in timing.COMPILED]
    assert [row["selection, ms"] == "in prefill" for row in record.table()] == 3 * [False] + 2 * [False, True, True]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_answer_says_what_an_uncompiled_one_says(traced):
    model, said = tiny("llava"), []
    inputs, _ = timing.example(model.config, batch=2)
    for mode in ("no", "default"):
        twin = timing._twin(model)
        with dart.prune(twin, dart.DART(9)), timing._graph(twin, mode, 1), torch.no_grad():
            said.append(twin.generate(**inputs, max_new_tokens=6, do_sample=False))
        assert "forward" not in vars(twin.model.language_model)
    assert torch.equal(*said)


@pytest.mark.filterwarnings("ignore")
def test_a_method_that_cannot_be_compiled_is_refused(traced):
    @dataclass(frozen=True)
    class Prints(dart.Random):
        def select(self, view):
            torch._dynamo.graph_break()
            return super().select(view)

    with pytest.raises(ValueError, match="could not be compiled: .*; measure without --compile"):
        timing.bench(tiny("llava"), {"prints": Prints(4, seed=0)}, machine=TOY, rounds=1, compiled=("default",))
    with pytest.raises(ValueError, match="compiled='fast'; give some of no, default, reduce-overhead"):
        timing.bench(tiny("llava"), {}, machine=TOY, compiled=("fast",))


@pytest.mark.parametrize("device, environment, found, triton, message", [
    ("cpu", {}, (), True, "needs a C\\+\\+ compiler, and none is found as g\\+\\+; install one"),
    ("cpu", {"CXX": "own++"}, ("g++",), True, "none is found as own\\+\\+"),
    ("cuda", {}, ("gcc",), False, "needs the package triton"),
    ("cuda", {}, ("g++",), True, "needs a C compiler, and none is found as gcc or clang"),
    ("cpu", {"CXX": "own++"}, ("own++",), False, None),
    ("cuda", {}, ("clang",), True, None),
])
def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch, device, environment, found, triton, message):
    monkeypatch.setattr(timing.os, "environ", environment)
    monkeypatch.setattr(timing.platform, "system", lambda: "Linux")
    monkeypatch.setattr(timing, "which", lambda name: name if name in found else None)
    monkeypatch.setattr(timing, "find_spec", lambda name: triton or None)
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        timing._check_compiler(torch.device(device))


def test_kernels_that_cannot_be_had_are_refused():
    with pytest.raises(ValueError, match="give one of eager, sdpa, sdpa-flash, flash_attention_2"):
        timing.bench(tiny("llava"), {}, machine=TOY, attention="flash")
    with pytest.raises(ValueError, match="needs the package flash-attn and a CUDA device"):
        timing.bench(tiny("llava"), {}, machine=TOY, attention="flash_attention_2")


# ------------------------------------------------------------------------------------------------ models and prompts


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "phi4_multimodal"])
def test_a_prompt_of_every_family_is_read_pruned_and_has_the_patches_it_says(name):
    model = tiny(name, "eager")
    inputs, patches = timing.example(model.config, batch=2, text_tokens=11, grid=(4, 8))
    with FlopCounterMode(display=False, depth=None) as counter, torch.no_grad():
        body = model.model
        more = {key: inputs[key] for key in ("image_sizes", "image_grid_thw") if key in inputs}
        body.get_image_features(inputs["pixel_values"], **more)
    assert 2 * (cost.vision_flops(model.config, patches) + cost.projector_flops(model.config, patches)) == pytest.approx(
        counter.get_total_flops(), rel=0.01)
    tiny(name)
    with dart.prune(model, dart.Random(4, seed=0)) as report, torch.no_grad():
        model.generate(**inputs, max_new_tokens=2)
    read = report.samples[1]
    assert timing.prompt_size(model.config, text_tokens=11, grid=(4, 8)) == (read.length, len(read.image))
    assert read.length - len(read.image) == 11


def test_prompts_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="'phi4_multimodal'; described are llava"):
        timing.example(CONFIGS["phi4_multimodal"]())
    with pytest.raises(ValueError, match="text_tokens=3; give 4 or more"):
        timing.example(CONFIGS["llava"](), text_tokens=3)


def test_a_shape_is_built_in_full_in_its_dtype_where_it_stays(monkeypatch):
    made = timing.build("llava-1.5-7b", device="meta")
    assert {(each.device.type, each.dtype) for each in made.parameters()} == {("meta", torch.bfloat16)}
    assert len(made.model.language_model.layers) == 32
    assert sum(each.nbytes for each in made.parameters()) == cost.weight_bytes(cost.shape("llava-1.5-7b"))
    small = timing.build(CONFIGS["llava"](), device="cpu")
    assert {each.dtype for each in small.parameters()} == {torch.bfloat16} and not small.training
    assert all(each.isfinite().all() for each in small.parameters())
    with pytest.raises(ValueError, match="no shape named 'llava'"):
        timing.build("llava", device="cpu")


@pytest.mark.parametrize("name, message", [
    ("tpu", "device='tpu' is none that torch knows"),
    ("meta", "device='meta' cannot be timed here; use cpu or cuda"),
    ("cuda:7", "device='cuda:7', but torch sees 2 CUDA devices here"),
])
def test_devices_that_cannot_be_timed_are_refused(monkeypatch, capsys, name, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        timing.find_device(name)
    assert timing.find_device("cuda:1") == torch.device("cuda", 1)
    assert main(["bench", "--device", name]) == 2
    assert message in capsys.readouterr().err


def test_a_machine_is_as_good_as_its_best_turn(monkeypatch):
    turns = {"product": np.array([2.0, 1.0]), "copy": np.array([0.5, 4.0])}
    monkeypatch.setattr(timing, "interleaved", lambda calls, rounds: turns)
    found = timing.measure("cpu", torch.float32, size=10)
    assert (found.flops, found.bandwidth) == (2 * 10**3, 2 * 16 * 10**2 * 4 / 0.5)
    assert found.name.endswith("measured")


# ------------------------------------------------------------------------------------------------ records


def made(label, prefill, flops, **more):
    seconds = {"vision": [1.0] * 3, "prefill": prefill, "selection": [0.0] * 3, "decode": [0.0] * 3, "total": [9.0] * 3}
    work = {"vision": 10, "prefill": flops, "decode": 0}
    given = dict(attention="sdpa", batch=1, new_tokens=1, text_tokens=5, image_tokens=36, lengths=[41] * LAYERS, patches=[36],
                 peak_bytes=None, roofline={"vision": 1.0, "prefill": flops / 10, "decode": 0.0})
    return timing.Run(label=label, seconds=seconds, flops=work, **{**given, **more})


PLAIN, PRUNED = made("unpruned", [4.0, 40.0, 4.0], 90), made("dart-4", [2.0, 20.0, 3.0], 40)
WHERE = {"device": "x86_64 CPU, 1 thread", "date": "2026-01-02 03:04:05"}
RECORD = timing.Record("toy", "random", "float32", TOY, WHERE, [PLAIN, PRUNED])


def test_rounds_are_compared_each_within_itself():
    assert timing.speedup(PLAIN, PRUNED, "prefill")[0] == 2        # the slow second round slowed both
    middle, low, high = timing.speedup(PLAIN, PRUNED, "vision", "prefill")
    assert low <= middle <= high and middle == 5 / 3
    assert timing.limit(PLAIN, PRUNED, *timing.READING) == 2
    assert timing.limit(PLAIN, PRUNED, *timing.READING, by="roofline") == 2


def test_a_record_comes_back_as_it_was_and_is_never_overwritten(tmp_path):
    place = RECORD.write(tmp_path / "new")
    assert place.name == "toy-x86-64-cpu-1-thread-2026-01-02-03-04-05.json"
    assert timing.read(place) == RECORD
    with pytest.raises(FileExistsError):
        RECORD.write(tmp_path / "new")
    words = timing.Words("dart-4", 1, 2, [41] * LAYERS, {"inside": [2.0], "no hooks": [1.0]})
    longer = replace(RECORD, runs=[*RECORD.runs, PLAIN], words=[words])
    assert longer.write(tmp_path / "new", place) == place
    assert timing.read(place) == longer and [*place.parent.iterdir()] == [place]


def test_records_are_found_by_model_the_latest_last(tmp_path):
    assert timing.records(folder=tmp_path) == []
    dates = ("2026-02-01 00:00:00", "2026-01-03 00:00:00")
    for date in dates:
        replace(RECORD, environment={**WHERE, "date": date}).write(tmp_path)
    replace(RECORD, model="other").write(tmp_path)
    assert [record.environment["date"] for record in timing.records("toy", tmp_path)] == sorted(dates)
    assert len(timing.records(folder=tmp_path)) == 3


def test_the_newest_record_with_a_setting_and_its_methods_is_found(monkeypatch):
    eager = [replace(run, attention="eager") for run in (PLAIN, PRUNED)]
    older = replace(RECORD, runs=[PLAIN, PRUNED, *eager])
    newer = replace(RECORD, environment={**WHERE, "device": "a GPU"}, runs=[PLAIN, replace(PRUNED, label="fastv-4")])
    monkeypatch.setattr(timing, "records", lambda model, folder=None: [older, newer])
    assert timing.newest("toy") == (newer, newer.runs)
    assert timing.newest("toy", ["dart-4"]) == timing.newest("toy", device="CPU") == (older, [PLAIN, PRUNED])
    assert timing.newest("toy", attention="eager") == (older, eager)
    assert timing.newest("toy", ["dart-4", "fastv-4"]) is timing.newest("toy", batch=2) is None


def test_the_stored_records_are_sound():
    for record in timing.records():
        assert (record.runs or record.not_run or record.words) and record.environment["commit"]
        for plain, *others in record.settings():
            assert plain.label == "unpruned" and others
            assert all(min(run.seconds["total"]) > 0 for run in (plain, *others))


@pytest.mark.parametrize("damage", [lambda text: text[:-30], lambda text: text.replace('"label"', '"name"'), lambda text: "[]"])
def test_damaged_records_are_refused(tmp_path, damage):
    place = RECORD.write(tmp_path)
    place.write_text(damage(place.read_text()))
    with pytest.raises(ValueError, match="cannot be read: .*; make it anew with dart bench"):
        timing.read(place)


def test_runs_are_compared_with_the_plain_model_they_took_turns_with():
    slower = replace(PLAIN, seconds={**PLAIN.seconds, "prefill": [8.0, 80.0, 8.0]})
    record = replace(RECORD, runs=[PLAIN, PRUNED, slower, PRUNED])
    assert record.settings() == [[PLAIN, PRUNED], [slower, PRUNED]]
    assert [row["first word: measured"][:5] for row in record.table()] == ["", "1.67x", "", "3.00x"]
    assert record.table()[1]["first word: FLOPs limit"] == "2.00x"
    assert record.table()[0]["peak, MiB"] == "not measured"


# ------------------------------------------------------------------------------------------------ the command


def test_the_command_prints_stages_beside_limits_and_writes_a_record(tmp_path, capsys):
    call = ["bench", "--new-tokens", "1", "2", "--rounds", "1", "--machine", "h100"]
    assert main([*call, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "bundled" in out and "FLOPs limit" in out and "dart-64" in out and "roofline of H100 80 GB, data sheet" in out
    record = timing.read(*tmp_path.iterdir())
    assert [len(setting) for setting in record.settings()] == [2, 2]
    assert record.environment["torch"] == torch.__version__
    assert record.runs[1].lengths == [636] * 2 + [124] * 6


def test_the_suite_writes_down_what_cannot_be_run_and_goes_on(tmp_path, capsys, monkeypatch):
    case = timing.Case("llava-1.5-7b", keep=(4,), attention=("flash_attention_2", "sdpa"))
    monkeypatch.setattr(timing, "SMALL", (case,))
    monkeypatch.setattr(timing, "build", lambda *_, **options: tiny("llava"))
    common = ["--rounds", "1", "--machine", "h100", "--device", "cpu", "--out", str(tmp_path)]
    assert main(["bench", "--suite", *common]) == 0
    record = timing.read(*tmp_path.iterdir())
    assert record.weights == "random" and record.model == "llava-1.5-7b"
    assert [run.attention for run in record.runs] == ["sdpa"] * 2
    assert "flash-attn" in record.not_run[0]["why"]
    assert "not run: " in capsys.readouterr().out
    assert main(["bench", "--random-weights", "llava-1.5-7b", "--attn", "flash_attention_2", *common]) == 2
    assert main(["bench", "--random-weights", "llava-next-7b", "--suite", *common]) == 2
    assert "has no cases of llava-next-7b; it has llava-1.5-7b" in capsys.readouterr().err


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A suite of three settings, each measured in no time, and the call for it; `measured` fills with what was."""
    measured = []

    def bench(model, methods, *, machine, rounds, **setting):
        measured.append(setting["batch"])
        if setting["batch"] in failing:
            raise failing[setting["batch"]]
        settings = {name: setting[name] for name in ("batch", "attention", "new_tokens")}
        return [replace(run, label=label, **settings) for run, label in zip((PLAIN, PRUNED), ("unpruned", *methods))]

    failing = {}
    monkeypatch.setattr(timing, "SMALL", (timing.Case("llava-1.5-7b", keep=(4,), batch=(1, 2, 4)),))
    monkeypatch.setattr(timing, "build", lambda *_, **options: tiny("llava"))
    monkeypatch.setattr(timing, "bench", bench)
    call = ["bench", "--suite", "--machine", "h100", "--device", "cpu", "--out", str(tmp_path)]
    return call, measured, failing


def test_the_suite_goes_on_where_it_stopped(suite, tmp_path, capsys, monkeypatch):
    call, measured, failing = suite
    failing[2] = torch.OutOfMemoryError("CUDA out of memory")
    assert main(call) == 0
    assert measured == [1, 2, 4]
    assert [case["batch"] for case in timing.records(folder=tmp_path)[0].not_run] == [2]
    assert "not run: dart-4, sdpa, 2, 1, no, OutOfMemoryError: CUDA out of memory" in capsys.readouterr().out
    del failing[2], measured[:]
    monkeypatch.setattr(timing, "device_name", lambda device: "x86_64 CPU, 7 threads")
    assert main(call) == 0 and measured == [1, 2, 4]        # another device
    monkeypatch.undo()


def test_the_same_call_measures_only_what_is_missing(suite, tmp_path, capsys):
    call, measured, failing = suite
    failing[2] = RuntimeError("no kernel")
    main(call)
    del failing[2], measured[:]
    place, = tmp_path.iterdir()
    place.rename(tmp_path / "earlier.json")                 # a call of the same second would not overwrite it
    main(call)
    assert measured == [2]
    main(call)
    assert measured == [2] and "every setting of this commit is in" in capsys.readouterr().out


def test_who_is_cut_off_keeps_what_was_measured(suite, tmp_path):
    call, measured, failing = suite
    failing[4] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        main(call)
    assert [setting[0].batch for setting in timing.read(*tmp_path.iterdir()).settings()] == [1, 2]


def test_a_suite_begins_nothing_when_its_time_is_over(suite, capsys):
    call, measured, _ = suite
    assert main([*call, "--minutes", "0"]) == 0
    assert measured == [] and "stopped after 0 minutes with 3 settings left; the same call goes on" in capsys.readouterr().out


def test_a_model_that_cannot_be_built_is_written_down(suite, tmp_path, monkeypatch):
    def build(*_, **options):
        raise torch.OutOfMemoryError("14 GiB are too much")

    monkeypatch.setattr(timing, "build", build)
    assert main(suite[0]) == 0
    record = timing.read(*tmp_path.iterdir())
    assert record.runs == [] and [case["why"] for case in record.not_run] == ["OutOfMemoryError: 14 GiB are too much"] * 3


@pytest.mark.parametrize("options, message", [
    (["--suite", "--batch", "4", "--compile", "default"], "leave out --batch, --compile, or leave out --suite"),
    (["--minutes", "3"], "--minutes 3 is for --suite"),
    (["--words", "-1"], "give 0 or more words"),
])
def test_options_that_would_do_nothing_or_harm_are_refused(capsys, options, message):
    assert main(["bench", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_suite_for_cuda_runs_through_with_tiny_models(tmp_path, monkeypatch):
    """Each family, method, kernel and batch of it, on a CPU: what only CUDA has is written down, all else is measured."""
    def smaller(case):
        return replace(case, keep=(4,), words=2 * bool(case.words), batch=(1, 2) if len(case.batch) > 1 else (1,),
                       new_tokens=(1, 3) if max(case.new_tokens) > 1 else (1,), compiled=("no",))

    example = timing.example
    monkeypatch.setattr(timing, "SMALL", tuple(dict.fromkeys(map(smaller, timing.LARGE))))
    monkeypatch.setattr(timing, "build", lambda name, **_: tiny(cost.SHAPES[name]["model_type"]))
    monkeypatch.setattr(timing, "example", lambda config, **options: example(config, **{**options, "grid": (4, 8)}))
    assert main(["bench", "--suite", "--rounds", "1", "--machine", "h100", "--device", "cpu", "--out", str(tmp_path)]) == 0
    records = timing.records(folder=tmp_path)
    assert {record.model for record in records} == set(cost.SHAPES)
    refused = [each for record in records for each in record.not_run]
    assert {each["attention"] for each in refused} == {"flash_attention_2"} and len(refused) == 2
    runs = [run for record in records for run in record.runs]
    assert {run.attention for run in runs} == {*timing.ATTENTION} - {"flash_attention_2"}
    assert {run.label.split("-")[0] for run in runs} == {"unpruned", "dart", "random", "fastv", "sparsevlm", "pyramiddrop"}
    assert all(max(run.lengths) > min(run.lengths) for run in runs if run.label != "unpruned")
    assert {record.model for record in records if record.words} == {"llava-1.5-7b", "llava-next-7b"}


def test_the_suite_for_cuda_names_what_there_is():
    assert {case.model for case in timing.LARGE} == set(cost.SHAPES)
    assert {case.model for case in timing.SMALL} == {None}
    for case in (*timing.SMALL, *timing.LARGE):
        assert all(evaluation.find_method(name, 64) is not None for name in case.methods)
        assert set(case.attention) <= set(timing.ATTENTION)
        assert set(case.compiled) <= set(timing.COMPILED)
    assert {mode for case in timing.LARGE for mode in case.compiled} == set(timing.COMPILED)
    assert {kernel for case in timing.LARGE for kernel in case.attention if "sparsevlm" in case.methods} == set(timing.ATTENTION)
    whole = [case for case in timing.LARGE if case.model == "llava-1.5-7b"]
    assert {batch for case in whole for batch in case.batch} == {1, 2, 4, 8, 16}
    assert {new for case in whole for new in case.new_tokens} == {1, 8, 32, 128}
