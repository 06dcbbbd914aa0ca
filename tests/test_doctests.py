"""The examples in the docstrings of the Python API.

The small models of this repository stand in for those of the hub, so the examples check properties
that every model has.
"""

import doctest
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, with_head
from PIL import Image
from test_ask import WORDS, unigram
from test_chat import save_model
from tinygrad import Tensor, nn

import tinyformer
from tinyformer.checkpoints import hub

MODULES = ["tinyformer", "tinyformer.model", "tinyformer.inspected_run"]
HEADS = {
  "google-bert/bert-base-uncased": "ForMaskedLM",
  "textattack/bert-base-uncased-SST-2": "ForSequenceClassification",
  "dslim/bert-base-NER": "ForTokenClassification",
  "deepset/bert-base-cased-squad2": "ForQuestionAnswering",
  "sentence-transformers/all-MiniLM-L6-v2": "Model",
}


@pytest.fixture
def small_models(tmp_path, monkeypatch):
  """Make hub.find return the folders of small models instead of downloading the large ones."""
  folders = {"tiny": ROOT / "weights" / "tiny", "google/vit-base-patch16-224": tmp_path / "vit"}
  shutil.copytree(FIXTURES / "vit-a", tmp_path / "vit")
  size = {"height": 12, "width": 12}
  preprocessor = {"size": size, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
  (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
  for name, head in HEADS.items():
    (tmp_path / head).mkdir()
    folders[name] = with_head("bert-a", head, tmp_path / head)
    (tmp_path / head / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  # Other labels, and a head with one label.
  nli = {"id2label": {"0": "contradiction", "1": "neutral", "2": "entailment", "3": "other"}}
  one_label = {"id2label": {"0": "LABEL_0"}}
  names = ("cross-encoder/nli-MiniLM2-L6-H768", "cross-encoder/ms-marco-MiniLM-L6-v2")
  for name, keys in zip(names, (nli, one_label), strict=True):
    folders[name] = tmp_path / Path(name).name
    shutil.copytree(folders["textattack/bert-base-uncased-SST-2"], folders[name])
    with_head("bert-a", "ForSequenceClassification", folders[name], **keys)
  weights = folders[name] / "model.safetensors"
  tensors = {key: tensor.numpy() for key, tensor in nn.state.safe_load(weights).items()}
  for key in ("classifier.weight", "classifier.bias"):
    tensors[key] = tensors[key][:1]
  nn.state.safe_save({key: Tensor(tensor) for key, tensor in tensors.items()}, str(weights))
  folders["google-t5/t5-small"] = tmp_path / "t5"
  shutil.copytree(FIXTURES / "t5-a", tmp_path / "t5")
  unigram(tmp_path / "t5", 61)
  tokenizer = json.loads((tmp_path / "t5" / "tokenizer.json").read_text())
  vocabulary = tokenizer["model"]["vocab"]
  vocabulary += [[f"word{i}", -9.0] for i in range(61 - len(vocabulary))]
  (tmp_path / "t5" / "tokenizer.json").write_text(json.dumps(tokenizer))
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(tmp_path / "photo.jpg")
  (tmp_path / "chat").mkdir()
  folders["smollm2"] = save_model(tmp_path / "chat")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(hub, "find", lambda name, *_: folders[name])


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_print_what_they_show(name, small_models):
  module = importlib.import_module(name)
  results = doctest.testmod(module, extraglobs={"tinyformer": tinyformer})
  assert results.attempted
  assert not results.failed


def test_every_public_method_has_an_example():
  finder = doctest.DocTestFinder(recurse=False)
  for name, method in vars(tinyformer.Model).items():
    if callable(method) and not name.startswith("_"):
      assert any(test.examples for test in finder.find(method, name)), name


def test_every_public_name_exists_and_has_a_docstring():
  for name in tinyformer.__all__:
    assert getattr(tinyformer, name).__doc__
  assert set(tinyformer.__all__) == set(tinyformer.MODULES) <= set(dir(tinyformer))
  with pytest.raises(AttributeError, match="has no attribute 'lode'"):
    tinyformer.lode  # noqa: B018
