"""Answers that refuse and answers that apologise, by how they begin and what they say."""

import re

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
    """How often a text apologises in the first person."""
    lower = text.lower()
    return len(_APOLOGY.findall(text)) if any(w in lower for w in _APOLOGY_WORDS) else 0
