"""What is made of every chat template of TRL's collection, and of Mistral's v3."""

import datetime as dt
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import PreTrainedTokenizerFast

from orpo_mlx.data.pairs.load import Message, PreferencePair
from orpo_mlx.data.tokens.encode import encode_pairs, resolve_thinking
from orpo_mlx.data.tokens.encoder import Encoder
from orpo_mlx.errors import OrpoError
from tests import tiny
from tests.data.rows import lines_of

pytestmark = pytest.mark.parity

# What is expected of each template; `NAME` stands for NAME.jinja and for NAME_training.jinja where
# that renders the same (it adds marks of what is generated).
#   ok           prompt is what generation sees, prompt + response is the whole rendering
#   tail         the same, but the whole loses the system message: the response is the text of the
#                answer behind another user turn
#   fold         ok, the refused system message is put before the user's, which is reported
#   off          ok with the other thinking switch, which is reported
#   ok(x,y)      ok, and the template drops from the prompt: call (a tool call), result (content of
#                a tool message), tools (their list), reasoning (of the history)
#   -x           refused, because a response loses x: content, reasoning, call, both (the first two)
#   opens        refused, because generation begins with <think> and the response has no reasoning
#   raises       refused by the template itself
# Cases: one turn; two turns; a system message; answers with reasoning, with reasoning in the
# history too; answers that call a tool; answers to a tool's result; one turn without reasoning
# where others of the data have it.
CASES = ["single", "multi", "system", "reasoning", "history", "call", "result", "mixed"]
TABLE = """
cohere                 ok   ok   ok   -reasoning -reasoning -call   raises           ok
cohere2                ok   ok   ok   -reasoning -reasoning -call   raises           ok
deepseek_r1_distill    opens opens opens ok      ok(reasoning) opens ok(call,tools)  opens
deepseekv3             opens opens opens ok      ok(reasoning) opens ok(tools)       opens
diffusion_gemma        ok   ok   ok   ok         ok(reasoning) ok   ok               ok
gemma                  ok   ok   fold -reasoning -reasoning -call   raises           ok
gemma3                 ok   ok   ok   -reasoning -reasoning -call   raises           ok
gemma4                 ok   ok   ok   -reasoning -reasoning ok      ok               ok
gemma4_v2              ok   ok   ok   -reasoning -reasoning ok      ok               ok
gemma4_v3              ok   ok   ok   -reasoning -reasoning ok      ok               ok
gemma4_v4              ok   ok   ok   -reasoning -reasoning ok      ok               ok
gemma4_v5              ok   ok   ok   ok         ok(reasoning) ok   ok               ok
glm4moe                ok   ok   ok   ok         ok(reasoning) ok   ok               ok
gptoss                 ok   ok   ok   ok         ok(reasoning) ok   ok               ok
idefics3               -content -content -content -both -both raises raises -content
lfm2                   ok   ok   ok   -reasoning -reasoning -call   ok(call)         ok
lfm2_2_5               ok   ok   ok   ok         ok(reasoning) ok   ok               ok
lfm2_2_5_v2            ok   ok   ok   ok         ok(reasoning) ok   ok               ok
lfm2_2_5_vl            ok   ok   ok   ok         ok(reasoning) ok   ok               ok
lfm2_v2                ok   ok   ok   -reasoning -reasoning ok      ok               ok
llama3                 ok   ok   ok   -reasoning -reasoning -call   ok(call,tools)   ok
llama3_1               ok   ok   ok   -reasoning -reasoning ok      ok               ok
llama3_2               ok   ok   ok   -reasoning -reasoning ok      ok               ok
llava_next             raises raises raises raises raises raises    raises           raises
mistral_v3             ok   ok   tail -reasoning -reasoning ok      ok               ok
muse_glimmer           ok   ok   ok   ok         ok         ok      ok               ok
nemotron_3_5_lightning ok   ok   ok   ok         ok(reasoning) ok   ok               off
nemotron_3_nano        ok   ok   ok   ok         ok(reasoning) ok   ok               off
nemotron_3_super       ok   ok   ok   ok         ok(reasoning) ok   ok               off
nemotron_3_ultra       ok   ok   ok   ok         ok(reasoning) ok   ok               off
phi3                   ok   ok   ok   -reasoning -reasoning -call   ok(call,result,tools) ok
phi3_5                 ok   ok   ok   -reasoning -reasoning -call   ok(call,result,tools) ok
qwen2_5                ok   ok   ok   -reasoning -reasoning ok      ok               ok
qwen2_5_vl             ok   ok   ok   -reasoning -reasoning -call   ok(call,tools)   ok
qwen3                  ok   ok   ok   ok         ok(reasoning) ok   ok               ok
qwen3_5_nothink        ok   ok   ok   ok         ok(reasoning) ok   ok               ok
qwen3_5_think          ok   ok   ok   ok         ok(reasoning) ok   ok               ok
qwen3_6                ok   ok   ok   ok         ok(reasoning) ok   ok               ok
qwen3_8                ok   ok   ok   ok         ok         ok      ok               ok
qwen3_instruct_2507    ok   ok   ok   -reasoning -reasoning ok      ok               ok
qwen3_vl               ok   ok   ok   -reasoning -reasoning ok      ok               ok
smolvlm                -content -content -content -both -both raises raises -content
"""
# Where the training copy is another template: TRL makes it keep the history's reasoning.
TRAINING = """
qwen3                  ok   ok   ok   ok         ok         ok      ok               ok
qwen3_5_nothink        ok   ok   ok   ok         ok         ok      ok               ok
qwen3_5_think          ok   ok   ok   ok         ok         ok      ok               ok
qwen3_6                ok   ok   ok   ok         ok         ok      ok               ok
"""
# The end tokens of the models' generation configs; the first is the tokenizer's EOS.
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "diffusion_gemma": "<turn|> <|tool_response>",
    "gemma": "<end_of_turn>",
    "gemma4": "<turn|> <|tool_response>",
    "glm4moe": "<|endoftext|> <|user|> <|observation|>",
    "gptoss": "<|return|> <|endoftext|> <|call|>",
    "idefics3": "<end_of_utterance>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "mistral_v3": "</s>",
    "muse_glimmer": "<|eot|>",
    "nemotron": "<|im_end|>",
    "phi3": "<|endoftext|> <|end|>",
    "qwen": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
}
# What TRL's folder does not hold: Mistral's v3, after the rules that mistral-common and the model's
# tokenizer_config.json give. A system message goes into the last user turn if nothing follows it.
MISTRAL_V3 = """
{%- set talk, system = messages, none -%}
{%- if talk[0].role == 'system' -%}{%- set talk, system = talk[1:], talk[0].content -%}{%- endif -%}
{%- set asked = talk | selectattr('role', 'equalto', 'user') | list -%}
{{- bos_token -}}
{%- for m in talk -%}
  {%- if m.role == 'user' -%}
    {%- if tools and m == asked[-1] -%}
      {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' -}}
    {%- endif -%}
    {{- '[INST] ' + (system + '\n\n' if loop.last and system else '') + m.content + '[/INST]' -}}
  {%- elif m.tool_calls -%}
    {{- '[TOOL_CALLS] [' -}}
    {%- for c in m.tool_calls -%}
      {{- raise_exception('id of 9 letters') if not c.id or c.id | length != 9 -}}
      {{- (c.function | tojson)[:-1] + ', "id": "' + c.id + '"}' -}}
      {{- ', ' if not loop.last -}}
    {%- endfor -%}
    {{- ']' + eos_token -}}
  {%- elif m.role == 'assistant' -%}
    {{- ' ' + m.content | trim + eos_token -}}
  {%- elif m.role == 'tool' -%}
    {{- '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id -}}
    {{- '"}[/TOOL_RESULTS]' -}}
  {%- else -%}
    {{- raise_exception('Only user, assistant and tool roles are supported') -}}
  {%- endif -%}
{%- endfor -%}
"""
FOLDER = Path(trl.__file__).parent / "chat_templates"
MARK = re.compile(
    r"<\|[^|<>\s]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<｜[^｜]+｜>|<[a-z]+_of_[a-z]+>|</s>|<sop>"
    r"|\[/?[A-Z_]+\]|\[gMASK\]"
)
LOST = {
    "call": "tool call of a message in a prompt (assistant), dropped by the template",
    "result": "content of a message in a prompt (tool), dropped by the template",
    "reasoning": "reasoning of a message in a prompt (assistant), dropped by the template",
    "tools": "list of tools, dropped by the template",
}
DROPS = {
    "-call": "tool call",
    "-reasoning": "reasoning",
    "-content": "content",
    "-both": "content and the reasoning",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def expectations(table: str) -> dict[str, list[str]]:
    rows = (line.split() for line in table.strip().splitlines())
    return {name: words for name, *words in rows}


EXPECTED = expectations(TABLE)
EXPECTED_TRAINING = {**EXPECTED, **expectations(TRAINING)}
COPIES = {file.stem: file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.jinja"))}
TEMPLATES = {**COPIES, "mistral_v3": MISTRAL_V3}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, **keys: Any) -> Message:
    return {"role": "assistant", "content": text, **keys}


def calling(city: str) -> Message:
    function = {"name": "get_weather", "arguments": {"city": city, "days": 3}}
    return assistant("", tool_calls=[{"id": "abc123def", "type": "function", "function": function}])


def written(message: Message) -> Message:
    """The message with the arguments of its tool call as text."""
    if "tool_calls" not in message:
        return message
    (call,) = message["tool_calls"]
    function = {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}
    return {**message, "tool_calls": [{**call, "function": function}]}


def build_pair(case: str) -> PreferencePair:
    question, weather = user("What is two plus two?"), user("How is it in Rome?")
    prompt, tools = [question], None
    chosen, rejected = assistant("It is four."), assistant("I do not know.")
    result = {
        "role": "tool",
        "name": "get_weather",
        "tool_call_id": "abc123def",
        "content": "21 degrees",
    }
    if case == "multi":
        prompt = [question, assistant("Four."), user("And three plus one?")]
    elif case == "system":
        prompt = [{"role": "system", "content": "Be brief."}, question]
    elif case in ("reasoning", "history"):
        chosen["reasoning_content"] = "Two pairs make four."
        rejected["reasoning_content"] = "Hard to say."
        if case == "history":
            answered = assistant("Four.", reasoning_content="Twice two.")
            prompt = [question, answered, user("And three plus one?")]
    elif case == "call":
        prompt, tools, chosen, rejected = [weather], TOOLS, calling("Rome"), calling("Oslo")
    elif case == "result":
        prompt, tools = [weather, calling("Rome"), result], TOOLS
        chosen, rejected = assistant("It is warm."), assistant("It snows.")
    return PreferencePair(prompt, chosen, rejected, "pairs.jsonl:1", tools)


def ends_of(name: str) -> list[str]:
    family = max((key for key in ENDS if name.startswith(key)), key=len)
    return ENDS[family].split()


def build_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tiny tokenizer in which every mark of the template is one token."""
    text = TEMPLATES[name]
    tokenizer = tiny.build_tokenizer(text)
    marks = dict.fromkeys([*MARK.findall(text), *ends_of(name)])
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    tokenizer.bos_token, tokenizer.eos_token = "<|endoftext|>", ends_of(name)[0]
    return tokenizer


def build_encoder(name: str, thinking: bool) -> Encoder:
    tokenizer = build_tokenizer(name)
    ids = frozenset(tokenizer.convert_tokens_to_ids(ends_of(name)))
    return Encoder(
        tokenizer, ids, True, thinking, date=dt.date.today(), template_name=f"{name}.jinja"
    )


def check_refused(encoder: Encoder, pair: PreferencePair, name: str, why: str) -> None:
    with pytest.raises(OrpoError) as error:
        encode_pairs([pair], encoder)
    assert str(error.value).startswith(
        f"1 row cannot be rendered with {name}.jinja:\n  pairs.jsonl:1: {why}"
    )


def check_split(encoder: Encoder, pair: PreferencePair, name: str, word: str) -> list[str]:
    """The properties of a pair that is accepted; returns what was reported."""
    (row,), report = encode_pairs([pair], encoder)
    tokenizer = encoder.tokenizer
    thinking = encoder.thinking ^ (word == "off")
    settings = {"tokenize": False, "tools": pair.tools, "enable_thinking": thinking}
    messages = pair.messages
    if name == "deepseekv3":  # adds the arguments to a text
        messages = [written(message) for message in messages]
    if word == "fold":
        messages = [user("\n\n".join(m["content"] for m in messages))]
    seen = tokenizer.apply_chat_template(messages, add_generation_prompt=True, **settings)
    assert tokenizer.decode(row.prompt) == seen
    for response, ids in ((pair.chosen, row.chosen), (pair.rejected, row.rejected)):
        text = tokenizer.decode(ids)
        whole = tokenizer.apply_chat_template([*messages, response], **settings)
        closed = [end for end in ends_of(name) if text.endswith(end)]
        assert len(closed) == 1
        body = text.removesuffix(closed[0])
        assert not any(end in body for end in ends_of(name))
        if word == "tail":
            assert not whole.startswith(seen)
            assert text == f" {response['content']}</s>"
        elif seen.endswith("<think>\n") and name.startswith("deepseek"):
            # The template drops reasoning; TRL's copy for training keeps it in the content.
            kept = inline_of(response)
            settings["chat_template"] = TEMPLATES["deepseek_r1_distill_training"]
            assert seen + text == tokenizer.apply_chat_template([*messages, kept], **settings)
        elif name == "glm4moe":  # closes no turn: the next one's opening ends an answer
            assert seen + body == whole
            assert closed == ["<|observation|>" if response.get("tool_calls") else "<|user|>"]
        else:
            assert whole.startswith(seen + text)
        required = [response["content"], response.get("reasoning_content", "")]
        for call in response.get("tool_calls", []):
            required += [call["function"]["name"], *call["function"]["arguments"]]
            required += [str(v) for v in call["function"]["arguments"].values()]
        assert [part for part in required if part not in text] == []
    return lines_of(report)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_each_template_keeps_what_the_pair_says_or_refuses_it(name: str, case: str) -> None:
    base = name.removesuffix("_training")
    words = (EXPECTED if name == base else EXPECTED_TRAINING)[base]
    word = dict(zip(CASES, words, strict=True))[case]
    pair = build_pair(case)
    thinking, _ = resolve_thinking("on" if case == "mixed" else "auto", [pair])
    encoder = build_encoder(name, thinking)
    if word == "raises":
        check_refused(encoder, pair, name, "the template refuses it: ")
    elif word == "opens":
        why = "generation opens <think> at the end of the prompt, and this response has no"
        check_refused(encoder, pair, name, why)
    elif word.startswith("-"):
        check_refused(encoder, pair, name, f"the template drops the {DROPS[word]} of a response")
    else:
        notices = check_split(encoder, pair, name, word)
        lost = re.findall(r"\w+", word.partition("(")[2])
        expected = [LOST[what] for what in lost]
        if word == "off":
            expected = ["pair that can only be rendered with --thinking off, not on"]
        if word == "fold":
            expected = [
                "system message put before the next user message (the template refuses the role)"
            ]
        assert Counter(notices) == Counter(f"1 x {note}" for note in expected)


@pytest.mark.parametrize("name", TEMPLATES)
def test_reasoning_in_the_content_is_that_of_the_key(name: str) -> None:
    """Where a template has a key for reasoning; where it has none, the content stays as it is."""
    base = name.removesuffix("_training")
    word = EXPECTED[base][CASES.index("reasoning")]
    keyed = build_pair("reasoning")
    inline = keyed._replace(chosen=inline_of(keyed.chosen), rejected=inline_of(keyed.rejected))
    encoder = build_encoder(name, True)
    if word in ("raises", "-both"):
        check_refused(encoder, inline, name, "the template ")
        return
    (row,), report = encode_pairs([inline], encoder)
    assert not lines_of(report)
    if word == "ok":
        (expected,), _ = encode_pairs([keyed], encoder)
    for part in ("chosen", "rejected"):
        text = encoder.tokenizer.decode(getattr(row, part))
        reference = getattr(inline, part)["content"]
        if word == "ok":
            reference = encoder.tokenizer.decode(getattr(expected, part))
        assert "".join(text.split()).startswith("".join(reference.split()))
        if name in OWN_MARKS:
            assert "<think>" not in text


# Templates whose reasoning has marks of its own, or whose prompt opens it.
OWN_MARKS = ("diffusion_gemma", "gemma4_v5", "gptoss", "muse_glimmer", "qwen3_8")


def inline_of(message: Message) -> Message:
    return assistant(f"<think>\n{message['reasoning_content']}\n</think>\n\n{message['content']}")


def test_the_table_names_every_template_of_the_collection() -> None:
    bases = {name.removesuffix("_training") for name in TEMPLATES}
    assert sorted(EXPECTED) == sorted(bases)
    assert len(COPIES) > 60
