"""The tokenizer that a tokenizer.json describes.

Encoding finds the added tokens, normalizes the text between them, splits it into words
(pre-tokenizer), and splits the words into tokens (model). The post-processor adds special tokens.
The decoder converts tokens to text.
Source: https://huggingface.co/docs/tokenizers/pipeline
"""

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tinyformer.tokenization import decoders, normalizers, pre_tokenizers, segmenters
from tinyformer.tokenization.added_tokens import AddedToken, Finder, finder
from tinyformer.tokenization.base import SURROGATE, Tokenizer, TokenizerFiles, file_errors
from tinyformer.tokenization.byte_letters import to_letters
from tinyformer.tokenization.normalizers import NormalizedString
from tinyformer.tokenization.pre_tokenizers import Split
from tinyformer.tokenization.sentencepiece import CACHE_SIZE, MAX_CACHED_LENGTH
from tinyformer.tokenization.settings import Settings


class TokenBytes(Mapping[int, bytes]):
  """The bytes of each token ID, computed when they are needed, because vocabularies are large."""

  def __init__(
    self, texts: dict[int, str], special_ids: Iterable[int], steps: Sequence[decoders.Decoder]
  ):
    self.texts = texts
    self.steps = steps
    self.computed = dict.fromkeys(special_ids, b"")

  def __getitem__(self, i: int) -> bytes:
    if i not in self.computed:
      token = self.texts[i]
      for step in self.steps:
        token = step.each(token)
      self.computed[i] = decoders.encode_text(token)
    return self.computed[i]

  def __iter__(self) -> Iterator[int]:
    return iter(self.texts)

  def __len__(self) -> int:
    return len(self.texts)


class JSONTokenizer(Tokenizer):
  """The tokenizer that the content of a tokenizer.json describes.

  files: the parsed tokenizer.json and tokenizer_config.json.
  Raises ValueError if a step is not supported, or if a setting is missing or invalid.
  """

  def __init__(self, files: TokenizerFiles):
    content = Settings("tokenizer.json", files.tokenizer_json)
    model = Settings("model", content.get("model", dict))
    # If an added token is also in the vocabulary, the vocabulary determines its ID.
    vocab = segmenters.read_ids(model)
    added = [
      token._replace(id=vocab.get(token.content, token.id))
      for token in map(AddedToken.from_json, files.added_tokens.values())
    ]
    check_added_ids(files.tokenizer_json.get("added_tokens") or [], vocab)
    specials = {token: vocab.get(token, i) for token, i in files.special_ids(vocab).items()}
    self.normalizers = normalizers.from_json(section(content, "normalizer"))
    self.pre_tokenizers = pre_tokenizers.from_json(section(content, "pre_tokenizer"))
    self.segment = segmenters.from_json(model, set(specials))
    self.vocab = self.segment.vocab
    decoder = section(content, "decoder")
    self.decoders = decoders.from_json(decoder) if decoder else [decoders.spaces()]
    if decoder and decoder.kind == "BPEDecoder":
      # Generated text begins with a new word.
      self.continuation_joiner = " "
    super().__init__({}, specials)
    self.special_ids = set(specials.values())
    self.texts = {i: token for token, i in (self.vocab | specials).items()}
    self.texts |= {token.id: token.content for token in added}
    self.tokens = TokenBytes(self.texts, self.special_ids, self.decoders)
    self.load_special_tokens(files)
    # tokenizer_config.json may name special tokens that tokenizer.json does not list.
    listed = {token.content for token in added}
    self.added = added + [
      AddedToken(token, i, special=True) for token, i in specials.items() if token not in listed
    ]
    self.finders = functools.lru_cache(64)(self.make_finders)
    self.word_ids_cached = functools.lru_cache(CACHE_SIZE)(self.word_ids)

  def make_finders(self, special: tuple[str, ...]) -> tuple[Finder, Finder]:
    """Return functions that find added tokens in a text, and in a normalized text."""
    raw = [token for token in self.added if not token.normalized]
    normalized = [
      token._replace(content=self.normalize(NormalizedString.from_text(token.content)).text)
      for token in self.added
      if token.normalized
    ]
    requested = [
      normal.content
      for token, normal in zip((t for t in self.added if t.normalized), normalized, strict=True)
      if token.content in special
    ]
    return finder(raw, special), finder(normalized, requested)

  def continues_word(self, i: int, text: str, start: int, end: int) -> bool:
    """Return whether the token i, which represents text[start:end], continues a word.

    As in transformers' TokenClassificationPipeline: in WordPiece, if the token is longer than the
    text; otherwise if there is no space before the token.
    """
    if i == self.segment.unk_id:
      return False
    if isinstance(self.segment, segmenters.WordPiece) and self.segment.prefix:
      return len(self.texts[i]) != end - start
    return super().continues_word(i, text, start, end)

  def normalize(self, text: NormalizedString) -> NormalizedString:
    """Apply all normalizers."""
    return normalizers.apply(self.normalizers, text)

  def encode_with_offsets(
    self, text: str, special: Sequence[str] = (), literal: Collection[int] = ()
  ) -> list[tuple[int, int, int]]:
    self.check_special(special)
    text = SURROGATE.sub("\ufffd", text)
    find, find_normalized = self.finders(tuple(special))
    spans: list[tuple[int, int, int]] = []
    for start, end, i in find(text, literal):
      if i is not None:
        spans.append((i, start, end))
        continue
      part = self.normalize(NormalizedString.from_text(text, start, end))
      literal_in_part = {n for n, index in enumerate(part.starts) if literal and index in literal}
      for first, last, j in find_normalized(part.text, literal_in_part):
        if j is not None:
          spans.append((j, part.starts[first], part.ends[last - 1]))
        else:
          spans.extend(self.tokenize_normalized(part.slice(first, last)))
    return spans

  def tokenize(self, text: NormalizedString) -> Iterator[tuple[int, int, int]]:
    """Yield (ID, start, end) of each token of a text without added tokens."""
    return self.tokenize_normalized(self.normalize(text))

  def tokenize_normalized(self, text: NormalizedString) -> Iterator[tuple[int, int, int]]:
    """Yield (ID, start, end) of each token of a normalized text without added tokens."""
    parts = [text] if text.text else []
    for split in self.pre_tokenizers:
      parts = [new for part in parts for new in split(part) if new.text]
    for part in parts:
      for i, start, end in self.segment(part.text):
        yield i, part.starts[start], part.ends[end - 1]

  def encode(self, text: str, special: Sequence[str] = ()) -> list[int]:
    """Return the token IDs of a text, as `encode_with_offsets` does, but faster if possible."""
    if self.normalizers or not self.only_splits:
      return super().encode(text, special)
    self.check_special(special)
    text = SURROGATE.sub("\ufffd", text)
    find, find_normalized = self.finders(tuple(special))
    ids: list[int] = []
    for start, end, i in find(text, ()):
      for first, last, j in find_normalized(text[start:end], ()) if i is None else [(0, 0, i)]:
        if j is not None:
          ids.append(j)
        else:
          ids += self.encode_words(text[start + first : start + last])
    return ids

  @functools.cached_property
  def only_splits(self) -> bool:
    """Whether the pre-tokenizers only split a text, and convert the parts to letters at the end."""
    steps = self.pre_tokenizers
    return bool(steps) and all(
      isinstance(step, Split) or (step is pre_tokenizers.letters and n == len(steps) - 1)
      for n, step in enumerate(steps)
    )

  def encode_words(self, text: str) -> list[int]:
    """Return the token IDs of a text whose words need no offsets."""
    words = [text]
    for step in self.pre_tokenizers:
      if isinstance(step, Split):
        words = [new for word in words for new in step.words(word)]
    ids: list[int] = []
    for word in words:
      ids += (self.word_ids_cached if len(word) <= MAX_CACHED_LENGTH else self.word_ids)(word)
    return ids

  def word_ids(self, word: str) -> list[int]:
    """Return the token IDs of a word that is not yet converted to letters."""
    is_byte_level = self.pre_tokenizers[-1] is pre_tokenizers.letters
    return [i for i, _, _ in self.segment(to_letters(word) if is_byte_level else word)]

  def check_special(self, special: Sequence[str]) -> None:
    """Raise KeyError if one of the tokens is not special."""
    for token in special:
      self.specials[token]

  def decode(self, ids: Iterable[int]) -> str:
    """Return the text of token IDs, without special tokens.

    Invalid UTF-8 becomes U+FFFD. Raises ValueError if one of the IDs is not a token ID.
    """
    texts = []
    for i in ids:
      if i not in self.texts:
        self.token(i)
      if i not in self.special_ids:
        texts.append(self.texts[i])
    for step in self.decoders:
      texts = step.whole(texts)
    return decoders.encode_text("".join(texts)).decode(errors="replace")


def check_added_ids(added: list[dict[str, Any]], vocab: dict[str, int]) -> None:
  """Raise ValueError unless each added token has its ID in the vocabulary, or the next free ID.

  Hugging Face tokenizers ignores the IDs in the file, and would use these.
  """
  last = len(vocab) - 1
  for token in added:
    token_id = vocab.get(token["content"], last + 1)
    if token["content"] not in vocab and token["id"] != token_id:
      raise ValueError(
        f"the added token {token['content']!r:.80} has the ID {token['id']}, but the next free ID"
        f" is {token_id}; correct the ID"
      )
    last = max(last, token_id)


def section(content: Settings, name: str) -> Settings | None:
  """Return the settings of a section of tokenizer.json, or None if it is missing or null."""
  value = content.config.get(name)
  return None if value is None else Settings(name, value)


def from_files(files: TokenizerFiles) -> JSONTokenizer:
  """Return the tokenizer of a folder with a tokenizer.json.

  Raises ValueError if a step is not supported, or if a setting is missing or invalid.
  """
  with file_errors(files.folder / "tokenizer.json"):
    return JSONTokenizer(files)


def from_json(content: dict[str, Any], config: dict[str, Any] | None = None) -> JSONTokenizer:
  """Return the tokenizer that a parsed tokenizer.json describes.

  content: the JSON object in tokenizer.json.
  config: the JSON object in tokenizer_config.json, which names the special tokens, or None.
  Raises ValueError if a step is not supported, or if a setting is missing or invalid.
  """
  return from_files(TokenizerFiles("", content, config or {}))
