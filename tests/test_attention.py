"""Rows of attention recomputed from queries and keys, against the map that eager attention gives out."""

import copy
from dataclasses import dataclass, field

import pytest
import torch

import dart
from dart.attention import Noted
from tiny import CONFIGS, image_mask, prompt, tiny

FAMILIES = list(CONFIGS)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@dataclass(frozen=True)
class Look(dart.Method):
    """Keeps everything and hands out what it was shown."""

    seen: list = field(default_factory=list)
    reads_tower = False

    def select(self, view):
        self.seen.append(view)
        return view.image_mask


@dataclass(frozen=True)
class LookIntoTower(Look):
    reads_tower = True
    tower_layers = (0, -1)

    def select(self, view):
        view.vision
        return super().select(view)


@dataclass(frozen=True)
class LookAtGrid(Look):
    def select(self, view):
        view.grid
        return super().select(view)


def shown(model, inputs, method, **kwargs):
    with dart.prune(model, method):
        model(**inputs, **kwargs)
    return method.seen[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_equals_the_eager_map(name, attention):
    # Phi-4's own vision tower answers differently under its two kernels, so that its decoder is shown sounds
    kind = "A" if name == "phi4_multimodal" else "I"
    inputs = prompt(name, [[4, kind, 9], [2, kind, 3]])
    maps = tiny(name, "eager")(**inputs, output_attentions=True).attentions
    for layer in (1, 4):
        view = shown(tiny(name, attention), inputs, Look(layer=layer))
        rows = torch.arange(inputs["input_ids"].shape[1]).expand(2, -1)
        found, real = view.attention(rows), inputs["attention_mask"].bool()
        for sample in range(2):
            torch.testing.assert_close(
                found[sample][:, real[sample]], maps[layer - 1][sample][:, real[sample]].float(), atol=1e-5, rtol=1e-4)


def test_chosen_rows_are_rows_of_the_map():
    inputs = prompt("llava", [[4, "I", 9], [2, "I", 6]], padding="right")
    view = shown(tiny("llava"), inputs, Look())
    length = inputs["input_ids"].shape[1]
    assert view.last_token.flatten().tolist() == inputs["attention_mask"].sum(1).sub(1).tolist()
    whole = view.attention(torch.arange(length).expand(2, -1))
    torch.testing.assert_close(view.attention(view.last_token), whole.take_along_dim(view.last_token[:, None, :, None], 2))


def test_a_static_cache_shows_the_prompt_only():
    from transformers import StaticCache

    model, inputs = tiny("llava"), prompt("llava", [[3, "I", 8]], mask=False)
    plain = shown(model, inputs, Look())
    static = shown(model, inputs, Look(), past_key_values=StaticCache(config=model.config.get_text_config(), max_cache_len=80))
    torch.testing.assert_close(static.attention(static.last_token), plain.attention(plain.last_token))
    assert static.keys.shape == plain.keys.shape


@pytest.mark.parametrize("causal, window, softcap", [(True, None, None), (True, 3, None), (False, None, 2.0)])
def test_masks_that_kernels_make_themselves(causal, window, softcap):
    """FlashAttention is handed no map to add but a 2-D mask, a window, a bound."""
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
    seen = torch.ones(2, 7, dtype=torch.long)
    seen[1, :2] = 0
    rows = torch.tensor([[6, 3], [6, 4]])
    found = Noted(queries, keys, keys, seen, 0.5, causal, window, softcap).attention(rows)
    for sample, n in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row = int(rows[sample, n])
        allowed = [c for c in range(7) if seen[sample, c] and (not causal or c <= row) and (window is None or c > row - window)]
        for head in range(4):
            scores = torch.stack([queries[sample, head, row] @ keys[sample, head // 2, c] * 0.5 for c in allowed])
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            by_hand = torch.zeros(7)
            by_hand[allowed] = scores.softmax(0)
            torch.testing.assert_close(found[sample, head, n], by_hand)


def test_layer_0_has_no_layer_before_it():
    view = shown(tiny("llava"), prompt("llava", [[3, "I", 8]]), Look(layer=0))
    with pytest.raises(ValueError, match="layer=0 has no layer before it"):
        view.attention(view.last_token)


def test_the_config_of_a_layer_is_back_after_a_failure():
    model, inputs = tiny("llava"), prompt("llava", [[3, "I", 8]])
    layer = model.model.language_model.layers[1]
    config = layer.self_attn.config

    def fail(*args):
        raise RuntimeError("planted")

    handle = layer.self_attn.q_proj.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        shown(model, inputs, Look())
    handle.remove()
    assert layer.self_attn.config is config
    assert shown(model, inputs, Look()).noted is not None and layer.self_attn.config is config


# ------------------------------------------------------------------------------------------------ the vision tower


def tower_maps(name, inputs):
    """Eager attention of the tower's layers that reach the projector, and states behind the last of them."""
    model = tiny(name, "eager")
    pixels = inputs["pixel_values"]
    if pixels.ndim == 5:
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        tiles = [image_size_to_num_patches(s.tolist(), model.config.image_grid_pinpoints, 24) for s in inputs["image_sizes"]]
        pixels = torch.cat([p[:n] for p, n in zip(pixels, tiles)])
    out = model.model.vision_tower(pixels, output_attentions=True, output_hidden_states=True)
    feature = model.config.vision_feature_layer
    return out.attentions[: feature + 1], out.hidden_states[feature]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_attention_of_the_tower_equals_the_eager_map(name, attention):
    inputs = prompt(name, [[4, "I", 9], [2, "I", 3, "I", 6]])
    maps, states = tower_maps(name, inputs)
    vision = shown(tiny(name, attention), inputs, LookIntoTower()).vision
    torch.testing.assert_close(vision.class_attention(), maps[-1][:, :, 0, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vision.class_attention(0), maps[0][:, :, 0, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vision.patch_attention(), maps[-1].mean(1)[:, 1:, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vision.hidden_states, states, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_tower_states_projected_are_the_embeddings_of_their_tokens(name):
    model, inputs = tiny(name), prompt(name, [[4, "I", 9], [2, "I", 3, "I", 6]])
    view = shown(model, inputs, LookIntoTower(layer=0))
    patch = view.vision.patches >= 0
    assert torch.equal(patch | (name == "llava_next") & image_mask(inputs), image_mask(inputs))
    projected = model.model.multi_modal_projector(view.vision.features)
    torch.testing.assert_close(projected[patch], view.hidden_states[patch], atol=1e-5, rtol=1e-4)
    newline = image_mask(inputs) & ~patch
    if name == "llava_next":
        assert newline.sum() > 0
        torch.testing.assert_close(view.hidden_states[newline], model.model.image_newline.expand(int(newline.sum()), -1))


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_the_tower_is_seen_through_generate(name, options):
    model, inputs = tiny(name), prompt(name, [[4, "I", 9], [2, "I", 6]])
    plain = shown(model, inputs, LookIntoTower(layer=0))
    method = LookIntoTower(layer=0)
    with dart.prune(model, method):
        model.generate(**{k: v for k, v in inputs.items() if k != "position_ids"}, max_new_tokens=2, **options)
    view, times = method.seen[0], 2 if options else 1
    assert torch.equal(view.vision.patches, plain.vision.patches.repeat_interleave(times, 0))
    torch.testing.assert_close(view.vision.class_attention(), plain.vision.class_attention())
    assert "get_image_features" not in model.model.__dict__


def test_features_that_are_not_of_the_towers_last_run_are_refused():
    from dart.evaluation import given_features

    model, inputs, other = tiny("llava"), prompt("llava", [[4, "I", 9]]), prompt("llava", [[5, "I", 9]])
    features = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True).pooler_output
    with dart.prune(model, LookIntoTower()):
        for _ in range(2):                       # before the tower ran in the block, and after it ran on another picture
            with given_features(model, features), pytest.raises(ValueError, match="not those of its last run in this block"):
                model(**inputs)
            model(**other)


def test_families_without_a_described_tower_are_refused_at_once():
    with pytest.raises(ValueError, match="LookIntoTower works with the vision tower, which is not described for 'qwen2_vl'"):
        with dart.prune(tiny("qwen2_vl"), LookIntoTower()):
            pass


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_the_grid_counts_rows_and_columns(name):
    inputs = prompt(name, [[4, "I", 9], [2, "I", 3, "I", 6]])
    grid = shown(tiny(name), inputs, LookAtGrid(layer=0)).grid
    image = image_mask(inputs)
    assert bool((grid[~image] == -1).all())
    if name != "llava_next":                     # newlines lie nowhere
        assert bool((grid[image] >= 0).all())
    views = grid[..., 0]
    for view in range(int(views.max()) + 1):
        found = grid[views == view][:, 1:]
        rows, columns = found.amax(0) + 1
        expected = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        assert torch.equal(found, expected)


def test_towers_that_do_not_fit_are_refused_with_the_reason(monkeypatch):
    model = tiny("llava")
    monkeypatch.setattr(model.config, "vision_feature_select_strategy", "full")
    with pytest.raises(ValueError, match="'full' does not fit a tower with a class token; use 'default'"):
        with dart.prune(model, LookIntoTower()):
            pass
    monkeypatch.undo()
    model = copy.deepcopy(model)
    model.model.vision_tower.encoder = torch.nn.Module()
    with pytest.raises(ValueError, match="CLIPVisionModel has no encoder.layers"):
        with dart.prune(model, LookIntoTower()):
            pass
