"""A file's own chat template: Kimi-VL's in any notation is recognised with its system message, nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import FakeGGUF, small_bpe

from kimi_vl_cpp import KimiVL
from kimi_vl_cpp.testing import CHAT_TEMPLATE, make_tiny_model
from kimi_vl_cpp.text.chat_template import build_prompt
from kimi_vl_cpp.text.template_check import (
    DEFAULT_SYSTEM_MESSAGE,
    MAX_CHARS,
    OTHER_TEMPLATE,
    default_system_message,
)
from kimi_vl_cpp.text.tokenizer import Tokenizer

IN_LINES = """{# one of people #}
{% for message in messages %}
    {% if loop.first and message.role != "system" %}<|im_system|>system<|im_middle|>Hey "you"
line<|im_end|>{% endif %}
    {%- if message.role == "system" %}<|im_system|>{% elif message.role == 'user' -%} <|im_user|>
    {%- else %}<|im_assistant|>{% endif %}
{{ message['role'] }}<|im_middle|>
  {%- if message['content'] is string %}{{ message.content }}{% else %}{% for c in message.content %}
    {%- if c.type == 'text' %}{{ c['text'] }}
    {%- else %}<|media_start|>image<|media_content|><|media_pad|><|media_end|>{% endif %}{% endfor %}{% endif %}
<|im_end|>{% endfor %}
{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"""

WITH_SET = (
    "{% set first = messages[0] %}{% if not first['role'] == 'system' %}"
    "{{ '<|im_system|>system<|im_middle|>' ~ \"X\" + '<|im_end|>' }}{% endif %}"
    "{%- for m in messages %}{%- set r = m['role'] %}{{ '<|im_' ~ r ~ '|>' + r + '<|im_middle|>' }}"
    "{% if m.content is not string %}{%- for p in m.content %}{{ p.text if p.type == 'text' else "
    "'<|media_start|>image<|media_content|><|media_pad|><|media_end|>' }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt is defined and add_generation_prompt %}"
    "{{ '<|im_assistant|>assistant<|im_middle|>' }}{% endif %}"
)

DEFAULT_BLOCK = "{{'<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>'}}"


@pytest.mark.parametrize(
    ("template", "system"),
    [
        (CHAT_TEMPLATE, DEFAULT_SYSTEM_MESSAGE),
        (CHAT_TEMPLATE.replace(DEFAULT_SYSTEM_MESSAGE, "You sell shoes, { and }."), "You sell shoes, { and }."),
        (CHAT_TEMPLATE.replace(DEFAULT_SYSTEM_MESSAGE, ""), ""),
        (CHAT_TEMPLATE.replace(DEFAULT_BLOCK, ""), None),
        (IN_LINES, 'Hey "you"\nline'),
        (WITH_SET, "X"),
    ],
    ids=["kimis", "another message", "an empty message", "no message", "in lines", "with set"],
)
def test_kimis_format_is_recognised_with_its_system_message(template, system):
    assert default_system_message(template, pictures=True) == (True, system)


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}",
        CHAT_TEMPLATE.replace("message['content'] +", "message['content']|trim +"),
        CHAT_TEMPLATE.replace("assistant<|im_middle|>'", "assistant<|im_middle|>◁think▷'"),
        CHAT_TEMPLATE.replace("<|media_start|>image", "<|media_start|>picture"),
        CHAT_TEMPLATE.replace("in messages", "in messages[-2:]"),
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for a in messages %}",
        "{% endfor %}",
        "{% if %}{% endif %}",
        "{{ 'a' * 10 ** 9 }}",
        "{{" * 8000,
        "{{ " + "not " * 4000 + "1 }}",
        "{{ " + "(" * 8000 + "1" + ")" * 8000 + " }}",
        "{% if 1 %}" * 1000,
        CHAT_TEMPLATE + " " * MAX_CHARS,
        "\0{{ '\0' }}",
        "{{ '\\d' }}",
    ],
    ids=lambda template: repr(template[:40]),
)
def test_another_format_is_not_taken_for_kimis(template):
    assert default_system_message(template, pictures=True) == (False, None)


def test_loops_over_loops_end():
    loops = "{% for a in messages %}" * 20 + "x" * 100 + "{% endfor %}" * 20
    assert default_system_message(CHAT_TEMPLATE + loops, pictures=True) == (False, None)


TOKENS = st.sampled_from(
    "{{ }} {% %} {%- -%} {# #} if elif else endif for endfor set in is not and or string defined messages message "
    "loop.first ['role'] .content 'a' \" ' ( ) [ ] | trim ~ + - == != 0 1 = \n <|im_end|> \\ . , : ** \0".split(" ")
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(TOKENS, max_size=40).map(" ".join), st.integers(0, len(CHAT_TEMPLATE)), st.booleans())
def test_whatever_a_template_says_it_is_read_or_refused(text, at, whole):
    template = text if whole else CHAT_TEMPLATE[:at] + text + CHAT_TEMPLATE[at:]
    same, system = default_system_message(template, pictures=True)
    assert isinstance(same, bool) and (system is None or same)


def prompt_of(template):
    tokenizer = Tokenizer.from_gguf(FakeGGUF({**small_bpe(), "tokenizer.chat_template": template}), vision=True)
    parts = build_prompt(tokenizer, [{"role": "user", "content": "hi"}])
    return "".join(tokenizer.decode(part, special=True) for part in parts)


def test_the_prompt_has_the_system_message_of_the_file():
    ending = "<|im_user|>user<|im_middle|>hi<|im_end|><|im_assistant|>assistant<|im_middle|>"
    assert prompt_of(WITH_SET) == f"<|im_system|>system<|im_middle|>X<|im_end|>{ending}"
    assert prompt_of(CHAT_TEMPLATE.replace(DEFAULT_BLOCK, "")) == ending
    assert prompt_of("another") == prompt_of(None) == prompt_of(CHAT_TEMPLATE)


def test_the_template_of_the_built_in_model_is_read():
    with KimiVL.builtin(n_ctx=256) as model:
        assert (model.notices, model.loaded.tokenizer.default_system) == ([], DEFAULT_SYSTEM_MESSAGE)


def test_a_model_with_another_template_says_so_when_it_is_opened(tmp_path):
    path = make_tiny_model(tmp_path, vision="none", metadata={"tokenizer.chat_template": "another"}).text
    with KimiVL(path) as model:
        assert model.notices == [OTHER_TEMPLATE]
    with KimiVL(make_tiny_model(tmp_path / "own", vision="none").text) as model:
        assert model.notices == []
