"""The Python API: load a model, and use it for the task that it was trained for."""

import functools
import gc
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from tinyformer.tasks import Answer, Entity, InputError, Prediction, RankedText, TextOrPair


def load(
  name: str | Path,
  device: str | None = None,
  dtype: str = "float32",
  offline: bool = False,
) -> "Model":
  """Load a model and its tokenizer, and return the Model.

  name: a short name such as "tiny" or "gpt2", owner/repo on the Hugging Face hub, a folder as
    `save_pretrained` writes it, or a GGUF file. A model that is not on this machine is downloaded.
    If standard error is a terminal, it shows the progress.
  device: tinygrad's device, such as "CPU", "METAL" or "CUDA"; None uses the best one.
  dtype: the data type of the matrices in memory: float32, float16, bfloat16, int8 or int4.
    Computation is in float32, except that some products of narrow weights narrow activations too.
  offline: do not access the hub.

  >>> import tinyformer
  >>> model = tinyformer.load("tiny")
  >>> model.task
  'text-generation'

  Raises NoDeviceError if the device cannot be used, OSError if the model cannot be found or
  downloaded, and ValueError if its files are damaged or not supported.
  """
  from tinyformer.device import select_device

  select_device(device)
  from tinyformer.checkpoints import hub
  from tinyformer.progress import download_progress

  with download_progress(quiet=not sys.stderr.isatty()) as report:
    folder = hub.find(str(name), offline, report)
  return Model(folder, dtype)


class Sampling(TypedDict, total=False):
  """The sampling arguments of Model.generate, Model.stream, Model.chat and Model.stream_chat."""

  temperature: float
  top_k: int
  top_p: float
  seed: int | None


class Model:
  """A model with its tokenizer. It has one method for each task.

  A method raises InputError if the model was trained for another task, or if an input does not fit
  the model, such as a text that exceeds the context.

  folder: the checkpoint's folder, or its GGUF file.
  task: the name of the task in transformers' pipelines.
  module: the architecture. `model.module(ids)` returns logits as a Tensor. Each class in models/
    documents its arguments and shapes.
  tokenizer: text to token ids and back; None for an image model.
  """

  def __init__(self, folder: str | Path, dtype: str = "float32"):
    from tinyformer import checkpoints, tokenization

    self.folder = Path(folder)
    self.dtype = dtype
    self.module = checkpoints.load_module(self.folder, dtype)
    self.task: str = self.module.task
    self.tokenizer: Any = None
    if self.task != "image-classification":
      contents = checkpoints.tokenizer_contents(self.folder)
      vocab_size = self.module.vocab_size
      self.tokenizer = tokenization.load_tokenizer(self.folder, vocab_size, contents)
    # What runs the module in compiled steps: its name, the module's state when it was made, and the
    # object itself.
    self._runner: tuple[str, list, Any] | None = None
    self._generator: Any = None  # the text generator of the last call

  def __repr__(self) -> str:
    return f"Model({str(self.folder)!r}, dtype={self.dtype!r}, task={self.task!r})"

  # text generation

  def generate(
    self,
    prompt: str,
    max_new_tokens: int = 100,
    stop: Sequence[str] = (),
    special: bool = False,
    **sampling: Unpack[Sampling],
  ) -> str:
    """Return the text that continues a prompt, without the prompt.

    max_new_tokens: the maximum number of tokens to generate.
    stop: strings that end the generation. The result excludes them.
    special: recognize special tokens such as <|endoftext|> in the prompt. Otherwise they are text,
      so that a text of unknown origin cannot contain control tokens.
    temperature: the softmax temperature; 0 selects the most probable token each time (default 0.8).
    top_k: sample from the top_k most probable tokens; 0 samples from all (default 40).
    top_p: sample from the smallest set of most probable tokens with a total probability of top_p
      (default 1).
    seed: the same seed generates the same text.

    >>> model = tinyformer.load("tiny")
    >>> model.generate("He shook his", max_new_tokens=2, temperature=0)
    ' head.'
    """
    return "".join(self.stream(prompt, max_new_tokens, stop, special, **sampling))

  def stream(
    self,
    prompt: str,
    max_new_tokens: int = 100,
    stop: Sequence[str] = (),
    special: bool = False,
    **sampling: Unpack[Sampling],
  ) -> Iterator[str]:
    """Yield the text that `generate` returns, piece by piece as it is generated.

    The arguments are those of `generate`. Only one stream of a model can be read at a time.

    >>> model = tinyformer.load("tiny")
    >>> for piece in model.stream("He shook his", max_new_tokens=2, temperature=0):
    ...   print(repr(piece))
    ' head'
    '.'
    """
    from tinyformer.generation import stop_at
    from tinyformer.tasks.text_generation import SamplingConfig

    self._require("text-generation", "generate")
    config = SamplingConfig(max_new_tokens, **sampling)
    special_tokens = self.tokenizer.special_tokens if special else ()
    ids = self.tokenizer.single(self.tokenizer.encode(prompt, special_tokens))
    if not ids:
      raise InputError("the prompt has no tokens: pass at least one character")
    generator = self._text_generator(config, keep_cache=False)
    if len(ids) >= generator.engine.context:
      raise InputError(
        f"the prompt has {len(ids):,} tokens, which leaves no room for new ones in this model's "
        f"context of {generator.engine.context:,}: shorten the prompt"
      )
    texts = (text for _, text in generator.generate(ids))
    return self._pieces(generator, stop_at(texts, stop))

  def chat(
    self,
    messages: Sequence[Mapping[str, Any]],
    max_new_tokens: int = 1000,
    stop: Sequence[str] = (),
    special: bool = False,
    **sampling: Unpack[Sampling],
  ) -> str:
    """Return the assistant's answer to a conversation.

    The checkpoint's chat template renders the messages, and its end-of-turn token ends the answer.
    Tokens that the last call has processed are not processed again, so each turn of a conversation
    reads only what is new.

    messages: dicts with "role" (system, user or assistant) and "content".
    special: recognize special tokens such as <|im_end|> in the messages. Otherwise they are text,
      so that a message cannot end its turn. Those of the template itself are always recognized.
    The other arguments are those of `generate`.
    Raises InputError if the model has no chat template or the conversation exceeds the context, and
    ValueError if the template refuses the messages, such as a role that it does not have.

    >>> model = tinyformer.load("smollm2")
    >>> messages = [{"role": "user", "content": "What is the capital of France?"}]
    >>> answer = model.chat(messages, max_new_tokens=20, temperature=0)
    >>> messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Why?"}]
    >>> isinstance(model.chat(messages, max_new_tokens=20, seed=1), str)
    True
    """
    return "".join(self.stream_chat(messages, max_new_tokens, stop, special, **sampling))

  def stream_chat(
    self,
    messages: Sequence[Mapping[str, Any]],
    max_new_tokens: int = 1000,
    stop: Sequence[str] = (),
    special: bool = False,
    **sampling: Unpack[Sampling],
  ) -> Iterator[str]:
    """Yield the text that `chat` returns, piece by piece as it is generated.

    The arguments are those of `chat`. Only one stream of a model can be read at a time.

    >>> model = tinyformer.load("smollm2")
    >>> messages = [{"role": "user", "content": "What is the capital of France?"}]
    >>> pieces = list(model.stream_chat(messages, max_new_tokens=20, temperature=0))
    >>> "".join(pieces) == model.chat(messages, max_new_tokens=20, temperature=0)
    True
    """
    from tinyformer.tasks.chat import stream_answer
    from tinyformer.tasks.text_generation import SamplingConfig

    self._require("text-generation", "chat")
    config = SamplingConfig(max_new_tokens, **sampling)
    generator = self._text_generator(config, keep_cache=True)
    special_tokens = self.tokenizer.special_tokens if special else ()
    return self._pieces(generator, stream_answer(generator, messages, stop, special_tokens))

  def _text_generator(self, config, keep_cache: bool):
    """Return a text generator. If it fits, it is that of the last call.

    keep_cache: keep the tokens in the KV cache.
    """
    from tinyformer.generation import Engine
    from tinyformer.tasks.text_generation import TextGenerator

    self._generator = None
    top_k = config.num_candidates
    base = self._compiled(
      f"text generator, {top_k} candidates",
      lambda: TextGenerator(Engine(self.module, key=self.key, top_k=top_k), self.tokenizer, config),
    )
    base.engine.follow_weights(keep_cache)
    # Create a new object, so that an unfinished stream can detect this call.
    generator = object.__new__(TextGenerator)
    generator.__dict__.update(base.__dict__, config=config, history=[])
    self._generator = generator
    return generator

  def _pieces(self, generator, texts: Iterator[str]) -> Iterator[str]:
    """Yield the texts that are not empty, unless another call has used the generator since then."""
    for text in itertools.chain([""], texts):
      if text:
        yield text
      if self._generator is not generator:
        raise RuntimeError("another call has used the model: read one stream at a time")

  def perplexity(self, text: str, stride: int | None = None, context: int | None = None) -> float:
    """Return the perplexity of a text per token: the exponential of the mean loss.

    The first token is predicted from the end-of-text token, if the tokenizer has one.
    stride: the number of tokens that each window after the first predicts, if the text exceeds the
      context. None is half of the context.
    context: the number of tokens in a window; None is the model's context.

    >>> model = tinyformer.load("tiny")
    >>> fluent = model.perplexity("The old man went out of the house.")
    >>> shuffled = model.perplexity("house the The went man of old out.")
    >>> fluent < shuffled / 10
    True
    """
    from tinyformer.tasks.perplexity import encode_documents, mean_loss

    self._require("text-generation", "perplexity")
    [ids], _ = encode_documents(self.tokenizer, [text])
    return float(np.exp(mean_loss(self.module, ids, stride, context)))

  # encoders

  def fill_mask(self, text: str, top_k: int = 5) -> list[list[Prediction]]:
    """Return the top_k most probable tokens for each mask of a text.

    [MASK] and <mask> both stand for the model's mask token.

    >>> model = tinyformer.load("google-bert/bert-base-uncased")
    >>> [predictions] = model.fill_mask("The capital of France is [MASK].", top_k=3)
    >>> len(predictions), predictions[0].score >= predictions[1].score >= predictions[2].score
    (3, True)
    """
    from tinyformer.tasks.fill_mask import fill_mask

    return fill_mask(self._encoder("fill-mask", "fill_mask"), text, top_k)

  def classify(self, text: TextOrPair, top_k: int | None = None) -> list[Prediction]:
    """Return the top_k most probable labels of a text, or all if None.

    A regression model returns all its values, in the order of the labels. The score of a model with
    one label is a sigmoid, unless config.json names another activation_fn.
    text: a text, or a pair of texts such as (premise, hypothesis).

    >>> model = tinyformer.load("textattack/bert-base-uncased-SST-2")
    >>> predictions = model.classify("A touching, funny and clever film.")
    >>> round(sum(p.score for p in predictions), 4)
    1.0
    """
    from tinyformer.tasks.text_classification import classify_texts

    encoder = self._encoder("text-classification", "classify")
    [predictions] = classify_texts(encoder, [text], top_k, self._score_function)
    return predictions

  def classify_many(
    self, texts: Sequence[TextOrPair], top_k: int | None = None
  ) -> list[list[Prediction]]:
    """Return what `classify` returns for each text. Texts of similar length form batches.

    texts: a list of texts, or of pairs of texts.

    >>> model = tinyformer.load("textattack/bert-base-uncased-SST-2")
    >>> [a, b] = model.classify_many(["A clever film.", "Dull."], top_k=1)
    >>> len(a) == len(b) == 1
    True
    """
    from tinyformer.tasks.text_classification import classify_texts

    if isinstance(texts, str):
      raise InputError("classify_many takes a list of texts: use classify for one")
    encoder = self._encoder("text-classification", "classify_many")
    return classify_texts(encoder, texts, top_k, self._score_function)

  @property
  def scores_are_probabilities(self) -> bool:
    """Whether `classify` returns probabilities, not values of a regression model or a reranker."""
    from tinyformer.tasks.text_classification import is_probability

    self._require("text-classification", "classify")
    return is_probability(self._score_function)

  def classify_zero_shot(
    self,
    text: str,
    labels: Sequence[str],
    hypothesis_template: str = "This example is {}.",
    multi_label: bool = False,
  ) -> list[Prediction]:
    """Classify a text into labels of your choice, with a model for natural-language inference.

    The probabilities are those of transformers' zero-shot-classification pipeline. A text that
    exceeds the context is truncated.
    hypothesis_template: a hypothesis about the text, with {} for the label.
    multi_label: several labels may fit the text, so each has a probability of its own.

    >>> model = tinyformer.load("cross-encoder/nli-MiniLM2-L6-H768")
    >>> predictions = model.classify_zero_shot("Rome is a city.", ["travel", "sports"])
    >>> sorted(p.label for p in predictions), round(sum(p.score for p in predictions), 4)
    (['sports', 'travel'], 1.0)
    """
    return self._entailment_classifier(labels, hypothesis_template, multi_label)(text)

  def classify_zero_shot_many(
    self,
    texts: Sequence[str],
    labels: Sequence[str],
    hypothesis_template: str = "This example is {}.",
    multi_label: bool = False,
  ) -> list[list[Prediction]]:
    """Return what `classify_zero_shot` returns for each text, in batches of similar length.

    >>> model = tinyformer.load("cross-encoder/nli-MiniLM2-L6-H768")
    >>> texts = ["Rome is a city.", "The match was a draw."]
    >>> len(model.classify_zero_shot_many(texts, ["travel", "sports"]))
    2
    """
    if isinstance(texts, str):
      raise InputError("classify_zero_shot_many takes a list of texts: pass [text] for one")
    classifier = self._entailment_classifier(labels, hypothesis_template, multi_label)
    return classifier.classify_many(texts)

  def rerank(self, query: str, texts: Sequence[str], top_k: int | None = None) -> list[RankedText]:
    """Return the top_k texts that are most relevant to a query, or all if None.

    The scores are those of sentence-transformers' CrossEncoder: the activation_fn that config.json
    names, or a sigmoid, of the model's only logit. Longer texts are truncated.

    >>> model = tinyformer.load("cross-encoder/ms-marco-MiniLM-L6-v2")
    >>> texts = ["Rome is a city.", "Ann is a painter."]
    >>> ranking = model.rerank("What is Rome?", texts)
    >>> [texts[found.corpus_id] == found.text for found in ranking]
    [True, True]
    >>> ranking[0].score >= ranking[1].score
    True
    """
    from tinyformer.tasks.embedding import find_prompt
    from tinyformer.tasks.reranking import rank_texts
    from tinyformer.tasks.text_classification import sigmoid

    if isinstance(texts, str):
      raise InputError("rerank takes a list of texts: pass [text] for one")
    encoder = self._encoder("text-classification", "rerank")
    function = self._activation or sigmoid
    max_length = self._sentence_config.max_length
    prompt = find_prompt(self._sentence_config, None)
    return rank_texts(encoder, prompt + query, texts, function, max_length)[:top_k]

  def tag(
    self, text: str, aggregation_strategy: str | None = None, stride: int | None = None
  ) -> list[Entity]:
    """Return the entities of a text, such as names: spans with a label other than O.

    A text that exceeds the context is processed in windows that overlap.

    aggregation_strategy: how the labels of tokens are combined to entities, as in transformers:
      "simple" uses that of each token; in a word, "first" uses that of the first token, "average"
      the mean probabilities, and "max" the most probable label of any token. None is "first" with
      other words: each is a run of letters and digits, or a punctuation character.
    stride: the number of tokens that two windows have in common. None is 128, or half of the
      context if it is less.

    >>> model = tinyformer.load("dslim/bert-base-NER")
    >>> text = "Ann Lee lives in Rome."
    >>> all(text[e.start : e.end] == e.text for e in model.tag(text))
    True
    """
    from tinyformer.tasks.token_classification import tag_words

    encoder = self._encoder("token-classification", "tag")
    return tag_words(encoder, text, aggregation_strategy, stride)

  def answer(
    self,
    question: str,
    passage: str,
    top_k: int = 1,
    doc_stride: int | None = None,
    max_seq_len: int | None = None,
  ) -> list[Answer]:
    """Return the top_k most probable answers to a question: spans of the passage.

    A long passage is processed in windows that overlap.

    doc_stride: the number of the passage's tokens that two windows have in common. None is 128, or
      half of max_seq_len or of a window if it is less.
    max_seq_len: the number of tokens of the question and a window together, special tokens
      included. None is 384. The context is the maximum.

    >>> model = tinyformer.load("deepset/bert-base-cased-squad2")
    >>> passage = "Ann Lee lives in Rome, the capital of Italy."
    >>> [answer] = model.answer("Who lives in Rome?", passage)
    >>> answer.text in passage and 0 < answer.score <= 1
    True
    """
    from tinyformer.tasks.question_answering import answer_question

    encoder = self._encoder("question-answering", "answer")
    return answer_question(encoder, question, passage, top_k, doc_stride, max_seq_len)

  def embed(self, texts: Sequence[str], prompt_name: str | None = None) -> np.ndarray:
    """Return the embeddings (N, D) of N texts, as sentence-transformers computes them.

    The checkpoint's modules.json determines the pooling, dense layers and normalization. Without
    this file, an embedding is the mean of the last hidden state over the tokens. Longer texts are
    truncated to the checkpoint's maximum length.

    prompt_name: the name of a prompt of the checkpoint, such as "query", to put before each text;
      None uses the checkpoint's default prompt, if any.

    >>> model = tinyformer.load("sentence-transformers/all-MiniLM-L6-v2")
    >>> a, b = model.embed(["Rome is a city.", "Ann lives in Rome."])
    >>> a.shape == b.shape == (model.module.config.dim,)
    True
    """
    from tinyformer.tasks.embedding import embed_texts

    if isinstance(texts, str):
      raise InputError("embed takes a list of texts: pass [text] for one")
    encoder = self._encoder("feature-extraction", "embed")
    return embed_texts(encoder, texts, self._sentence_config, prompt_name)

  def translate(
    self, text: str, max_new_tokens: int | None = None, num_beams: int | None = None
  ) -> str:
    """Translate a text, or generate what the model was trained for, such as a summary.

    max_new_tokens, num_beams: None uses the checkpoint's settings.

    >>> model = tinyformer.load("google-t5/t5-small")
    >>> isinstance(model.translate("translate English to German: The house is red."), str)
    True
    """
    self._require("text2text-generation", "translate")
    return self._translator()(text, max_new_tokens, num_beams)

  def classify_image(self, path: str | Path, top_k: int | None = 5) -> list[Prediction]:
    """Return the top_k most probable labels of a picture file, or all if None.

    >>> model = tinyformer.load("google/vit-base-patch16-224")
    >>> predictions = model.classify_image("photo.jpg", top_k=3)
    >>> [p.score for p in predictions] == sorted((p.score for p in predictions), reverse=True)
    True
    """
    self._require("image-classification", "classify_image")
    return self._image_classifier()(path, top_k)

  # what the methods share

  @property
  def key(self) -> str | None:
    """Return what identifies the compiled steps of the model for later processes.

    Returns None if the module contains functions that are not this project's.
    """
    from tinyformer import checkpoints
    from tinyformer.kernels.compiled_step import key_of

    config = json.dumps(checkpoints.read_config(self.folder).values)
    return key_of(f"{self.dtype} {config}", self.module)

  def _compiled(self, name: str, make: Callable[[], Any]) -> Any:
    """Return the last object that was made under this name, or make a new one.

    The compiled steps of the last object are wrong if the module has been changed since then.
    """
    from tinyformer.kernels.module_structure import is_unchanged, snapshot

    if self._runner is not None:
      last_name, state, runner = self._runner
      if name == last_name and is_unchanged(self.module, state):
        return runner
      # Free the memory of its KV cache now. It is in a reference cycle with its compiled steps.
      self._runner = runner = None
      gc.collect()
    runner = make()
    self._runner = name, snapshot(self.module), runner
    return runner

  def _require(self, task: str, method: str) -> None:
    """Raise InputError if the model was trained for another task."""
    if self.task != task:
      raise InputError(
        f"{self.folder.name} is a model for {self.task}, not for {task}: use {METHODS[self.task]} "
        f"instead of {method}"
      )

  def _encoder(self, task: str, method: str):
    self._require(task, method)
    from tinyformer.tasks.encoder import Encoder

    return self._compiled("encoder", lambda: Encoder(self.module, self.tokenizer, self.key))

  def _entailment_classifier(self, labels: Sequence[str], template: str, multi_label: bool):
    from tinyformer.tasks.zero_shot import EntailmentClassifier

    encoder = self._encoder("text-classification", "classify_zero_shot")
    max_length = self._sentence_config.max_length
    return EntailmentClassifier(encoder, labels, template, multi_label, max_length)

  @functools.cached_property
  def _sentence_config(self):
    from tinyformer import checkpoints
    from tinyformer.checkpoints.sentence_modules import SentenceConfig, read_sentence_config

    if checkpoints.is_gguf(self.folder):
      return SentenceConfig(poolings=(checkpoints.read_pooling(self.folder),))
    return read_sentence_config(self.folder)

  @functools.cached_property
  def _activation(self) -> Callable[[np.ndarray], np.ndarray] | None:
    """The function that a checkpoint of sentence-transformers applies to the logits, if any."""
    from tinyformer import checkpoints
    from tinyformer.checkpoints.sentence_modules import read_score_activation

    return read_score_activation(self.folder, checkpoints.read_config(self.folder))

  @functools.cached_property
  def _score_function(self) -> Callable[[np.ndarray], np.ndarray]:
    """The function from the logits of a text classifier to the scores of its labels."""
    from tinyformer import checkpoints
    from tinyformer.tasks.text_classification import score_function

    config = checkpoints.read_config(self.folder)
    return score_function(config, len(self.module.labels), self._activation)

  def _translator(self):
    from tinyformer.tasks.translation import Translator

    return self._compiled(
      "translator", lambda: Translator(self.module, self.tokenizer, self.folder, self.key)
    )

  def _image_classifier(self):
    from tinyformer.tasks.image_classification import ImageClassifier

    return self._compiled(
      "image classifier", lambda: ImageClassifier(self.module, self.folder, self.key)
    )


METHODS = {
  "text-generation": "generate",
  "fill-mask": "fill_mask",
  "text-classification": "classify",
  "token-classification": "tag",
  "question-answering": "answer",
  "feature-extraction": "embed",
  "text2text-generation": "translate",
  "image-classification": "classify_image",
}
