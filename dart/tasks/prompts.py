"""The words around a question, as LLaVA's evaluation scripts put them."""

from __future__ import annotations

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

    The chat template that comes with the stock LLaVA-1.5 checkpoints writes the same turn, `USER: <image>\\n... ASSISTANT:`,
    but says no system sentence unless a system turn is given; so this is that turn behind `SYSTEM` and a space. With it
    the first image token stands at index 35, where the released code expects it.

    Parameters
    ----------
    text : str
        The `text` of a question.
    """
    return f"{SYSTEM} USER: <image>\n{text} ASSISTANT:"
