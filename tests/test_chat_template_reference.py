"""Chat templates are rendered as by transformers.

Needs the extra `reference`; runs in .ci/run.
"""

import pytest
from test_chat_template import CHAT, HELLO, TEMPLATES, TINY

from tinyformer.tokenization.chat_template import ChatTemplate

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é>", "parameters": {}}}]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
def test_the_text_equals_that_of_apply_chat_template(name, add_generation_prompt, tools):
  tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
  tokenizer.chat_template = TEMPLATES[name]
  tokenizer.bos_token = "<s>"
  ours = ChatTemplate(TEMPLATES[name], {"bos_token": "<s>", "eos_token": tokenizer.eos_token})
  for chat in (HELLO, CHAT):
    expected = tokenizer.apply_chat_template(
      chat, tokenize=False, add_generation_prompt=add_generation_prompt, tools=tools
    )
    assert ours.render(chat, add_generation_prompt, tools=tools) == expected


def test_both_refuse_roles_that_do_not_alternate():
  tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
  tokenizer.chat_template = TEMPLATES["LLaMA 2"]
  message = "Conversation roles must alternate"
  with pytest.raises(Exception, match=message):
    tokenizer.apply_chat_template([*HELLO, *HELLO], tokenize=False)
  with pytest.raises(ValueError, match=message):
    ChatTemplate(TEMPLATES["LLaMA 2"], {"bos_token": "", "eos_token": ""}).render([*HELLO, *HELLO])
