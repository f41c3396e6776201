"""The explorer: its script chooses what `dart` chooses, on the numbers that the page is given."""

import base64
import io
import json
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright._impl._driver import compute_driver_executable

import dart
from dart import bundled, explorer, scenes

SCRIPT = Path(__file__).parents[1] / "book/_static/explorer.js"
SETTINGS = [
    {"method": "DART", "keep": keep, "imagePivots": image, "textPivots": text}
    for keep in (0, 1, 3, 16, 64, 100, 576, 700) for image, text in ((4, 4), (1, 0), (8, 2), (0, 3))
] + [{"method": method, "keep": keep} for method in ("FastV", "Random") for keep in (0, 1, 16, 64, 576, 700)]

ASK = """
const [script, given] = [require("fs").readFileSync(process.argv[1], "utf8"), JSON.parse(require("fs").readFileSync(0, "utf8"))];
(0, eval)(script);
const {choose, decode} = dartExplorer;
console.log(JSON.stringify(given.asked.map(([layer, seed, settings]) => {
    const {first, turns} = choose(decode(given.index, given.picture, 0, layer, seed), settings);
    return [...first, ...turns.flatMap(turn => turn.tokens)];
})));
"""


def method_of(settings, layer, seed):
    keep = settings["keep"]
    if settings["method"] == "DART":
        return dart.DART(keep=keep, layer=layer, image_pivots=settings["imagePivots"], text_pivots=settings["textPivots"])
    return dart.FastV(keep=keep, layer=layer) if settings["method"] == "FastV" else dart.Random(keep=keep, seed=seed, layer=layer)


def in_javascript(index, picture, asked):
    """What the page's script chooses, run by the Node that Playwright brings."""
    node = str(compute_driver_executable()[0])
    given = json.dumps({"index": index, "picture": picture, "asked": asked})
    run = subprocess.run([node, "-e", ASK, str(SCRIPT)], input=given, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def choices(processor, shown, features, asked):
    """What stays by the page's script and by dart, for each question."""
    shown = replace(shown, questions=shown.questions[:1])
    record = explorer._record(processor, shown, {(shown.name, shown.questions[0]): features}, {})
    index = explorer._index([shown], explorer.BUDGETS)
    script = {repr(each): sorted(found) for each, found in zip(asked, in_javascript(index, record, asked), strict=True)}
    module = {
        repr((layer, seed, each)): features[layer].select(method_of(each, layer, seed)).nonzero().flatten().tolist()
        for layer, seed, each in asked
    }
    return script, module


@pytest.fixture(scope="module")
def small():
    torch.set_num_threads(1)
    return bundled.load()


def test_script_and_dart_choose_the_same_of_a_picture(small):
    shown = explorer.pictures()[0]
    features = explorer.read(*small, shown.image, shown.questions[0], (1, 4))
    script, module = choices(small[1], shown, features, [(layer, seed, each) for layer, seed in ((1, 0), (4, 2)) for each in SETTINGS])
    assert script == module


def test_script_and_dart_break_ties_alike(small):
    """Few different directions, norms and scores: nearly everything is a tie, which the earlier position wins."""
    shown = explorer.pictures()[0]
    draw = torch.Generator().manual_seed(0)
    directions = explorer.rounded(torch.randn(5, 32, generator=draw))
    length = 576 + len(small[1].tokenizer(shown.questions[0], add_special_tokens=False)["input_ids"])
    few = torch.randint(0, 5, (3, length), generator=draw)
    features = {2: explorer.Features(directions[few[0]], few[1].float(), few[2].float(), 576)}
    script, module = choices(small[1], shown, features, [(2, 1, each) for each in SETTINGS])
    assert script == module


def test_rounded_vectors_have_one_length_and_keep_their_direction():
    draw = torch.Generator().manual_seed(0)
    for states in (torch.randn(200, 128, generator=draw), torch.randn(50, 128, generator=draw) ** 5, torch.randn(20, 64, generator=draw)):
        whole = explorer.rounded(states)
        assert whole.dtype == torch.int8 and (whole.long().square().sum(1) == explorer.LENGTH**2).all()
        assert torch.cosine_similarity(whole.double(), states.double()).min() > 0.99
    with pytest.raises(ValueError, match="cannot be rounded"):
        explorer.rounded(torch.ones(1, 1))


def test_what_is_read_is_what_methods_see(small):
    """Random and FastV choose from the export what they choose in the model; DART nearly, for its states are rounded."""
    model, processor = small
    shown = explorer.pictures()[3]
    features = explorer.read(model, processor, shown.image, shown.questions[0], (2,))[2]
    inputs = processor(text=bundled.prompt(shown.questions[0]), images=shown.image, return_tensors="pt")
    for method, least in ((dart.FastV(keep=64), 64), (dart.Random(keep=64), 64), (dart.DART(keep=64), 48)):
        with torch.inference_mode(), dart.prune(model, method) as report:
            model(**inputs)
        inside = torch.isin(report.samples[0].image, report.samples[0].kept)
        assert (inside & features.select(method)).sum() >= least
        said = explorer.answers(model, processor, [(shown.image, shown.questions[0])], [(inside[None], 2)])[0]
        with dart.prune(model, method):
            alone = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        assert said == processor.batch_decode(alone[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_only_the_last_row_of_attention_was_exported():
    features = explorer.Features(torch.ones(4, 2, dtype=torch.int8), torch.ones(4), torch.ones(4), 3)

    class Earlier(dart.Method):
        def select(self, view):
            return view.attention(torch.tensor([[0]]))

    with pytest.raises(ValueError, match=r"rows \[\[0\]\] was not exported"):
        features.select(Earlier())


def test_truths_are_true():
    """What is said to be right is what the scene says."""
    for seed, shown in zip((50054, 50050, 50008, 50090), explorer.pictures()):
        scene = scenes.compose(scenes.TEST_SEED + seed)
        counts = Counter(thing.name for thing in scene.things)
        for text, truth in zip(shown.questions, shown.truths, strict=True):
            words = text.rstrip("?").split()
            if words[0] == "how":
                wanted = scenes.NUMBERS[next(n for name, n in counts.items() if scenes.plural(name) == words[2]) - 1]
            elif words[:2] == ["what", "color"]:
                wanted = scene.only(words[-1]).color
            elif words[:2] == ["what", "word"]:
                wanted = next(sign.word for sign in scene.signs if sign.color == words[-2])
            else:
                wanted = "yes" if counts[words[-1]] else "no"
            assert truth == wanted, text


def test_export_is_small_and_whole(small, tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "pictures", lambda shown=explorer.pictures(): (shown[0], shown[-1]))
    monkeypatch.setattr(explorer, "ANSWERED", (2,))
    written = explorer.export(tmp_path, *small, budgets=(16,))
    assert {path.name for path in tmp_path.iterdir()} == {"index.mjs", *(f"{name}.mjs" for name in written)}
    assert all(path.stat().st_size < 1.5e6 for path in tmp_path.iterdir())
    scene, photograph = written.values()
    for record in (scene, photograph):
        for question in record["questions"]:
            for layer in explorer.LAYERS:
                keys = np.frombuffer(base64.b64decode(question["layers"][layer]["keys"]), "<f4")
                assert len(keys) == len(question["tokens"])
    assert photograph["questions"][0]["answers"] is None and photograph["questions"][0]["truth"] is None
    for question in scene["questions"]:
        assert set(question["answers"]) == {"all", "DART", "FastV", "Random"} and question["answers"]["all"]
        assert all(len(question["answers"][name][2]) == 1 for name in ("DART", "FastV", "Random"))


@pytest.fixture(scope="module")
def live(small):
    return explorer.Live(*small)


def test_live_answers_as_it_is_turned(live):
    """Every control changes what is chosen, and the answer is that of the patches that are drawn."""
    seen = [live.answer.value]
    assert "with 64 of 576 patches" in seen[0] and "how many cars" in seen[0]
    for control, value, wanted in ((live.keep, 16, dart.DART(keep=16)), (live.layer, 3, dart.DART(keep=16, layer=3)),
                                   (live.image_pivots, 2, dart.DART(keep=16, layer=3, image_pivots=2)),
                                   (live.method, "FastV", dart.FastV(keep=16, layer=3)), (live.method, "Random", dart.Random(keep=16, layer=3))):
        control.value = value
        assert live.chosen() == wanted
        drawn = live.stage.outputs[0]["data"]["text/html"]
        assert "dartExplorer.mount" in drawn and f'"method": "{live.method.value}", "keep": 16' in drawn
    assert "with 16 of 576 patches" in live.answer.value


def test_live_takes_any_picture_and_refuses_other_files(live):
    file = io.BytesIO()
    Image.new("RGBA", (500, 90), "teal").save(file, "PNG")
    live._take({"new": [{"name": "teal.png", "content": memoryview(file.getvalue())}]})
    assert live.picture.value == "teal.png" and live.shown["teal.png"].image.size == (336, 336)
    assert "made for scenes" in live.answer.value
    live.question.value = "is there <b>a cat?"
    assert "<q>is there &lt;b&gt;a cat?</q>" in live.answer.value, "what is typed is shown as text"
    first = live.stage.outputs
    live._take({"new": [{"name": "teal.png", "content": (dart.data_root() / "samples" / "coffee.jpg").read_bytes()}]})
    assert live.picture.value == "teal.png (2)" and live.stage.outputs != first, "another picture of the same name"
    live._take({"new": [{"name": "<notes>.txt", "content": b"no picture"}]})
    assert "&lt;notes&gt;.txt cannot be read as a picture (cannot identify image file)" in live.answer.value
    live.question.value = "  "
    assert live.answer.value.count("Ask something") == 1
    live.picture.value = next(iter(live.shown))
    assert "how many cars" in live.answer.value
