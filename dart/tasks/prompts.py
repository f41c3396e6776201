"""The words around a question, as LLaVA's evaluation scripts put them, and the picture as they cut it."""

from __future__ import annotations

from copy import copy

from transformers import PreTrainedModel, ProcessorMixin

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def vicuna_v1(text: str) -> str:
    """The whole prompt of a one-picture question in the template `vicuna_v1`, with which the paper's LLaVA runs were made.

    It is what LLaVA's `llava/conversation.py` (commit c121f043) makes of the conversation `vicuna_v1` and of what
    `llava/eval/model_vqa_loader.py` puts into it: system sentence, space, `USER: `, placeholder, newline, question, space,
    `ASSISTANT:`. With it the first image token stands at index 35, where the released code expects it.

    Parameters
    ----------
    text : str
        The `text` of a question.
    """
    return f"{SYSTEM} USER: <image>\n{text} ASSISTANT:"


# one user turn, a picture and then the question: all that `dart.evaluation` asks about a benchmark
TEMPLATE = vicuna_v1("{{ messages[0]['content'][-1]['text'] }}")


def official(model: PreTrainedModel, processor: ProcessorMixin) -> tuple[ProcessorMixin, str]:
    """A processor that asks as LLaVA's evaluation does, for the models that it was made for; any other as it is.

    These are LLaVA-1.5 and LLaVA-NeXT on Vicuna: a Llama decoder, and a chat template whose turn is that of `vicuna_v1`. The
    template of the stock checkpoints says no system sentence unless it is given a system turn; here it is always said. For
    LLaVA-1.5 pictures are padded to squares in the mean colour, as `image_aspect_ratio: pad` in its original config has it; the
    stock checkpoints cut their middle out instead. LLaVA-NeXT sees tiles of the whole picture either way.

    Parameters
    ----------
    model, processor
        As `from_pretrained` gives them; neither is changed.

    Returns
    -------
    processor : ProcessorMixin
    words : str
        What was done, for the record; empty if nothing.
    """
    kind = getattr(model.config, "model_type", None)
    if kind not in ("llava", "llava_next") or model.config.text_config.model_type != "llama" or not processor.chat_template:
        return processor, ""
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    own = processor.apply_chat_template([turn], add_generation_prompt=True)
    if not own.rstrip().endswith(vicuna_v1("?").removeprefix(f"{SYSTEM} ")):
        return processor, ""
    processor = copy(processor)
    processor.chat_template = TEMPLATE
    if kind == "llava_next":
        return processor, "vicuna_v1"
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    processor.image_processor = LlavaImageProcessorPil.from_dict({**processor.image_processor.to_dict(), "do_pad": True})
    return processor, "vicuna_v1, pictures padded to squares"
