"""One word for one idea: the field's, in names, messages and documents (docs/design.md, Words)."""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("orpo_mlx", "benchmarks", "scripts", "tests")
# Not in a name -> but.
NAMES = {
    "found": "result, matches, or the thing's own name",
    "place": "location, offset, row, module or path",
    "places": "locations, offsets, rows, modules or paths",
    "tell": "report (an event), log (a text), warn",
    "tells": "report, log, warn",
    "told": "reported, messages, notices",
    "say": "report, log, or what it is",
    "says": "report, log, or what it is",
    "said": "message, text, answer, response",
    "emit": "report",
    "beside": "sidecar, adjacent, extra",
    "stands": "is, equals",
    "anew": "again",
    "taken": "used, accepted, occupied",
    "brought": "imported",
    "crossing": "boundary",
    "parcel": "bundle",
    "mend": "fix, scrub, repair",
    "mended": "fixed, scrubbed, repaired",
    "identity": "fingerprint",
    "neighbours": "adjacent, neighbors",
    "picked": "sample",
}
# Right after "is no".
RIGHT_AFTER_NO = (
    *("longer", "more", "less", "different", "such", "other", r"one\b", "need", "reason"),
    *("room", "way"),
)
# Not in a text that someone reads -> but.
TEXTS = {
    r"anew": "again",
    r"told": "reported, given, named",
    r"beside": "next to, compared with, besides",
    r"stands?(?! for\b|-in)": "is, is listed",
    r"mends?|mended|mending": "fix, repair",
    r"brought in": "imported",
    r"made ready": "prepared",
    r"the crossing|crosses the": "boundary",
    rf"(?<!here )(?:is|are|was|were) no (?!{'|'.join(RIGHT_AFTER_NO)})": "is not a",
    r"that (?:is|are) no": "that is not",
    r"cannot be told": "cannot be set, cannot be told apart",
    r"behind the (?:file's )?end": "after the end",
    r"gave up": "ended the work",
    r"says? so": "reported",
    r"recognis\w*|colour\w*|neighbour\w*|normalis\w*|behaviour": "American spelling",
}
# (files, word) -> why it stays.
ALLOWED = {
    ("tests/test_words.py", "*"): "the list itself",
    ("orpo_mlx/review/pairs/preview.py", "told"): "a key of data preview --json",
    ("*", "*NotFoundError"): "exceptions of Python and huggingface_hub",
    ("orpo_mlx/model/lora.py", "Identity"): "mlx layer that changes nothing",
    ("orpo_mlx/search/study.py", "tell"): "optuna's name for an outcome that is kept",
    ("orpo_mlx/interop/hub/client.py", "emit"): "what logging.Handler calls",
}
DOCUMENTS = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "docs/*.md", "adapters/README.md",
    "orpo_mlx/review/pairs/pages/*", "orpo_mlx/judging/pages/*", "orpo_mlx/judging/server/static/*",
    "orpo_mlx/demo/*.yaml", "orpo_mlx/interop/hub/*.jinja",
)  # fmt: skip


def words_of(name: str) -> set[str]:
    """The words of an identifier, in either way of writing several."""
    return set(re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))


def allowed(file: str, word: str) -> bool:
    return any(fnmatch(file, files) and fnmatch(word, w) for files, w in ALLOWED)


def wrong_names(source: str) -> set[str]:
    """Names that hold a word of NAMES; not those of tests, which are sentences."""
    names = {
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.NAME and not token.string.startswith("test_")
    }
    return {name for name in names if words_of(name) & NAMES.keys()}


# From Python 3.12 on an f-string is several tokens.
TEXT_TOKENS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}


def texts_of(source: str) -> Iterator[str]:
    """Strings, comments and the names of tests, as words."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in TEXT_TOKENS:
            yield token.string
        elif token.type == tokenize.NAME and token.string.startswith("test_"):
            yield token.string.replace("_", " ")


def wrong_texts(text: str) -> set[str]:
    return {match[0] for pattern in TEXTS for match in re.finditer(rf"(?i)\b(?:{pattern})\b", text)}


def code_files() -> list[str]:
    return [
        file.relative_to(ROOT).as_posix()
        for folder in CODE
        for file in sorted((ROOT / folder).rglob("*.py"))
    ]


@cache
def source_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("file", code_files())
def test_names_are_the_fields_words(file: str) -> None:
    wrong = {name for name in wrong_names(source_of(file)) if not allowed(file, name)}
    assert not {name: NAMES[w] for name in wrong for w in words_of(name) & NAMES.keys()}


@pytest.mark.parametrize("file", code_files())
def test_texts_of_the_code_are_plain_english(file: str) -> None:
    wrong = {w for text in texts_of(source_of(file)) for w in wrong_texts(text)}
    assert not {word for word in wrong if not allowed(file, word)}


@pytest.mark.parametrize(
    "file", sorted(f.relative_to(ROOT).as_posix() for g in DOCUMENTS for f in ROOT.glob(g))
)
def test_documents_are_plain_english(file: str) -> None:
    assert not {word for word in wrong_texts(source_of(file)) if not allowed(file, word)}


def test_a_wrong_word_is_seen() -> None:
    assert wrong_names("found_rows = tellSize(place=1)") == {"found_rows", "tellSize", "place"}
    assert wrong_texts("It stands beside what is no file.") == {"stands", "beside", "is no "}
    texts = list(texts_of('text = f"it stands {beside} here"  # told'))
    assert {word for text in texts for word in wrong_texts(text)} >= {"stands"}
    assert not wrong_names("result = location")
    assert not wrong_texts("It is next to what is not a file, and no longer is.")


# Public names with two meanings -> why both stay.
SHARED_NAMES = {
    "command": "every command's module has one, by which it is loaded",
    "main": "the two programs: orpo-mlx, and the doctor's child process",
    "WEIGHTS": "both are the file of an adapter in mlx-lm's layout",
    "PEFT_WEIGHTS": "both are the file of an adapter in PEFT's; what is pushed loads no mlx",
}


def imported_constants() -> dict[str, set[str]]:
    """The modules that define a constant which another module of the package imports."""
    origins = defaultdict(set)
    for file in code_files():
        for node in ast.walk(ast.parse(source_of(file))) if file.startswith("orpo_mlx/") else ():
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("orpo_mlx."):
                own = constants_of(f"{str(node.module).replace('.', '/')}.py")
                for name in own.intersection(alias.name for alias in node.names):
                    origins[name].add(str(node.module))
    return origins


@cache
def constants_of(file: str) -> set[str]:
    if not (ROOT / file).is_file():
        return set()
    body = ast.parse(source_of(file)).body
    assigned = [node for node in body if isinstance(node, ast.Assign)]
    names = {n.id for node in assigned for n in ast.walk(node) if isinstance(n, ast.Name)}
    return {name for name in names if name.isupper() and name[0] != "_"}


def test_a_public_name_has_one_meaning() -> None:
    modules = defaultdict(list)
    for file in code_files():
        if file.startswith("orpo_mlx/"):
            for node in ast.parse(source_of(file)).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                    modules[node.name].append(file)
    for name, origins in imported_constants().items():
        modules[name] += sorted(origins)
    shared = {name: files for name, files in modules.items() if len(files) > 1}
    assert not {name: files for name, files in shared.items() if name not in SHARED_NAMES}
    assert shared.keys() >= SHARED_NAMES.keys()
