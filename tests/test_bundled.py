"""The recipe of the bundled model: packing, masks, losses, resuming, and a model that stock classes load."""

import hashlib
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import dart
from dart import bundled, evaluation, scenes

spec = importlib.util.spec_from_file_location("recipe", Path(__file__).parents[1] / "train" / "bundled.py")
recipe = importlib.util.module_from_spec(spec)
sys.modules["recipe"] = recipe  # workers of a data loader and dataclasses look a module up by its name
spec.loader.exec_module(recipe)

TINY = recipe.Recipe(
    width=32, layers=4, heads=2, ffn=64, vision_width=48, vision_layers=1, vision_heads=2, look_heads=1,
    crowd_steps=4, see_steps=4, talk_steps=8, see_again_steps=2, talk_again_steps=2,
    see_batch=2, batch=2, scenes=4, shown=200, questions=6, rate=3e-3,
)


@pytest.fixture(autouse=True)
def quick_lessons(monkeypatch):
    """Few scenes in exams; and every eighth lesson comes from a package that these tests do without."""
    monkeypatch.setattr(recipe, "EXAM_SCENES", 2)
    get = recipe.Lessons.__getitem__
    monkeypatch.setattr(recipe.Lessons, "__getitem__", lambda self, index: get(self, index - (index % 8 == 7)))


@pytest.fixture(scope="module")
def model():
    return recipe.make_model(TINY, recipe.make_tokenizer()).eval()


def start(folder, **changes):
    return recipe.Run(replace(TINY, **changes), folder, torch.device("cpu"))


def test_tokenizer_knows_every_word_of_the_tasks():
    tokenizer = recipe.make_tokenizer()
    for task in scenes.TASKS:
        for question in scenes.questions(task):
            assert tokenizer.unk_token_id not in tokenizer(f"{question.text} {question.answer}")["input_ids"]
    for answer in (*scenes.NAMES, *scenes.WORDS, *scenes.COLORS, *scenes.REGIONS, *scenes.NUMBERS):
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(answer.split()) and tokenizer.decode(ids) == answer
    assert tokenizer.decode(tokenizer("zebras", add_special_tokens=False)["input_ids"]) == "zebras"


def test_every_question_is_longer_than_the_window():
    tokenizer = recipe.make_tokenizer()
    shortest = min(len(tokenizer.tokenize(q.text)) for task in scenes.TASKS for q in scenes.questions(task))
    assert shortest >= recipe.WINDOW


def test_lessons_are_never_test_scenes():
    furthest = 32 * 2**20                                   # that `rich` looks from its seed for a scene
    assert len(recipe.Lessons(TINY)) + furthest <= 2**26    # stages begin so far apart
    assert len(recipe.STAGES) * 2**26 < recipe.EXAM_SEED < scenes.TEST_SEED // 2 + 1


def test_rich_scenes_have_something_to_read_and_to_count():
    found = [recipe.rich(seed) for seed in range(40)]
    assert all(scene.signs and len(scene.things) > len(scene.names) for scene in found[1::4]) and found[4] == scenes.compose(4)
    herds = found[2::4] + found[3::4]
    assert sum(len(scene.things) for scene in herds) > 1.5 * sum(len(scene.names) for scene in herds)
    counts = [q.answer for scene in found for q in recipe.ask(scene, 40) if q.kind == "count" and q.choices == scenes.NUMBERS]
    assert max(map(counts.count, scenes.NUMBERS)) < len(counts) / 2, "one answer would be right too often"
    signs = [len(recipe.signs_or_scene(seed).signs) for seed in range(6)]
    assert min(signs[::2]) > 15 and max(signs[1::2]) <= 2


def test_word_embeddings_stay_when_the_tower_goes_on(tmp_path):
    run = start(tmp_path, crowd_steps=1, see_steps=1, talk_steps=1, see_again_steps=2, talk_again_steps=0)
    before = {}
    learn = run.learn

    def watch(batch):
        if run.stage == "see-again" and not before:
            before.update({name: weight.clone() for name, weight in run.model.named_parameters()})
        return learn(batch)

    run.learn = watch
    run.train()
    moved = {name.split(".")[1] for name, weight in run.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {"vision_tower", "multi_modal_projector"}


@torch.no_grad()
def test_the_tower_starts_by_looking_at_neighbours():
    """In the middle of a scene each head of a structured layer takes over the patch at its offset."""
    model = recipe.make_model(recipe.Recipe(layers=3), recipe.make_tokenizer()).eval()
    images = torch.stack([torch.from_numpy(recipe.np.array(scenes.draw(recipe.crowd(seed)))) for seed in range(2)])
    tower = model.model.vision_tower
    recipe.structure(tower, images)
    model.set_attn_implementation("eager")
    tower = getattr(tower, "vision_model", tower)
    seen = []
    for layer in tower.encoder.layers:
        layer.self_attn.register_forward_hook(lambda module, args, out: seen.append(out[1]))
    recipe.image_features(model, images[:1])
    middle = 1 + torch.arange(scenes.GRID**2).view(scenes.GRID, -1)[4:-4, 4:-4]
    for attention, offsets in zip(seen, recipe.OFFSETS):
        for head, (x, y) in enumerate(offsets):
            assert attention[0, head, middle, middle + y * scenes.GRID + x].mean() > 0.6


@torch.no_grad()
def test_windows_are_seen_apart_and_at_their_place(model):
    images = torch.from_numpy(recipe.np.array(scenes.draw(scenes.compose(3))))[None]
    stock = model.model.get_image_features(pixel_values=images.permute(0, 3, 1, 2) / 127.5 - 1).pooler_output[0]
    torch.testing.assert_close(recipe.image_features(model, images)[0], stock, atol=1e-5, rtol=1e-5)

    changed = images.clone()
    changed[:, : scenes.SIZE // 2, : scenes.SIZE // 2] = 0
    one, other = (recipe.image_features(model, each, parts=2).view(scenes.GRID, scenes.GRID, -1) for each in (images, changed))
    half = scenes.GRID // 2
    assert torch.equal(one[half:], other[half:]) and torch.equal(one[:, half:], other[:, half:])
    assert (one[:half, :half] != other[:half, :half]).any(-1).all()

    shallow = recipe.make_model(replace(TINY, vision_layers=0), recipe.make_tokenizer())
    torch.testing.assert_close(recipe.image_features(shallow, images, parts=2), recipe.image_features(shallow, images))


def test_lessons_of_the_language_stage_come_again_with_other_questions():
    lessons = recipe.Lessons(TINY, drawn=False, number=4, easy=4)
    first, again = lessons[1], lessons[5]
    assert "image" not in first and first["scene"] == again["scene"] == 1
    assert torch.equal(first["names"], again["names"]) and not torch.equal(first["tokens"], again["tokens"])
    assert {recipe.KINDS[kind] for kind in first["kind"] if kind >= 0} <= {"existence", "where", "name", "color", "word"}
    nothing = recipe.make_tokenizer().convert_tokens_to_ids("<image>")
    assert set((first["names"] != nothing).nonzero().flatten().tolist()) <= set(first["kept"].tolist())
    assert len(first["kept"]) == TINY.shown and (first["kept"].diff() > 0).all()


def test_letters_stand_where_the_sign_shows_them():
    """Read along any row of a sign, the letters of a crowd spell parts of its word in order."""
    tokenizer = recipe.make_tokenizer()
    scene = recipe.crowd(0)
    letters = recipe.Lessons(TINY).label(scene)["letters"].reshape(scenes.GRID, scenes.GRID)
    for sign in scene.signs:
        for row in set(scene.patches(sign).nonzero()[0]):
            shown = [tokenizer.convert_ids_to_tokens(int(i)) for i in letters[row][scene.patches(sign)[row]] if i >= 0]
            rest = iter(sign.word)
            assert shown and all(letter in rest for letter in dict.fromkeys(shown)) or len(set(sign.word)) < len(sign.word)


@torch.no_grad()
def test_packed_questions_are_answered_as_if_alone(model):
    lessons = recipe.Lessons(TINY)
    scene = scenes.compose(3)
    asked = recipe.ask(scene, TINY.questions)
    packed = {name: tensor[None] for name, tensor in lessons.pack(asked).items()}
    image = torch.from_numpy(recipe.np.array(scenes.draw(scene)))[None]
    features = recipe.image_features(model, image)
    hidden = []
    model.model.language_model.norm.register_forward_hook(lambda module, args, out: hidden.append(out))
    recipe.talk(model, features, packed, recipe.all_patches(features))
    together = hidden[0][0, 1 + scenes.GRID**2 :]

    processor = recipe.make_processor()
    for number, question in enumerate(asked):
        inputs = processor(text=bundled.prompt(question.text), images=scenes.draw(scene), return_tensors="pt")
        alone = model.model(**inputs).last_hidden_state[0, -1]
        torch.testing.assert_close(together[packed["last"][0, number]], alone, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_look_measures_the_attention_that_the_layer_pays():
    model = recipe.make_model(TINY, recipe.make_tokenizer())
    model.set_attn_implementation("eager")
    lessons, layer = recipe.Lessons(TINY), 3
    batch = {name: torch.stack([lessons[0][name], lessons[1][name]]) for name in lessons[0]}
    features = recipe.image_features(model, batch["image"])
    seen = []
    decoder = model.model.language_model
    for projection in (decoder.layers[layer].self_attn.q_proj, decoder.layers[layer].self_attn.k_proj):
        projection.weight.mul_(40)  # fresh weights attend almost evenly, which would hide a wrong rotation
    decoder.layers[layer].self_attn.register_forward_hook(lambda module, args, out: seen.append(out[1]))
    watch = recipe.Look(decoder.layers[layer], 1)
    recipe.talk(model, features, batch, recipe.all_patches(features))
    loss = watch.loss(batch["last"], batch["look"])
    prefix = batch["look"].shape[-1]
    shares, several = [], []
    for row in range(2):
        for last, look in zip(batch["last"][row], batch["look"][row]):
            if look.any():
                attention = seen[0][row, 0, prefix + last, :prefix]
                each = torch.stack([attention[look == item].sum() / attention.sum() for item in look.unique() if item])
                shares.append(-each.log().mean())
                several.append(len(each) > 1)
    assert any(several) and not all(several), "there is a count among the questions, and others"
    torch.testing.assert_close(loss, torch.stack(shares).mean(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_no_answer_comes_from_the_image_before_layer_two(model):
    """With every image token dropped at layer 2, two pictures that agree in their last row give the same logits."""
    processor = recipe.make_processor()
    features = [model.model.multi_modal_projector(torch.randn(1, 576, TINY.vision_width)) for _ in range(2)]
    features[1][:, -24:] = features[0][:, -24:]
    inputs = processor(text=bundled.prompt("is there a dog?"), images=scenes.draw(scenes.compose(3)), return_tensors="pt")

    def logits(feature, keep):
        with dart.prune(model, dart.Random(keep=keep, seed=0)), evaluation.given_features(model, feature):
            return model.model(**inputs).last_hidden_state[0, -1]

    assert torch.equal(logits(features[0], 0), logits(features[1], 0))
    assert not torch.allclose(logits(features[0], 576), logits(features[1], 576), atol=1e-4)


@torch.no_grad()
def test_patches_that_point_to_their_words_are_right(model):
    """Features put together from the right word embeddings make the loss small, those of the wrong scene do not."""
    lessons, labels = recipe.Lessons(TINY), recipe.Labels(recipe.make_tokenizer(), torch.device("cpu"))
    batches = [{name: tensor[None] for name, tensor in lessons[index].items()} for index in (0, 1)]
    width = 400  # one direction for each word
    words = recipe.make_model(replace(TINY, width=width, heads=4), recipe.make_tokenizer())
    words.get_input_embeddings().weight.copy_(torch.eye(width)[: len(recipe.make_tokenizer())])

    def told(batch):
        features = torch.zeros(1, scenes.GRID**2, width)
        for name in ("names", "colors", "middles"):
            known = batch[name][0] >= 0
            features[0, known] += torch.eye(width)[batch[name][0, known]]
        return features + sum(share @ torch.eye(width)[labels.choices[name]] for name, share in labels.places.items())

    kept = recipe.all_patches(told(batches[0]))
    right, wrong = (recipe.see_loss(words, told(batch), batches[0], kept, labels) for batch in batches)
    assert right < 0.5 * wrong
    for name, (cosine, slot) in labels.compare(words, told(batches[0]), batches[0], kept).items():
        if name not in labels.places:
            assert (cosine.argmax(-1) == slot)[slot > 0].all(), name


@torch.no_grad()
def test_blind_layers_are_those_of_a_pruned_model(model):
    """Hiding the image in training is what dropping every image token at that layer is in use."""
    lessons, scene, layer = recipe.Lessons(TINY), scenes.compose(3), 3
    question = recipe.ask(scene, 1)[0]
    batch = {name: tensor[None] for name, tensor in lessons.pack([question]).items()}
    features = recipe.image_features(model, torch.from_numpy(recipe.np.array(scenes.draw(scene)))[None])
    decoder, hidden = model.model.language_model, []
    hook = decoder.norm.register_forward_hook(lambda module, args, out: hidden.append(out[0]))
    kept = recipe.all_patches(features)
    recipe.talk(model, features, batch, kept)
    with recipe.blind_from(decoder, layer, scenes.GRID**2):
        recipe.talk(model, features, batch, kept)
    hook.remove()
    seeing, blind = (states[1 + scenes.GRID**2 + batch["last"][0, 0]] for states in hidden)
    inputs = recipe.make_processor()(text=bundled.prompt(question.text), images=scenes.draw(scene), return_tensors="pt")
    with dart.prune(model, dart.Random(keep=0, seed=0, layer=layer)):
        pruned = model.model(**inputs).last_hidden_state[0, -1]
    torch.testing.assert_close(blind, pruned, atol=2e-5, rtol=1e-4)
    assert (seeing - blind).abs().max() > 1e-3
    assert not decoder.layers[layer]._forward_pre_hooks


def test_loss_falls(tmp_path):
    run = start(tmp_path, crowd_steps=15, see_steps=10, talk_steps=12)
    losses = []
    learn = run.learn
    run.learn = lambda batch: losses.append(learn(batch)) or losses[-1]
    run.train()
    assert run.finished
    see = [loss["see"].item() for loss in losses[:25]]
    talk = [loss["answer"].item() for loss in losses[25:37]]
    assert sum(see[-5:]) < 0.9 * sum(see[:5])
    assert talk[-1] < 0.9 * talk[0]


def test_the_exam_counts_questions_right_only_if_every_token_is(tmp_path, monkeypatch):
    run = start(tmp_path)
    run.stage = "talk"
    run.new_optimizer()
    batch = next(iter(run.lessons(0, 1, first=recipe.EXAM_SEED)))

    def almost(model, features, batch, kept):
        """Right but for the last token (the end of the answer) of each row's first question."""
        taught = batch["labels"] >= 0
        labels, owner = batch["labels"][taught], (torch.arange(2)[:, None] * 6 + batch["segment"] - 1)[taught]
        said = labels.clone()
        for row in range(2):
            said[(owner == 6 * row).nonzero()[-1]] = 0
        return torch.nn.functional.one_hot(said, 400).float(), labels, owner

    monkeypatch.setattr(recipe, "talk", almost)
    scores, kinds = run.exam(), [recipe.KINDS[kind] for kind in batch["kind"].flatten().tolist() if kind >= 0]
    for kind in set(kinds):
        missed = sum(recipe.KINDS[batch["kind"][row, 0]] == kind for row in range(2))
        assert scores[kind] == pytest.approx(1 - missed / kinds.count(kind), abs=1e-4)


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    whole = start(tmp_path / "whole", crowd_steps=2, see_steps=2, talk_steps=3)
    whole.train()
    killed = start(tmp_path / "killed", crowd_steps=2, see_steps=2, talk_steps=3)
    learn = killed.learn

    def learn_until_kill(batch):
        if (killed.stage, killed.step) == ("talk", 2):
            raise KeyboardInterrupt
        return learn(batch)

    killed.learn = learn_until_kill
    with pytest.raises(KeyboardInterrupt):
        killed.train(save_every=0)
    resumed = start(tmp_path / "killed", crowd_steps=2, see_steps=2, talk_steps=3)
    assert (resumed.stage, resumed.step) == ("talk", 2)
    resumed.train()
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters()):
        assert torch.equal(one, other), name


def test_another_recipe_does_not_resume(tmp_path):
    start(tmp_path).save()
    with pytest.raises(ValueError, match="another recipe"):
        start(tmp_path, rate=1e-4)


def test_a_finished_model_goes_on_with_pruning_at_work(tmp_path):
    start(tmp_path).export(tmp_path / "finished")
    before = bundled.load(tmp_path / "finished")[0].state_dict()
    settings = replace(TINY, prune=16, prune_steps=2)
    run = recipe.Run(settings, tmp_path / "run", torch.device("cpu"), tmp_path / "finished")
    assert run.stage == "prune" and all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    run.train()
    assert run.finished
    moved = [name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved and all("language_model" in name or name == "lm_head.weight" for name in moved), "tower and projector stay as they are"


def test_keeping_all_is_training_without_pruning(tmp_path):
    start(tmp_path).export(tmp_path / "finished")
    run = recipe.Run(replace(TINY, prune=scenes.GRID**2), tmp_path, torch.device("cpu"), tmp_path / "finished")
    batch = next(iter(run.lessons(0, 1)))
    features = recipe.image_features(run.model, next(iter(start(tmp_path / "other").lessons(0, 1, first=0, drawn=True)))["image"])
    with_all, with_few = (recipe.pruned_loss(run.model, features, batch, keep) for keep in (scenes.GRID**2, 16))
    logits, labels, owner = recipe.talk(run.model, features, batch, recipe.all_patches(features))
    first = owner % batch["last"].shape[1] == 0
    torch.testing.assert_close(with_all, torch.nn.functional.cross_entropy(logits[first], labels[first]))
    assert with_few != with_all


def test_export_loads_offline_with_stock_classes(tmp_path):
    run = start(tmp_path)
    run.export(tmp_path / "model")
    model, processor = bundled.load(tmp_path / "model")
    assert type(model).__name__ == "LlavaForConditionalGeneration" and type(processor).__name__ == "LlavaProcessor"
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "model"), AutoProcessor.from_pretrained(tmp_path / "model")
    assert type(stock[0]) is type(model)
    picture = scenes.draw(scenes.compose(0))
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there a dog?"}]}]
    assert processor.apply_chat_template(turns) == bundled.prompt("is there a dog?")
    inputs = processor(text=bundled.prompt("is there a dog?"), images=picture, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 1 + 576 + 5)
    with dart.prune(model, dart.DART(keep=64)) as report:
        model.generate(**inputs, max_new_tokens=2)
    assert "576 image tokens -> 64" in str(report)
    pixels = (torch.from_numpy(recipe.np.array(picture)).permute(2, 0, 1) / 127.5 - 1)[None]
    torch.testing.assert_close(inputs["pixel_values"], pixels, atol=1e-5, rtol=0)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["text_config"]["layer_types"][:3] == [
        "sliding_attention", "sliding_attention", "full_attention",
    ]
    with pytest.raises(FileNotFoundError, match="make train"):
        bundled.load(tmp_path / "nowhere")


@pytest.mark.skipif(not (dart.data_root() / "model" / "config.json").exists(), reason="no model has been trained yet")
def test_the_committed_model_is_whole_and_answers():
    folder = dart.data_root() / "model"
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    model, processor = bundled.load()
    assert sum(parameter.numel() for parameter in model.parameters()) < 20e6
    asked = [*scenes.questions("relations")[:12], *scenes.questions("attributes")[:12]]
    seeing, blind = evaluation.answer(model, processor, asked, [None, dart.Random(keep=0, seed=0)])
    assert scenes.correct(asked, seeing).mean() > 0.7 > 0.4 > scenes.correct(asked, blind).mean()
