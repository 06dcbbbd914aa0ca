"""The base class of all tokenizers, and the JSON files of a checkpoint's tokenizer."""

import contextlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinyformer.files import MAX_VOCABULARY_BYTES, printable, read_json, read_text
from tinyformer.tokenization.added_tokens import contains_any
from tinyformer.tokenization.literal_texts import mark_literals, unmark_literals
from tinyformer.tokenization.normalizers import NormalizedString
from tinyformer.tokenization.settings import Settings, is_id, is_unicode

SURROGATE = re.compile("[\ud800-\udfff]")
EOS_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>")


class Tokenizer:
  """The base class of all tokenizers. A subclass implements `tokenize`.

  tokens: the bytes of each token ID; empty for special tokens.
  specials: the IDs of the special tokens, which do not represent text.
  strip_leading_space: decoding removes a space at the beginning of the text.
  prefix_ids, sep_ids, suffix_ids: the special tokens before a text, between two texts, and after.
  second: the segment of the second text of a pair, 0 or 1.
  end, pad: the IDs of the EOS and padding tokens, or None.
  stop_ids: the IDs of all tokens that end a generated text.
  chat_template: the checkpoint's ChatTemplate, or None.
  mask: the ID and the text of the mask token, or None.
  lstrip_tokens: the special tokens that absorb the white space before them.
  added_tokens: the IDs of tokens that are recognized in any text, before tokenization.
  continuation_joiner: the string between a prompt and the text that is generated after the prompt.
  """

  continuation_joiner = ""

  def __init__(
    self, tokens: dict[int, bytes], specials: dict[str, int], strip_leading_space: bool = False
  ):
    self.tokens: Mapping[int, bytes] = tokens | dict.fromkeys(specials.values(), b"")
    self.specials = specials
    self.strip_leading_space = strip_leading_space
    self.prefix_ids: list[int] = []
    self.sep_ids: list[int] = []
    self.suffix_ids: list[int] = []
    self.second = 0
    self.sep_segments: list[int] = []
    self.end = next((specials[token] for token in EOS_TOKENS if token in specials), None)
    self.pad: int | None = None
    self.mask: tuple[int, str] | None = None
    self.lstrip_tokens: set[str] = set()
    self.added_tokens: dict[str, int] = {}
    self.generation_eos_ids: list[int] = []
    self.chat_template: Any = None

  @property
  def stop_ids(self) -> set[int]:
    """Return the ID of EOS and those of the checkpoint's generation_config.json."""
    return {*self.generation_eos_ids, *([] if self.end is None else [self.end])}

  @property
  def eos_token(self) -> str | None:
    """Return the text of EOS, or None if there is no such token."""
    return next((token for token, i in self.specials.items() if i == self.end), None)

  def __len__(self) -> int:
    """Return the vocabulary size: the largest ID plus one."""
    return max(self.tokens) + 1

  @property
  def special_tokens(self) -> tuple[str, ...]:
    """Return all special tokens, which `encode` recognizes if they are passed to it."""
    return tuple(self.specials)

  def tokenize(self, text: NormalizedString) -> Iterable[tuple[int, int, int]]:
    """Return (ID, start, end) of each token of a text without special tokens."""
    raise NotImplementedError

  def encode_with_offsets(
    self, text: str, special: Sequence[str] = (), literal: Collection[int] = ()
  ) -> list[tuple[int, int, int]]:
    """Return (ID, start, end) of each token of a text, without prefix and suffix.

    The token represents text[start:end], which may begin with white space. A lone surrogate is
    replaced by U+FFFD.
    special: special tokens such as "[MASK]" to recognize in the text. All other special tokens
    are treated as ordinary text. Raises KeyError if one of `special` is unknown.
    literal: the indices of characters that are not part of a special token.
    """
    text = SURROGATE.sub("\ufffd", text)
    spans: list[tuple[int, int, int]] = []
    for start, end, special_id in self.split_specials(text, special, literal):
      if special_id is None:
        spans.extend(self.tokenize(NormalizedString.from_text(text, start, end)))
      else:
        spans.append((special_id, start, end))
    return spans

  def split_specials(
    self, text: str, special: Sequence[str], literal: Collection[int] = ()
  ) -> Iterator[tuple[int, int, int | None]]:
    """Yield (start, end, ID) of each special or added token, and of the texts between them.

    The ID of a text is None. literal: the indices of characters that are not part of a special
    token.
    """
    ids = {token: self.specials[token] for token in special} | self.added_tokens
    end = 0
    if ids:
      longest_first = sorted(ids, key=len, reverse=True)
      pattern = "|".join(
        (r"\s*" if token in self.lstrip_tokens else "") + f"({re.escape(token)})"
        for token in longest_first
      )
      for match in re.finditer(pattern, text):
        token = match[match.lastindex or 0]
        if token in special and contains_any(match.span(), literal):
          continue
        if end < match.start():
          yield end, match.start(), None
        end = match.end()
        yield match.start(), end, ids[token]
    if end < len(text):
      yield end, len(text), None

  def encode(self, text: str, special: Sequence[str] = ()) -> list[int]:
    """Return the token IDs of a text, as `encode_with_offsets` does."""
    return [token_id for token_id, _, _ in self.encode_with_offsets(text, special)]

  def encode_documents(self, documents: Iterable[str]) -> np.ndarray:
    """Return the concatenated token IDs of all documents (int32), with EOS after each document."""
    eos = [] if self.end is None else [self.end]
    return np.concatenate(
      [np.array(self.encode(document) + eos, dtype=np.int32) for document in documents]
    )

  def token(self, i: int) -> bytes:
    """Return the bytes of token i, empty for a special token.

    The bytes may be an incomplete UTF-8 character. Raises ValueError if i is not a token ID.
    """
    if i not in self.tokens:
      raise ValueError(
        f"{i} is not a token ID: the vocabulary has {len(self.tokens):,} tokens;"
        " check that the tokenizer belongs to the model"
      )
    return self.tokens[i]

  def decode(self, ids: Iterable[int]) -> str:
    """Return the text of token IDs, without special tokens.

    Invalid UTF-8 becomes U+FFFD. Raises ValueError if one of the IDs is not a token ID.
    """
    data = b"".join(map(self.token, ids))
    if self.strip_leading_space:
      data = data.removeprefix(b" ")
    return data.decode(errors="replace")

  def encode_chat(
    self, messages: Sequence[Mapping[str, Any]], special: Sequence[str] = (), **values: Any
  ) -> list[int]:
    """Return the token IDs of a chat, which end with the beginning of the assistant's answer.

    messages: such as {"role": "user", "content": "Hello"}.  values: variables of the template.
    special: special tokens to recognize in the messages. All others are text there, so that a
    message of unknown origin cannot end its turn. Those of the template itself are recognized.
    Raises ValueError if the checkpoint has no chat template, or if the template is invalid or
    refuses the messages.
    """
    if self.chat_template is None:
      raise ValueError("this model has no chat template: continue a text instead")
    plain = [token for token in self.special_tokens if token not in special]
    marked, mark = mark_literals(
      messages, self.chat_template.source, lambda text: self.special_starts(text, plain)
    )
    text = self.chat_template.render(marked, **values)
    if mark not in text:
      return self.encode(text, self.special_tokens)
    text, literal = unmark_literals(text, mark)
    spans = self.encode_with_offsets(text, self.special_tokens, literal)
    return [token_id for token_id, _, _ in spans]

  def special_starts(self, text: str, special: Sequence[str]) -> list[int]:
    """Return the index at which each of the special tokens in a text begins."""
    # Encoding takes more time. It is needed only if normalization could produce a special token.
    simple = unicodedata.normalize("NFKC", text).casefold()
    if not any(unicodedata.normalize("NFKC", t).casefold() in simple for t in special):
      return []
    ids = {self.specials[token] for token in special}
    spans = [(a, b) for i, a, b in self.encode_with_offsets(text, special) if i in ids]
    # A token may absorb the white space before it.
    return [b - len(text[a:b].lstrip()) for a, b in spans]

  def continues_word(self, i: int, text: str, start: int, end: int) -> bool:
    """Return whether the token i, which represents text[start:end], continues a word.

    A word begins after a space, as in transformers' TokenClassificationPipeline. WordPiece
    overrides this method.
    """
    return start > 0 and " " not in text[start - 1 : start + 1]

  def single(self, a: Sequence[int]) -> list[int]:
    """Return the IDs of one text with the special tokens around the text."""
    return [*self.prefix_ids, *a, *self.suffix_ids]

  def pair(self, a: Sequence[int], b: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the IDs of two texts with the special tokens around them, and the segment of each ID.

    The second text begins at index len(prefix_ids) + len(a) + len(sep_ids).
    """
    first = [*self.prefix_ids, *a, *self.sep_ids]
    second = [*b, *self.suffix_ids]
    segments = [0] * len(first)
    if len(self.sep_segments) == len(self.sep_ids):
      segments = segments[: len(first) - len(self.sep_ids)] + self.sep_segments
    return first + second, segments + [self.second] * len(second)

  def load_special_tokens(
    self, files: "TokenizerFiles", template: str = "A B", second: int = 0
  ) -> None:
    """Set the special tokens from a checkpoint's files.

    template: the special tokens around a pair of texts, such as "[CLS] A [SEP] B [SEP]". second:
    the segment of text B. tokenizer.json and tokenizer_config.json take precedence over both.
    """

    def find(key: str, *defaults: str) -> str | None:
      configured = files.config.get(key)
      candidates = (configured if isinstance(configured, str) else None, *defaults)
      return next((token for token in candidates if token in self.specials), None)

    bos = find("bos_token", "<s>")
    pad = find("pad_token", "[PAD]", "<pad>")
    eos = find("eos_token", *EOS_TOKENS)
    mask = find("mask_token", "[MASK]", "<mask>")
    self.pad = None if pad is None else self.specials[pad]
    self.end = None if eos is None else self.specials[eos]
    self.mask = None if mask is None else (self.specials[mask], mask)
    default = split_template(
      [
        (word, [self.specials[word]] if word in self.specials else [], second)
        for word in template.split()
      ]
    )._replace(sep_segments=[])
    post_processor = files.tokenizer_json.get("post_processor")
    pair = default
    if post_processor is not None:
      pair = read_post_processor(Settings("post_processor", post_processor)) or default
    self.prefix_ids, self.sep_ids, self.suffix_ids, self.second, self.sep_segments = pair
    add_bos = files.config.get("add_bos_token")
    add_eos = files.config.get("add_eos_token")
    if bos is not None and add_bos is not None:
      self.prefix_ids = [self.specials[bos]] if add_bos else []
    if eos is not None and add_eos is not None:
      self.suffix_ids = [self.specials[eos]] if add_eos else []

  def load_stops(self, files: "TokenizerFiles", generation_config: dict[str, Any]) -> None:
    """Set the tokens that end a text or a turn, from the content of generation_config.json.

    Raises ValueError if one is not a token ID.
    """
    eos = generation_config.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(type(i) is int and i >= 0 for i in ids):
      raise ValueError(f"{files.folder}: eos_token_id {eos!r:.80} must be one ID or a list of IDs")
    self.generation_eos_ids = ids

  def load_added_tokens(self, files: "TokenizerFiles") -> None:
    """Set the tokens that are recognized in a text from a checkpoint's files."""
    # RoBERTa, BART and CamemBERT remove the space before <mask>.
    self.lstrip_tokens = {
      token
      for token in self.specials
      if files.added_tokens.get(token, {}).get("lstrip", token == "<mask>")
    }
    self.added_tokens = {
      token: properties["id"]
      for token, properties in files.added_tokens.items()
      if not properties.get("special") and token not in self.specials
    }
    self.tokens = dict(self.tokens) | {i: t.encode() for t, i in self.added_tokens.items()}


class PairTemplate(NamedTuple):
  """The special tokens around a pair of texts.

  second: the segment of the second text and of what follows. The first text and what precedes have
  segment 0.
  sep_segments: the segments of `sep_ids`.
  """

  prefix_ids: list[int]
  sep_ids: list[int]
  suffix_ids: list[int]
  second: int
  sep_segments: list[int]


def split_template(parts: list[tuple[str, list[int], int]]) -> PairTemplate:
  """Convert the parts of a template to a PairTemplate.

  parts: (name, IDs, segment) of each part. The name of the first text is "A", of the second "B".
  """
  names = [name for name, _, _ in parts]
  a = names.index("A")
  b = names.index("B")

  def ids(start: int, end: int | None) -> list[int]:
    return [i for _, part_ids, _ in parts[start:end] for i in part_ids]

  _, _, second = parts[b]
  sep_segments = [segment for _, part_ids, segment in parts[a + 1 : b] for _ in part_ids]
  return PairTemplate(ids(0, a), ids(a + 1, b), ids(b + 1, None), second, sep_segments)


def read_post_processor(config: Settings) -> PairTemplate | None:
  """Return the special tokens that a post_processor of tokenizer.json adds, or None.

  Raises ValueError if a step is not supported or a setting is missing.
  """
  kind = config.kind
  if kind == "Sequence":
    found = [read_post_processor(step) for step in config.steps("processors")]
    templates = [template for template in found if template]
    if len(templates) > 1:
      raise config.refuse("with several steps that add special tokens is not supported")
    return templates[0] if templates else None
  if kind == "TemplateProcessing":
    return read_template_processing(config)
  if kind in ("BertProcessing", "RobertaProcessing"):
    cls_id = read_token_and_id(config, "cls")
    sep_id = read_token_and_id(config, "sep")
    if kind == "BertProcessing":
      return PairTemplate([cls_id], [sep_id], [sep_id], 1, [0])
    return PairTemplate([cls_id], [sep_id, sep_id], [sep_id], 0, [0, 0])
  if kind == "ByteLevel":
    # It only trims offsets.
    return None
  raise config.refuse()


def read_token_and_id(config: Settings, name: str) -> int:
  """Return the ID in a setting that is a token and its ID."""
  pair = config.get(name, list)
  if len(pair) != 2 or not is_id(pair[1]):
    raise ValueError(f"{config.title}: {name!r} must be a token and its ID, not {pair!r:.80}")
  return pair[1]


def read_template_processing(config: Settings) -> PairTemplate:
  """Return the special tokens of a TemplateProcessing step."""
  special_tokens = config.get("special_tokens", dict, {})

  def read_parts(name: str) -> list[tuple[str, list[int], int]]:
    parts = []
    for item in config.get(name, list):
      if not isinstance(item, dict) or len(item) != 1:
        raise ValueError(f"{config.title}: {item!r:.80} in {name!r} must be a part of a template")
      [(kind, value)] = item.items()
      part = Settings(f"{config.title}: {name!r}", value)
      part_id = part.get("id", str)
      ids: list[int] = []
      if kind == "SpecialToken":
        if part_id not in special_tokens:
          raise ValueError(f"{config.title}: the special token {part_id!r:.80} has no IDs")
        ids = Settings(config.title, special_tokens[part_id]).get("ids", list)
        if not all(map(is_id, ids)):
          raise ValueError(f"{config.title}: the IDs of {part_id!r:.80} must be integers")
        part_id = f"special {part_id}"
      elif kind != "Sequence" or part_id not in ("A", "B"):
        raise ValueError(f"{config.title}: the part {item!r:.80} is not supported")
      parts.append((part_id, ids, part.get("type_id", int, 0)))
    return parts

  parts = read_parts("pair")
  texts = [name for name, _, _ in parts if name in ("A", "B")]
  if texts != ["A", "B"]:
    raise config.refuse("whose 'pair' is not one text A before one text B is not supported")
  template = split_template(parts)
  single = [i for _, ids, _ in read_parts("single") for i in ids]
  names = [name for name, _, _ in read_parts("single") if name in ("A", "B")]
  if names != ["A"] or single != template.prefix_ids + template.suffix_ids:
    raise config.refuse("whose 'single' and 'pair' differ in their special tokens is not supported")
  a, b = (n for n, (name, _, _) in enumerate(parts) if name in ("A", "B"))
  first_segments = {segment for _, _, segment in parts[: a + 1]}
  second_segments = {segment for _, _, segment in parts[b:]}
  if first_segments != {0} or len(second_segments) > 1:
    segments = sorted(first_segments | second_segments)
    raise config.refuse(f"with the segments {segments} is not supported")
  return template


class TokenizerFiles:
  """The JSON files of a checkpoint's tokenizer.

  tokenizer_json: the content of tokenizer.json.
  config: special_tokens_map.json updated with tokenizer_config.json, each token as a string.
  added_tokens: the properties of each token that was added to the vocabulary: id, special, lstrip.
  All are empty if the files do not exist. Raises ValueError if a file is damaged.
  """

  def __init__(
    self,
    folder: str | Path,
    tokenizer_json: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
  ):
    self.folder = Path(folder)
    self.tokenizer_json = tokenizer_json or self.read("tokenizer.json")
    own_config = dict(config or self.read("tokenizer_config.json"))
    added: dict[str, dict[str, Any]] = {}
    with file_errors(self.folder / "tokenizer_config.json"):
      for i, properties in read_object(own_config, "added_tokens_decoder").items():
        added |= read_added_token({"id": int(i)} | properties)
    with file_errors(self.folder / "tokenizer.json"):
      items = self.tokenizer_json.get("added_tokens") or []
      if not isinstance(items, list):
        raise ValueError(f"'added_tokens' must be a list, not {items!r:.80}")
      for properties in items:
        added |= read_added_token(properties)
    self.added_tokens = added
    own_config.pop("added_tokens_decoder", None)
    tokens_map = {} if config else self.read("special_tokens_map.json")
    self.config = {
      key: value["content"] if isinstance(value, dict) and "content" in value else value
      for key, value in (tokens_map | own_config).items()
    }

  def read(self, name: str) -> dict[str, Any]:
    """Return the JSON object in a file of the folder, empty if the file does not exist.

    Raises ValueError if the file does not contain a JSON object.
    """
    path = self.folder / name
    return read_json(path, MAX_VOCABULARY_BYTES) if path.exists() else {}

  def special_ids(self, vocab: dict[str, int], defaults: Iterable[str] = ()) -> dict[str, int]:
    """Return the IDs of all special tokens.

    Special tokens are the `defaults` and the tokens in the config that the vocabulary contains,
    and the added tokens that are marked as special.
    """
    configured = [
      value
      for key, value in self.config.items()
      if key.endswith("_token") and isinstance(value, str)
    ]
    ids = {token: vocab[token] for token in [*defaults, *configured] if token in vocab}
    added = {
      token: properties["id"]
      for token, properties in self.added_tokens.items()
      if properties.get("special")
    }
    return ids | added


def read_vocab_json(path: Path) -> dict[str, int]:
  """Return the ID of each token in vocab.json.

  Raises FileNotFoundError, or ValueError if the file is damaged.
  """
  vocab = read_json(path, MAX_VOCABULARY_BYTES)
  if not vocab or not all(map(is_id, vocab.values())) or not is_unicode("".join(vocab)):
    raise ValueError(f"{path} must contain a JSON object that maps each token to an integer ID")
  return vocab


def read_merges_txt(path: Path) -> list[str]:
  """Return the lines of merges.txt, one pair of tokens each, without the version comment."""
  lines = read_text(path, MAX_VOCABULARY_BYTES).split("\n")
  return [line for line in lines if line and not line.startswith("#version")]


def read_object(config: dict[str, Any], name: str) -> dict[str, Any]:
  """Return the JSON object under a name, empty if it is missing or null."""
  value = config.get(name)
  if value is not None and not isinstance(value, dict):
    raise ValueError(f"{name!r} must be a JSON object, not {value!r:.80}")
  return value or {}


def read_added_token(properties: Any) -> dict[str, dict[str, Any]]:
  """Return the properties of an added token under its content.

  Raises ValueError if the properties are invalid.
  """
  settings = Settings("added_tokens", properties)
  if not is_id(settings.get("id", int)):
    raise ValueError(f"added_tokens: {properties['id']!r:.80} is not a token ID")
  for name in ("special", "single_word", "lstrip", "rstrip", "normalized"):
    settings.get(name, bool, False)
  return {settings.get("content", str): properties}


@contextlib.contextmanager
def file_errors(path: Path) -> Iterator[None]:
  """Convert errors that a damaged file causes to a ValueError that names the file."""
  try:
    yield
  except KeyError as e:
    raise ValueError(printable(f"{path}: {e.args[0]!r:.80} is missing", 500)) from e
  except (ValueError, TypeError, AttributeError, IndexError, RecursionError, OverflowError) as e:
    message = str(e) if str(e).startswith(str(path)) else f"{path}: {e}"
    raise ValueError(printable(message, 500)) from e
