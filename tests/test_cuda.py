"""What only a CUDA device can show. Skipped where there is none; `pytest -m cuda` runs these alone."""

import warnings

import pytest
import torch
from test_select import GOLDEN, golden_inputs, image_span
from tiny import CONFIGS, prompt, tiny
from torch.testing import assert_close

import dart
from dart import cost, timing
from dart.cli import main
from dart.select import dart_keep

pytestmark = pytest.mark.cuda
DEVICE = "cuda"
TOY = cost.Machine("toy", 1e12, 1e12)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Convolutions round to TF32 unless told, and near choices would fall otherwise than on a CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def llava():
    """LLaVA-1.5 in its true widths, but four layers and a tower of two."""
    config = cost.shape("llava-1.5-7b")
    config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers = 4, 2
    torch.manual_seed(0)
    model = timing.build(config, dtype=torch.bfloat16, device=DEVICE)
    yield model
    del model
    timing.release()


@pytest.fixture
def moved():
    """A function that gives a twin of a tiny model, on the device; the original is shared with other tests."""
    return lambda name: timing.build(tiny(name).config, dtype=torch.float32, device="cpu")


def on(device, inputs):
    return {name: each.to(device) if isinstance(each, torch.Tensor) else each for name, each in inputs.items()}


def waits(call) -> int:
    """How often a call waits for the device."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(each.message) for each in said)


# ------------------------------------------------------------------------------------------------ the choice


def test_the_choice_never_waits_and_is_that_of_the_cpu():
    case = GOLDEN[0]
    hidden, keys = golden_inputs(*(case[name] for name in (
        "seed", "length", "image_start", "image_length", "hidden_size", "heads", "clusters")))
    image = image_span(case)
    for budget in (dict(keep=64), dict(per_pivot=8)):
        for order in ("sorted", "norm"):
            on_device = [x.to(DEVICE) for x in (hidden, keys, image)]
            dart_keep(*on_device, **budget, pivot_order=order)              # kernels are loaded outside the watch
            assert waits(lambda: dart_keep(*on_device, **budget, pivot_order=order)) == 0
            assert torch.equal(dart_keep(*on_device, **budget, pivot_order=order).cpu(),
                               dart_keep(hidden, keys, image, **budget, pivot_order=order))


def test_words_after_the_first_wait_no_more_often_inside_a_context(llava):
    inputs, _ = timing.example(llava.config, dtype=llava.dtype, device=DEVICE)

    def answering(words):
        with torch.no_grad():
            return waits(lambda: llava.generate(**inputs, min_new_tokens=words, max_new_tokens=words, do_sample=False))

    def each_word():
        answering(2)                                        # kernels are loaded outside the watch
        return answering(9) - answering(5)

    plain = each_word()
    with dart.prune(llava, dart.DART(keep=64)):
        assert each_word() <= plain


# ------------------------------------------------------------------------------------------------ pruning


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "phi4_multimodal"])
def test_every_family_prunes_as_on_a_cpu(moved, name):
    model, inputs = moved(name), prompt(name, [[3, "I", 6], [5, "I", 2]])
    said, kept = [], []
    for device in ("cpu", DEVICE):
        model.to(device)
        with dart.prune(model, dart.DART(keep=4)) as report, torch.no_grad():
            said.append(model(**on(device, inputs)).logits.cpu())
        kept.append([sample.kept.tolist() for sample in report.samples])
    assert kept[0] == kept[1]
    assert_close(*said, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_answers_are_those_of_a_cpu(moved, cache):
    """A static cache has transformers compile the words after the first, on CUDA only."""
    model, inputs = moved("llava"), {**prompt("llava", [[3, "I", 6], [5, "I", 2]])}
    inputs.pop("position_ids", None)
    said = []
    for device in ("cpu", DEVICE):
        model.to(device)
        with dart.prune(model, dart.DART(keep=4)), torch.no_grad():
            options = {} if device == "cpu" or cache == "dynamic" else {"cache_implementation": cache}
            said.append(model.generate(**on(device, inputs), max_new_tokens=6, do_sample=False, **options).cpu())
    assert torch.equal(*said)


def test_keeping_everything_changes_nothing_in_bfloat16(llava):
    inputs, _ = timing.example(llava.config, batch=2, dtype=llava.dtype, device=DEVICE)
    with torch.no_grad():
        plain = llava(**inputs).logits
        with dart.prune(llava, dart.DART(keep=576)):
            kept_all = llava(**inputs).logits
    assert torch.equal(plain, kept_all)


# ------------------------------------------------------------------------------------------------ kernels and graphs


@pytest.mark.parametrize("attention", ["sdpa-flash", "flash_attention_2"])
def test_dart_reads_and_answers_with_a_flash_kernel_alone(llava, attention):
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    setting = dict(batch=2, new_tokens=3, attention=attention)
    plain, pruned = timing.bench(llava, {"dart": dart.DART(64)}, machine=TOY, **setting, rounds=1)
    assert pruned.lengths == [636, 636, 124, 124]


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_answer_says_what_an_uncompiled_one_says(llava, mode):
    from torch._dynamo.utils import counters

    inputs, _ = timing.example(llava.config, dtype=llava.dtype, device=DEVICE)
    said = {}
    for how in ("no", mode):
        twin = timing._twin(llava)
        counters.clear()
        with dart.prune(twin, dart.DART(keep=64)) as report, timing._graph(twin, how, 1), torch.no_grad():
            for _ in range(4):                              # compiled, tried, recorded, replayed
                said[how] = twin.generate(
                    **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
        assert [report.lengths(i) for i in range(4)] == [[636, 636, 124, 124]] * 4      # no replay wrote over what is told
    assert counters["inductor"]["cudagraph_skips"] == 0
    first = [said[how].logits[0].float() for how in said]
    assert_close(*first, atol=0.1, rtol=0.05)               # fused arithmetic rounds otherwise in bfloat16


# ------------------------------------------------------------------------------------------------ times and records


def test_stages_are_timed_by_the_device_and_memory_is_seen(llava):
    plain, pruned = timing.bench(llava, {"dart": dart.DART(64)}, machine=TOY, batch=4, new_tokens=3, rounds=3)
    weights = sum(each.nbytes for each in llava.parameters())
    for run in (plain, pruned):
        assert (run.times(*timing.STAGES) <= 1.02 * run.times("total")).all()
        assert all(min(run.seconds[stage]) > 0 for stage in ("vision", "prefill", "decode"))
        assert weights < run.peak_bytes
    assert min(pruned.seconds["selection"]) > 0 == max(plain.seconds["selection"])
    assert pruned.peak_bytes <= plain.peak_bytes


def test_a_device_reaches_something_like_its_data_sheet():
    found = timing.measure(DEVICE)
    assert 1e12 < found.flops < 5e15 and 1e11 < found.bandwidth < 2e13


def test_memory_that_does_not_suffice_loses_one_setting_only(tmp_path, monkeypatch):
    case = timing.Case("smolvlm2-2.2b", keep=(64,), batch=(1, 10**5, 2), rounds=1)
    example = timing.example

    def scarce(config, **options):
        if options.get("batch", 1) > 2:
            torch.empty(2**50, dtype=torch.uint8, device=DEVICE)
        return example(config, **options)

    monkeypatch.setattr(timing, "example", scarce)
    monkeypatch.setattr(timing, "LARGE", (case,))
    assert main(["bench", "--suite", "--machine", "h100", "--out", str(tmp_path)]) == 0
    record = timing.read(*tmp_path.iterdir())
    assert [setting[0].batch for setting in record.settings()] == [1, 2]
    assert [(case["batch"], case["why"].partition(":")[0]) for case in record.not_run] == [(10**5, "OutOfMemoryError")]
    assert record.environment["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("name", cost.SHAPES)
def test_every_shape_is_built_on_the_device_and_answers(name):
    """In full, one prompt, three words: needs 20 GB."""
    model = None
    try:
        model = timing.build(name, device=DEVICE)
        _, image = timing.prompt_size(model.config)
        keep = round(image / 9)
        plain, pruned = timing.bench(model, {"dart": dart.DART(keep)}, machine=TOY, new_tokens=3, rounds=1, warmup=1)
        assert plain.image_tokens - keep == plain.lengths[-1] - pruned.lengths[-1]
    finally:
        del model
        timing.release()


def test_the_bundled_model_answers_on_the_device_as_on_a_cpu(tmp_path):
    found = []
    for device in ("cpu", DEVICE):
        call = "eval --tasks existence --methods unpruned dart --keep 64 --limit 8 --dtype float32"
        assert main([*call.split(), "--device", device, "--out", str(tmp_path / device)]) == 0
        found.append({place.parent.name: place.read_text() for place in (tmp_path / device).rglob("metrics.json")})
    assert found[0] and found[0] == found[1]
