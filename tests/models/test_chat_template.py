"""Chat templates: what ordinary ones need works, what hostile ones try is refused early and with little memory."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import resource
from typing import Any

import pytest

from foreserve.errors import BadRequest, ConfigError
from foreserve.models.chat_template import ChatTemplate

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# In the manner of Llama 3: dates, a namespace-free system turn, tools in the first user turn, trimmed content.
LLAMA_LIKE = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- if tools is not none and messages | length != 0 %}
    {%- set first_user_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' + (tool_call.arguments | tojson) + "}<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# In the manner of Qwen: a namespace set in a reversed loop, thinking parts cut off, tool calls and responses.
QWEN_LIKE = """{%- macro turn(role, text) -%}
<|im_start|>{{ role }}
{{ text }}<|im_end|>
{% endmacro -%}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- turn('system', messages[0].content) }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
           and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- turn(message.role, content) }}
    {%- elif message.role == "assistant" %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- generation %}{{- '<|im_start|>assistant\\n' ~ content }}{%- endgeneration %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}{%- continue %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}

DOUBLING = "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = STEP %}{% endfor %}{{ ns.s }}"

HOSTILE = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "one vast range": "{% for a in range(10**12) %}{% endfor %}",
    "long body in a loop": "{% for a in range(90000) %}" + "{% set b = a + 1 %}" * 3000 + "{% endfor %}",
    "loop with a test": "{% for a in range(90000) if " + "a == 1 or " * 300 + "false %}{% endfor %}",
    "doubling with ~": DOUBLING.replace("STEP", "ns.s ~ ns.s"),
    "doubling with +": DOUBLING.replace("STEP", "ns.s + ns.s"),
    "doubling with *": DOUBLING.replace("STEP", "ns.s * 2"),
    "doubling with %": DOUBLING.replace("STEP", "'%s%s' % (ns.s, ns.s)"),
    "doubling with join": DOUBLING.replace("STEP", "[ns.s, ns.s]|join"),
    "doubling with join method": DOUBLING.replace("STEP", "ns.s.join(['', '', ns.s])"),
    "doubling with replace": DOUBLING.replace("STEP", "ns.s|replace('x', 'xx')"),
    "doubling with replace method": DOUBLING.replace("STEP", "ns.s.replace('', 'x')"),
    "doubling with format": DOUBLING.replace("STEP", "'{}{}'.format(ns.s, ns.s)"),
    "doubling with format filter": DOUBLING.replace("STEP", "'%s%s'|format(ns.s, ns.s)"),
    "doubling with set block": "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set t %}{{ ns.s }}{{ ns.s }}"
    "{% endset %}{% set ns.s = t %}{% endfor %}{{ ns.s }}",
    "doubling with macro": "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}"
    + DOUBLING.replace("STEP", "m(ns.s)"),
    "doubling with call": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 30 + "x" * 100 + "{% endcall %}" * 30,
    "doubling a list": DOUBLING.replace("STEP", "[ns.s] * 9 + [ns.s] * 9 if ns.s is string else ns.s + ns.s"),
    "a list of lists written out": DOUBLING.replace("STEP", "[ns.s, ns.s]"),
    "a list of lists as json": DOUBLING.replace("STEP", "[ns.s, ns.s]").replace("{{ ns.s }}", "{{ ns.s|tojson }}"),
    "lists compared": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(50) %}{% set ns.a = [ns.a, ns.a] %}"
    "{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "lists compared by a test": "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(50) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a is eq(ns.b) }}",
    "tuples hashed": "{% set ns = namespace(a=(1,)) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}"
    "{{ {ns.a: 1} }}",
    "tuples as an index": "{% set ns = namespace(a=(1,)) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}"
    "{% endfor %}{{ {'a': 1}[ns.a] + 1 }}",
    "lists in upper": DOUBLING.replace("STEP", "[ns.s, ns.s]").replace("{{ ns.s }}", "{{ ns.s|upper }}"),
    "integers squared": "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "a vast power": "{{ 9 ** 9 ** 9 }}",
    "a power of a constant": "{% set x = 10 ** 100000000 %}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent width by name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "percent width from an argument": "{{ '%*d' % (1000000000, 1) }}",
    "percent precision": "{{ '%.1000000000f' % 1.0 }}",
    "format width": "{{ '{:>1000000000}'.format(1) }}",
    "format width from an argument": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "date width": "{{ strftime_now('%1000000000d') }}",
    "a constant times a constant": "{{ 'a' * 1000000000 }}",
    "center": "{{ 'a'.center(1000000000) }}",
    "center filter": "{{ 'a'|center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\\t'.expandtabs(1000000000) }}",
    "indent width": "{{ 'a\nb'|indent(1000000000) }}",
    "json indent": "{{ [1]|tojson(indent=1000000000) }}",
    "round": "{{ 1.5|round(1000000000, 'ceil') }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "strip quadratic": "{% set a = 'ab' * 900000 %}{{ a.strip(a) }}",
    "rfind quadratic": "{% set a = 'a' * 900000 %}{{ a.rfind('b' + 'a' * 400000) }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by index": "{{ ''['__class__'] }}",
    "class by filter": "{{ ''|attr('__class__') }}",
    "class by map": "{{ ['']|map(attribute='__class__')|list }}",
    "class by format": "{{ '{0.__class__}'.format('') }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "self": "{{ self.__init__.__globals__ }}",
    "the environment": "{{ namespace.__init__.__globals__ }}",
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macro tree": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(50) }}",
    "recursive for": "{% for x in [[1]] recursive %}{{ loop(x) }}{% endfor %}",
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep lists": "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "deep loops": "{% for a in [1] %}" * 200 + "{% endfor %}" * 200,
    "a long sum": "{{ " + "+".join(["1"] * 5000) + " }}",
    "chained comparisons nested": "{{ " + "1 < (" * 90 + "1" + ") < 3" * 90 + " }}",
    "too long": " " * 200_000,
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
    "syntax": "{% for %}",
    "unknown filter": "{{ 'a'|nothing }}",
    "inner filter": "{{ 'a'|_spend(-1000, -1000) }}",
    "mutation": "{% for m in messages %}{{ messages.append(m) }}{% endfor %}",
    "a namespace in itself": "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
    "a huge integer": "{{ " + "9" * 5000 + " }}",
}  # fmt: skip


def template(source: str, **kwargs: str) -> ChatTemplate:
    return ChatTemplate(source, wall=lambda: 1_700_000_000.0, **kwargs)


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_templates_are_refused_at_load(source: str) -> None:
    with pytest.raises(ConfigError, match="chat template"):
        template(source)


def _grown_by_hostile_templates(grown: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for source in HOSTILE.values():
        with contextlib.suppress(ConfigError):
            template(source)
    grown.value = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def test_hostile_templates_take_little_memory() -> None:
    context = multiprocessing.get_context("spawn")
    grown = context.Value("q", -1)
    process = context.Process(target=_grown_by_hostile_templates, args=(grown,))
    process.start()
    process.join(100)
    assert process.exitcode == 0
    assert 0 <= grown.value < 150 * 2**20


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_templates_that_wait_for_a_request_are_refused_then(source: str) -> None:
    try:
        late = template("{% if trap is defined %}" + source + "{% endif %}")
    except ConfigError:
        return  # seen at load: syntax, size
    with pytest.raises(BadRequest, match="chat template"):
        late.render([{"role": "user", "content": "x"}], trap=True)


def test_smollm2() -> None:
    text = template(SMOLLM2).render([{"role": "user", "content": "Hi"}])
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama_like_with_tools_and_date() -> None:
    chat = template(LLAMA_LIKE, bos_token="<|begin_of_text|>")
    text = chat.render(
        [
            {"role": "system", "content": " Be kind. "},
            {"role": "user", "content": " Weather? "},
            {"role": "assistant", "tool_calls": [CALL]},
        ],
        tools=[TOOL],
    )
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
        f"Today Date: {_date()}\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        + json.dumps(TOOL, indent=4)
        + '\n\nWeather?<|eot_id|>{"name": "weather", "parameters": {"city": "Zürich"}}<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def _date() -> str:
    from datetime import datetime

    return datetime.fromtimestamp(1_700_000_000.0).strftime("%d %b %Y")


def test_a_template_refuses_in_its_own_words() -> None:
    chat = template(LLAMA_LIKE)
    with pytest.raises(BadRequest, match=r"^This model only supports single tool-calls at once!$") as caught:
        chat.render([{"role": "assistant", "tool_calls": [CALL, CALL]}])
    assert caught.value.param == "messages"


def test_qwen_like() -> None:
    text = template(QWEN_LIKE).render(
        [
            {"role": "system", "content": "Sys"},
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "<think>no</think>\nA", "tool_calls": [CALL]},
            {"role": "tool", "content": "22"},
            {"role": "tool", "content": "23"},
            {"role": "other", "content": "dropped"},
        ],
        tools=[TOOL],
        enable_thinking=False,
    )
    assert text == (
        f"<|im_start|>system\nSys\n\n# Tools\n<tools>\n{json.dumps(TOOL)}\n</tools><|im_end|>\n"
        "<|im_start|>user\nQ<|im_end|>\n"
        '<|im_start|>assistant\nA\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n22\n</tool_response>\n<tool_response>\n23\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_transformers_renders_the_same() -> None:
    """The templates above through transformers' own renderer, which knows no budget."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [
        {"role": "user", "content": "Hi  "},
        {"role": "assistant", "content": "a\nb"},
        {"role": "user", "content": "?"},
    ]
    for source in (SMOLLM2, QWEN_LIKE, LLAMA_LIKE.replace("strftime_now is defined", "false")):
        for tools in (None, [TOOL]):
            theirs, _ = utils.render_jinja_template(
                conversations=[messages], chat_template=source, tools=tools, add_generation_prompt=True, bos_token="<s>"
            )
            assert template(source, bos_token="<s>").render(messages, tools=tools) == theirs[0]


def test_a_template_that_refuses_the_system_role_loads() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    chat = template(source)
    assert chat.render([{"role": "user", "content": "x"}]) == "x"
    with pytest.raises(BadRequest, match="System role not supported"):
        chat.render([{"role": "system", "content": "x"}])


def test_a_template_for_parts_of_content_loads() -> None:
    chat = template("{% for m in messages %}{% for part in m.content %}{{ part['text'] + '' }}{% endfor %}{% endfor %}")
    assert chat.render([{"role": "user", "content": [{"type": "text", "text": "x"}]}]) == "x"


@pytest.mark.parametrize("source", [SMOLLM2, LLAMA_LIKE, QWEN_LIKE], ids=["smollm2", "llama", "qwen"])
def test_long_conversations_stay_within_the_budget(source: str) -> None:
    chat = template(source)
    many = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} " * 4} for i in range(2000)]
    assert "turn 1999" in chat.render(many, tools=[TOOL] * 20)
    one = [{"role": "user", "content": "word " * 400_000}]
    assert len(chat.render(one)) > 1_999_000


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 < 2 < 3", "True"),
        ("1 < 3 < 2", "False"),
        ("'a' in 'cat' and 'b' not in ['a']", "True"),
        ("[3, 1, 2]|sort|join('-')", "1-2-3"),
        ("[{'a': 1}, {'a': 2}]|map(attribute='a')|list", "[1, 2]"),
        ("[{'a': 1}, {'b': 2}]|selectattr('a', 'defined')|list|length", "1"),
        ("['x', 'y']|map('upper')|join", "XY"),
        ("'%s has %05.1f%%' % ('a', 2)", "a has 002.0%"),
        ("'{} {b} {}'.format(1, 2, b=3)", "1 3 2"),
        ("'a,b'.split(',')[1]", "b"),
        ("{'b': 1, 'a': 2}|dictsort|first|first", "a"),
        ("{'a': none, 'ü': [true, 1.5]}|tojson", '{"a": null, "ü": [true, 1.5]}'),
        ("'abc'[1:] ~ 'abc'[::-1] ~ 1", "bccba1"),
        ("missing|default('d') ~ missing", "d"),
        ("{'a': {'items': 5}}.a['items']", "5"),
        ("{'a': 1}.get('b', 7)", "7"),
        ("7 // 2 + 7 % 4 - 2 ** 3", "-2"),
        ("'7'|int + 1.26|round(1)", "8.3"),
        ("'a\nb'|indent(2)", "a\n  b"),
        ("'  x '|trim ~ 'y'.upper()", "xY"),
        ("[1, 2, 2]|unique|list|length ~ [1, 2]|sum ~ [1, 2]|last ~ [1, 2]|max", "2322"),
        ("dict(a=1).items()", "[('a', 1)]"),
        ("'x' if messages is sequence and messages is iterable and messages[0] is mapping else 'y'", "x"),
    ],
)
def test_ordinary_expressions(expression: str, value: str) -> None:
    assert template("{{ " + expression + " }}").render([{"role": "user", "content": "x"}]) == value


def test_blocks_loops_and_namespaces() -> None:
    source = """{% set text %}{% for x in 'abc' if x != 'b' %}{{ loop.index }}{{ x }}{{ loop.length }}
{%- if loop.last %}{% break %}{% endif %}{% else %}none{% endfor %}{% endset %}
{% filter upper %}{{ text }}{% endfilter %}{% macro box(t) %}[{{ t }}{{ caller() }}]{% endmacro %}
{% call box('x') %}y{% endcall %}{% with a = 1 %}{{ a }}{% endwith %}{# nothing #}"""
    assert template(source).render([{"role": "user", "content": "x"}]) == "1A22C2[xy]1"


def test_messages_that_are_no_plain_values_are_a_bad_request() -> None:
    chat = template(SMOLLM2)
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    for content in (deep, object(), 7):
        with pytest.raises(BadRequest):
            chat.render([{"role": "user", "content": content}])
