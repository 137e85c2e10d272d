"""Rows with nothing wrong in them: English, German, Chinese, code, and answers of one word."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple


class CleanRow(NamedTuple):
    """A pair before damage; `kind` is one of KINDS."""

    kind: str
    prompt: str
    chosen: str
    rejected: str


EN = {
    "thing": "bicycle chain|sourdough starter|garden hose|tax return|guitar string|tent|kettle|"
    "spreadsheet|lease|passport photo|violin bow|compost heap|router|dishwasher|running shoe|"
    "wool sweater|house plant|fish tank|camera lens|bookshelf|resume|piano lesson|hiking map|"
    "bread oven|phone battery|window frame|car tyre|coffee grinder|rain jacket|sewing machine",
    "act": "clean|repair|replace|choose|store|carry|measure|photograph|sell|insure|describe|pack|"
    "borrow|paint|label|test|warm up|cool down|balance|sharpen|register|compare|move|protect",
    "place": "a small flat|the mountains|an old farmhouse|the office|a rented room|Lisbon|a boat|"
    "the school kitchen|winter weather|a crowded train|the back garden|a student hall|Glasgow|"
    "the workshop|a desert camp|my parents' house",
    "when": "before the weekend|during a long trip|after heavy rain|on a tight budget|at night|"
    "without special tools|for the first time|with two children around|in under an hour|"
    "once the warranty is over|when guests arrive|every spring",
    "adj": "gentle|quick|reliable|cheap|careful|surprising|simple|thorough|steady|quiet|local|"
    "modern|patient|honest|modest|generous",
    "noun": "cloth|neighbor|manual|checklist|habit|screwdriver|receipt|teacher|friend|plan|timer|"
    "budget|photo|sample|warranty|bucket|ladder|notebook|mechanic|recipe",
}
EN_PROMPTS = (
    "How do I {act} a {thing} in {place} {when}?",
    "My {thing} broke down {when}. Is it worth trying to {act} it in {place}?",
    "Explain to a {adj} {noun} why people {act} a {thing} {when}.",
    "What should I know before I {act} the {thing} that I keep in {place}?",
    "I have {n} euros and a {thing}. Which {noun} do I need to {act} it {when}?",
    "Write a short note about a {thing} in {place}, {when}, with a {adj} tone.",
)
EN_SENTENCES = (
    "Start with a {adj} {noun}, and {act} the {thing} only {when}.",
    "Most people in {place} {act} it with a {noun} that costs about {n} euros.",
    "If the {thing} still feels wrong, ask a {adj} {noun} to look at it.",
    "The {adj} way is to {act} every part for {n} minutes, then to wait.",
    "Keep the {noun} dry; a wet {thing} is hard to {act} {when}.",
    "You can {act} {n} of them at once, provided that the {noun} is {adj}.",
    "Nobody in {place} has ever regretted a {adj} {noun}.",
    "After that, {act} the {noun} again and write down what changed.",
    "It helps to think of the {thing} as a {noun}: {adj}, but never perfect.",
    "There are {n} reasons for this, and the {noun} is the least of them.",
    "I would not {act} anything {when}, because the {thing} needs time.",
    "A {noun} from {place} lasts {n} years when it is treated in a {adj} manner.",
)
DE = {
    "thing": "das Fahrrad|die Waschmaschine|der Mietvertrag|die Gitarre|das Zelt|der Kachelofen|"
    "die Steuererklärung|das Gemüsebeet|der Rasenmäher|die Nähmaschine|das Hörgerät|der "
    "Führerschein|"
    "die Kaffeemühle|das Bücherregal|der Wanderrucksack|die Gefriertruhe|das Klavier|der Drucker",
    "act": "prüfen|säubern|reparieren|verkaufen|abmelden|einlagern|erklären|vergleichen|anmelden|"
    "versichern|kühlen|aufbauen|übergeben|schützen|messen|wählen",
    "place": "im Keller|in Köln|auf dem Balkon|in der Werkstatt|bei den Großeltern|im Büro|in "
    "Zürich|"
    "auf dem Campingplatz|im Altbau|in der Schule|am Bodensee|im Hinterhof",
    "when": "vor dem Urlaub|nach dem Umzug|im Frühjahr|bei starkem Regen|über Nacht|ohne Werkzeug|"
    "mit wenig Geld|zum ersten Mal|kurz vor Ladenschluss|während der Ferien",
    "adj": "gründliche|ruhige|günstige|ehrliche|einfache|überraschende|schnelle|örtliche|"
    "geübte|sorgfältige",
    "noun": "Anleitung|Nachbarin|Liste|Rechnung|Lösung|Bürste|Prüfung|Freundin|Werkstatt|Übung|"
    "Frist|"
    "Gewohnheit|Quittung|Schulung",
}
DE_PROMPTS = (
    "Wie kann ich {thing} {place} {when} am besten {act}?",
    "{when} war {thing} plötzlich kaputt. Lohnt es sich, das {place} zu {act}?",
    "Warum braucht man eine {adj} {noun}, um {thing} zu {act}?",
    "Was muss ich wissen, bevor wir {thing} {place} {act}?",
    "Ich habe {n} Euro übrig: Welche {noun} hilft mir, {thing} {when} zu {act}?",
)
DE_SENTENCES = (
    "Zuerst hilft eine {adj} {noun}, danach lässt sich {thing} leichter {act}.",
    "Die meisten Leute {place} zahlen dafür ungefähr {n} Euro.",
    "Falls {thing} weiter Ärger macht, fragt man eine {adj} {noun}.",
    "Man sollte {when} nichts überstürzen, denn die {noun} braucht Zeit.",
    "Für gewöhnlich genügen {n} Minuten, um alles {place} zu {act}.",
    "Eine {adj} {noun} ist {when} mehr wert als zehn Ratschläge.",
    "Wer {thing} {place} aufbewahrt, muss es später öfter {act}.",
    "Das größte Risiko ist die {noun}, nicht {thing} selbst.",
    "Schließlich prüft man nach {n} Tagen, ob die {noun} noch stimmt.",
    "Über die {noun} spricht {place} kaum jemand, obwohl sie hilft.",
)
ZH = {
    "thing": "自行车|洗衣机|租房合同|吉他|帐篷|砂锅|报税表|菜园|打印机|缝纫机|助听器|驾照|"
    "咖啡机|书架|背包|冰箱|钢琴|鱼缸|相机|雨衣",
    "act": "检查|清洗|修理|出售|登记|收纳|解释|比较|投保|安装|保护|测量|挑选|更换|晾干|包装",
    "place": "地下室|成都|阳台上|修理店里|爷爷奶奶家|办公室|苏州|露营地|老房子里|学校食堂|湖边|"
    "后院",
    "when": "度假之前|搬家以后|春天的时候|下大雨时|晚上|没有工具的情况下|预算不多时|第一次|"
    "关门之前|放假期间",
    "adj": "仔细的|安静的|便宜的|诚实的|简单的|可靠的|快速的|本地的|熟练的|耐心的",
    "noun": "说明书|邻居|清单|发票|办法|刷子|课程|朋友|师傅|练习|期限|习惯|收据|计划|温度计",
}
ZH_PROMPTS = (
    "{when}怎样在{place}{act}{thing}比较好？",
    "我的{thing}在{place}坏了，{when}还值得{act}吗？",
    "为什么需要{adj}{noun}才能{act}{thing}？",
    "在{place}{act}{thing}之前，我应该知道哪些事情？",
    "我只有{n}元，{when}用哪种{noun}来{act}{thing}？",
)
ZH_SENTENCES = (
    "首先找一位{adj}{noun}，然后再{act}{thing}。",
    "{place}的人大多花{n}元左右来{act}它。",
    "如果{thing}还是有问题，可以请教{adj}{noun}。",
    "{when}不要着急，因为{noun}需要时间。",
    "一般来说，{n}分钟就足够把{thing}{act}好。",
    "把{thing}放在{place}，以后就要经常{act}。",
    "最大的风险是{noun}，而不是{thing}本身。",
    "过{n}天以后，再看看{noun}有没有变化。",
    "{adj}{noun}在{when}比十个建议更有用。",
    "很少有人在{place}谈到{noun}，但它确实有帮助。",
)
CODE = {
    "name": "orders|samples|lines|prices|tokens|names|events|scores|paths|words|rows|users|cells|"
    "edges|frames|points|votes|tags|dates|sizes",
    "verb": "count|filter|merge|sort|group|parse|clean|rank|split|index|sum|scan|pack|check|load",
    "cond": "item > {n}|item % {n} == 0|len(str(item)) < {n}|item not in seen|item.value >= {n}|"
    "str(item).startswith('{n}')|hash(item) & {n}|item is not None and item != {n}",
    "op": "total += item|result.append(item * {n})|seen.add(item)|counts[item] = "
    "counts.get(item, {n})|"
    "result.append((item, {n}))|total = max(total, item - {n})|result.insert({n}, item)",
    "ret": "total|result|seen|counts|sorted(result)[:{n}]|dict(counts)|len(result) // {n}|"
    "total or {n}",
}
CODE_PROMPTS = (
    "Write a Python function that can {verb} {name} and skips every value above {n}.",
    "Fix this: my function should {verb} the {name}, but it stops after {n} of them.",
    "How would you {verb} {n} {name} in Python without a second list of {name2}?",
    "Refactor the loop that I use to {verb} {name} and {name2} so that it takes {n} lines.",
)
_WORDS = """
river stone window garden teacher silver morning engine blanket candle forest harbour lemon
market needle orchard pepper quarry ribbon saddle tailor umbrella valley walnut anchor barrel
carpet dragon eagle feather glacier hammer island jacket kitchen lantern mirror napkin oyster
pillow quilt rocket shelter tunnel uncle velvet whistle yellow zebra acorn bridge castle desert
elbow fountain goblet hollow ivory jungle kettle ladder meadow nephew onion parrot raven spider
thunder village wagon
"""
WORDS = _WORDS.split()
WORD_PROMPTS = (
    "Which word rhymes best with {a}, if {b} is not allowed?",
    "Name one thing that belongs to {a} as well as to {b}.",
    "Is {a} older than {b}? Answer with one word.",
    "Complete the proverb about the {a} and the {b} with a single word.",
    "What comes after {a} and before {b} in this list?",
    "Give the opposite of a {a} that is like a {b}.",
)


def _filled(rng: Random, template: str, words: dict[str, list[str]]) -> str:
    chosen = {name: rng.choice(options) for name, options in words.items()}
    text = template.format(
        n=rng.randint(2, 980), name2=rng.choice(words.get("name", [""])), **chosen
    )
    return text.replace("{n}", str(rng.randint(2, 980)))


def _listed(words: dict[str, str]) -> dict[str, list[str]]:
    return {name: text.split("|") for name, text in words.items()}


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _prose(
    prompts: tuple[str, ...], sentences: tuple[str, ...], words: dict[str, str], joint: str
) -> Callable[[Random], tuple[str, str, str]]:
    lists = _listed(words)

    def answer(rng: Random) -> str:
        parts = [_upper(_filled(rng, s, lists)) for s in rng.sample(sentences, rng.randint(3, 6))]
        if rng.random() < 0.25:
            return "\n".join(f"{i}. {part}" for i, part in enumerate(parts, start=1))
        return (rng.choice(["\n\n", joint]) if rng.random() < 0.3 else joint).join(parts)

    def row(rng: Random) -> tuple[str, str, str]:
        return _upper(_filled(rng, rng.choice(prompts), lists)), answer(rng), answer(rng)

    return row


def _code(rng: Random) -> tuple[str, str, str]:
    lists = _listed(CODE)
    comments = _listed(EN)

    def block() -> str:
        verb, name = rng.choice(lists["verb"]), rng.choice(lists["name"])
        lines = [f"def {verb}_{name}({name}, limit={rng.randint(1, 99)}):"]
        lines.append(f"    result, seen, counts, total = [], set(), {{}}, {rng.randint(0, 9)}")
        lines.append(f"    for item in {name}:")
        for _ in range(rng.randint(1, 3)):
            lines.append("        if " + _filled(rng, rng.choice(lists["cond"]), lists) + ":")
            lines.append("            " + _filled(rng, rng.choice(lists["op"]), lists))
        lines.append("    return " + _filled(rng, rng.choice(lists["ret"]), lists))
        code = "\n".join(lines)
        if rng.random() < 0.2:
            return code
        text = _filled(rng, rng.choice(EN_SENTENCES), comments)
        return (
            f"```python\n{code}\n```\n{text}"
            if rng.random() < 0.5
            else f"{text}\n\n```python\n{code}\n```"
        )

    return _filled(rng, rng.choice(CODE_PROMPTS), lists), block(), block()


def _one_word(rng: Random) -> tuple[str, str, str]:
    a, b, chosen, rejected = rng.sample(WORDS, 4)
    prompt = rng.choice(WORD_PROMPTS).format(a=a, b=b)
    return prompt, *(rng.choice([w, _upper(w), _upper(w) + "."]) for w in (chosen, rejected))


MAKERS: dict[str, Callable[[Random], tuple[str, str, str]]] = {
    "english": _prose(EN_PROMPTS, EN_SENTENCES, EN, " "),
    "german": _prose(DE_PROMPTS, DE_SENTENCES, DE, " "),
    "chinese": _prose(ZH_PROMPTS, ZH_SENTENCES, ZH, ""),
    "code": _code,
    "one word": _one_word,
}
KINDS = tuple(MAKERS)


def clean_rows(rng: Random, each: int) -> list[CleanRow]:
    """`each` rows of every kind, shuffled; no prompt twice."""
    rows = []
    for kind, make in MAKERS.items():
        prompts = set[str]()
        while len(prompts) < each:
            prompt, chosen, rejected = make(rng)
            if prompt not in prompts and chosen != rejected:
                prompts.add(prompt)
                rows.append(CleanRow(kind, prompt, chosen, rejected))
    rng.shuffle(rows)
    return rows
