"""WordPiece as BERT has it: words, cut at blanks and punctuation, as the longest pieces of a vocabulary from the left (Devlin et al. 2019, sec. 3)."""
import json, re, unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

CHINESE = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))

class WordPiece:
  """Text to token ids and back, with a vocabulary whose pieces within a word begin with ##.

  lower: small letters alone.  accents: whether they stay; None: unless lower.  chinese: each Chinese character is a word.
  """
  def __init__(self, vocab:dict[str, int], lower:bool=True, accents:bool|None=None, chinese:bool=True, unknown:str="[UNK]"):
    self.vocab, self.lower, self.accents, self.chinese, self.unknown = vocab, lower, not lower if accents is None else accents, chinese, unknown
    self.pieces = {i: piece for piece, i in vocab.items()}
    if unknown not in vocab: raise ValueError(f"the vocabulary has no {unknown}")

  @classmethod
  def load(cls, folder:str|Path) -> "WordPiece":
    """From vocab.txt, a piece a line, and what tokenizer_config.json says of it. Raises FileNotFoundError, ValueError for a file that is no vocabulary."""
    path, settings = Path(folder) / "vocab.txt", Path(folder) / "tokenizer_config.json"
    try: lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as e: raise ValueError(f"{path} is not UTF-8: {e}") from e
    vocab = {line.rstrip("\r"): i for i, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}
    config = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    strip = config.get("strip_accents")
    try: return cls(vocab, config.get("do_lower_case", True), None if strip is None else not strip, config.get("tokenize_chinese_chars", True), config.get("unk_token", "[UNK]"))
    except ValueError as e: raise ValueError(f"{path}: {e}") from e

  def __len__(self) -> int: return len(self.vocab)

  def normal(self, text:str) -> str:
    """Without control characters and, as the vocabulary wants it, accents and capitals; blanks around each Chinese character."""
    kept = []
    for c in text:
      if c in "\t\n\r" or c.isspace() and unicodedata.category(c)[0] == "Z": kept.append(" ")
      elif c in "\0\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs"): continue
      else: kept.append(f" {c} " if self.chinese and any(a <= ord(c) <= b for a, b in CHINESE) else c)
    text = "".join(kept)
    if not self.accents: text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return "".join(c.lower() for c in text) if self.lower else text

  def words(self, text:str) -> Iterator[str]:
    """The words of a normal text, and its punctuation marks, each by itself."""
    word = ""
    for c in text:
      blank, mark = c.isspace(), unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~"   # those of ASCII that Unicode calls symbols
      if blank or mark:
        if word: yield word
        word = ""
        if mark: yield c
      else: word += c
    if word: yield word

  def cut(self, word:str) -> list[int]:
    """A word as the longest pieces from its left; unknown as a whole if there is none somewhere, or if it has over 100 characters."""
    ids, begin = [], 0
    if len(word) > 100: return [self.vocab[self.unknown]]
    while begin < len(word):
      for end in range(len(word), begin, -1):
        piece = ("##" if begin else "") + word[begin:end]
        if piece in self.vocab: break
      else: return [self.vocab[self.unknown]]
      ids.append(self.vocab[piece])
      begin = end
    return ids

  def encode(self, text:str, special:Sequence[str]=()) -> list[int]:
    """Token ids, without [CLS] and [SEP]. special: pieces such as [MASK] that stand for themselves where the text has them; else they are text."""
    parts = re.split(f"({'|'.join(map(re.escape, special))})", text) if special else [text]
    return [i for n, part in enumerate(parts) for i in ([self.vocab[part]] if n % 2 else (i for word in self.words(self.normal(part)) for i in self.cut(word)))]

  def decode(self, ids:Iterable[int]) -> str:
    """Words between blanks: what blanks there were is lost."""
    return " ".join(self.pieces[i] for i in ids).replace(" ##", "")
