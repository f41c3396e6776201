"""Every family of the paper loads and prunes by its name: from a folder, through the door that `dart eval` and lmms-eval take."""

import json

import pytest
import torch
from tiny import LAYERS, image_mask, prompt, tiny
from transformers import AutoModelForMultimodalLM

import dart
from dart import bundled, cli, lmms

FAMILIES = {
    "llava": "LlavaForConditionalGeneration",                               # LLaVA-1.5-7B and 13B
    "llava_next": "LlavaNextForConditionalGeneration",                      # LLaVA-NeXT-7B
    "qwen2_vl": "Qwen2VLForConditionalGeneration",                          # Qwen2-VL-7B and 72B
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "video_llava": "VideoLlavaForConditionalGeneration",
    "phi4_multimodal": "Phi4MultimodalForCausalLM",
}
SEGMENTS = {"video_llava": [3, "V", 6], "phi4_multimodal": [3, "A", 6]}     # as the paper has them


@pytest.fixture(params=FAMILIES)
def checkpoint(request, tmp_path, monkeypatch):
    """A tiny model of a family on disk; its processor would ask for torchvision."""
    tiny(request.param).save_pretrained(tmp_path)
    processor = type("Processor", (), {"image_processor": type("Images", (), {"size": {}})()})()
    for place in (bundled, lmms):
        monkeypatch.setattr(place.AutoProcessor, "from_pretrained", lambda *args, **options: processor)
    return request.param, tmp_path


def answers(name, model):
    """Logits behind a prompt of the family, whole and pruned, and how many image tokens stay."""
    inputs = prompt(name, [SEGMENTS.get(name, [3, "I", 6])])
    with torch.inference_mode():
        whole = model(**inputs).logits[:, -1]
        with dart.prune(model, dart.DART(keep=5, layer=LAYERS - 1)) as report:
            pruned = model(**inputs).logits[:, -1]
    (sample,) = report.samples
    assert len(sample.image) == image_mask(inputs).sum()
    return whole, pruned, len(sample.kept)


def test_a_family_loads_and_prunes_by_its_path(checkpoint):
    name, folder = checkpoint
    model, _ = bundled.load(str(folder))
    assert type(model).__name__ == FAMILIES[name]
    whole, pruned, kept = answers(name, model)
    expected = answers(name, tiny(name))
    torch.testing.assert_close(whole, expected[0])
    torch.testing.assert_close(pruned, expected[1])
    assert kept == 5 and not torch.equal(whole, pruned)


def test_lmms_eval_loads_and_places_it_too(checkpoint, monkeypatch):
    name, folder = checkpoint
    monkeypatch.setattr(lmms.Pruned, "_resolve_system_prompt", lambda self, given: given, raising=False)    # of lmms-eval
    model = lmms.Pruned(pretrained=str(folder), device="cpu", device_map="auto", dtype="float32", keep=5).model
    assert type(model).__name__ == FAMILIES[name]
    torch.testing.assert_close(answers(name, model)[1], answers(name, tiny(name))[1])


def test_a_model_split_over_two_devices_prunes_as_a_whole_one(tmp_path):
    """As Qwen2-VL-72B is: here one device computes, and the second half of the layers lies on disk."""
    tiny("qwen2_vl").save_pretrained(tmp_path / "model")
    places = {"model.visual": "cpu", "model.language_model.embed_tokens": "cpu", "model.language_model.norm": "cpu", "lm_head": "cpu",
              "model.language_model.rotary_emb": "cpu"}
    places |= {f"model.language_model.layers.{layer}": "cpu" if layer < 2 else "disk" for layer in range(LAYERS)}
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk")
    assert {str(parameter.device) for parameter in model.parameters()} == {"cpu", "meta"}
    for ours, whole in zip(answers("qwen2_vl", model), answers("qwen2_vl", tiny("qwen2_vl"))):
        torch.testing.assert_close(ours, whole)


def test_code_that_comes_with_weights_is_not_run_nor_asked_about(tmp_path, capsys):
    """As MiniCPM-V 2.6 comes, and Phi-4-multimodal on its main branch."""
    classes = {"AutoConfig": "configuration_minicpm.MiniCPMVConfig", "AutoModel": "modeling_minicpmv.MiniCPMV"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "minicpmv", "auto_map": classes}))
    (tmp_path / "configuration_minicpm.py").write_text("raise SystemExit('this was run')")
    assert cli.main(["eval", "--model", str(tmp_path), "--tasks", "existence", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"dart: {tmp_path} brings its model as code of its own, which is not run here")
    assert said.count("\n") == 1


def test_a_processor_that_wants_torchvision_says_so(tmp_path, monkeypatch, capsys):
    """As those of Qwen-VL do, even for stills."""
    tiny("qwen2_vl").save_pretrained(tmp_path)

    def refuse(*args, **options):
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library but it was not found. Check out the instructions\n")

    monkeypatch.setattr(bundled.AutoProcessor, "from_pretrained", refuse)
    capsys.readouterr()
    assert cli.main(["eval", "--model", str(tmp_path), "--tasks", "existence", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "Qwen2VLVideoProcessor requires the Torchvision library" in said and "the extra `paper`" in said and "Check out" not in said
    assert f"dart: {tmp_path} loads only with another library" in said
