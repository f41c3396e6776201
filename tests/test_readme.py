"""What the README shows is run as it is written."""

import re
from pathlib import Path

import dart
from tiny import prompt, tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_three_lines_run_as_written(capsys):
    use = re.search(r"## Three lines\n\n```python\n(.*?)```", README, re.S).group(1)
    assert len(use.strip().splitlines()) == 3
    names = {"dart": dart, "model": tiny("llava"), "inputs": prompt("llava", [[4, "I", 9, "I", 5]])}
    exec(use, names)
    assert names["answer"].shape == (1, 4 + 36 + 9 + 36 + 5 + 32)
    assert capsys.readouterr().out.startswith("layer 2: 72 image tokens -> 64; KV cache")


def test_every_family_and_file_it_names_is_there():
    spoken = {"LLaVA-1.5": "llava", "LLaVA-NeXT": "llava_next", "LLaVA-OneVision": "llava_onevision", "Qwen2-VL": "qwen2_vl",
              "Qwen2.5-VL": "qwen2_5_vl", "Qwen3-VL": "qwen3_vl", "InternVL": "internvl", "Gemma 3": "gemma3",
              "Idefics3": "idefics3", "SmolVLM": "smolvlm", "Video-LLaVA": "video_llava", "Phi-4-multimodal": "phi4_multimodal"}
    listed = re.search(r"Known families: (.*?);", README, re.S).group(1)
    assert {spoken[name.strip()] for name in listed.replace("\n", " ").split(",")} == set(dart.FAMILIES)
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README) + re.findall(r"papermill (\S+)", README):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake (book|test|lab|check|tables)\b", README)) <= targets
