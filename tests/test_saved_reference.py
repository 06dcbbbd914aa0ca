"""What train.py saves opens in transformers, CTranslate2 and llama.cpp, with equal tokens.

Needs the extras `reference` and `bench`, and llama.cpp's programs; runs in .ci/run.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from llama_cpp_program import assert_equal_ids
from test_train import SMALL
from tinygrad import Tensor

import tinyformer
import train
from tinyformer.checkpoints.convert import convert_folder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
TEXT = "the queen had a golden ball, “and” the horse saw 12 kings\n\n  in a wood. " * 3
PROMPTS = ["the queen had", "a golden ball and the king", "in", "“Naïve” 🙂"]


@pytest.fixture(scope="module", params=["bpe", "characters"])
def saved(request, tmp_path_factory):
  """A folder that train.py wrote, opened here and in transformers."""
  path = tmp_path_factory.mktemp(request.param)
  (path / "tales.txt").write_text("<|endoftext|>".join([TEXT] * 40), encoding="utf-8")
  settings = SMALL[2:] if request.param == "characters" else SMALL
  settings = [*settings, "--context", "64", "--steps", "60", "--tokens", request.param]
  assert train.main([str(path / "tales.txt"), "-o", str(path / "out"), *settings]) == 0
  return SimpleNamespace(
    folder=path / "out",
    ours=tinyformer.load(path / "out"),
    model=transformers.AutoModelForCausalLM.from_pretrained(path / "out").eval(),
    tokenizer=transformers.AutoTokenizer.from_pretrained(path / "out"),
  )


def greedy(model, ids, count=20):
  """Return the tokens that our model generates."""
  from tinyformer.tasks.text_generation import SamplingConfig

  generator = model._text_generator(SamplingConfig(count, temperature=0), keep_cache=False)
  generator.engine.position = 0
  for _ in generator.generate(ids):
    pass
  return list(generator.history)


def test_transformers_reads_the_same_tokens_and_settings(saved):
  for text in [*PROMPTS, TEXT, f"a<|endoftext|>{TEXT}"]:
    special = saved.ours.tokenizer.special_tokens
    assert saved.tokenizer(text).input_ids == saved.ours.tokenizer.encode(text, special)
    assert saved.tokenizer.decode(saved.tokenizer(text).input_ids) == text
  assert saved.tokenizer.model_max_length == saved.model.config.n_positions == 64
  assert saved.tokenizer.eos_token_id == saved.ours.tokenizer.end
  assert saved.model.generation_config.eos_token_id == saved.ours.tokenizer.end


def test_transformers_computes_the_same_logits_and_greedy_tokens(saved):
  for prompt in PROMPTS:
    ids = saved.ours.tokenizer.encode(prompt)
    with torch.no_grad():
      theirs = saved.model(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(saved.ours.module(Tensor([ids])).numpy(), theirs, atol=1e-4)
    output = saved.model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)
    new = output[0, len(ids) :].tolist()
    end = saved.ours.tokenizer.end
    assert greedy(saved.ours, ids) == (new[: new.index(end)] if end in new else new)


def test_llama_cpp_generates_the_same_greedy_tokens(saved, tmp_path):
  convert_folder(saved.folder, tmp_path / "saved.gguf")
  for prompt in PROMPTS:
    assert_equal_ids(saved.ours, tmp_path / "saved.gguf", prompt, 20)


def test_ctranslate2_generates_the_same_greedy_tokens(saved, tmp_path):
  ctranslate2 = pytest.importorskip("ctranslate2")
  converter = ctranslate2.converters.TransformersConverter(str(saved.folder))
  converter.convert(str(tmp_path / "converted"))
  generator = ctranslate2.Generator(str(tmp_path / "converted"), device="cpu")
  for prompt in PROMPTS:
    tokens = saved.tokenizer.convert_ids_to_tokens(saved.ours.tokenizer.encode(prompt))
    [result] = generator.generate_batch(
      [tokens], max_length=20, sampling_topk=1, include_prompt_in_result=False
    )
    assert result.sequences_ids[0] == greedy(saved.ours, saved.ours.tokenizer.encode(prompt))
