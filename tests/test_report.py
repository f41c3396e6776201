"""What a context reports: positions, lengths, bytes, pictures."""

from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from transformers import DynamicCache

import dart
from tiny import CONFIGS, image_mask, prompt, tiny

matplotlib.use("Agg")


def read(name, samples, method=None):
    model, inputs = tiny(name), prompt(name, samples)
    with torch.no_grad(), dart.prune(model, method or dart.DART(keep=10)) as report:
        cache = model(**inputs).past_key_values
    return report, inputs, cache


def test_samples_tell_positions_and_lengths():
    report, inputs, _ = read("llava", [[4, "I", 9], [30], [2, "I", 3, "I", 6]])
    mask, real = image_mask(inputs), inputs["attention_mask"].bool()
    for row, sample in enumerate(report.samples):
        assert sample.image.tolist() == mask[row].nonzero().flatten().tolist()
        assert set(sample.kept.tolist()) <= set(sample.image.tolist())
        assert sample.kept.tolist() == sorted(sample.kept.tolist())
        assert sample.length == int(real[row].sum())
        assert report.kv_lengths(row) == [sample.length] * 2 + [sample.length - len(sample.image) + len(sample.kept)] * 3
    assert [len(s.kept) for s in report.samples] == [10, 0, 10]
    assert len(report.selection_seconds) == 1 and report.selection_seconds[0] > 0


def test_a_report_holds_copies(monkeypatch):
    """A graph that CUDA replays makes the masks of the next prompt in the same memory."""
    handed, add = [], dart.Report._add
    monkeypatch.setattr(dart.Report, "_add", lambda self, made, size: handed.append(made) or add(self, made, size))
    report, inputs, _ = read("llava", [[4, "I", 9]])
    handed[0].padding.fill_(True)
    handed[0].stages[0].stays.fill_(False)
    assert len(report.samples[0].kept) == 10
    assert report.samples[0].length == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_are_those_of_the_cache(name):
    report, _, cache = read(name, [[4, "I", 9]])
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    plain = DynamicCache(config=tiny(name).config.get_text_config())
    with torch.no_grad():
        tiny(name)(**prompt(name, [[4, "I", 9]]), past_key_values=plain)
    assert report.kv_bytes() == (sum(layer.keys.nbytes + layer.values.nbytes for layer in plain.layers), held)


def test_the_report_reads_well():
    report, _, _ = read("llava", [[4, "I", 9]])
    assert str(report).startswith("layer 2: 36 image tokens -> 10; KV cache 0.02991 -> 0.02039 MiB; selection ")
    report, _, _ = read("llava", [[4, "I", 9], [2, "I", 3, "I", 6]], dart.DART(reduction_ratio=0.5))
    assert str(report).startswith("2 samples, layer 2: 36 to 72 image tokens -> 18 to 36; ")
    report, _, _ = read("llava", [[4, "I", 9]], dart.DART(keep=36))
    assert str(report).endswith("(1 of 1 samples kept everything: the budget is not below what they hold)")


def test_a_report_of_compiled_code_says_that_it_has_no_time():
    report, _, _ = read("llava", [[4, "I", 9]])
    report._prompts[0].stages[0].stopwatch = SimpleNamespace(seconds=float("nan"))
    assert str(report).endswith("MiB; selection compiled with the layers, no time of its own")


def test_prompts_add_up_and_can_be_asked_for_in_between():
    model = tiny("llava")
    with torch.no_grad(), dart.prune(model, dart.DART(keep=10)) as report:
        model(**prompt("llava", [[4, "I", 9]]))
        assert len(report.samples) == 1
        model(**prompt("llava", [[4, "I", 9], [3, "I", 5]]))
    assert [s.length for s in report.samples] == [49, 49, 44]
    with pytest.raises(IndexError, match="sample 3, but 3"):
        report.kv_lengths(3)


def drawn(axes):
    """What an axes shows: height, width and how many of its pixels have a colour."""
    return np.asarray(axes.get_images()[0].get_array())


def photo(height, width):
    return np.tile(np.array([200, 40, 40], dtype=np.uint8), (height, width, 1))


def test_kept_patches_are_drawn_where_they_lie():
    report, _, _ = read("llava", [[4, "I", 9]])
    (axes,) = report.show(photo(60, 90))                    # CLIP's processor leaves the centre square
    pixels = drawn(axes).astype(float)
    assert pixels.shape[0] == pixels.shape[1]
    step = pixels.shape[0] / 6
    spread = pixels.max(-1) - pixels.min(-1)
    coloured = [spread[int((r + 0.5) * step), int((c + 0.5) * step)] for r in range(6) for c in range(6)]
    strongest = np.argsort(coloured)[::-1][:10]
    sample = report.samples[0]
    assert sorted(strongest.tolist()) == (sample.kept - sample.image[0]).tolist()
    assert "10 of 36 image tokens kept" in axes.get_title()


def test_every_view_and_image_is_drawn():
    report, inputs, _ = read("llava_next", [[4, "I", 9]])
    report_size = inputs["image_sizes"][0].tolist()
    assert len(report.show(photo(*report_size))) == 2       # base view and tiles
    report, _, _ = read("qwen2_vl", [[4, "I", 9], [2, "I", 3, "I", 6]])
    assert len(report.show(photo(32, 32), sample=0)) == 1
    assert len(report.show([photo(32, 32), photo(24, 40)], sample=1)) == 2
    report, _, _ = read("qwen2_vl", [[4, "V", 9]])
    assert len(report.show(photo(16, 32))) == 2             # one for each step in time
    assert len(report.show([photo(16, 32), photo(16, 32)])) == 2
    with pytest.raises(ValueError, match="3 pictures given, but the sample has 1"):
        report.show([photo(16, 32)] * 3)
    report, _, _ = read("video_llava", [[4, "V", 9]])
    assert len(report.show([photo(32, 32)] * 3)) == 3
    report, _, _ = read("video_llava", [[4, "V", 3, "I", 9]])
    assert len(report.show([photo(32, 32)] * 4)) == 4


def test_class_tokens_of_frames_lie_nowhere():
    report, _, _ = read("video_llava", [[4, "V", 9]])
    (views,) = report._images(-1, [photo(32, 32)])
    assert [view.flatten().tolist() for view in views] == [list(range(first, first + 16)) for first in (1, 18, 35)]
    with pytest.raises(ValueError, match="15 tokens are neither one image of 16 nor frames of 17"):
        dart.families.frames(tiny("video_llava").config, 15, (32, 32), None)


def test_families_without_a_layout_say_so():
    report, _, _ = read("smolvlm", [[4, "I", 9]])
    with pytest.raises(ValueError, match=r"'smolvlm' lie on the image is not described; give dart.Family\(layout="):
        report.show(photo(48, 48))


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "qwen3_vl", "gemma3"])
def test_pictures_are_drawn_after_generate_too(name):
    """`generate` encodes images beforehand; beams repeat the rows."""
    sizes = [(48, 48)] * 2
    model, inputs = tiny(name), prompt(name, [[4, "I", 9], [3, "I", 6]])
    if name == "llava_next":
        sizes = [tuple(size) for size in inputs["image_sizes"].tolist()]
    with torch.no_grad(), dart.prune(model, dart.DART(keep=10)) as report:
        model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
    assert len(report.samples) == 4
    for sample, size in zip(range(4), [sizes[0]] * 2 + [sizes[1]] * 2):
        axes = report.show(photo(*size), sample=sample)
        assert len(axes) == {"llava_next": 2}.get(name, 1)


def test_views_hold_every_token_of_their_image_once():
    for name, size in (("llava", (9, 9)), ("llava_next", (48, 48)), ("qwen2_vl", (9, 9)), ("gemma3", (9, 9))):
        report, inputs, _ = read(name, [[4, "I", 9]])
        if name == "llava_next":
            size = tuple(inputs["image_sizes"][0].tolist())
        (views,) = report._images(-1, [photo(*size)])
        ranks = torch.cat([view.flatten() for view in views]).tolist()
        assert len(set(ranks)) == len(ranks) and max(ranks) < len(report.samples[0].image)
        if name != "llava_next":                                # which also has newline tokens, at no place of the picture
            assert len(ranks) == len(report.samples[0].image)


def test_images_and_videos_of_a_batch_keep_their_order():
    report, _, _ = read("qwen2_vl", [[3, "V", 5], [4, "I", 9]])
    assert len(report.show(photo(16, 32), sample=0)) == 2
    assert len(report.show(photo(32, 32), sample=1)) == 1


def test_wrong_pictures_are_refused():
    report, _, _ = read("llava_next", [[4, "I", 9]])
    with pytest.raises(ValueError, match="give the pictures as they went into the processor"):
        report.show(photo(200, 10))
    report, _, _ = read("llava", [[4, "I", 3, "I", 9]])
    with pytest.raises(ValueError, match="3 pictures given, but the sample has 2"):
        report.show([photo(9, 9)] * 3)


def test_random_is_seeded_and_looks_at_nothing():
    first, inputs, _ = read("llava", [[4, "I", 9]], dart.Random(10, seed=1))
    again, _, _ = read("llava", [[4, "I", 9]], dart.Random(10, seed=1))
    other, _, _ = read("llava", [[4, "I", 9]], dart.Random(10, seed=2))
    assert first.samples[0].kept.tolist() == again.samples[0].kept.tolist() != other.samples[0].kept.tolist()
    counts = np.zeros(36)
    view = dart.View(torch.zeros(1, 36, 4), torch.zeros(1, 1, 36, 4), torch.zeros(1, 1, 36, 4), torch.ones(1, 36, dtype=torch.bool),
                     torch.zeros(1, 36, dtype=torch.bool), final_norm=lambda x: x)
    for seed in range(2000):
        counts += dart.Random(9, seed).select(view)[0].numpy()
    assert counts.sum() == 2000 * 9 and abs(counts / 2000 - 0.25).max() < 0.05        # 5 standard deviations


def test_data_root(tmp_path, monkeypatch):
    assert (dart.data_root() / "samples").is_dir()
    monkeypatch.setenv("DART_DATA", str(tmp_path))
    assert dart.data_root() == tmp_path
    monkeypatch.setenv("DART_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="DART_DATA=.*is not a folder; set DART_DATA"):
        dart.data_root()
