"""A very short Eliza."""

from __future__ import annotations

import re

_RULES = [
    (r"i need (.*)", "Why do you need {}?"),
    (r"i am (.*)", "How long have you been {}?"),
    (r"i feel (.*)", "Do you often feel {}?"),
    (r"(?:.* )?because (.*)", "Is that the real reason?"),
    (r"(.*)\b(mother|father|sister|brother)\b.*", "Tell me more about your family."),
    (r"(.*)\?", "Why do you ask that?"),
    (r"(hello|hi|good morning)\b.*", "Hello. How are you feeling today?"),
]
_OTHER_PERSON = {"i": "you", "me": "you", "my": "your", "am": "are", "you": "I", "your": "my", "mine": "yours"}


def answer(sentence: str) -> str:
    """What a therapist of few words says to ``sentence``."""
    plain = sentence.strip().rstrip(".!").lower()
    for pattern, reply in _RULES:
        found = re.fullmatch(pattern, plain)
        if found:
            return reply.format(" ".join(_OTHER_PERSON.get(word, word) for word in found[1].split()))
    return "Please go on."
