"""Reductions at several layers, merging, and reductions in the vision tower, against computations without `dart.prune`."""

from dataclasses import dataclass, field

import pytest
import torch

import dart
from dart.methods.base import keep_top
from tiny import CONFIGS, LAYERS, image_mask, prompt, tiny

FAMILIES = list(CONFIGS)
MIXED = [[4, "I", 9], [2, "I", 3, "I", 6], [6, "I", 5]]
PLACES, COUNTS = (1, 2, 4), (14, 9, 4)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@dataclass(frozen=True)
class Steps(dart.Method):
    """Keeps the longest states, fewer at each place; with `double`, what stays is doubled (a stand-in for merging)."""

    layers: tuple = PLACES
    counts: tuple = COUNTS
    double: bool = False
    seen: list = field(default_factory=list)

    def places(self, n_layers):
        return self.layers

    def select(self, view):
        assert view.layer == self.layers[view.stage] and view.memory.setdefault("calls", []) == list(range(view.stage))
        view.memory["calls"].append(view.stage)
        self.seen.append(view)
        stays = keep_top(view.hidden_states.float().norm(dim=-1), view.image_mask, self.counts[view.stage])
        return (stays, 2 * view.hidden_states) if self.double else stays


def by_hand(model, inputs, method):
    """Logits of one unpadded sample, layer by layer, reducing as `Steps` does; dropped positions return as they left."""
    body, decoder = model.base_model, dart.families.find(model)[2]
    calls = []

    def note(module, args, kwargs):
        calls.append((args[0], kwargs))

    handles = [each.register_forward_pre_hook(note, with_kwargs=True) for each in decoder.layers]
    body(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    image = image_mask(inputs)[0]
    at = torch.arange(len(image))
    full = calls[0][0].clone()
    for number in range(LAYERS):
        if number in method.layers:
            kept = method.counts[method.layers.index(number)]
            candidates = at[image[at]]
            best = candidates[full[0, candidates].norm(dim=-1).argsort(descending=True)[:kept]]
            at = torch.cat([at[~image[at]], best]).sort().values
            if method.double:
                full[:, at] *= 2
        _, kwargs = calls[number]
        mask = kwargs["attention_mask"]
        if mask is None:
            mask = torch.ones(len(image), len(image), dtype=torch.bool).tril()[None, None]
        cos, sin = kwargs["position_embeddings"]
        full[:, at] = decoder.layers[number](
            full[:, at], attention_mask=mask[:, :, at][..., at], position_embeddings=(cos[..., at, :], sin[..., at, :]), position_ids=None)
    return model.lm_head(decoder.norm(full))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "qwen3_vl"])    # DeepStack adds to states between the layers
def test_several_places_equal_layer_by_layer(name, double):
    model, inputs, method = tiny(name), prompt(name, [[3, "I", 8]]), Steps(double=double)
    with dart.prune(model, method) as report:
        logits = model(**inputs).logits
    torch.testing.assert_close(logits, by_hand(model, inputs, method), atol=2e-5, rtol=1e-4)
    counts = [len(report.samples[0].image)] + [14, 9, 9, 4]
    assert report.image_tokens() == counts and report.layer_average() == sum(counts) / LAYERS
    text = inputs["input_ids"].shape[1] - counts[0]
    assert report.lengths() == [text + count for count in counts]
    plain, pruned = report.flops()
    assert plain > pruned and plain == sum(dart.cost.layer_flops(model.config, [text + counts[0]] * LAYERS))
    assert f"layers 1, 2, 4: {counts[0]} image tokens -> 14 -> 9 -> 4" in str(report)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_keeping_everything_at_every_place_changes_no_bit(name, attention):
    model, inputs = tiny(name, attention), prompt(name, MIXED)
    plain = model(**inputs).logits
    with dart.prune(model, Steps((0, 1, 3), (10**6,) * 3)):
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_a_padded_batch_equal_the_samples_alone(name, attention):
    """Rows that lose different numbers of tokens at one place, and equal numbers at the next."""
    model, method = tiny(name, attention), Steps(counts=(40, 9, 4))
    batch = prompt(name, MIXED)
    with dart.prune(model, method) as report:
        together = model(**batch).logits
    with dart.prune(model, method) as single:
        for row, segments in enumerate(MIXED):
            alone = model(**prompt(name, [segments])).logits
            torch.testing.assert_close(together[row, -alone.shape[1]:], alone[0], atol=2e-5, rtol=1e-4)
    for a, b in zip(report.samples, single.samples):
        shift = batch["input_ids"].shape[1] - a.length
        assert [(layer, (kept - shift).tolist()) for layer, kept in a.stages] == [(layer, kept.tolist()) for layer, kept in b.stages]


@pytest.mark.parametrize("name, static", [*((name, False) for name in FAMILIES), ("llava", True), ("internvl", True), ("gemma3", True)])
def test_cached_generation_equals_recomputation(name, static):
    model, inputs = tiny(name), prompt(name, [[4, "I", 9], [2, "I", 6]])
    inputs.pop("position_ids", None)
    options = dict(max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True)
    with dart.prune(model, Steps()):
        cached = model.generate(**inputs, **options, **({"cache_implementation": "static"} if static else {}))
        fresh = model.generate(**inputs, **options, use_cache=False)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(fresh.logits), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_caches_are_as_long_as_reported(name):
    with dart.prune(tiny(name), Steps()) as report:
        cache = tiny(name)(**prompt(name, [[4, "I", 9]])).past_key_values
    assert [cache.get_seq_length(layer) for layer in range(LAYERS)] == report.kv_lengths()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_a_second_turn_goes_on_from_caches_of_several_lengths(name):
    model, inputs = tiny(name), prompt(name, [[4, "I", 9]], mask=False)
    more = torch.tensor([[11, 12, 13, 14]])
    mrope = {"mm_token_type_ids": torch.zeros_like(more)} if name.startswith("qwen") else {}
    types = {"token_type_ids": torch.zeros_like(more)} if name == "gemma3" else {}
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], 1)}
    for key in (*mrope, *types):
        whole[key] = torch.cat([inputs[key], torch.zeros_like(more).to(inputs[key])], 1)
    with dart.prune(model, Steps()):
        cache = model(**inputs).past_key_values
        turn = model(input_ids=more, past_key_values=cache, **types).logits
        at_once = model(**whole).logits[:, -4:]
    torch.testing.assert_close(turn, at_once, atol=2e-5, rtol=1e-4)
    with dart.prune(model, Steps((1, 3), (9, 4))), pytest.raises(ValueError, match="pruned at layer 1, 2, 4, the context prunes at layer 1, 3"):
        model(input_ids=more, past_key_values=cache, **types)


def test_the_view_behind_a_reduction_is_of_what_is_left():
    model, inputs, method = tiny("llava"), prompt("llava", MIXED), Steps(counts=(40, 9, 4))
    with dart.prune(model, method):
        model(**inputs)
    first, second, third = method.seen
    assert [view.image_mask.sum(1).tolist() for view in method.seen] == [[36, 72, 36], [36, 40, 36], [9, 9, 9]]
    assert all(view.image_count.tolist() == [36, 72, 36] for view in method.seen)
    assert second.padding_mask.sum() > 0 and not (second.padding_mask & second.image_mask).any()
    assert third.keys.shape[2] == third.hidden_states.shape[1] == third.image_mask.shape[1]
    for view in method.seen:
        paid = view.attention(view.last_token)
        torch.testing.assert_close(paid.sum(-1), torch.ones(paid.shape[:3]))
        assert float(paid[view.padding_mask[:, None, None].expand_as(paid)].max() if view.padding_mask.any() else 0) == 0


@pytest.mark.parametrize("places, words", [((2, 2), "each once"), ((3, 1), "ascending"), ((1, LAYERS), "has 5 decoder layers"), ((), "reduces nowhere")])
def test_impossible_places_are_refused(places, words):
    with pytest.raises(ValueError, match=words):
        with dart.prune(tiny("llava"), Steps(places)):
            pass


def test_states_of_a_wrong_shape_are_refused():
    @dataclass(frozen=True)
    class Wrong(dart.Method):
        def select(self, view):
            return view.image_mask, view.hidden_states[:, :3]

    with dart.prune(tiny("llava"), Wrong()), pytest.raises(ValueError, match="Wrong.select gave states torch.float32 of shape"):
        tiny("llava")(**prompt("llava", [[3, "I", 8]]))


# ------------------------------------------------------------------------------------------------ the vision tower


@dataclass(frozen=True)
class InTower(dart.Method):
    """Keeps the longest patches before the last tower layer, tripled."""

    keep: int = 5
    factor: float = 3.0
    reads_tower = True

    def places(self, n_layers):
        return ()

    def tower_places(self, n_layers):
        return (n_layers - 1,)

    def select_patches(self, view):
        assert not view.image_mask[:, 0].any() and bool((view.grid[:, 1:, 1:].flatten(0, 1) >= 0).all())
        stays = keep_top(view.hidden_states.norm(dim=-1), view.image_mask, self.keep)
        return stays, view.hidden_states * self.factor


@pytest.fixture
def deep_tower(monkeypatch):
    """The tiny LLaVA whose projector takes the last tower layer."""
    monkeypatch.setattr(tiny("llava").model.config, "vision_feature_layer", -1)
    return tiny("llava")


def test_a_reduced_tower_equals_the_tower_by_hand(deep_tower):
    model, inputs = deep_tower, prompt("llava", [[4, "I", 9], [2, "I", 6]])
    tower = model.model.vision_tower
    states = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
    best = states[:, 1:].norm(dim=-1).topk(5).indices.sort().values + 1
    index = torch.cat([torch.zeros(2, 1, dtype=torch.long), best], 1)
    out = tower.encoder.layers[-1](3 * states.take_along_dim(index[..., None], 1), None)[:, 1:]
    projected = model.model.multi_modal_projector(out)
    image = image_mask(inputs)
    seen = []

    def note(layer, args, kwargs):
        seen.append(args[0])

    with dart.prune(model, InTower()) as report:
        handle = model.model.language_model.layers[0].register_forward_pre_hook(note, with_kwargs=True)
        model(**inputs)
        handle.remove()
    for row in range(2):
        positions = image[row].nonzero().flatten()[best[row] - 1]
        assert torch.equal(report.samples[row].kept, positions)
        at = [p.item() for p in (~image[row] | torch.isin(torch.arange(image.shape[1]), positions)).nonzero()]
        short = seen[0][row][[at.index(p) for p in positions.tolist()]]
        torch.testing.assert_close(short, projected[row], atol=1e-5, rtol=1e-4)
    assert report.image_tokens() == [5] * LAYERS


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_a_tower_that_keeps_everything_changes_no_bit(name, monkeypatch):
    monkeypatch.setattr(tiny(name).model.config, "vision_feature_layer", -1)
    model, inputs = tiny(name), prompt(name, MIXED)
    plain = model(**inputs).logits
    with dart.prune(model, InTower(10**6, 1.0)):
        assert torch.equal(model(**inputs).logits, plain)


def test_generation_after_a_reduced_tower(deep_tower):
    model, inputs = deep_tower, prompt("llava", [[4, "I", 9], [2, "I", 6]])
    inputs.pop("position_ids")
    options = dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)
    with dart.prune(model, InTower()) as report:
        cached = model.generate(**inputs, **options)
        fresh = model.generate(**inputs, **options, use_cache=False)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(fresh.logits), atol=5e-5, rtol=1e-4)
    assert all(len(sample.kept) == 5 for sample in report.samples)


def test_unequal_pictures_are_refused(deep_tower):
    @dataclass(frozen=True)
    class Unequal(InTower):
        def select_patches(self, view):
            return keep_top(view.hidden_states.norm(dim=-1), view.image_mask, torch.arange(2) + 3)

    with dart.prune(deep_tower, Unequal()), pytest.raises(ValueError, match=r"Unequal.select_patches kept \[4, 5\] tokens"):
        deep_tower(**prompt("llava", [[4, "I", 9], [2, "I", 6]]))


@pytest.mark.parametrize("scaled, left", [((6, 6), 36), ((3, 3), 9), ((2, 4), 8)])
def test_a_smaller_picture_gives_the_tokens_of_a_smaller_picture(scaled, left):
    """The tower sees what it would see of the picture scaled beforehand."""

    @dataclass(frozen=True)
    class Scale(dart.Method):
        reads_tower = True

        def places(self, n_layers):
            return ()

        def resize(self, rows, columns):
            return scaled

    model, inputs, seen = tiny("llava"), prompt("llava", [[4, "I", 9]]), []
    rows, columns = scaled
    pixels = inputs["pixel_values"]
    if scaled != (6, 6):
        pixels = torch.nn.functional.interpolate(pixels, (8 * rows, 8 * columns), mode="bicubic", antialias=True)
    states = model.model.vision_tower(pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[-2][:, 1:]
    with dart.prune(model, Scale()) as report:
        handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
        model(**inputs)
        handle.remove()
    assert len(report.samples[0].kept) == left
    torch.testing.assert_close(seen[0][0, 4 : 4 + left], model.model.multi_modal_projector(states)[0], atol=1e-5, rtol=1e-4)
    ranks = report.samples[0].kept - 4
    assert len(set((ranks // 6).tolist())) == rows and len(set((ranks % 6).tolist())) == columns


# ------------------------------------------------------------------------------------------------ what was once wrong


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_static_cache_whose_first_full_layer_is_short_itself(attention):
    model, inputs = tiny("llava", attention), prompt("llava", [[4, "I", 9], [2, "I", 6]])
    inputs.pop("position_ids")
    options = dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True, disable_compile=True)
    with dart.prune(model, Steps((0, 2), (20, 5))):
        dynamic, static = (torch.stack(model.generate(**inputs, **options, **more).logits) for more in ({}, {"cache_implementation": "static"}))
    torch.testing.assert_close(static, dynamic, atol=5e-5, rtol=1e-4)


def test_states_that_a_merging_method_leaves_alone_keep_their_gradient():
    @dataclass(frozen=True)
    class MergeOne(dart.Method):
        def select(self, view):
            states = view.hidden_states.clone()
            first = view.image_mask.float().argmax(1)
            states[range(len(first)), first] += 1
            return view.image_mask, states

    model, inputs = tiny("llava"), prompt("llava", [[4, "I", 9]])
    with torch.enable_grad():
        embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_()
        with dart.prune(model, MergeOne()):
            handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda layer, args: (embeddings, *args[1:]))
            model(**inputs).logits[:, -1].sum().backward()
            handle.remove()
    image = image_mask(inputs)[0].nonzero().flatten()
    assert bool((embeddings.grad[0].abs().sum(-1)[:5] > 0).all()) and bool((embeddings.grad[0, image].abs().sum(-1) > 0).any())
    model.zero_grad()


def test_features_of_reduced_pictures_do_not_enter_as_embeddings(deep_tower):
    model, inputs = deep_tower, prompt("llava", [[4, "I", 9]])
    with dart.prune(model, InTower()):
        features = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True).pooler_output
        embeddings = model.get_input_embeddings()(inputs["input_ids"])
        embeddings[image_mask(inputs)] = torch.cat(list(features))
        with pytest.raises(ValueError, match="this prompt has no placeholders for them"):
            model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"])


def test_a_feature_layer_in_the_call_is_refused(deep_tower):
    with dart.prune(deep_tower, InTower()), pytest.raises(ValueError, match="vision_feature_layer=-3 in the call, -1 in the config"):
        deep_tower(**prompt("llava", [[4, "I", 9]]), vision_feature_layer=-3)


def test_a_feature_override_of_the_users_own_stays():
    from dart.evaluation import given_features

    for name in ("llava", "llava_next", "qwen2_vl"):
        model = tiny(name)
        with given_features(model, []):
            mine = model.model.get_image_features
            with dart.prune(model, dart.DART(4)):
                pass
            assert model.model.get_image_features is mine
        assert "get_image_features" not in vars(model.model)


def test_a_prompt_that_failed_is_not_reported():
    model = tiny("llava")
    with dart.prune(model, dart.DART(4)) as report:
        with pytest.raises(ValueError, match="last token"):
            model(**prompt("llava", [[4, "I"]]))
        model(**prompt("llava", [[4, "I", 9]]))
    assert len(report.samples) == 1 and "36 image tokens -> 4" in str(report)


def test_autocast_does_not_reach_the_decision():
    model, inputs = tiny("llava"), prompt("llava", [[4, "I", 9]])

    @dataclass(frozen=True)
    class Product(dart.Method):
        def select(self, view):
            assert (view.hidden_states.float() @ view.hidden_states.float().mT).dtype == torch.float32
            return view.image_mask

    with torch.autocast("cpu", torch.bfloat16), dart.prune(model, Product()) as report:
        model(**inputs)
    assert len(report.samples) == 1


@pytest.mark.parametrize("name, samples", [("llava", [[4, "I", "I", "I", "I", 9]]), ("llava_next", [[4, "I", "I", 9], [2, "I", 3]])])
def test_pictures_that_touch_are_told_apart(name, samples):
    @dataclass(frozen=True)
    class Grids(dart.Method):
        seen: list = field(default_factory=list)

        def select(self, view):
            self.seen.append(view.grid)
            return view.image_mask

    model, inputs, method = tiny(name), prompt(name, samples), Grids()
    with dart.prune(model, method):
        model(**inputs)
    grid, views = method.seen[0], 4 if name == "llava" else 6
    assert grid[..., 0].max() == views - 1
    for view in range(views):
        rows, columns = grid[grid[..., 0] == view][:, 1:].amax(0) + 1
        assert (grid[..., 0] == view).sum() == rows * columns
        if name == "llava":
            assert (rows, columns) == (6, 6)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_tiles_are_laid_out_through_beams(options):
    model, inputs = tiny("llava_next"), prompt("llava_next", [[4, "I", 9], [2, "I", 3]])
    inputs.pop("position_ids")
    with dart.prune(model, dart.Grid(8)) as report:
        model.generate(**inputs, max_new_tokens=2, **options)
    with dart.prune(model, dart.Grid(8)) as plain:
        model(**inputs)
    for row, sample in enumerate(report.samples[:4]):
        assert torch.equal(sample.kept, plain.samples[row // 2].kept)
