"""Pairs of texts, rerankers and zero-shot classification equal transformers and CrossEncoder.

Needs the extra `reference`; runs in .ci/run.
"""

import csv
import json

import numpy as np
import pytest

import ask
import tinyformer
from tinyformer import cli
from tinyformer.tasks.reranking import truncate_pair

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
sentence_transformers = pytest.importorskip("sentence_transformers")
import make_fixtures  # noqa: E402
from test_commands_reference import SPECIAL, TEXT, V, byte_level_tokenizer  # noqa: E402

pytestmark = pytest.mark.slow
LENGTH = 40
PAIRS = [
  ("The man took his hat.", "She has 12 cats."),
  ("Ann", "lives in Rome; she has a house"),
  ("", "The man went out."),
]
NLI_LABELS = ["contradiction", "neutral", "entailment"]
LABELS = ["cats", "houses of Rome", "a hat", "x"]


def wordpiece():
  """Return the configuration of a BERT and the tokenizer of its family."""
  tokenizer = tokenizers.BertWordPieceTokenizer(lowercase=True)
  tokenizer.train_from_iterator([TEXT] * 3, vocab_size=V, special_tokens=list(SPECIAL))
  config = transformers.BertConfig(**make_fixtures.ENCODER | {"max_position_embeddings": LENGTH})
  names = zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True)
  tokens = {f"{name}_token": token for name, token in names}
  processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
  tokenizer.post_processor = processor
  return config, tokenizer._tokenizer, tokens


def byte_level():
  """Return the configuration of a RoBERTa and the tokenizer of its family."""
  special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
  tokenizer = byte_level_tokenizer(special)
  tokenizer.post_processor = tokenizers.processors.RobertaProcessing(
    ("</s>", 2), ("<s>", 0), add_prefix_space=False
  )
  settings = {"max_position_embeddings": LENGTH + 2, "type_vocab_size": 1, "pad_token_id": 1}
  config = transformers.RobertaConfig(**make_fixtures.ENCODER | settings)
  names = zip(("cls", "pad", "sep", "unk", "mask"), special, strict=True)
  return config, tokenizer, {f"{name}_token": token for name, token in names}


def bart():
  """Return the configuration of a BART and the tokenizer of its family, which is RoBERTa's."""
  _, tokenizer, tokens = byte_level()
  settings = {"max_position_embeddings": LENGTH, "forced_eos_token_id": None}
  return transformers.BartConfig(**make_fixtures.BART | settings), tokenizer, tokens


FAMILIES = {"bert": wordpiece, "roberta": byte_level, "bart": bart}


def save(name, folder, labels, **keys):
  """Write a random classifier to a folder, and return the folder.

  name: a name of FAMILIES.  keys: further keys of config.json.
  """
  config, tokenizer, tokens = FAMILIES[name]()
  config.id2label = dict(enumerate(labels))
  config.label2id = {label: i for i, label in enumerate(labels)}
  config.vocab_size = tokenizer.get_vocab_size()
  model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
  make_fixtures.randomise(model, seed=len(labels))
  model.save_pretrained(folder)
  inputs = ["input_ids", *(["token_type_ids"] if name == "bert" else []), "attention_mask"]
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, model_max_length=LENGTH, model_input_names=inputs, **tokens
  ).save_pretrained(folder)
  values = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(values | keys))
  return folder


@pytest.fixture(scope="module", params=FAMILIES)
def nli(request, tmp_path_factory):
  """The folder of a random model for natural-language inference."""
  return save(request.param, tmp_path_factory.mktemp(request.param), NLI_LABELS)


@pytest.fixture(scope="module", params=FAMILIES)
def reranker(request, tmp_path_factory):
  """The folder of a random model with one label."""
  return save(request.param, tmp_path_factory.mktemp(request.param), ["LABEL_0"])


def check_pairs(folder):
  """Assert that pairs and texts have the scores of transformers, alone and in a batch."""
  pipeline = transformers.pipeline("text-classification", str(folder), device="cpu")
  model = tinyformer.load(folder)
  texts = [*PAIRS, TEXT[:60]]
  for text, in_batch in zip(texts, model.classify_many(texts), strict=True):
    given = text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}
    expected = pipeline([given], top_k=None)[0]
    expected = {prediction["label"]: prediction["score"] for prediction in expected}
    for predictions in (model.classify(text), in_batch):
      assert {p.label: p.score for p in predictions} == pytest.approx(expected, abs=1e-5)


def test_pairs_have_the_scores_of_the_text_classification_pipeline(nli):
  check_pairs(nli)


@pytest.mark.parametrize(
  "num_labels, keys",
  [
    (3, {"problem_type": "multi_label_classification"}),
    (2, {"problem_type": "regression"}),
    (1, {}),
    (1, {"problem_type": "regression"}),
  ],
)
def test_scores_are_those_of_the_problem_type(tmp_path, num_labels, keys):
  check_pairs(save("bert", tmp_path, [f"label {i}" for i in range(num_labels)], **keys))


def check_ranking(folder, queries):
  """Assert that texts have the scores and the order of CrossEncoder.rank."""
  reference = sentence_transformers.CrossEncoder(str(folder), device="cpu")
  model = tinyformer.load(folder)
  texts = [TEXT, TEXT * 5, "", "cats", TEXT[20:], TEXT[50:], "a house in Rome", "Ann Lee"]
  for query in queries:
    expected = reference.rank(query, texts)
    ranking = model.rerank(query, texts)
    scores = {found["corpus_id"]: found["score"] for found in expected}
    assert {found.corpus_id: found.score for found in ranking} == pytest.approx(scores, abs=1e-5)
    assert {(found.corpus_id, found.text) for found in ranking} == set(enumerate(texts))
    in_order = [found.score for found in ranking]
    assert in_order == sorted(in_order, reverse=True)
    assert model.rerank(query, texts, 3) == ranking[:3]


def test_a_reranker_sorts_texts_as_a_cross_encoder(reranker):
  check_ranking(reranker, ["Who has cats?", TEXT * 2, ""])


@pytest.mark.parametrize(
  "keys",
  [
    {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
    {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"},
  ],
)
def test_config_json_names_the_activation_of_a_reranker(tmp_path, keys):
  folder = save("bert", tmp_path, ["LABEL_0"], **keys)
  check_ranking(folder, ["Who has cats?"])
  pair = ("Who has cats?", "cats")
  [prediction] = tinyformer.load(folder).classify(pair)
  reference = sentence_transformers.CrossEncoder(str(folder), device="cpu")
  assert prediction.score == pytest.approx(reference.predict([pair])[0], abs=1e-5)


def test_a_cross_encoder_that_was_saved_keeps_its_activation_and_its_prompt(tmp_path):
  reference = sentence_transformers.CrossEncoder(
    str(save("bert", tmp_path, ["LABEL_0"])),
    device="cpu",
    activation_fn=torch.nn.Identity(),
    prompts={"query": "find "},
    default_prompt_name="query",
  )
  reference.save_pretrained(str(tmp_path / "saved"))
  check_ranking(tmp_path / "saved", ["cats"])


def check_zero_shot(folder):
  """Assert that labels have the probabilities and the order of transformers' pipeline."""
  pipeline = transformers.pipeline("zero-shot-classification", str(folder), device="cpu")
  model = tinyformer.load(folder)
  # The longest text is truncated to the context.
  for text, labels in ((TEXT[:40], LABELS), (TEXT * 3, LABELS), (TEXT[:40], LABELS[:1])):
    for options in ({}, {"hypothesis_template": "It has {}.", "multi_label": True}):
      expected = pipeline(text, labels, **options)
      predictions = model.classify_zero_shot(text, labels, **options)
      assert [p.label for p in predictions] == expected["labels"]
      assert [p.score for p in predictions] == pytest.approx(expected["scores"], abs=1e-5)


def test_zero_shot_probabilities_equal_those_of_the_pipeline(nli):
  check_zero_shot(nli)


@pytest.mark.parametrize(
  "labels", [("Entailment", "x", "y"), ("x", "entail", "y"), ("entailment", "x")]
)
def test_the_label_for_entailment_is_that_of_the_pipeline(tmp_path, labels):
  check_zero_shot(save("bert", tmp_path, labels))


def test_pairs_are_truncated_as_hugging_face_tokenizers_do():
  rng = np.random.default_rng(0)
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a"))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  for _ in range(500):
    first, second, length = rng.integers(0, 12, 3).tolist()
    tokenizer.enable_truncation(length or 1)
    ids = tokenizer.encode("a " * first, "b " * second).ids
    a, b = truncate_pair([0] * first, [1] * second, length or 1)
    assert a + b == ids


def test_files_of_pairs_and_of_texts_have_the_results_of_the_methods(tmp_path, nli, reranker):
  with (tmp_path / "in.csv").open("w", newline="") as file:
    csv.writer(file).writerows([["premise", "hypothesis"], *PAIRS])

  def run(folder, *argv):
    output = tmp_path / f"{argv[0]}.jsonl"
    argv = ["-m", folder, "-q", "--column", "premise", *argv]
    argv += ["--input", tmp_path / "in.csv", "--output", output]
    assert cli.run(lambda: ask.main([str(argument) for argument in argv])) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]

  def scores(predictions):
    return {p["label"]: p["score"] for p in predictions}

  model = tinyformer.load(nli)
  rows = run(nli, "--pair", "--pair-column", "hypothesis", "-k", "9")
  for pair, row in zip(PAIRS, rows, strict=True):
    expected = [p._asdict() for p in model.classify(pair)]
    assert scores(row["predictions"]) == pytest.approx(scores(expected), abs=1e-5)
  rows = run(nli, "--labels", "cats,a hat")
  for (text, _), row in zip(PAIRS, rows, strict=True):
    expected = [p._asdict() for p in model.classify_zero_shot(text, ["cats", "a hat"])]
    assert scores(row["predictions"]) == pytest.approx(scores(expected), abs=1e-5)
  texts = [text for text, _ in PAIRS]
  expected = {f.corpus_id + 1: f.score for f in tinyformer.load(reranker).rerank("cats", texts)}
  rows = run(reranker, "--rerank", "cats")
  assert {row["row"]: row["score"] for row in rows} == pytest.approx(expected, abs=1e-5)
