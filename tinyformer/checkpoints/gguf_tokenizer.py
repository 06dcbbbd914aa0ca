"""Translate the tokenizer of a GGUF file to the files of a Hugging Face tokenizer.

llama.cpp stores a tokenizer's tokens and merges or scores. It stores the name of the
pre-tokenizer, but not the regular expressions, so PRE_TOKENIZERS lists them.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from tinyformer.checkpoints.gguf import GGUF

# The types of tokens.
NORMAL = 1
UNKNOWN = 2
CONTROL = 3
USER_DEFINED = 4
UNUSED = 5
BYTE = 6

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
AFTER_NUMBERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{AFTER_NUMBERS}"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{AFTER_NUMBERS}"
TEKKEN = (
  r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
  r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
  r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


class PreTokenizer(NamedTuple):
  """What a name of tokenizer.ggml.pre stands for.

  pattern: the regular expression of the matches, or None for GPT-2's.
  digits: whether each digit is split off before.  nfc: whether the text is normalized to NFC.
  ignore_merges: a match that is a token is not split.  add_bos: the default of add_bos_token.
  """

  pattern: str | None = None
  digits: bool = False
  nfc: bool = False
  ignore_merges: bool = False
  add_bos: bool = False


# Several names stand for one pre-tokenizer.
PRE_TOKENIZERS = {
  "gpt-2 phi-2 jina-es jina-de mpt olmo jais": PreTokenizer(),
  "smollm starcoder refact command-r codeshell": PreTokenizer(digits=True),
  "llama-bpe llama3 llama-v3": PreTokenizer(LLAMA3, ignore_merges=True, add_bos=True),
  "smaug-bpe dbrx": PreTokenizer(LLAMA3),
  "qwen2 deepseek-r1-qwen megrez": PreTokenizer(QWEN2, nfc=True),
  "tekken": PreTokenizer(TEKKEN, ignore_merges=True, add_bos=True),
}


def pre_tokenizer_of(gguf: GGUF) -> PreTokenizer:
  """Return the pre-tokenizer of a byte-level BPE. Raises ValueError if it is not supported."""
  name = gguf.metadata.get("tokenizer.ggml.pre")
  if name is None and gguf.metadata.get("general.architecture") == "gpt2":
    name = "gpt-2"
  for names, pre_tokenizer in PRE_TOKENIZERS.items():
    if name in names.split():
      return pre_tokenizer
  supported = ", ".join(PRE_TOKENIZERS).replace(" ", ", ").replace(",,", ",")
  raise ValueError(f"{gguf.path}: tokenizer.ggml.pre {name!r} is not one of {supported}")


def pre_tokenizer_steps(pre: PreTokenizer) -> list[dict[str, Any]]:
  """Return the steps of the pre_tokenizer in tokenizer.json."""
  steps: list[dict[str, Any]] = []
  if pre.digits:
    steps.append({"type": "Digits", "individual_digits": True})
  if pre.pattern:
    split = {"pattern": {"Regex": pre.pattern}, "behavior": "Isolated", "invert": False}
    steps.append({"type": "Split", **split})
  return [*steps, BYTE_LEVEL | {"use_regex": pre.pattern is None}]


def token_list(gguf: GGUF) -> tuple[list[str], list[int]]:
  """Return the tokens in the order of their IDs, and their types.

  Raises ValueError if there is none, or if the types do not belong to the tokens.
  """
  tokens = gguf.metadata.get("tokenizer.ggml.tokens")
  if not isinstance(tokens, list):
    raise ValueError(f"{gguf.path} has no tokenizer.ggml.tokens")
  types = gguf.metadata.get("tokenizer.ggml.token_type")
  types = [NORMAL] * len(tokens) if types is None else list(map(int, types))
  if len(types) != len(tokens):
    raise ValueError(f"{gguf.path} has {len(tokens):,} tokens, but {len(types):,} token types")
  return tokens, types


def token_id(gguf: GGUF, name: str) -> int | None:
  """Return the ID of a special token, or None. Raises ValueError if it is not a token ID."""
  key = f"tokenizer.ggml.{name}_token_id"
  value = gguf.metadata.get(key)
  num_tokens = len(gguf.metadata.get("tokenizer.ggml.tokens", ()))
  if value is not None and (type(value) is not int or not 0 <= value < num_tokens):
    raise ValueError(f"{gguf.path}: {key} {value!r} is not the ID of one of {num_tokens:,} tokens")
  return value


def end_of_turn_ids(gguf: GGUF) -> list[int]:
  """Return the IDs of the tokens that end a text or a turn of a chat."""
  ids = [token_id(gguf, name) for name in ("eos", "eot", "eom")]
  return list(dict.fromkeys(i for i in ids if i is not None))


def added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
  """Return the entries of added_tokens in tokenizer.json."""
  flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
  return [
    {"id": i, "content": token, **flags, "special": kind != USER_DEFINED}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
    if kind in (UNKNOWN, CONTROL, USER_DEFINED)
  ]


def vocab_of(tokens: list[str], types: list[int]) -> dict[str, int]:
  """Return the vocabulary of the model in tokenizer.json.

  Control and user-defined tokens at its end are added tokens only. So is the padding that
  llama.cpp adds, which is not a part of the tokenizer.
  """
  regular = [i for i, kind in enumerate(types) if kind not in (CONTROL, USER_DEFINED, UNUSED)]
  end = max(regular, default=-1) + 1
  return {
    token: i
    for i, token in enumerate(tokens)
    if i < end and not (types[i] == UNUSED and token == f"[PAD{i}]")
  }


def template(prefix: Iterable[tuple[str, int]], suffix: Iterable[tuple[str, int]], second: int = 0):
  """Return a post_processor with special tokens (text, ID) before and after each text.

  second: the segment of the second text. Its prefix is left out if it is 1, as in BERT.
  """
  before, after = (
    [{"SpecialToken": {"id": t, "type_id": 0}} for t, _ in x] for x in (prefix, suffix)
  )

  def text(name: str, segment: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": segment}}

  def in_segment(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"SpecialToken": item["SpecialToken"] | {"type_id": second}} for item in items]

  first = [*before, text("A", 0), *after]
  pair = [*first, *([] if second else before), text("B", second), *in_segment(after)]
  tokens = {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in [*prefix, *suffix]}
  return {"type": "TemplateProcessing", "single": first, "pair": pair, "special_tokens": tokens}


def post_processor(gguf: GGUF, add_bos: bool) -> dict[str, Any] | None:
  """Return the post_processor that adds BOS and EOS, or None. add_bos: the default."""
  tokens, _ = token_list(gguf)
  sides: list[list[tuple[str, int]]] = []
  for name, default in (("bos", add_bos), ("eos", False)):
    i = token_id(gguf, name)
    is_added = gguf.metadata.get(f"tokenizer.ggml.add_{name}_token", default)
    sides.append([(tokens[i], i)] if is_added and i is not None else [])
  prefix, suffix = sides
  return template(prefix, suffix) if prefix or suffix else None


def byte_level_bpe(gguf: GGUF) -> dict[str, Any]:
  """Return the tokenizer.json of a byte-level BPE: GPT-2, LLaMA 3, Qwen2, SmolLM2."""
  tokens, types = token_list(gguf)
  pre = pre_tokenizer_of(gguf)
  steps = pre_tokenizer_steps(pre)
  merges = gguf.metadata.get("tokenizer.ggml.merges")
  if not isinstance(merges, list):
    raise ValueError(f"{gguf.path} has no tokenizer.ggml.merges")
  model = {
    "type": "BPE",
    "ignore_merges": pre.ignore_merges,
    "vocab": vocab_of(tokens, types),
    "merges": [merge.split(" ") for merge in merges],
  }
  return {
    "added_tokens": added_tokens(tokens, types),
    "normalizer": {"type": "NFC"} if pre.nfc else None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if steps[1:] else steps[0],
    "post_processor": post_processor(gguf, pre.add_bos) or BYTE_LEVEL | {"use_regex": True},
    "decoder": BYTE_LEVEL | {"use_regex": True},
    "model": model,
  }


def sentencepiece_bpe(gguf: GGUF) -> dict[str, Any]:
  """Return the tokenizer.json of a SentencePiece BPE: LLaMA 1 and 2, Mistral.

  The order of the merges is that of the scores of their results.
  """
  tokens, types = token_list(gguf)
  scores = gguf.metadata.get("tokenizer.ggml.scores")
  if scores is None or len(scores) != len(tokens):
    raise ValueError(f"{gguf.path} needs a score for each of its {len(tokens):,} tokens")
  vocab = vocab_of(tokens, types)
  merges = [
    (float(scores[vocab[token]]), token[:n], token[n:])
    for token in vocab
    for n in range(1, len(token))
    if token[:n] in vocab and token[n:] in vocab
  ]
  merges.sort(key=lambda merge: (-merge[0], vocab[merge[1]], vocab[merge[2]]))
  spaces = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
  decoders: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
  ]
  if gguf.metadata.get("tokenizer.ggml.add_space_prefix", True):
    spaces.insert(0, {"type": "Prepend", "prepend": "▁"})
    decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
  unknown = token_id(gguf, "unknown")
  model = {
    "type": "BPE",
    "unk_token": None if unknown is None else tokens[unknown],
    "fuse_unk": True,
    "byte_fallback": BYTE in types,
    "vocab": vocab,
    "merges": [[a, b] for _, a, b in merges],
  }
  return {
    "added_tokens": added_tokens(tokens, types),
    "normalizer": {"type": "Sequence", "normalizers": spaces},
    "pre_tokenizer": None,
    "post_processor": post_processor(gguf, add_bos=True),
    "decoder": {"type": "Sequence", "decoders": decoders},
    "model": model,
  }


def word_piece(gguf: GGUF) -> dict[str, Any]:
  """Return the tokenizer.json of BERT's WordPiece.

  llama.cpp marks the beginnings of words with ▁ instead of the other tokens with ##. Older files do
  not state whether the text is lowercased: it is unless a token has an uppercase letter.
  """
  tokens, types = token_list(gguf)
  tokens = [
    token if kind == CONTROL else token.removeprefix("▁") if token[:1] == "▁" else f"##{token}"
    for token, kind in zip(tokens, types, strict=True)
  ]
  regular = (token for token, kind in zip(tokens, types, strict=True) if kind != CONTROL)
  is_cased = any(re.search("[A-Z]", token) for token in regular)
  normalizer = "tokenizer.ggml.normalizer."
  special = {name: token_id(gguf, name) for name in ("bos", "cls", "eos", "seperator", "unknown")}
  cls_id = special["bos"] if special["cls"] is None else special["cls"]
  sep_id = special["eos"] if special["seperator"] is None else special["seperator"]
  if cls_id is None or sep_id is None or special["unknown"] is None:
    raise ValueError(f"{gguf.path} needs the IDs of BERT's [CLS], [SEP] and [UNK]")
  return {
    "added_tokens": added_tokens(tokens, types),
    "normalizer": {
      "type": "BertNormalizer",
      "clean_text": True,
      "handle_chinese_chars": True,
      "strip_accents": gguf.metadata.get(f"{normalizer}strip_accents"),
      "lowercase": gguf.metadata.get(f"{normalizer}lowercase", not is_cased),
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": template([(tokens[cls_id], cls_id)], [(tokens[sep_id], sep_id)], second=1),
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
      "type": "WordPiece",
      "unk_token": tokens[special["unknown"]],
      "continuing_subword_prefix": "##",
      "max_input_chars_per_word": 100,
      "vocab": {token: i for i, token in enumerate(tokens)},
    },
  }


# The values of tokenizer.ggml.model.
TOKENIZERS = {"gpt2": byte_level_bpe, "llama": sentencepiece_bpe, "bert": word_piece}


def tokenizer_json(gguf: GGUF) -> dict[str, Any]:
  """Return the content of tokenizer.json.

  Raises ValueError if the file has no tokenizer, an invalid one, or one that is not supported.
  """
  name = gguf.metadata.get("tokenizer.ggml.model")
  if name not in TOKENIZERS:
    raise ValueError(
      f"{gguf.path}: tokenizer.ggml.model {name!r} is not one of {', '.join(TOKENIZERS)}"
    )
  head = {"version": "1.0", "truncation": None, "padding": None}
  return head | TOKENIZERS[name](gguf)


def tokenizer_config(gguf: GGUF) -> dict[str, Any]:
  """Return the content of tokenizer_config.json: special tokens and the chat template."""
  tokens, _ = token_list(gguf)
  names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask"}
  if gguf.metadata.get("tokenizer.ggml.model") == "bert":
    names |= {"cls": "cls", "sep": "seperator"}
  special = {
    f"{ours}_token": tokens[i]
    for ours, name in names.items()
    if (i := token_id(gguf, name)) is not None
  }
  architecture = gguf.metadata.get("general.architecture")
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "model_max_length": gguf.metadata.get(f"{architecture}.context_length"),
    **special,
  }
  chat_template = gguf.metadata.get("tokenizer.chat_template")
  return config | ({"chat_template": chat_template} if chat_template else {})


def generation_config(gguf: GGUF) -> dict[str, Any]:
  """Return the content of generation_config.json: the tokens that begin and end a text."""
  ids = {"bos": token_id(gguf, "bos"), "pad": token_id(gguf, "padding")}
  values = {f"{name}_token_id": i for name, i in ids.items() if i is not None}
  return values | {"eos_token_id": end_of_turn_ids(gguf)}
