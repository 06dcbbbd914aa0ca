"""What is no text among a checkpoint's tokens: what stands before, between and after texts, fills them up, masks a word, or ends one."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tinyformer.checkpoints.safetensors import read_json
from tinyformer.tokenization.normalizers import NormalizedString, whole

SURROGATE = re.compile("[\ud800-\udfff]")
ENDS = "</s>", "<|endoftext|>", "<|end_of_text|>"


class Tokenizer:
  """What every tokenizer has; a kind of it brings `cut`.

  tokens: each id's bytes; of specials, none.  specials: ids of the tokens that are no text, by their spelling.  lead: a text's first blank is not its own.
  before, between, after: the ids around a text, and between two.  second: the segment of the second text, 0 or 1.
  end, pad: what ends a text that is written, and fills up a short one.  mask: id and spelling of what stands for a word that is to be guessed. None: there is none.
  joint: what stands between a text and what is written on from it.  eager: specials that take the blanks before them.  always: tokens that are read as such from any text.
  """

  continuation_joiner = ""

  def __init__(
    self, tokens: dict[int, bytes], specials: dict[str, int], strip_leading_space: bool = False
  ):
    self.tokens, self.specials, self.strip_leading_space = (
      tokens | dict.fromkeys(specials.values(), b""),
      specials,
      strip_leading_space,
    )
    self.prefix_ids, self.sep_ids, self.suffix_ids, self.second = (
      list[int](),
      list[int](),
      list[int](),
      0,
    )
    self.end = next((specials[s] for s in ENDS if s in specials), None)
    self.pad: int | None = None
    self.mask: tuple[int, str] | None = None
    self.lstrip_tokens, self.added_tokens = set[str](), dict[str, int]()

  def __len__(self) -> int:
    return max(self.tokens) + 1

  def tokenize(self, stretch: NormalizedString) -> Iterable[tuple[int, int, int]]:
    """The spans of a stretch of text without specials."""
    raise NotImplementedError

  def encode_with_offsets(
    self, text: str, special: Sequence[str] = ()
  ) -> list[tuple[int, int, int]]:
    """(id, start, end) of each token of a text, without `before` and `after`: it came from text[start:end], which may begin with blanks. Lone surrogates are U+FFFD.

    special: spellings such as [MASK] that stand for themselves where the text has them; else they are text. Raises KeyError for one that is unknown.
    """
    text = SURROGATE.sub("\ufffd", text)
    return [
      span
      for a, b, i in self.parts(text, special)
      for span in (self.tokenize(whole(text, a, b)) if i is None else [(i, a, b)])
    ]

  def parts(self, text: str, special: Sequence[str]) -> Iterator[tuple[int, int, int | None]]:
    """(start, end, a special's id, or None for text) of the parts of a text."""
    known, done = {s: self.specials[s] for s in special} | self.added_tokens, 0
    spellings = sorted(known, key=len, reverse=True)
    pattern = "|".join(
      (r"\s*" if s in self.lstrip_tokens else "") + f"({re.escape(s)})" for s in spellings
    )
    for m in re.finditer(pattern, text) if known else ():
      if done < m.start():
        yield done, m.start(), None
      yield *m.span(), known[m[m.lastindex or 0]]
      done = m.end()
    if done < len(text):
      yield done, len(text), None

  def encode(self, text: str, special: Sequence[str] = ()) -> list[int]:
    """The ids of `spans`, for any string."""
    return [i for i, _, _ in self.encode_with_offsets(text, special)]

  def token(self, i: int) -> bytes:
    """The bytes of one token, which may be a part of a character; none of a special. Raises ValueError for an id that is no token."""
    if i not in self.tokens:
      raise ValueError(f"{i} is not the id of a token: there are {len(self.tokens)}")
    return self.tokens[i]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids, without specials; bytes that are no UTF-8 become U+FFFD. Raises ValueError for an id that is no token."""
    data = b"".join(map(self.token, ids))
    return (data.removeprefix(b" ") if self.strip_leading_space else data).decode(errors="replace")

  def single(self, a: Sequence[int]) -> list[int]:
    """A text's ids as a model reads it alone."""
    return [*self.prefix_ids, *a, *self.suffix_ids]

  def pair(self, a: Sequence[int], b: Sequence[int]) -> tuple[list[int], list[int]]:
    """The ids of two texts as a model reads them together, and each one's segment; b begins at len(before) + len(a) + len(between)."""
    first, second = [*self.prefix_ids, *a, *self.sep_ids], [*b, *self.suffix_ids]
    return first + second, [0] * len(first) + [self.second] * len(second)

  def load_special_tokens(self, files: "Files", template: str = "A B", second: int = 0) -> None:
    """Learns from a checkpoint what stands around texts: tokenizer.json says it, else the template, such as [CLS] A [SEP] B [SEP], and tokenizer_config.json."""

    def named(key: str, *known: str) -> tuple[int, str] | None:
      return next(
        ((self.specials[s], s) for s in (files.config.get(key), *known) if s in self.specials), None
      )

    bos, pad, eos = (
      named("bos_token", "<s>"),
      named("pad_token", "[PAD]", "<pad>"),
      named("eos_token", *ENDS),
    )
    self.mask, self.pad, self.end = (
      named("mask_token", "[MASK]", "<mask>"),
      pad and pad[0],
      eos and eos[0],
    )
    self.lstrip_tokens = {
      s for s in self.specials if files.added.get(s, {}).get("lstrip", s == "<mask>")
    }  # RoBERTa's, BART's and CamemBERT's
    self.added_tokens = {
      s: a["id"] for s, a in files.added.items() if not a.get("special") and s not in self.specials
    }
    self.tokens |= {i: s.encode() for s, i in self.added_tokens.items()}
    words = [
      (w, [self.specials[w]] if w in self.specials else [], second) for w in template.split()
    ]
    self.prefix_ids, self.sep_ids, self.suffix_ids, self.second = read_template(
      files.full.get("post_processor")
    ) or around(words)
    if bos and files.config.get("add_bos_token") is not None:
      self.prefix_ids = [bos[0]] * files.config["add_bos_token"]
    if eos and files.config.get("add_eos_token") is not None:
      self.suffix_ids = [eos[0]] * files.config["add_eos_token"]


Around = tuple[
  list[int], list[int], list[int], int
]  # before, between, after, the segment of the second text


def around(words: list[tuple[str, list[int], int]]) -> Around:
  """Of a pair's template: (A, B or a special, its ids, segment) one after the other."""
  names = [name for name, _, _ in words]
  a, b = names.index("A"), names.index("B")
  before, between, after = (
    [i for _, ids, _ in part for i in ids] for part in (words[:a], words[a + 1 : b], words[b + 1 :])
  )
  return before, between, after, words[b][2]


def read_template(post: dict[str, Any] | None) -> Around | None:
  """A post_processor of tokenizer.json, if it says what stands around texts."""
  if post is None:
    return None
  if post["type"] == "Sequence":
    return next((r for p in post["processors"] if (r := read_template(p))), None)
  if post["type"] == "TemplateProcessing":
    parts = [next(iter(part.values())) for part in post["pair"]]
    return around(
      [
        (p["id"], post["special_tokens"].get(p["id"], {"ids": []})["ids"], p["type_id"])
        for p in parts
      ]
    )
  if post["type"] == "BertProcessing":
    return [post["cls"][1]], [post["sep"][1]], [post["sep"][1]], 1
  if post["type"] == "RobertaProcessing":
    return [post["cls"][1]], [post["sep"][1]] * 2, [post["sep"][1]], 0
  return None


class Files:
  """What a checkpoint's files say of its tokens.

  full: tokenizer.json.  config: special_tokens_map.json and tokenizer_config.json, each token as its spelling. Both empty where there is no such file.
  added: the tokens that were added to a vocabulary, by their spelling: id, special, lstrip and what else is said of them.
  """

  def __init__(self, folder: str | Path):
    self.folder = Path(folder)
    self.full, config = self.read("tokenizer.json"), self.read("tokenizer_config.json")
    old = [{"id": int(i)} | a for i, a in config.pop("added_tokens_decoder", {}).items()]
    self.added = {a["content"]: a for a in [*old, *self.full.get("added_tokens", [])]}
    self.config = {
      k: v["content"] if isinstance(v, dict) and "content" in v else v
      for k, v in (self.read("special_tokens_map.json") | config).items()
    }

  def read(self, name: str) -> dict[str, Any]:
    """What a file of the folder holds; nothing where there is none. Raises ValueError for what is no JSON object."""
    return read_json(self.folder / name) if (self.folder / name).exists() else {}

  def specials(self, vocab: dict[str, int], known: Iterable[str] = ()) -> dict[str, int]:
    """The tokens that are no text: known ones that the vocabulary has, those that the configuration names, and those that were added as such."""
    named = [
      value
      for key, value in self.config.items()
      if key.endswith("_token") and isinstance(value, str)
    ]
    return {s: vocab[s] for s in [*known, *named] if s in vocab} | {
      s: a["id"] for s, a in self.added.items() if a.get("special")
    }


@contextlib.contextmanager
def file_errors(path: Path) -> Iterator[None]:
  """Tells of a file's damage, wherever it shows, in one line: ValueError."""
  try:
    yield
  except KeyError as e:
    raise ValueError(f"{path}: {e.args[0]!r} is missing") from e
  except (ValueError, TypeError, AttributeError, IndexError) as e:
    raise ValueError(str(e) if str(e).startswith(str(path)) else f"{path}: {e}") from e
