"""Chat templates: the text that they render, their limits, and where they are read from."""

import datetime
import json
import shutil
import sys

import pytest
from conftest import ROOT

from tinyformer.tokenization import chat_template, load_tokenizer
from tinyformer.tokenization.chat_template import ChatTemplate

TINY = ROOT / "weights" / "tiny"
HELLO = [{"role": "user", "content": "Hello"}]
CHAT = [
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": " What is 2 < 3? "},
  {"role": "assistant", "content": "True.\n"},
  {"role": "user", "content": "“Naïve” & 日本 🙂"},
]
# The formats of ChatML (SmolLM2, Qwen2), LLaMA 2, LLaMA 3, Mistral, Gemma, Phi-3, Zephyr, DeepSeek.
TEMPLATES = {
  "ChatML": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
  "LLaMA 2": """{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}
{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}
{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if loop.index0 == 0 and system_message != false %}
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}""",
  "LLaMA 3": """{{- bos_token }}
{%- if tools is not none %}{{- tools | tojson(indent=4) }}{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}""",
  "Mistral": """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'system' %}{% continue %}{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% else %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}""",
  "Gemma": """{{ bos_token }}{% set ns = namespace(system='') %}
{% for message in messages %}
{% if message['role'] == 'system' %}{% set ns.system = message['content'] ~ '\\n' %}
{% else %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + ns.system + message['content'] | trim + '<end_of_turn>\\n' }}
{% set ns.system = '' %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}""",
  "Phi-3": """{% for message in messages %}{{'<|' + message['role'] + '|>' + '\\n' +
message['content'] + '<|end|>\\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}""",
  "Zephyr": """{% for message in messages %}
{% generation %}{{ '<|' ~ message['role'] ~ '|>\\n' ~ message['content'] ~ eos_token }}
{% endgeneration %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
  "DeepSeek": """{%- macro text(message) -%}
{{ message.content.split('</think>')[-1] if message.role == 'assistant' else message.content }}
{%- endmacro -%}
{%- for message in messages | rejectattr('role', 'equalto', 'system') -%}
{{ '<｜User｜>' if message.role == 'user' else '<｜Assistant｜>' }}{{ text(message) }}
{%- if not loop.last %}{{ eos_token }}{% else %}{% break %}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt is defined and add_generation_prompt %}<｜Assistant｜>{% endif %}""",
}


def test_chatml_is_rendered_with_and_without_the_beginning_of_an_answer():
  template = ChatTemplate(TEMPLATES["ChatML"], {})
  expected = "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
  assert template.render(HELLO, add_generation_prompt=False) == expected
  assert template.render(HELLO) == expected + "<|im_start|>assistant\n"


def test_a_template_sees_the_special_tokens_and_further_variables():
  template = ChatTemplate(
    "{{ bos_token }}{{ tools | tojson }}{{ documents }}", {"bos_token": "<s>"}
  )
  assert template.render(HELLO) == "<s>nullNone"
  assert template.render(HELLO, tools=[{"a": "<é>"}]) == '<s>[{"a": "<é>"}]None'


def test_a_template_sees_the_date():
  assert ChatTemplate("{{ strftime_now('%Y') }}", {}).render(HELLO) in (
    str(datetime.datetime.now().year - 1),
    str(datetime.datetime.now().year),
  )


def test_lines_with_only_a_block_leave_no_white_space():
  assert ChatTemplate("a\n  {% if true %}\nb\n  {% endif %}\nc", {}).render(HELLO) == "a\nb\nc"


STOPPED = {
  "a loop": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
  "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
  "a long output": "{% for i in range(2000) %}{{ 'x' * 10000 }}{% endfor %}",
  "a text of 10^12 characters": "{{ 'x' * 10 ** 12 }}",
  "a list of 10^12 items": "{{ ([0] * 10 ** 12) | length }}",
  "a number of 10^10 digits": "{{ 10 ** (10 ** 10) }}",
  "a number that grows": "{% set n = namespace(x=9) %}{% for i in range(99) %}"
  "{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
  "a text that doubles": "{% set n = namespace(x='x') %}{% for i in range(60) %}"
  "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x | length }}",
  "a text that is squared": "{% set n = namespace(x='x' * 99) %}{% for i in range(9) %}"
  "{% set n.x = n.x.replace('x', n.x) %}{% endfor %}{{ n.x | length }}",
  "a wide format": "{{ '%1000000000000d' % 1 }}",
  "a class": "{{ ''.__class__.__mro__ }}",
  "a function's globals": "{{ raise_exception.__globals__ }}",
  "an attribute by name": "{{ messages | attr('__class__') | attr('__base__') }}",
  "a changed list": "{{ messages.append(1) }}",
  "a hidden name": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
  "a range of 10^9": "{{ range(1000000000) | list | length }}",
}


@pytest.mark.parametrize("case", STOPPED)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory")
def test_a_hostile_template_is_stopped_with_one_line(case, monkeypatch):
  monkeypatch.setattr(chat_template, "MAX_STEPS", 100_000)
  import resource

  before = sys.gettrace(), resource.getrlimit(resource.RLIMIT_AS)
  with pytest.raises(ValueError, match=r"^tokenizer: the template [^\n]+$"):
    ChatTemplate(STOPPED[case], {}, "tokenizer").render(HELLO)
  assert (sys.gettrace(), resource.getrlimit(resource.RLIMIT_AS)) == before


def test_a_template_that_a_filter_interrupts_is_stopped_too(monkeypatch):
  """`int` catches exceptions of its value; the limit must not be lost there."""
  monkeypatch.setattr(chat_template, "MAX_STEPS", 100_000)
  loop = "{% for i in range(9999) %}{% for j in range(9999) %}{{ 'x' | int }}"
  with pytest.raises(ValueError, match="more than 100,000 steps"):
    ChatTemplate(loop + "{% endfor %}{% endfor %}", {}).render(HELLO)


FAULTS = {
  "invalid syntax": ("a\n{% if %}", "line 2 is invalid"),
  "a refusal": (
    "{{ raise_exception('Roles must alternate') }}",
    "refuses the messages: Roles must",
  ),
  "an undefined variable": ("{{ a.b }}", "'a' is undefined"),
  "an error": ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
  "too long": ("x" * (1 << 21), "more than 1,048,576 characters"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_faulty_template_is_reported_in_one_line(case):
  template, message = FAULTS[case]
  with pytest.raises(ValueError, match=r"^chat template: [^\n]+$") as error:
    ChatTemplate(template, {}).render(HELLO)
  assert message in str(error.value)


def test_messages_are_not_changed():
  messages = [{"role": "user", "content": "Hello"}]
  ChatTemplate("{% set m = messages[0] %}{{ m.content }}", {}).render(messages)
  assert messages == HELLO


# **************** files ****************


@pytest.fixture
def folder(tmp_path):
  for name in ("vocab.json", "merges.txt"):
    shutil.copy(TINY / name, tmp_path / name)
  return tmp_path


def write(folder, name, content):
  (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_folder_without_a_template_has_none(folder):
  tokenizer = load_tokenizer(folder)
  assert tokenizer.chat_template is None
  with pytest.raises(ValueError, match="no chat template"):
    tokenizer.encode_chat(HELLO)


def test_a_template_is_read_from_its_file_or_from_the_config(folder):
  write(folder, "tokenizer_config.json", {"chat_template": "A{{ eos_token }}", "eos_token": "</s>"})
  assert load_tokenizer(folder).chat_template.render(HELLO) == "A</s>"
  named = [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "C"}]
  write(folder, "tokenizer_config.json", {"chat_template": named})
  assert load_tokenizer(folder).chat_template.render(HELLO) == "C"
  write(folder, "chat_template.jinja", "D")
  assert load_tokenizer(folder).chat_template.render(HELLO) == "D"


def test_a_template_that_is_no_text_is_refused(folder):
  write(folder, "tokenizer_config.json", {"chat_template": {"a": 1}})
  with pytest.raises(ValueError, match="chat_template must be a text"):
    load_tokenizer(folder)


def test_special_tokens_are_recognized_in_a_rendered_template_only(folder):
  template = "{{ eos_token }}{{ messages[0].content }}<|endoftext|>"
  config = {"chat_template": template, "eos_token": "<|endoftext|>"}
  write(folder, "tokenizer_config.json", config)
  tokenizer = load_tokenizer(folder)
  end = tokenizer.specials["<|endoftext|>"]
  assert tokenizer.encode_chat(HELLO) == [end, *tokenizer.encode("Hello"), end]
  assert end not in tokenizer.encode("<|endoftext|>")


def test_all_ends_of_a_turn_stop_a_text(folder):
  end = load_tokenizer(folder).end
  assert load_tokenizer(folder).stop_ids == {end}
  write(folder, "generation_config.json", {"eos_token_id": [5, 7]})
  assert load_tokenizer(folder).stop_ids == {end, 5, 7}
  write(folder, "generation_config.json", {"eos_token_id": 6})
  assert load_tokenizer(folder).stop_ids == {end, 6}
  write(folder, "generation_config.json", {"eos_token_id": "</s>"})
  with pytest.raises(ValueError, match="eos_token_id '</s>' must be one ID or a list of IDs"):
    load_tokenizer(folder)
