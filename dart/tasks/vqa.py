"""What VQAv2, TextVQA and VizWiz share: how answers are normalised, and soft accuracy over ten annotators.

Two normalisers are in use. `official` is the one of VQA's evaluation script (arXiv 1505.00468). `evalai` cleans a little
more before it, and is what MMF and LLaVA's scripts apply to answers. Both are kept with their oddities, which tables of the
field are made with.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dart.tasks import base
from dart.tasks.base import Question

PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"
NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), "0 0 1 2 3 4 5 6 7 8 9 10".split()))
ARTICLES = ("a", "an", "the")
_CONTRACTED = (
    "'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't "
    "he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't "
    "not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd "
    "someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's "
    "they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all "
    "y'all'd've y'all'll you'd you'd've you'll you're you've"
).split()
# the official table holds each of these words with any one apostrophe left out; it has one entry the wrong way round
CONTRACTIONS = {word[:at] + word[at + 1 :]: word for word in _CONTRACTED for at, letter in enumerate(word) if letter == "'"}
CONTRACTIONS["somebody'd"] = "somebodyd"


def official(text: str) -> str:
    """An answer as VQA's evaluation script compares it: lower case, no punctuation, no articles, digits for numbers to ten,
    apostrophes put into contractions.

    A mark that touches a space anywhere in the text is dropped everywhere, else it becomes a space; with a comma between
    two digits all marks are dropped. A full stop stays in front of a digit only.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    clean = text
    for mark in PUNCTUATION:
        drop = mark + " " in text or " " + mark in text or re.search(r"\d,\d", text)
        clean = clean.replace(mark, "" if drop else " ")
    clean = re.sub(r"\.(?!\d)", "", clean, count=32)  # the script gives re.UNICODE, 32, where the count goes
    words = (NUMBERS.get(word, word) for word in clean.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def evalai(text: str) -> str:
    """An answer as LLaVA's scripts hand it in: before `official`, lower case, no commas and question marks, and `'s` a word
    of its own."""
    return official(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def soft_accuracy(said: str, answers: Sequence[str]) -> float:
    """VQA's accuracy of one answer, 0 to 1: a third for each annotator who gave it, at most 1, averaged over leaving each
    annotator out once. nan if there are no annotators' answers.

    With ten annotators 1, 2, 3 and 4 who agree give 0.3, 0.6, 0.9 and 1.
    """
    if not answers:
        return float("nan")
    same = sum(answer == said for answer in answers)
    return (same * min(1, (same - 1) / 3) + (len(answers) - same) * min(1, same / 3)) / len(answers)


def score(asked: Sequence[Question], soft: Sequence[float], weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Mean soft accuracy in all and by kind, 0 to 1, nan where true answers are not public; `weights` (..., n) as everywhere."""
    return base.by_kind("accuracy", np.array(soft, float), asked, base.counts(asked, weights))


def commonest(answers: Sequence[str]) -> str:
    """The answer that most annotators gave, the first of them at a tie; empty if there are none."""
    return Counter(answers).most_common(1)[0][0] if answers else ""
