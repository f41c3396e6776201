"""`dart.prune` against computations that do not use it, on tiny random models of every family."""

import copy
import io
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, StaticCache
from transformers.masking_utils import flash_attention_mask

import dart
from dart import pruning
from tiny import AUDIO, CONFIGS, IMAGE, LAYERS, SOUND, VIDEO, VIDEO_FAMILIES, image_mask, prompt, tiny

FAMILIES = list(CONFIGS)
KEEP = 10
ONE = [3, "I", 8]
MIXED = [[4, "I", 9], [2, "I", 3, "I", 6], [30], [6, "I", 5]]
SOUNDS = [[4, "A", 9], [2, "A", 3, "A", 6], [30], [6, "A", 5]]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def by_hand(model, inputs, kept, layer):
    """Logits of one unpadded sample, layer by layer: full length before `layer`, text and `kept` image positions from it on."""
    body, decoder = model.base_model, dart.families.find(model)[2]
    calls, features = [], []

    def note_layer(module, args, kwargs):
        calls.append((args[0], kwargs))

    def note_decoder(module, args, kwargs):
        features.extend(kwargs.get("deepstack_visual_embeds") or [])

    handles = [each.register_forward_pre_hook(note_layer, with_kwargs=True) for each in decoder.layers]
    handles.append(decoder.register_forward_pre_hook(note_decoder, with_kwargs=True))
    body(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()

    image = image_mask(inputs)[0]
    stays = ~image
    stays[kept] = True
    at = stays.nonzero().flatten()
    hidden = calls[layer][0][:, at]
    for number in range(layer, LAYERS):
        _, kwargs = calls[number]
        mask = kwargs["attention_mask"]
        if mask is None:
            mask = torch.ones(len(image), len(image), dtype=torch.bool).tril()[None, None]
        cos, sin = kwargs["position_embeddings"]
        hidden = decoder.layers[number](
            hidden, attention_mask=mask[:, :, at][..., at], position_embeddings=(cos[..., at, :], sin[..., at, :]), position_ids=None,
        )
        if number < len(features):
            dense = torch.zeros(len(image), hidden.shape[-1])
            dense[image] = features[number]
            hidden = hidden + dense[at]
    return model.lm_head(decoder.norm(hidden)), at


def pruned(model, inputs, method=None, **kwargs):
    with dart.prune(model, method or dart.DART(keep=KEEP)) as report:
        return model(**inputs, **kwargs).logits, report


def extend(inputs, tokens):
    """The same prompt with tokens behind it."""
    more = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "mm_token_type_ids": torch.zeros_like(tokens),
            "token_type_ids": torch.zeros_like(tokens)}
    if "position_ids" in inputs:
        more["position_ids"] = inputs["position_ids"][:, -1:] + 1 + torch.arange(tokens.shape[1])
    return {key: torch.cat([value, more[key].to(value.dtype)], 1) if key in more else value for key, value in inputs.items()}


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4)


# ---- the same numbers as without it, and as by hand


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_keeping_everything_changes_no_bit(name, attention):
    model, inputs = tiny(name, attention), prompt(name, MIXED)
    plain = model(**inputs).logits
    said = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    for layer in range(LAYERS):
        entered = []
        decoder = dart.families.find(model)[2]
        with dart.prune(model, dart.DART(keep=10_000, layer=layer)) as report:
            handle = decoder.layers[layer].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
            before = decoder.layers[layer - 1].register_forward_hook(lambda _, args, out: entered.append(out))
            assert torch.equal(model(**inputs).logits, plain)
            handle.remove(), before.remove()
            assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), said)
        assert all(a.data_ptr() != b.data_ptr() for a, b in zip(entered, entered[1:]))        # a gathered copy
        assert "kept everything" in str(report)
    assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 1, 2, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_equals_layer_by_layer(name, layer, attention):
    model, inputs = tiny(name, attention), prompt(name, [ONE])
    logits, report = pruned(model, inputs, dart.DART(keep=KEEP, layer=layer))
    expected, at = by_hand(model, inputs, report.samples[0].kept, layer)
    assert len(report.samples[0].kept) == KEEP
    assert logits.shape == model(**inputs).logits.shape
    assert_close(logits[:, at], expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_method_sees_the_states_of_the_layer_before(name):
    """Keys of layer 1 as it cached them, and the final norm of what layer 2 reads; brute recomputation of the choice."""
    model, inputs = tiny(name), prompt(name, [ONE])
    _, report = pruned(model, inputs)
    cache, decoder, entering = DynamicCache(config=model.config.get_text_config()), dart.families.find(model)[2], []
    handle = decoder.layers[2].register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    model(**inputs, past_key_values=cache)
    handle.remove()
    keep = dart.select.dart_keep(decoder.norm(entering[0]), cache.layers[1].keys, image_mask(inputs), keep=KEEP)
    assert report.samples[0].kept.tolist() == keep[0].nonzero().flatten().tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_cached_generation_equals_recomputation(name, attention):
    model, inputs = tiny(name, attention), prompt(name, [ONE])
    for layer in (0, 2):
        with dart.prune(model, dart.DART(keep=KEEP, layer=layer)) as report:
            out = model.generate(**inputs, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
        new = out.sequences[:, inputs["input_ids"].shape[1] :]
        expected, _ = by_hand(model, extend(inputs, new), report.samples[0].kept, layer)
        assert_close(torch.stack(out.logits, 1), expected[:, -7:-1])


@pytest.mark.parametrize("name", FAMILIES)
def test_eager_and_sdpa_agree(name):
    # The image tower of transformers' Phi-4 declares itself causal: without padding sdpa obeys, eager does not.
    inputs = prompt(name, SOUNDS if name == "phi4_multimodal" else MIXED)
    sdpa, first = pruned(tiny(name, "sdpa"), inputs)
    eager, second = pruned(tiny(name, "eager"), inputs)
    real = inputs["attention_mask"].bool()
    assert_close(sdpa[real], eager[real])
    assert [s.kept.tolist() for s in first.samples] == [s.kept.tolist() for s in second.samples]


# ---- batches


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_a_padded_batch_equal_the_samples_alone(name, padding):
    model, inputs = tiny(name), prompt(name, MIXED, padding)
    for method in (dart.DART(keep=KEEP), dart.DART(reduction_ratio=0.6, layer=1), dart.Random(KEEP, seed=3)):
        together, report = pruned(model, inputs, method)
        for row, segments in enumerate(MIXED):
            single = prompt(name, [segments])
            alone, one = pruned(model, single, method)
            real = inputs["attention_mask"][row].bool()
            start = int(real.int().argmax())
            at = report.samples[row]
            if one.samples:
                assert (at.kept - start).tolist() == one.samples[0].kept.tolist()
            text = ~image_mask(single)[0]
            assert_close(together[row, real][text], alone[0, text])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
def test_generation_in_a_batch_equals_generation_alone(name, attention):
    model = tiny(name, attention)
    for layer in (0, 2):
        method = dart.DART(reduction_ratio=0.6, layer=layer)
        with dart.prune(model, method):
            together = model.generate(**prompt(name, MIXED), max_new_tokens=5, do_sample=False)[:, -5:]
        for row, segments in zip(together, MIXED):
            with dart.prune(model, method):
                alone = model.generate(**prompt(name, [segments]), max_new_tokens=5, do_sample=False)[0, -5:]
            assert row.tolist() == alone.tolist()


def test_unequal_rows_without_a_mask_get_one():
    """Rows of one length need no mask in the plain model; pruned to different lengths they do."""
    model = tiny("llava")
    equal = prompt("llava", [[3, "I", 8], [5, "I", 6], [47]], mask=False)
    method = dart.DART(keep=KEEP)
    with dart.prune(model, method):
        together = model(**equal).logits
        said = model.generate(**equal, max_new_tokens=4, do_sample=False)[:, -4:]
    for row, segments in enumerate([[3, "I", 8], [5, "I", 6], [47]]):
        single = prompt("llava", [segments], mask=False)
        with dart.prune(model, method):
            assert_close(together[row, -1], model(**single).logits[0, -1])
            assert said[row].tolist() == model.generate(**single, max_new_tokens=4, do_sample=False)[0, -4:].tolist()


@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_video_tokens_are_pruned_like_image_tokens(name):
    model, inputs = tiny(name), prompt(name, [[3, "V", 4, "I", 6]])
    logits, report = pruned(model, inputs)
    expected, at = by_hand(model, inputs, report.samples[0].kept, 2)
    assert_close(logits[:, at], expected)
    assert len(report.samples[0].image) == int(image_mask(inputs).sum())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name, samples", [("phi4_multimodal", SOUNDS), ("phi4_multimodal", [[3, "A", 4, "I", 6], [2, "I", 3, "A", 9]]),
                                           ("video_llava", [[4, "V", 9], [2, "V", 3, "I", 6], [30], [6, "V", 5]])],
                         ids=["sounds", "sounds-and-images", "videos-and-images"])
def test_videos_and_sounds_keep_every_promise(name, samples, attention):
    model, batch = tiny(name, attention), prompt(name, samples)
    plain = model(**batch).logits
    assert torch.equal(pruned(model, batch, dart.DART(keep=10_000))[0], plain)
    for method in (dart.DART(keep=KEEP), dart.Random(KEEP, seed=3), dart.FastV(KEEP)):
        with dart.prune(model, method) as report:
            out = model(**batch)
            said = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, -4:]
        assert [out.past_key_values.get_seq_length(i) for i in range(LAYERS)][:2] == [batch["input_ids"].shape[1]] * 2
        prompts = [row for row, segments in enumerate(samples) if len(segments) > 1]
        assert [(len(report.samples[row].image), len(report.samples[row].kept)) for row in prompts] == [
            (int(image_mask(batch)[row].sum()), KEEP) for row in prompts]
        for row, segments in enumerate(samples):
            single = prompt(name, [segments])
            with dart.prune(model, method) as one:
                alone = model(**single)
                logits = model.generate(**single, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
            assert_close(out.logits[row, -alone.logits.shape[1]:], alone.logits[0])
            assert said[row].tolist() == logits.sequences[0, -4:].tolist()
            if one.samples:
                assert [alone.past_key_values.get_seq_length(i) for i in range(LAYERS)] == one.kv_lengths(0)
                whole = extend(single, logits.sequences[:, single["input_ids"].shape[1] :])
                expected, _ = by_hand(model, whole, one.samples[0].kept, 2)
                assert_close(torch.stack(logits.logits, 1), expected[:, -5:-1])


def test_what_is_heard_matters_and_images_can_stay_whole():
    """The features are in the prompt before the first layer; a family of fewer names prunes what these name."""
    model, inputs = tiny("phi4_multimodal"), prompt("phi4_multimodal", [[3, "A", 4, "I", 6]])
    other = {**inputs, "audio_input_features": inputs["audio_input_features"].flip(1)}
    assert not torch.allclose(pruned(model, inputs)[0][:, -1], pruned(model, other)[0][:, -1], atol=1e-3)
    only = dart.Family(decoder="", image_tokens=("audio_config.audio_token_id",))
    with dart.prune(model, dart.DART(keep=4), family=only) as report:
        model(**inputs)
    (sample,) = report.samples
    assert sample.image.tolist() == (inputs["input_ids"][0] == AUDIO).nonzero().flatten().tolist() == list(range(3, 3 + SOUND))
    assert len(sample.kept) == 4 and report.lengths()[-1] == inputs["input_ids"].shape[1] - SOUND + 4


# ---- ways to generate


@pytest.mark.parametrize("options", [
    dict(do_sample=False),
    dict(num_beams=3, do_sample=False),
    dict(num_beams=3, num_return_sequences=2, do_sample=False),
    dict(do_sample=True, num_return_sequences=3),
    dict(do_sample=False, repetition_penalty=1.3),
], ids=lambda o: "-".join(map(str, o)))
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_every_way_to_generate_equals_recomputation_without_a_cache(name, options):
    """Without text pivots the choice does not depend on later text, so a run without a cache has to say the same."""
    model, inputs = tiny(name), prompt(name, [[4, "I", 9], [6, "I", 5]])
    said = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        with dart.prune(model, dart.DART(keep=KEEP, text_pivots=0)):
            said.append(model.generate(**inputs, max_new_tokens=5, use_cache=use_cache, **options))
    assert torch.equal(*said)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_assisted_decoding_rolls_pruned_caches_back(name):
    model, inputs = tiny(name), prompt(name, [[3, "I", 20]])
    with dart.prune(model, dart.DART(keep=KEEP)):
        greedy = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        assisted = model.generate(**inputs, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(greedy, assisted)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl", "gemma3"])
def test_static_cache_equals_dynamic_cache(name, attention):
    model, inputs = tiny(name, attention), prompt(name, MIXED)
    with dart.prune(model, dart.DART(reduction_ratio=0.6)):
        dynamic = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        static = model.generate(**inputs, max_new_tokens=5, do_sample=False, cache_implementation="static")
    assert torch.equal(dynamic, static)


def test_a_cache_that_was_reset_forgets_its_pruning():
    model = tiny("llava")
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=99)
    ids, token = prompt("llava", [[20], [20]], mask=False)["input_ids"], torch.tensor([[5], [6]])

    def say():
        return model(input_ids=ids, past_key_values=cache).logits, model(input_ids=token, past_key_values=cache).logits

    plain = say()
    cache.reset()
    with dart.prune(model, dart.DART(keep=KEEP)):
        model(**prompt("llava", [[2, "I", 6, "I", 3], [4, "I", 5]]), past_key_values=cache)
        cache.reset()
        for after, before in zip(say(), plain):
            assert_close(after, before)


def test_without_a_cache_the_same_prompt_gives_the_same_bits():
    for name in FAMILIES:
        model, inputs = tiny(name), prompt(name, [ONE])
        assert torch.equal(pruned(model, inputs, use_cache=False)[0], pruned(model, inputs)[0])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl", "gemma3"])
def test_a_second_turn_goes_on_from_the_pruned_cache(name, attention):
    model, inputs = tiny(name, attention), prompt(name, [ONE])
    question = torch.tensor([[11, 12, 13, 14]])
    with dart.prune(model, dart.DART(keep=KEEP)) as report:
        cache = DynamicCache(config=model.config.get_text_config())
        first = model.generate(**inputs, past_key_values=cache, max_new_tokens=4, do_sample=False)
        said = first[:, inputs["input_ids"].shape[1] :]
        whole = extend(inputs, torch.cat([said, question], 1))
        text = {key: value for key, value in whole.items() if key in ("input_ids", "attention_mask")}
        second = model.generate(**text, past_key_values=cache, max_new_tokens=4, do_sample=False)
    new = second[:, first.shape[1] :]
    expected, _ = by_hand(model, extend(whole, new[:, 4:]), report.samples[0].kept, 2)
    expected[..., [IMAGE, VIDEO, AUDIO]] = -torch.inf              # never generated
    assert new[0, 4:].tolist() == expected[0, -5:-1].argmax(-1).tolist()
    assert len(report.samples) == 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("by", ["turn", "token"])
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl"])
def test_a_second_turn_in_a_padded_batch(name, by, attention):
    """The new turn is padded too: its padding may not be seen later, fed in one piece or token by token."""
    model = tiny(name, attention)
    turn, mask = torch.tensor([[0, 11, 12], [13, 14, 15]]), torch.tensor([[0, 1, 1], [1, 1, 1]])

    def talk(inputs, turn, mask):
        cache = DynamicCache(config=model.config.get_text_config())
        with dart.prune(model, dart.DART(keep=KEEP)):
            model(**inputs, past_key_values=cache)
            seen = inputs["attention_mask"]
            steps = [slice(0, turn.shape[1])] if by == "turn" else [slice(i, i + 1) for i in range(turn.shape[1])]
            for step in (*steps, slice(turn.shape[1] - 1, turn.shape[1])):
                new = turn[:, step]
                seen = torch.cat([seen, mask[:, step]], 1)
                positions = seen.cumsum(1)[:, -new.shape[1] :] - 1
                logits = model(input_ids=new, attention_mask=seen, past_key_values=cache, position_ids=positions).logits
            return logits[:, -1]

    together = talk(prompt(name, [[3, "I", 8], [7, "I", 12]]), turn, mask)
    assert_close(together[0], talk(prompt(name, [[3, "I", 8]]), turn[:1, 1:], mask[:1, 1:])[0])
    assert_close(together[1], talk(prompt(name, [[7, "I", 12]]), turn[1:], mask[1:])[0])


def test_a_padded_second_turn_in_a_static_cache():
    model, inputs = tiny("llava"), prompt("llava", [[3, "I", 8], [7, "I", 12]])
    inputs.pop("position_ids")
    turn, mask = torch.tensor([[0, 11, 12], [13, 14, 15]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    said = []
    for make in (DynamicCache, partial(StaticCache, max_cache_len=99)):
        cache = make(config=model.config.get_text_config())
        with dart.prune(model, dart.DART(reduction_ratio=0.6)):
            first = model.generate(**inputs, past_key_values=cache, max_new_tokens=2, do_sample=False)
            ids = torch.cat([first, turn], 1)
            seen = torch.cat([inputs["attention_mask"], torch.ones(2, 2, dtype=torch.long), mask], 1)
            said.append(model.generate(input_ids=ids, attention_mask=seen, past_key_values=cache, max_new_tokens=4, do_sample=False))
    assert torch.equal(*said)


def test_a_cropped_turn_is_forgotten():
    """A padded turn that is cropped away leaves no padding behind."""
    model, inputs = tiny("llava"), prompt("llava", [[3, "I", 8], [7, "I", 12]])
    token, seen = torch.tensor([[5], [6]]), torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    positions = seen.cumsum(1)[:, -1:] - 1
    with dart.prune(model, dart.DART(keep=KEEP)):
        cache = model(**inputs).past_key_values
        other = copy.deepcopy(cache)
        turn = torch.tensor([[0, 0, 12], [13, 14, 15]])
        mask = torch.cat([inputs["attention_mask"], (turn > 0).long()], 1)
        model(input_ids=turn, attention_mask=mask, past_key_values=cache, position_ids=(mask.cumsum(1) - 1)[:, -3:])
        cache.crop(-3)
        after = model(input_ids=token, attention_mask=seen, past_key_values=cache, position_ids=positions).logits
        never = model(input_ids=token, attention_mask=seen, past_key_values=other, position_ids=positions).logits
    assert_close(after, never)


@contextmanager
def compiled_decoder(model):
    """The decoder as one graph, which a graph break or a number read by the host makes impossible; how often it was traced."""
    decoder, counter = dart.families.find(model)[2], CompileCounter()
    decoder.compile(backend=counter, fullgraph=True)
    try:
        yield counter
    finally:
        decoder._compiled_call_impl = None
        torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("samples", [[[3, "I", 6]] * 2, [[3, "I", 6], [3, "I", "I", 9]]], ids=["equal", "padded"])
def test_the_pruned_decoder_compiles_as_one_graph(samples):
    model, inputs = tiny("llava"), prompt("llava", samples)
    with dart.prune(model, dart.DART(keep=KEEP)) as eager:
        expected = model(**inputs)
    with dart.prune(model, dart.DART(keep=KEEP)) as report, compiled_decoder(model) as traced:
        found = model(**inputs)
        model(**inputs)                                            # nothing that a prompt leaves behind asks for another graph
    assert traced.frame_count == 1
    assert_close(found.logits, expected.logits)
    assert [s.kept.tolist() for s in report.samples] == [s.kept.tolist() for s in eager.samples] * 2
    assert all(seconds != seconds for seconds in report.selection_seconds)         # a graph has no times of its parts
    token = torch.tensor([[5], [6]])
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    with dart.prune(model, dart.DART(keep=KEEP)):
        later = [model(input_ids=token, attention_mask=mask, past_key_values=cache).logits
                 for cache in (found.past_key_values, expected.past_key_values)]
    assert_close(*later)


@dataclass(frozen=True)
class KeepsFewerThanPlanned(dart.Method):
    keep: int = KEEP

    def select(self, view):
        return view.image_mask & (view.image_mask.cumsum(1) < self.keep)


@pytest.mark.filterwarnings("ignore")
def test_compiled_code_refuses_a_method_that_does_not_keep_to_its_plan():
    model, inputs = tiny("llava"), prompt("llava", [ONE])
    with dart.prune(model, KeepsFewerThanPlanned()) as report:
        model(**inputs)
    assert len(report.samples[0].kept) == KEEP - 1
    with dart.prune(model, KeepsFewerThanPlanned()), compiled_decoder(model), pytest.raises(RuntimeError, match="than its plan"):
        model(**inputs)


def test_a_copied_cache_keeps_its_pruning():
    model, inputs = tiny("llava"), prompt("llava", [ONE])
    with dart.prune(model, dart.DART(keep=KEEP)):
        cache = model(**inputs).past_key_values
        other = copy.deepcopy(cache)
        token = torch.tensor([[5]])
        assert torch.equal(model(input_ids=token, past_key_values=cache).logits, model(input_ids=token, past_key_values=other).logits)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_traced_anew():
    model, inputs = tiny("llava"), prompt("llava", [ONE])
    plain, (short, _) = model(**inputs).logits, pruned(model, inputs)
    compiled = torch.compile(model, backend="eager")
    assert_close(compiled(**inputs).logits, plain)                 # compiled before the context, without the hooks
    with dart.prune(compiled, dart.DART(keep=KEEP)) as report:
        assert_close(compiled(**inputs).logits, short)
        assert len(report.samples[0].kept) == KEEP
    assert_close(compiled(**inputs).logits, plain)

    @torch.compile(backend="eager")
    def step():
        return model(**inputs).logits

    assert_close(step(), plain)                                    # nothing about the model tells that this was compiled
    with dart.prune(model, dart.DART(keep=KEEP)):
        assert_close(step(), short)
    assert_close(step(), plain)
    torch.compiler.reset()


# ---- what attention kernels are handed


def test_flash_attention_layers_get_no_gapped_positions():
    """FlashAttention takes ids with gaps for several packed sequences, and masks as (batch, entries)."""
    handed = []

    def flash_probe(module, query, key, value, attention_mask, scaling=None, **kwargs):
        if hasattr(module, "layer_idx"):
            handed.append((module.layer_idx, kwargs.get("position_ids"), attention_mask, query.shape[2], key.shape[2]))
        queries, entries = query.shape[2], key.shape[2]
        groups = query.shape[1] // key.shape[1]
        allowed = torch.ones(queries, entries, dtype=torch.bool)
        itself = allowed.tril(entries - queries).triu(entries - queries)
        if getattr(module, "is_causal", True):
            allowed = allowed.tril(entries - queries)
        if attention_mask is not None:
            assert attention_mask.shape == (query.shape[0], entries)
            # the real kernel leaves rows of padding out; here they may see themselves
            allowed = allowed & (attention_mask[:, None, None, :].bool() | itself)
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), attn_mask=allowed, scale=scaling)
        return out.transpose(1, 2), None

    AttentionInterface.register("flash_probe", flash_probe)
    AttentionMaskInterface.register("flash_probe", flash_attention_mask)
    for samples in ([ONE], MIXED):
        inputs = prompt("llava", samples)
        expected, _ = pruned(tiny("llava", "sdpa"), inputs)
        with dart.prune(tiny("llava", "sdpa"), dart.DART(keep=KEEP)):
            said = tiny("llava", "sdpa").generate(**inputs, max_new_tokens=3, do_sample=False)
        model = tiny("llava", "sdpa")
        try:
            model.model.language_model.config._attn_implementation = "flash_probe"
            handed.clear()
            logits, report = pruned(model, inputs)
            for layer, positions, mask, queries, entries in handed:
                if layer >= 2:
                    assert positions is None
                    assert queries == entries == max(report.kv_lengths(i)[2] for i in range(len(report.samples))) or len(samples) > 1
            assert (mask is None) == (len(samples) == 1)
            real = inputs["attention_mask"].bool()
            assert_close(logits[real], expected[real])
            with dart.prune(model, dart.DART(keep=KEEP)):
                assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), said)
        finally:
            model.set_attn_implementation("sdpa")
            model.model.language_model.config._attn_implementation = "sdpa"


def test_positions_of_kept_tokens_are_the_original_ones():
    for name in ("llava", "qwen2_vl"):
        model, inputs = tiny(name), prompt(name, [ONE])
        decoder, tables = dart.families.find(model)[2], []

        def note(module, args, kwargs):
            tables.append(kwargs["position_embeddings"][0])

        with dart.prune(model, dart.DART(keep=KEEP)) as report:
            handles = [decoder.layers[i].register_forward_pre_hook(note, with_kwargs=True) for i in (1, 2)]
            model(**inputs)
            for handle in handles:
                handle.remove()
        full, short = tables
        at = (~image_mask(inputs)[0]).index_fill(0, report.samples[0].kept, True).nonzero().flatten()
        assert torch.equal(short, full[..., at, :])


# ---- edges, each with its answer


@pytest.mark.parametrize("method, left", [
    (dart.DART(keep=0), 0), (dart.DART(keep=1), 1), (dart.DART(keep=4), 4), (dart.DART(keep=36), 36), (dart.DART(keep=99), 36),
    (dart.DART(per_pivot=2), 20), (dart.DART(per_pivot=50), 36), (dart.DART(reduction_ratio=0.5), 18),
    (dart.DART(reduction_ratio=1.0), 0), (dart.DART(reduction_ratio=0.0), 36), (dart.Random(0), 0), (dart.Random(7), 7),
], ids=str)
def test_budgets(method, left):
    model, inputs = tiny("llava"), prompt("llava", [ONE])
    logits, report = pruned(model, inputs, method)
    assert len(report.samples[0].kept) == left
    expected, at = by_hand(model, inputs, report.samples[0].kept, 2)
    assert_close(logits[:, at], expected)


@pytest.mark.parametrize("make, words", [
    (lambda: dart.DART(), "exactly one of keep, per_pivot, reduction_ratio; got none"),
    (lambda: dart.DART(keep=3, per_pivot=1), "exactly one"),
    (lambda: dart.DART(keep=-1), "keep=-1; give a whole number, 0 or more"),
    (lambda: dart.DART(keep=0.5), "keep=0.5; give a whole number"),
    (lambda: dart.DART(reduction_ratio=88.9), "reduction_ratio=88.9; it is the fraction removed"),
    (lambda: dart.DART(keep=8, image_pivots=0, text_pivots=0), "at least one"),
    (lambda: dart.DART(keep=8, pivot_order="random"), "pivot_order='random'; give one of"),
    (lambda: dart.Random(keep=-2), "keep=-2"),
    (lambda: dart.Random(keep=2, seed=-1), "seed=-1"),
])
def test_impossible_methods_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("method", [dart.DART, "DART", 64, None])
def test_what_is_no_method_is_refused(method):
    with pytest.raises(ValueError, match=r"give an instance, like dart.DART\(keep=64\)"):
        with dart.prune(tiny("llava"), method):
            pass


@pytest.mark.parametrize("layer", [-1, LAYERS, 99])
def test_wrong_layer_is_refused(layer):
    with pytest.raises(ValueError, match=rf"layer={layer}, but the model has {LAYERS} decoder layers; use 0 <= layer < {LAYERS}"):
        with dart.prune(tiny("llava"), dart.DART(keep=4, layer=layer)):
            pass


def test_a_prompt_without_image_is_left_alone():
    for name in FAMILIES:
        model, inputs = tiny(name), prompt(name, [[12], [9]])
        logits, report = pruned(model, inputs)
        assert torch.equal(logits, model(**inputs).logits)
        assert report.samples == [] and "no prompt with an image" in str(report)


def test_input_embeddings_are_searched_for_images():
    model, inputs = tiny("llava"), prompt("llava", [ONE])
    expected, _ = pruned(model, inputs)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert torch.equal(pruned(model, {**inputs, "inputs_embeds": embeds})[0], expected)


def count_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_after_the_block_and_after_an_exception():
    model, inputs = tiny("qwen3_vl"), prompt("qwen3_vl", [ONE])
    before, plain = count_hooks(model), model(**inputs).logits
    with dart.prune(model, dart.DART(keep=KEEP)):
        assert count_hooks(model) > before
        assert not torch.equal(model(**inputs).logits, plain)
    assert count_hooks(model) == before
    with pytest.raises(KeyboardInterrupt):
        with dart.prune(model, dart.DART(keep=KEEP)):
            raise KeyboardInterrupt
    assert count_hooks(model) == before
    assert torch.equal(model(**inputs).logits, plain)


class Broken(dart.Method):
    def select(self, view):
        raise RuntimeError("select failed")


class Misshapen(dart.Method):
    def select(self, view):
        return view.image_mask[:, :-1]


class TextToo(dart.Method):
    def select(self, view):
        return view.image_mask & False


def test_an_exception_inside_a_call_leaves_nothing_behind():
    model, inputs = tiny("llava"), prompt("llava", [ONE])
    text = prompt("llava", [[12]])
    with dart.prune(model, Broken()):
        with pytest.raises(RuntimeError, match="select failed"):
            model(**inputs)
        assert torch.isfinite(model(**text).logits).all()       # the next call starts afresh
    with pytest.raises(ValueError, match=r"Misshapen.select gave .* give bool \(batch, length\)"):
        pruned(model, inputs, Misshapen())


def test_text_stays_whatever_a_method_says():
    model, inputs = tiny("llava"), prompt("llava", [ONE])
    logits, report = pruned(model, inputs, TextToo())
    expected, at = by_hand(model, inputs, torch.tensor([], dtype=torch.long), 2)
    assert_close(logits[:, at], expected)


def test_nesting_is_refused_and_two_models_are_not_nested():
    llava, qwen = tiny("llava"), tiny("qwen2_vl")
    with dart.prune(llava, dart.DART(keep=4)):
        with pytest.raises(RuntimeError, match="already active"):
            with dart.prune(llava, dart.Random(4)):
                pass
        with dart.prune(qwen, dart.DART(keep=4)):
            pass
    with dart.prune(llava, dart.Random(4)):
        pass


def test_an_image_as_last_token_is_refused_once_dropped():
    model = tiny("llava")
    with dart.prune(model, dart.DART(keep=0)):
        with pytest.raises(ValueError, match="last token of a prompt is an image token that was dropped"):
            model(**prompt("llava", [[6, "I"]]))
    inputs = prompt("llava", [[6, "I"]])
    assert torch.equal(pruned(model, inputs, dart.DART(keep=36))[0], model(**inputs).logits)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masks_of_the_callers_own(attention):
    """A 4-D mask that hides most of the image from the last position, or adds a soft bias, is no padding."""
    model, inputs = tiny("llava", attention), prompt("llava", [ONE])
    length = inputs["input_ids"].shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    allowed[-1, 3:39] = False
    soft = torch.zeros(length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)
    soft[allowed] = torch.randn(int(allowed.sum()), generator=torch.Generator().manual_seed(0))
    for mask in (allowed, soft):
        if attention == "eager" and mask.dtype == torch.bool:
            continue
        own = {**inputs, "attention_mask": mask[None, None]}
        logits, report = pruned(model, own)
        assert len(report.samples[0].kept) == KEEP and report.samples[0].length == length
        expected, at = by_hand(model, own, report.samples[0].kept, 2)
        assert_close(logits[:, at], expected)


def test_packed_prompts_are_refused():
    model = tiny("llava")
    one = prompt("llava", [ONE], mask=False)
    packed = {"input_ids": one["input_ids"].repeat(1, 2), "pixel_values": one["pixel_values"].repeat(2, 1, 1, 1),
              "position_ids": torch.arange(47).repeat(2)[None]}
    with dart.prune(model, dart.DART(keep=KEEP)):
        with pytest.raises(ValueError, match="several prompts packed into one row"):
            model(**packed, use_cache=False)


def test_gradient_checkpointing_is_refused():
    model, inputs = copy.deepcopy(tiny("llava")).train(), prompt("llava", [ONE])
    model.gradient_checkpointing_enable()
    with dart.prune(model, dart.DART(keep=KEEP)):
        with pytest.raises(ValueError, match="gradient checkpointing"):
            model(**inputs)


def test_a_layer_that_is_no_number_leaves_no_hook():
    model = tiny("qwen3_vl")
    before = count_hooks(model)
    for layer in (1.0, "2"):
        with pytest.raises(ValueError, match="use 0 <= layer < 5"):
            with dart.prune(model, dart.DART(keep=4, layer=layer)):
                pass
    assert count_hooks(model) == before


def test_copies_inside_the_block_are_refused():
    model = tiny("llava")
    with dart.prune(model, dart.DART(keep=4)):
        with pytest.raises(RuntimeError, match="cannot be copied or saved whole inside dart.prune"):
            copy.deepcopy(model)
        with pytest.raises(RuntimeError, match="cannot be copied or saved whole"):
            torch.save(model, io.BytesIO())
    copy.deepcopy(model)


def test_two_threads_at_once_are_refused_and_one_after_the_other_is_not():
    model, inputs = tiny("llava"), prompt("llava", [ONE])
    inside, go_on, answers = threading.Event(), threading.Event(), []

    class Waits(dart.DART):
        def select(self, view):
            inside.set()
            go_on.wait(60)
            return super().select(view)

    def call():
        with torch.no_grad():
            answers.append(model(**inputs).logits)

    expected, _ = pruned(model, inputs)
    with dart.prune(model, Waits(keep=KEEP)):
        thread = threading.Thread(target=call)
        thread.start()
        assert inside.wait(60)
        with pytest.raises(RuntimeError, match="two threads"):
            model(**inputs)
        go_on.set()
        thread.join()
        assert torch.equal(answers[0], expected)            # the refused call has not disturbed the other
        assert torch.equal(model(**inputs).logits, expected)


def test_images_in_a_later_call_are_refused():
    model, inputs = tiny("llava"), prompt("llava", [ONE])
    for layer in (0, 2):
        with dart.prune(model, dart.DART(keep=KEEP, layer=layer)):
            cache = model(**inputs).past_key_values
            with pytest.raises(ValueError, match="give all images in the first call"):
                model(**{**inputs, "attention_mask": None}, past_key_values=cache)


def test_chunked_prefill_through_an_image_is_refused():
    model, ids = tiny("llava"), prompt("llava", [ONE])["input_ids"]
    with dart.prune(model, dart.DART(keep=30)):
        cache = DynamicCache(config=model.config.get_text_config())
        model.model(input_ids=ids[:, :20], past_key_values=cache)               # the image is at 3 to 38
        with pytest.raises(ValueError, match="chunked prefill"):
            model.model(input_ids=ids[:, 20:], past_key_values=cache)


def test_a_second_turn_after_layer_0_is_refused():
    model, inputs = tiny("llava"), prompt("llava", [ONE])
    with dart.prune(model, dart.DART(keep=KEEP, layer=0)):
        cache = model(**inputs).past_key_values
        with pytest.raises(ValueError, match="pruned at layer 0"):
            model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)
    for name in ("llava", "qwen2_vl"):                      # Qwen would count positions from the short cache itself
        model = tiny(name)
        with dart.prune(model, dart.DART(keep=KEEP, layer=0)):
            cache = model(**prompt(name, [ONE])).past_key_values
            with pytest.raises(ValueError, match="needs position_ids"):
                model(input_ids=torch.tensor([[5]]), past_key_values=cache)


def test_a_cache_of_another_layer_or_out_of_step_is_refused():
    model, inputs, token = tiny("llava"), prompt("llava", [ONE]), torch.tensor([[5]])
    with dart.prune(model, dart.DART(keep=KEEP)):
        cache = model(**inputs).past_key_values
    with dart.prune(model, dart.DART(keep=KEEP, layer=3)):
        with pytest.raises(ValueError, match="pruned at layer 2, the context prunes at layer 3"):
            model(input_ids=token, past_key_values=cache)
    cache = None
    with dart.prune(model, dart.DART(keep=KEEP)):
        cache = model(**inputs).past_key_values
        cache.layers[0].crop(-3)
        with pytest.raises(ValueError, match="out of step"):
            model(input_ids=token, past_key_values=cache)


def test_unknown_families_say_how_to_describe_them():
    from transformers import LlamaConfig, LlamaForCausalLM

    from tiny import TEXT

    text_only = LlamaForCausalLM(LlamaConfig(**TEXT))
    with pytest.raises(ValueError, match="the family 'llama' is not known.*dart.Family"):
        with dart.prune(text_only, dart.DART(keep=4)):
            pass
    with pytest.raises(ValueError, match="does not fit dart.Family.*give the path"):
        with dart.prune(tiny("llava"), dart.DART(keep=4), family=dart.Family(decoder="language_modle")):
            pass
    with pytest.raises(ValueError, match="names no image token.*image_tokens"):
        with dart.prune(tiny("llava"), dart.DART(keep=4), family=dart.Family(image_tokens=("picture_token_id",))):
            pass


def test_a_family_is_one_small_object():
    """A family that the registry lacks, described at the call."""
    from transformers import AutoModelForImageTextToText, CLIPVisionConfig, VipLlavaConfig, LlamaConfig

    from tiny import TEXT, TOWER

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(VipLlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=48, patch_size=8, projection_dim=32), text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE, vision_feature_layers=[-2, -1])).eval()
    inputs = prompt("llava", [ONE])
    assert "vipllava" not in dart.FAMILIES
    with dart.prune(model, dart.DART(keep=KEEP), family=dart.Family(image_tokens=("image_token_index", "image_token_id"))) as report:
        model(**inputs)
    assert len(report.samples[0].kept) == KEEP


# ---- sliding layers


def hybrid(types, window):
    from transformers import AutoModelForImageTextToText, LlavaConfig, Qwen2Config

    from tiny import TEXT, clip

    torch.manual_seed(0)
    text = Qwen2Config(**TEXT, use_sliding_window=True, sliding_window=window, layer_types=types)
    model = AutoModelForImageTextToText.from_config(
        LlavaConfig(vision_config=clip(48), text_config=text, image_token_id=IMAGE)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn_like(parameter) * 1.5 / parameter.shape[-1] ** 0.5
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    model.generation_config.suppress_tokens = [IMAGE]
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_local_layers_before_the_pruned_one(attention):
    """The cache's first full layer, which sizes the masks of transformers, is a short one here."""
    model = hybrid(["sliding_attention"] * 2 + ["full_attention"] * 3, window=6)
    model.set_attn_implementation(attention)
    inputs = prompt("llava", [ONE])
    with dart.prune(model, dart.DART(keep=KEEP)) as report:
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
        together = model.generate(**prompt("llava", MIXED), max_new_tokens=5, do_sample=False)[:, -5:]
        singles = [model.generate(**prompt("llava", [s]), max_new_tokens=5, do_sample=False)[0, -5:] for s in MIXED]
    new = out.sequences[:, inputs["input_ids"].shape[1] :]
    expected, _ = by_hand(model, extend(inputs, new), report.samples[0].kept, 2)
    assert_close(torch.stack(out.logits, 1), expected[:, -7:-1])
    assert torch.equal(together, torch.stack(singles))


def generated(model, inputs, method, **options):
    """Logits of every step and new tokens, with what was kept."""
    with dart.prune(model, method) as report:
        out = model.generate(**inputs, do_sample=False, output_logits=True, return_dict_in_generate=True, **options)
    return torch.stack(out.logits, 1), out.sequences[:, inputs["input_ids"].shape[1] :], report


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("window", [4, 30, 48])
def test_windows_of_pruned_layers_count_positions_of_the_prompt(window, layer, attention):
    """With a prompt of 47 tokens: a window within the text, one within the image, one that is passed while decoding."""
    model = hybrid(["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"] * 2, window=window)
    model.set_attn_implementation(attention)
    method = dart.DART(keep=KEEP, layer=layer)
    inputs = prompt("llava", [ONE])
    inputs.pop("position_ids")
    logits, new, report = generated(model, inputs, method, max_new_tokens=6)
    expected, _ = by_hand(model, extend(inputs, new), report.samples[0].kept, layer)
    assert_close(logits, expected[:, -7:-1])
    several = prompt("llava", MIXED)
    several.pop("position_ids")
    _, together, _ = generated(model, several, method, max_new_tokens=5)
    singles = [generated(model, {k: v for k, v in prompt("llava", [s]).items() if k != "position_ids"}, method, max_new_tokens=5)[1] for s in MIXED]
    assert torch.equal(together, torch.cat(singles))


def test_a_second_turn_in_pruned_layers_with_a_window():
    model = hybrid(["full_attention"] * 3 + ["sliding_attention"] * 2, window=6)
    inputs, more = prompt("llava", [ONE], mask=False), torch.tensor([[11, 12, 13, 14, 15, 16, 17]])
    with dart.prune(model, dart.Random(KEEP)):
        cache = model(**inputs).past_key_values
        turn = model(input_ids=more, past_key_values=cache).logits
        at_once = model(**{**inputs, "input_ids": torch.cat([inputs["input_ids"], more], 1)}).logits[:, -7:]
    assert_close(turn, at_once)


def test_a_window_for_all_layers():
    """Mistral has a window and no list of layer kinds."""
    from transformers import AutoModelForImageTextToText, LlavaConfig, MistralConfig

    from tiny import TEXT, clip

    for window in (24, 49, 80):
        config = LlavaConfig(vision_config=clip(48), text_config=MistralConfig(**TEXT, sliding_window=window), image_token_id=IMAGE)
        model = AutoModelForImageTextToText.from_config(config).eval()
        model.generation_config.eos_token_id = None
        method = dart.DART(keep=KEEP, text_pivots=0)
        cached, fresh = (generated(model, prompt("llava", [ONE]), method, max_new_tokens=9, use_cache=each) for each in (True, False))
        assert_close(cached[0], fresh[0])
        assert torch.equal(cached[1], fresh[1])


def test_a_static_cache_longer_than_a_pruned_window_is_refused():
    model = hybrid(["full_attention"] * 2 + ["sliding_attention"] * 3, window=52)
    with dart.prune(model, dart.DART(keep=KEEP)):
        with pytest.raises(ValueError, match="sliding window of 52 positions, but the sequence has 5"):
            model.generate(**prompt("llava", [ONE]), max_new_tokens=10, do_sample=False, cache_implementation="static")


def test_a_window_that_flash_attention_would_measure_is_refused():
    model = hybrid(["full_attention"] * 3 + ["sliding_attention"] * 2, window=30)
    short = pruning._Short.__new__(pruning._Short)
    short.config, short.layer_types = copy.copy(model.config.text_config), dart.families.layer_types(model.config.text_config)
    assert short.window(3, 47, None) == 30 and short.window(3, 30, None) is None and short.window(2, 47, None) is None
    short.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match="layer 3 attends to a sliding window of 30 positions, but the sequence has 47: under FlashAttention"):
        short.window(3, 47, None)


# ---- around it: precision, training, wrappers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = copy.deepcopy(tiny("llava")).to(dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in prompt("llava", MIXED).items()}
    logits, report = pruned(model, inputs)
    assert logits.dtype == dtype and torch.isfinite(logits[inputs["attention_mask"].bool()]).all()
    assert [len(s.kept) for s in report.samples] == [KEEP, KEEP, 0, KEEP]


def test_loss_and_gradients_come_through():
    model, inputs = tiny("llava"), prompt("llava", MIXED)
    labels = inputs["input_ids"].masked_fill(image_mask(inputs) | (inputs["attention_mask"] == 0), -100)
    with torch.enable_grad():
        with dart.prune(model, dart.DART(keep=KEEP)):
            loss = model(**inputs, labels=labels).loss
        loss.backward()
    gradient = model.model.language_model.layers[3].self_attn.q_proj.weight.grad
    assert torch.isfinite(loss) and torch.isfinite(gradient).all() and gradient.abs().sum() > 0
    model.zero_grad()


def test_peft_models():
    from peft import LoraConfig, get_peft_model

    model, inputs = copy.deepcopy(tiny("llava")), prompt("llava", [ONE])
    expected, _ = pruned(model, inputs)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    assert_close(pruned(wrapped, inputs)[0], expected)
    with dart.prune(wrapped, dart.DART(keep=KEEP)) as report:
        wrapped.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert len(report.samples[0].kept) == KEEP


def test_models_that_accelerate_spreads_out():
    from accelerate import cpu_offload

    model, inputs = copy.deepcopy(tiny("qwen3_vl")), prompt("qwen3_vl", MIXED)
    expected, _ = pruned(model, inputs)
    cpu_offload(model, execution_device="cpu")
    assert_close(pruned(model, inputs)[0][inputs["attention_mask"].bool()], expected[inputs["attention_mask"].bool()])


def test_lengths_of_the_caches():
    model, inputs = tiny("llava"), prompt("llava", [ONE])
    with dart.prune(model, dart.DART(keep=KEEP)) as report:
        cache = model(**inputs).past_key_values
        assert [cache.get_seq_length(i) for i in range(LAYERS)] == report.kv_lengths() == [47, 47, 21, 21, 21]
        out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True, do_sample=False)
    assert [out.past_key_values.get_seq_length(i) for i in range(LAYERS)] == [50, 50, 24, 24, 24]
