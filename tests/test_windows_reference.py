"""Entities and answers in long texts equal those of transformers.

transformers 5 has no pipeline for question answering: its windows are made with its tokenizer here,
and its model scores them. Needs the extra `reference`; runs in .ci/run.
"""

import numpy as np
import pytest

import tinyformer
from tinyformer.tasks.token_classification import STRATEGIES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
import make_fixtures  # noqa: E402
from test_commands_reference import TEXT  # noqa: E402
from test_pairs_reference import FAMILIES, LENGTH  # noqa: E402

pytestmark = pytest.mark.slow
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
LONG = (TEXT + "\n Wörld-wide  [cats] took 12.5, Ann's hat!") * 3


@pytest.fixture(scope="module", params=[name for name in FAMILIES if name != "bart"])
def models(request, tmp_path_factory):
  """Return the folders of a random tagger and of a random model for question answering."""
  config, tokenizer, tokens = FAMILIES[request.param]()
  config.vocab_size = tokenizer.get_vocab_size()
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    model_max_length=LENGTH,
    model_input_names=["input_ids", "attention_mask"]
    + (["token_type_ids"] if request.param == "bert" else []),
    **tokens,
  )
  folders = []
  for head, labels in (("TokenClassification", LABELS), ("QuestionAnswering", ["start", "end"])):
    config.id2label = dict(enumerate(labels))
    config.label2id = None
    reference = getattr(transformers, f"AutoModelFor{head}").from_config(config).eval()
    make_fixtures.randomise(reference, seed=len(labels))
    folder = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(folder)
    fast.save_pretrained(folder)
    folders.append(folder)
  return folders


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities_equal_those_of_the_token_classification_pipeline(models, strategy):
  folder, _ = models
  pipeline = transformers.pipeline("token-classification", str(folder), device="cpu")
  model = tinyformer.load(folder)
  for text, stride in ((TEXT[:60], None), (LONG, 0), (LONG, 21)):
    options = {"aggregation_strategy": strategy}
    expected = pipeline(text, **options, **({} if stride is None else {"stride": stride}))
    entities = model.tag(text, strategy, stride)
    assert [(e.label, e.start, e.end) for e in entities] == [
      (e["entity_group"], e["start"], e["end"]) for e in expected
    ]
    assert [e.score for e in entities] == pytest.approx([e["score"] for e in expected], abs=1e-5)
    assert all(e.text == text[e.start : e.end] for e in entities) and entities


def reference_answers(folder, question, passage, top_k, doc_stride, max_seq_len):
  """Return {(start, end): probability} of the best answers, as transformers 4 computes them.

  Each answer has the probability of the window in which it is most probable.
  """
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
  encoded = tokenizer(
    question,
    passage,
    truncation="only_second",
    max_length=max_seq_len,
    stride=doc_stride,
    return_overflowing_tokens=True,
    return_offsets_mapping=True,
  )
  answers = {}
  for n, ids in enumerate(encoded["input_ids"]):
    inputs = {"input_ids": torch.tensor([ids])}
    if "token_type_ids" in encoded:
      inputs["token_type_ids"] = torch.tensor([encoded["token_type_ids"][n]])
    with torch.no_grad():
      output = model(**inputs)
    # The passage and the first token, which stands for "no answer".
    allowed = torch.tensor([s == 1 for s in encoded.sequence_ids(n)])
    allowed[0] = True
    masked = [
      torch.where(allowed, logits[0].double(), -10000.0).softmax(0)
      for logits in (output.start_logits, output.end_logits)
    ]
    start, end = (p.index_fill(0, torch.tensor([0]), 0.0) for p in masked)
    joint = torch.outer(start, end).triu().tril(29) * torch.outer(allowed, allowed)
    values, indices = joint.flatten().topk(min(top_k, joint.numel()))
    for value, index in zip(values.tolist(), indices.tolist(), strict=True):
      a, b = divmod(index, len(ids))
      span = encoded["offset_mapping"][n][a][0], encoded["offset_mapping"][n][b][1]
      answers[span] = max(value, answers.get(span, 0.0))
  return dict(sorted(answers.items(), key=lambda item: -item[1])[:top_k])


@pytest.mark.parametrize(
  "doc_stride, max_seq_len", [(None, None), (0, 30), (7, 30), (19, LENGTH), (3, LENGTH + 99)]
)
def test_answers_equal_those_of_transformers_4(models, doc_stride, max_seq_len):
  _, folder = models
  question = "Who has cats?"
  model = tinyformer.load(folder)
  length = min(max_seq_len or 384, LENGTH)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  room = length - len(tokenizer(question, "a")["input_ids"]) + 1
  stride = min(128, length // 2, room // 2) if doc_stride is None else doc_stride
  # A token may be one of two spaces, whose offsets transformers shifts.
  for passage in (TEXT[:40], LONG.replace("  ", " ")):
    expected = reference_answers(folder, question, passage, 8, stride, length)
    found = model.answer(question, passage, 8, doc_stride, max_seq_len)
    # The offsets of a byte-level token include the space before it in some tokenizers.
    actual = {(a.end - len(passage[a.start : a.end].lstrip(" ")), a.end): a.score for a in found}
    assert actual == pytest.approx(expected, abs=1e-5)
    scores = [a.score for a in found]
    assert scores == sorted(scores, reverse=True) and len(scores) == 8
    assert all(a.text == passage[a.start : a.end].strip() for a in found)
    assert np.all(np.array(scores) > 0)


def test_each_mask_of_a_text_has_the_tokens_of_the_fill_mask_pipeline(tmp_path):
  config, tokenizer, tokens = FAMILIES["roberta"]()
  config.vocab_size = tokenizer.get_vocab_size()
  reference = transformers.AutoModelForMaskedLM.from_config(config).eval()
  make_fixtures.randomise(reference, seed=1)
  reference.save_pretrained(tmp_path)
  fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)
  fast.save_pretrained(tmp_path)
  pipeline = transformers.pipeline("fill-mask", str(tmp_path), device="cpu")
  model = tinyformer.load(tmp_path)
  vocabulary = fast.convert_ids_to_tokens(range(config.vocab_size))
  for text in ("The <mask> took.", "<mask> <mask>; Ann<mask> lives in <mask>"):
    expected = pipeline(text, top_k=4)
    count = text.count("<mask>")
    masks = model.fill_mask(text, top_k=4)
    for found, wanted in zip(masks, expected if count > 1 else [expected], strict=True):
      assert [p.score for p in found] == pytest.approx([w["score"] for w in wanted], abs=1e-5)
      names = [w["token_str"].strip() or vocabulary[w["token"]] for w in wanted]
      assert [p.label for p in found] == names
    assert len(masks) == count
