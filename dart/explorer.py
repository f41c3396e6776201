"""The explorer: which patches of a picture repeat which, and what methods keep of them; see book/explorer.ipynb.

    export("_static/explorer")      # what the page of the site reads: it has no kernel, and chooses tokens by itself
    Live()                          # the same in JupyterLab, on any picture, with answers of the bundled model

Browser and torch choose the same tokens, to the last one, because states are exported as whole numbers in vectors of length
`LENGTH` exactly: their norms are powers of two and their cosines sums of few bits, which no arithmetic rounds.
"""

from __future__ import annotations

import base64
import html
import io
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import normalize

import dart
from dart import bundled, scenes
from dart.evaluation import given_features, prompts
from dart.methods import Method
from dart.methods.base import View

LENGTH = 128                        # of a rounded vector; int8 holds every part of it that is not nearly the whole
LAYERS = (1, 2, 4, 6)
BUDGETS = (16, 32, 64, 96, 128, 192)
ANSWERED = (2, 4)                   # layers of the answers that are computed beforehand; all budgets, 4 + 4 pivots, seed 0
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Picture:
    """A picture of the explorer and what is asked about it; `truths` is empty where the bundled model cannot answer."""

    name: str
    title: str
    image: Image.Image
    questions: tuple[str, ...]
    truths: tuple[str, ...] = ()


def pictures() -> tuple[Picture, ...]:
    """Four scenes that training never saw, and two photographs."""
    asked = {
        ("traffic", "Traffic", 50054): {"how many cars are there?": "three", "what color is the lock?": "yellow", "what word is on the red sign?": "golf"},
        ("bricks", "On bricks", 50050): {"how many bananas are there?": "four", "what word is on the black sign?": "jazz", "is there a panda?": "yes"},
        ("stars", "Before stars", 50008): {"how many cactuses are there?": "four", "is there an owl?": "yes", "what color is the car?": "purple"},
        ("plain", "On plain ground", 50090): {"how many cactuses are there?": "three", "what color is the heart?": "blue", "what word is on the pink sign?": "east"},
    }
    drawn = [
        Picture(name, title, scenes.draw(scenes.compose(scenes.TEST_SEED + seed)), tuple(questions), tuple(questions.values()))
        for (name, title, seed), questions in asked.items()
    ]
    samples = dart.data_root() / "samples"
    photographs = [
        Picture(name, title, ImageOps.fit(Image.open(samples / f"{name}.jpg").convert("RGB"), (scenes.SIZE, scenes.SIZE)), (question,))
        for name, title, question in (
            ("china", "Photograph: a pagoda", "is there a house?"), ("chelsea", "Photograph: a cat", "is there a cat?"),
        )
    ]
    return (*drawn, *photographs)


# ------------------------------------------------------------------------------------------------ what methods look at


@dataclass(frozen=True)
class Features:
    """What methods look at before one layer, rounded as it is exported: image tokens first, then the text behind them.

    Attributes
    ----------
    states : Tensor, int8 (length, width)
        Directions of the states after the final norm, of length `LENGTH`.
    key_norms : Tensor, float32 (length,)
        L1 norms of the keys of the layer before.
    attention : Tensor, float32 (length,)
        What the last token pays in the layer before, mean over heads.
    image_tokens : int
    """

    states: Tensor
    key_norms: Tensor
    attention: Tensor
    image_tokens: int

    def select(self, method: Method) -> Tensor:
        """Which image tokens `method` keeps: bool (image_tokens,). It may read states, L1 norms of keys, and the last row of attention."""
        mask = (torch.arange(len(self.states)) < self.image_tokens)[None]
        keys = self.key_norms[None, None, :, None]
        view = View(self.states[None].float(), keys, keys, mask, torch.zeros_like(mask), noted=_LastRow(self.attention))
        return method.select(view)[0, : self.image_tokens]


@dataclass(frozen=True)
class _LastRow:
    """Stands in for what a layer noted, of which only the last row of attention was exported."""

    row: Tensor

    def attention(self, rows: Tensor) -> Tensor:
        if rows.tolist() != [[len(self.row) - 1]]:
            raise ValueError(f"attention of rows {rows.tolist()} was not exported; only that of the last token was")
        return self.row[None, None, None]


@dataclass(frozen=True)
class _Note(Method):
    """Keeps everything, which changes nothing, and notes what there is to see."""

    noted: dict[int, Features] = field(default_factory=dict)
    layers: tuple[int, ...] = ()

    def places(self, n_layers: int) -> tuple[int, ...]:
        return self.layers

    def select(self, view: View) -> Tensor:
        image = view.image_mask[0]
        start = int(image.int().argmax())
        self.noted[view.layer] = Features(
            rounded(view.normed_hidden_states[0, start:]),
            view.keys[0, :, start:].float().abs().sum((0, 2)),
            view.attention(view.last_token)[0, :, 0, start:].float().mean(0),
            int(image.sum()),
        )
        return view.image_mask


@dataclass(frozen=True)
class _Chosen(Method):
    """Keeps the image tokens it was told to: bool (batch, image tokens)."""

    stays: Tensor | None = None

    def select(self, view: View) -> Tensor:
        return torch.zeros_like(view.image_mask).masked_scatter(view.image_mask, self.stays)


@dataclass(frozen=True)
class _Asked:
    text: str
    image: Image.Image
    picture_key: str

    def picture(self) -> Image.Image:
        return self.image


def rounded(states: Tensor) -> Tensor:
    """The directions of `states` (n, width) as whole numbers, int8, every row of length `LENGTH` exactly.

    Rounding leaves the squares of a row a little more or less than they should be; single steps of its parts make up for it.

    Raises
    ------
    ValueError
        If a row has too few parts to be rounded like this.
    """
    exact = normalize(states.double(), dim=-1) * LENGTH
    whole = exact.round().clamp(-127, 127)
    moved, steps = torch.zeros_like(whole), torch.tensor([1.0, -1.0], dtype=torch.double)
    for _ in range(4 * whole.shape[-1]):
        missing = LENGTH**2 - whole.square().sum(-1)
        if not missing.any():
            return whole.to(torch.int8)
        # One part up or down by one, never back: the step that leaves least missing, among equals the one that stays nearest.
        there = whole[..., None] + steps
        left = (missing[:, None, None] - (there.square() - whole[..., None].square())).abs()
        error = (there - exact[..., None]).abs() / (2 * LENGTH)
        barred = (steps * moved[..., None] < 0) | (there.abs() > 127)
        best = (left + error).masked_fill(barred, torch.inf).flatten(-2).argmin(-1, keepdim=True)
        step = torch.zeros_like(whole).scatter(1, best // 2, steps[best % 2] * (missing[:, None] != 0))
        whole, moved = whole + step, moved + step
    raise ValueError(f"states of width {whole.shape[-1]} cannot be rounded to whole numbers of length {LENGTH}; use those of a model")


def read(model, processor, image: Image.Image, question: str, layers: Sequence[int] = LAYERS) -> dict[int, Features]:
    """What methods see before each of some decoder layers, when a question is asked about a picture.

    Raises
    ------
    ValueError
        For layer 0, which has no attention before it, and layers that the model has not.
    """
    inputs, _ = prompts(model, processor, [_Asked(question, image, "")])
    note = _Note(layers=tuple(layers))
    with torch.inference_mode(), dart.prune(model, note):
        model(**inputs, use_cache=False, logits_to_keep=1)
    return note.noted


def answers(model, processor, asked: Sequence[tuple[Image.Image, str]], choices: Sequence[tuple[Tensor, int]]) -> list[list[str]]:
    """What a model says to some questions if it sees chosen image tokens only.

    Parameters
    ----------
    model, processor
        As `bundled.load` gives them.
    asked : sequence of (image, text)
    choices : sequence of (Tensor, int)
        Which image tokens stay, bool (questions, image tokens) with equally many in each row, and the first layer that misses
        the others.

    Returns
    -------
    list of list of str
        One list for each choice.
    """
    keys = {id(image): str(number) for number, (image, _) in enumerate(asked)}
    inputs, sources = prompts(model, processor, [_Asked(text, image, keys[id(image)]) for image, text in asked])
    first = sorted(set(sources))
    found = []
    with torch.inference_mode():
        seen = model.get_image_features(pixel_values=inputs["pixel_values"][first], return_dict=True).pooler_output
        with given_features(model, [seen[first.index(source)] for source in sources]):
            for stays, layer in choices:
                with dart.prune(model, _Chosen(stays=stays, layer=layer)):
                    said = model.generate(**inputs, max_new_tokens=8, do_sample=False)
                found.append(processor.batch_decode(said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


# ------------------------------------------------------------------------------------------------ for the site


def methods(keep: int, layer: int) -> dict[str, Method]:
    """Those that the page has, with the settings of its answers."""
    return {
        "DART": dart.DART(keep=keep, layer=layer), "FastV": dart.FastV(keep=keep, layer=layer), "Random": dart.Random(keep=keep, layer=layer),
    }


def export(folder: str | Path, model=None, processor=None, *, budgets: Sequence[int] = BUDGETS, progress: bool = False) -> dict[str, dict]:
    """Write what the page of the site reads: one script for each picture, and `index.mjs`.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    model, processor : optional
        The bundled model by default.
    budgets : sequence of int
        Those that the page offers, ascending.

    Returns
    -------
    dict of str to dict
        What was written of each picture.
    """
    if model is None:
        model, processor = bundled.load()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown = pictures()
    features = {(picture.name, text): read(model, processor, picture.image, text) for picture in shown for text in picture.questions}
    asked = [(picture, text) for picture in shown if picture.truths for text in picture.questions]
    said = _said(model, processor, asked, features, budgets)

    written = {picture.name: _record(processor, picture, features, said) for picture in shown}
    for name, record in written.items():
        _write(folder / f"{name}.mjs", f"pictures[{json.dumps(name)}]", record)
    _write(folder / "index.mjs", "index", _index(shown, budgets))
    return written


def _said(model, processor, asked, features, budgets) -> dict[tuple, dict]:
    """Answers to each (picture name, question): {"all": ..., method: {layer: [one for each budget]}}."""
    pairs, keys, names = [(picture.image, text) for picture, text in asked], [(picture.name, text) for picture, text in asked], list(methods(1, 1))
    everything = torch.ones(len(keys), scenes.GRID**2, dtype=torch.bool)
    found = {key: {"all": whole, **{name: {layer: [] for layer in ANSWERED} for name in names}}
             for key, whole in zip(keys, answers(model, processor, pairs, [(everything, ANSWERED[0])])[0])}
    places = [(layer, keep) for layer in ANSWERED for keep in budgets]
    choices = [
        (torch.stack([features[key][layer].select(method) for method in methods(keep, layer).values() for key in keys]), layer)
        for layer, keep in places
    ]
    for (layer, _), given in zip(places, answers(model, processor, pairs * len(names), choices)):
        for (name, key), answer in zip(((name, key) for name in names for key in keys), given):
            found[key][name][layer].append(answer)
    return found


def _record(processor, picture: Picture, features: dict[tuple, dict[int, Features]], said: dict[tuple, dict]) -> dict:
    """One picture as the page reads it. States of image tokens do not depend on the question, which stands behind them."""
    of_image = features[picture.name, picture.questions[0]]
    n = next(iter(of_image.values())).image_tokens
    file = io.BytesIO()
    picture.image.save(file, "JPEG", quality=88)
    questions = []
    for number, text in enumerate(picture.questions):
        own = features[picture.name, text]
        questions.append({
            "text": text,
            "tokens": [processor.tokenizer.decode([token]).replace("##", "…") for token in processor.tokenizer(text, add_special_tokens=False)["input_ids"]],
            "truth": picture.truths[number] if picture.truths else None,
            "answers": said.get((picture.name, text)),
            "layers": {
                layer: {"states": _text(each.states[n:]), "keys": _text(each.key_norms[n:]), "attention": _text(each.attention[:n])}
                for layer, each in own.items()
            },
        })
    return {
        "name": picture.name,
        "title": picture.title,
        "image": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode(),
        "layers": {layer: {"states": _text(each.states[:n]), "keys": _text(each.key_norms[:n])} for layer, each in of_image.items()},
        "questions": questions,
    }


def _index(shown: Sequence[Picture], budgets: Sequence[int], layers: Sequence[int] = LAYERS, tokens: int = scenes.GRID**2) -> dict:
    """What is the same for all pictures."""
    drawn = {seed: np.random.default_rng(seed).random(tokens).argsort(kind="stable").astype("<u2") for seed in SEEDS}
    return {
        "pictures": [{"name": picture.name, "title": picture.title} for picture in shown],
        "budgets": list(budgets), "layers": list(layers), "answered": list(ANSWERED), "length": LENGTH,
        "random": {seed: base64.b64encode(order.tobytes()).decode() for seed, order in drawn.items()},
    }


def _text(numbers: Tensor) -> str:
    return base64.b64encode(numbers.contiguous().numpy().tobytes()).decode()


def _write(path: Path, name: str, record: dict) -> None:
    # Scripts and not JSON, which a page opened from a folder may not fetch; .mjs, for the book puts every .js below _static on every page.
    path.write_text(f"dartExplorer.{name} = {json.dumps(record, separators=(',', ':'))};\n")


# ------------------------------------------------------------------------------------------------ for JupyterLab


def open_picture(content: bytes, name: str = "this file") -> Image.Image:
    """The middle of an uploaded picture, 336 x 336, RGB.

    Raises
    ------
    ValueError
        If it is no picture that Pillow reads, or too large.
    """
    file = io.BytesIO(content)
    try:
        picture = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as a picture ({str(error).replace(f' {file!r}', '')}); give a JPEG, PNG or WebP") from error
    return ImageOps.fit(picture, (scenes.SIZE, scenes.SIZE))


class Live:
    """The explorer in a notebook: any picture, any question, any budget and layer, answered by the bundled model as you turn.

    Parameters
    ----------
    model, processor : optional
        The bundled model by default; any LLaVA of 24 x 24 patches, whose states are up to some hundreds wide.

    Attributes
    ----------
    box : ipywidgets.VBox
        What is shown.

    Raises
    ------
    ImportError
        Without ipywidgets.
    """

    def __init__(self, model=None, processor=None):
        try:
            import ipywidgets as widgets
        except ImportError as error:
            raise ImportError("the explorer in a notebook needs ipywidgets: pip install ipywidgets") from error
        if model is None:
            model, processor = bundled.load()
        self.model, self.processor = model, processor
        self.read, self.unpruned = lru_cache(16)(self._read), lru_cache(64)(self._unpruned)
        self.shown = {picture.title: picture for picture in pictures()}
        first = next(iter(self.shown.values()))
        depth = model.config.get_text_config().num_hidden_layers

        def slider(label, value, low, high):
            return widgets.IntSlider(value, low, high, description=label, continuous_update=False, style={"description_width": "8em"})

        self.picture = widgets.Dropdown(options=list(self.shown), description="Picture")
        self.upload = widgets.FileUpload(accept="image/*", description="Your own picture")
        self.question = widgets.Combobox(value=first.questions[0], options=first.questions, ensure_option=False, continuous_update=False, description="Question")
        self.method = widgets.ToggleButtons(options=list(methods(1, 1)), description="Method")
        self.keep = slider("Patches kept", 64, 1, scenes.GRID**2)
        self.layer = slider("Before layer", 2, 1, depth - 1)
        self.image_pivots, self.text_pivots = slider("Image pivots", 4, 1, 8), slider("Text pivots", 4, 0, 4)
        self.seed = slider("Seed", 0, 0, SEEDS[-1])
        self.stage, self.answer = widgets.Output(), widgets.HTML()
        self.of_dart, self.of_random = widgets.HBox([self.image_pivots, self.text_pivots]), widgets.HBox([self.seed])
        self.box = widgets.VBox([
            widgets.HBox([self.picture, self.upload, self.question], layout={"flex_flow": "row wrap"}), self.method,
            widgets.HBox([self.keep, self.layer], layout={"flex_flow": "row wrap"}), self.of_dart, self.of_random, self.answer, self.stage,
        ])
        self.picture.observe(self._turn, "value")
        self.upload.observe(self._take, "value")
        for control in (self.question, self.method, self.keep, self.layer, self.image_pivots, self.text_pivots, self.seed):
            control.observe(self._refresh, "value")
        self._refresh()

    def _ipython_display_(self):
        from IPython.display import display

        display(self.box)

    def _turn(self, change) -> None:
        """Another picture comes with its own questions."""
        questions = self.shown[change["new"]].questions
        self.question.options = questions
        if self.question.value == questions[0]:
            self._refresh()
        self.question.value = questions[0]

    def _take(self, change) -> None:
        for file in change["new"]:
            try:
                picture = open_picture(bytes(file["content"]), file["name"])
            except ValueError as error:
                self._say(html.escape(str(error)))
                continue
            # phones give one name to all their pictures: a second one is another picture
            name, number = file["name"], 1
            while name in self.shown:
                number += 1
                name = f"{file['name']} ({number})"
            self.shown[name] = Picture(f"own-{len(self.shown)}", name, picture, ("is there a cat?",))
            self.picture.options = list(self.shown)
            self.picture.value = name

    def _read(self, title: str, question: str) -> dict[int, Features]:
        return read(self.model, self.processor, self.shown[title].image, question, range(1, self.layer.max + 1))

    def _unpruned(self, title: str, question: str) -> str:
        everything = torch.ones(1, scenes.GRID**2, dtype=torch.bool)
        return answers(self.model, self.processor, [(self.shown[title].image, question)], [(everything, self.layer.max)])[0][0]

    def chosen(self) -> Method:
        """The method as it is set."""
        keep, layer = self.keep.value, self.layer.value
        if self.method.value == "DART":
            return dart.DART(keep=keep, layer=layer, image_pivots=self.image_pivots.value, text_pivots=self.text_pivots.value)
        return dart.FastV(keep=keep, layer=layer) if self.method.value == "FastV" else dart.Random(keep=keep, seed=self.seed.value, layer=layer)

    def _say(self, text: str) -> None:
        self.answer.value = f'<div role="status" style="font-size: 1.1em">{text}</div>'

    def _refresh(self, change=None) -> None:
        self.of_dart.layout.display = None if self.method.value == "DART" else "none"
        self.of_random.layout.display = None if self.method.value == "Random" else "none"
        title, question = self.picture.value, self.question.value.strip()
        if not question:
            self._say("Ask something: the question stands behind the picture, and its last word is what FastV looks from.")
            return
        picture, layer, method = self.shown[title], self.layer.value, self.chosen()
        features = self.read(title, question)[layer]
        stays = features.select(method)
        said = answers(self.model, self.processor, [(picture.image, question)], [(stays[None], layer)])[0][0]
        doubt = "" if picture.truths else " The model was made for scenes: what it says of other pictures means little."
        self._say(f"<q>{html.escape(question)}</q> <b>{html.escape(said) or '(nothing)'}</b>, with {int(stays.sum())} of {len(stays)} patches; with all "
                  f"of them it says <b>{html.escape(self.unpruned(title, question)) or '(nothing)'}</b>.{doubt}")
        self.stage.outputs = ({"output_type": "display_data", "data": {"text/html": self._drawn(picture, question, features), "text/plain": repr(method)}, "metadata": {}},)

    def _drawn(self, picture: Picture, question: str, features: Features) -> str:
        """The pictures of the page, with the settings of the notebook."""
        layer, static = self.layer.value, dart.data_root().parent / "book/_static"
        asked = Picture(picture.name, picture.title, picture.image, (question,))
        record = _record(self.processor, asked, {(picture.name, question): {layer: features}}, {})
        fixed = {"method": self.method.value, "keep": self.keep.value, "layer": layer, "imagePivots": self.image_pivots.value,
                 "textPivots": self.text_pivots.value, "seed": self.seed.value}
        place = f"explorer-{uuid.uuid4().hex}"
        given = ", ".join(json.dumps(each).replace("</", "<\\/") for each in (_index([asked], BUDGETS), record, fixed))
        script = (static / "explorer.js").read_text()
        return (f'<style>{(static / "explorer.css").read_text()}</style><div class="explorer" id="{place}"></div><script>{script}\n'
                f'((index, picture, fixed) => dartExplorer.mount(document.getElementById("{place}"), index, async () => picture, fixed))({given});</script>')
