"""What every reduction method owes, whatever it scores by: one list of methods, one matrix of promises."""

import pytest
import torch

import dart
from dart import evaluation, methods
from tiny import CONFIGS, LAYERS, image_mask, prompt, tiny

FAMILIES = list(CONFIGS)
METHODS = {name: method for name, method in evaluation.METHODS.items() if method is not None}
PER_PICTURE = ("downscale", "tome", "ficocov")              # their `keep` counts per picture
BLIND_TO_TEXT = ("random", "grid", "downscale", "tome", "ficocov", "divprune", "fastervlm", "hired", "prumerge", "visionzip", "vispruner")
ONE_EACH = [[4, "I", 9], [2, "I", 6], [9, "I", 3]]
MIXED = [[4, "I", 9], [2, "I", 3, "I", 6], [30], [6, "I", 5]]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def whole_tower(monkeypatch):
    """The projector takes the last layer of the tower, so that there are places enough in it."""
    monkeypatch.setattr(tiny("llava").model.config, "vision_feature_layer", -1)


def samples(name):
    return ONE_EACH if name in PER_PICTURE else MIXED


def expected(name, keep, image_tokens):
    if name == "downscale" and keep == 5:
        return 4                                            # 1 x 5 patches would be stretched too much
    return min(keep, image_tokens)


def pruned(model, inputs, method):
    with dart.prune(model, method) as report:
        return model(**inputs).logits, report


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", METHODS)
def test_keeping_everything_changes_no_bit(name, attention):
    model, inputs = tiny("llava", attention), prompt("llava", samples(name))
    plain = model(**inputs).logits
    logits, report = pruned(model, inputs, METHODS[name](keep=36 if name in PER_PICTURE else 72))
    assert torch.equal(logits, plain) and len(report.samples) > 0


@pytest.mark.parametrize("keep", [5, 12, 30])
@pytest.mark.parametrize("name", METHODS)
def test_budgets_are_met_and_no_text_is_lost(name, keep):
    model, inputs = tiny("llava"), prompt("llava", samples(name))
    logits, report = pruned(model, inputs, METHODS[name](keep=keep))
    image, real = image_mask(inputs), inputs["attention_mask"].bool()
    assert logits[real].isfinite().all()
    for row, sample in enumerate(report.samples):
        assert torch.equal(sample.image, image[row].nonzero().flatten())
        assert len(sample.kept) == expected(name, keep, len(sample.image))
        assert bool((sample.kept.diff() > 0).all()) and set(sample.kept.tolist()) <= set(sample.image.tolist())
        assert report.lengths(row)[-1] == int(real[row].sum()) - len(sample.image) + len(sample.kept)
        for (_, before), (_, after) in zip(sample.stages, sample.stages[1:]):
            assert set(after.tolist()) <= set(before.tolist())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", METHODS)
def test_a_batch_equals_its_samples_alone(name, attention):
    model, method = tiny("llava", attention), METHODS[name](keep=12)
    batch = prompt("llava", samples(name))
    together, report = pruned(model, batch, method)
    for row, segments in enumerate(samples(name)):
        alone, single = pruned(model, prompt("llava", [segments]), method)
        torch.testing.assert_close(together[row, -alone.shape[1]:], alone[0], atol=3e-5, rtol=1e-4)
        if "I" in segments:
            shift = batch["input_ids"].shape[1] - alone.shape[1]
            stages = [(layer, (kept - shift).tolist()) for layer, kept in report.samples[row].stages]
            assert stages == [(layer, kept.tolist()) for layer, kept in single.samples[0].stages]


@pytest.mark.parametrize("name", METHODS)
def test_the_same_call_gives_the_same_bits(name):
    model, inputs = tiny("llava"), prompt("llava", samples(name))
    first, report = pruned(model, inputs, METHODS[name](keep=9))
    second, again = pruned(model, inputs, METHODS[name](keep=9))
    assert torch.equal(first, second)
    assert [s.kept.tolist() for s in report.samples] == [s.kept.tolist() for s in again.samples]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_half_precision_gives_finite_outputs(name, dtype, request):
    model = tiny("llava").to(dtype)
    request.addfinalizer(lambda: restore(model))
    inputs = prompt("llava", samples(name))
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    logits, report = pruned(model, inputs, METHODS[name](keep=12))
    assert logits.dtype == dtype and logits[inputs["attention_mask"].bool()].isfinite().all()
    assert all(len(sample.kept) == min(12, len(sample.image)) for sample in report.samples)


def restore(model):
    """Half precision loses bits: the tiny model is built anew."""
    from tiny import _model

    _model.cache_clear()


@pytest.mark.parametrize("name", METHODS)
def test_plan_and_caches_are_as_reported(name):
    model, inputs = tiny("llava"), prompt("llava", [[4, "I", 9]])
    method = METHODS[name](keep=12)
    with dart.prune(model, method) as report:
        cache = model(**inputs).past_key_values
    assert [cache.get_seq_length(layer) for layer in range(LAYERS)] == report.kv_lengths()
    if name == "mustdrop":                                  # how many alike neighbours merge is up to the picture
        with pytest.raises(ValueError, match="depends on the picture"):
            method.kept(36, LAYERS)
    else:
        assert report.image_tokens() == method.kept(36, LAYERS)
    lengths = [cache.get_seq_length(layer) for layer in range(LAYERS)]
    assert report.kv_bytes()[1] == 2 * 2 * 8 * 4 * sum(lengths)         # keys and values of two heads of 8 numbers of 4 bytes


@pytest.mark.parametrize("name", METHODS)
def test_generation_goes_on_from_what_is_left(name):
    model, inputs = tiny("llava"), prompt("llava", ONE_EACH)
    inputs.pop("position_ids")
    options = dict(max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True)
    with dart.prune(model, METHODS[name](keep=12)):
        cached = torch.stack(model.generate(**inputs, **options).logits)
        fresh = torch.stack(model.generate(**inputs, **options, use_cache=False).logits)
    assert cached.isfinite().all()
    # without a cache every step decides anew, by a prompt that is longer: only those that never look at text decide alike
    steps = 3 if name in BLIND_TO_TEXT else 1
    torch.testing.assert_close(cached[:steps], fresh[:steps], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_wrong_budgets_are_refused(name):
    for wrong in (-1, 2.5, "64", True):
        with pytest.raises(ValueError, match=f"keep={wrong!r}"):
            METHODS[name](keep=wrong)


# ------------------------------------------------------------------------------------------------ every family

THREE = [methods.DART(12), methods.FastV(12), methods.PyramidDrop(12), methods.DivPrune(12)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", THREE, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_a_method_of_each_kind(family, method, attention):
    model, batch = tiny(family, attention), prompt(family, MIXED)
    plain = model(**batch).logits
    kept_all, _ = pruned(model, batch, type(method)(10**4))
    assert torch.equal(kept_all, plain)
    together, report = pruned(model, batch, method)
    assert [len(sample.kept) for sample in report.samples] == [12, 12, 0, 12]
    for row, segments in enumerate(MIXED):
        alone, _ = pruned(model, prompt(family, [segments]), method)
        torch.testing.assert_close(together[row, -alone.shape[1]:], alone[0], atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].reads_tower])
def test_methods_of_the_tower_run_on_tiles(name, monkeypatch):
    monkeypatch.setattr(tiny("llava_next").model.config, "vision_feature_layer", -1)
    model, inputs = tiny("llava_next"), prompt("llava_next", ONE_EACH)
    logits, report = pruned(model, inputs, METHODS[name](keep=8 if name in PER_PICTURE else 12))
    assert logits.isfinite().all()
    for sample in report.samples:
        assert 0 < len(sample.kept) < len(sample.image)
        if name not in PER_PICTURE:
            assert len(sample.kept) == 12
    plain = model(**inputs).logits
    assert torch.equal(pruned(model, inputs, METHODS[name](keep=10**4))[0], plain)


@pytest.mark.parametrize("family", ["video_llava", "phi4_multimodal"])
def test_methods_of_the_tower_are_refused_where_it_is_not_described(family):
    with pytest.raises(ValueError, match=f"VisionZip works with the vision tower, which is not described for '{family}'"):
        with dart.prune(tiny(family), methods.VisionZip(12)):
            pass


# ------------------------------------------------------------------------------------------------ the catalogue


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is(name):
    entry = methods.describe(METHODS[name])
    assert entry.keys() >= {"Signal", "Place", "Attention", "Source", "Licence of the original", "Differs"}
    assert all(text and "\n" not in text for text in entry.values())
    assert METHODS[name].__module__ == f"dart.methods.{name}" and getattr(dart, METHODS[name].__name__) is METHODS[name]
