"""How answers end and what they contain: cut short, an open code block, refusals, apologies."""

import re
from collections.abc import Sequence

from orpo_mlx.data.quality.texts import units

LEAST_WORDS = 12  # of a lone sentence that is judged by its last word
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*(\S*)", re.MULTILINE)
_LIST_ITEM = re.compile(r"^\s*(?:[-*+•]|\d+[.)])\s")
_BARE_NUMBER = re.compile(r"^\s*\d+[.)]$")
_NO_PROSE = re.compile(r"^\s*(?:#{1,6}\s|\||>|```|~~~)|\|\s*$|://\S*$|[{}=]\s*$|\);\s*$|\w\($")
_TERMINAL = tuple(".!?…。！？।؟")
_CLOSING = "\"'”’»)]}）】」』*_`~ "
_INNER_END = re.compile(r"[.!?…]['\"”’»)*_]*\s|[。！？]")
_GOING_ON = ",;:-–—(，、；：（"
_OPEN_WORD = re.compile(
    r"\b(?:and|or|but|the|a|an|of|to|in|on|at|for|with|from|by|as|that|which|because|is|are|your|"
    r"und|oder|aber|der|die|das|den|dem|des|ein|eine|einen|zu|mit|von|für|auf|dass|weil|ist|et|"
    r"ou|le|la|les|un|une|de|du|y|o|el|los|las|una|del|para|con)$",
    re.IGNORECASE,
)


def is_cut_short(text: str) -> bool:
    """Whether a text stops within a sentence, judged by the rest of the text.

    Its last line must be prose without a mark at its end where the sentences before it have one,
    or a number without its item; a lone sentence, end with a comma or with a word like "and".
    """
    lines = [line for line in text.rstrip().splitlines() if line.strip()]
    if not lines or _NO_PROSE.search(lines[-1]) or has_open_fence(text):
        return False
    last = lines[-1].rstrip()
    if _BARE_NUMBER.match(last) and len(lines) > 1:
        return True
    if not _is_open(last) or _is_signature(lines):
        return False
    if _INNER_END.search(_LIST_ITEM.sub("", last)) or _usually_ends(lines[:-1], last):
        return True
    return len(units(last)) > LEAST_WORDS and bool(last[-1] in ",，、" or _OPEN_WORD.search(last))


def _is_open(line: str) -> bool:
    """Whether a line ends with a letter, a digit or a mark that something must follow."""
    return line[-1].isalnum() or line[-1] in _GOING_ON


def _usually_ends(lines: Sequence[str], last: str) -> bool:
    """Whether the lines before the last end with a mark: all items of its list, or most lines.

    A list of one item counts as the beginning of a longer one.
    """
    items = [line for line in lines if _LIST_ITEM.match(line)]
    listed = bool(_LIST_ITEM.match(last) and items)
    same = items if listed else lines
    ended = sum(line.rstrip(_CLOSING).endswith(_TERMINAL) for line in same)
    return bool(ended) and (ended == len(same) if listed else ended * 2 > len(same))


def _is_signature(lines: Sequence[str]) -> bool:
    """Whether a text ends with a greeting and a name."""
    last = lines[-1].split()
    return len(last) <= 3 and len(lines) > 1 and lines[-2].rstrip().endswith((",", "，"))


def has_open_fence(text: str) -> bool:
    """Whether a fence of code is open at the end."""
    if "```" not in text and "~~~" not in text:
        return False
    opened = ""
    for fence in _FENCE.finditer(text):
        marks, info = fence[1], fence[2]
        if not opened:
            # ```code``` on one line is not a block.
            opened = "" if marks in info else marks
        elif marks.startswith(opened) and not info:
            opened = ""
    return bool(opened)


REFUSAL_CHARACTERS = 200  # a refusal begins within these
_HELP = (
    r"(?:help|assist|provid|fulfil|comply|answer|support|creat|writ|shar|discuss|engag|generat|giv"
    r"|offer|participat|promot|do (?:that|this)|with (?:that|this))"
)
_CANNOT = r"(?:can(?:no|['’])t|can not|won['’]t|will not|(?: am|['’]m) (?:un|not )able to)"
_HILFE = (
    r"(?:helfen|weiterhelfen|beantworten|antworten|erfüllen|unterstützen|schreiben|erstellen|geben"
    r"|tun|ausführen|dienen)"
)
_REFUSALS = (
    rf"\bsorry,? but i ?{_CANNOT}",
    rf"\bi ?{_CANNOT} (?:be able to )?{_HELP}",
    r"\bi(?:['’]m| am)? (?:not|do not feel|don['’]t feel) comfortable",
    r"\bi (?:must|have to) (?:respectfully )?decline",
    r"\bnot something (?:that )?i can\b",
    r"\bas an ai\b|\bi(?:['’]m| am) (?:just |only )?an ai\b",
    r"\bas a (?:large )?language model",
    rf"\b(?:ich kann|kann ich) (?:\w+ ){{0,4}}nicht (?:\w+ ){{0,3}}{_HILFE}",
    r"\bals (?:ki|sprachmodell)\b",
    r"\bje ne peux pas (?:vous )?(?:aider|fournir|répondre)",
    r"\ben tant qu['’]ia\b",
    r"\bno puedo (?:ayudar|proporcionar|responder|cumplir)",
    r"\bcomo (?:una )?ia\b",
    r"我(?:无法|不能|没办法)(?:提供|回答|帮助|协助|满足|完成|为您|给您|给你|帮)",
    r"(?:抱歉|对不起)[，,]?\s?(?:但是?)?我(?:无法|不能|没办法)",
    r"作为(?:一个|一名)?(?:ai|人工智能|语言模型)",
)
_REFUSAL = re.compile("|".join(_REFUSALS), re.IGNORECASE)
_APOLOGIES = (
    r"\b(?:i|we)(?:['’]m| am|['’]re| are)(?: (?:so|very|really|truly|deeply))? sorry\b",
    r"\b(?:i|we) (?:\w+ )?apologi[sz]e\b",
    r"\b(?:my|our) apologies\b",
    r"\bes tut (?:mir|uns)(?: sehr)? leid\b",
    r"\b(?:ich entschuldige mich|wir entschuldigen uns)\b",
    r"\b(?:je suis désolée?|nous sommes désolés)\b",
    r"\blo siento\b",
    r"对不起|抱歉",
)
_APOLOGY = re.compile("|".join(_APOLOGIES), re.IGNORECASE)
# One of these is in every apology, and looking for them is quicker.
_APOLOGY_WORDS = ("sorry", "apolog", "leid", "entschuldig", "désol", "siento", "对不起", "抱歉")


def refuses(text: str) -> bool:
    """Whether an answer begins with a refusal (English, German, French, Spanish, Chinese)."""
    return bool(_REFUSAL.search(text[:REFUSAL_CHARACTERS]))


def count_apologies(text: str) -> int:
    """How often a text apologizes in the first person."""
    lower = text.lower()
    return len(_APOLOGY.findall(text)) if any(w in lower for w in _APOLOGY_WORDS) else 0
