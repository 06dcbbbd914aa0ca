"""Translate the tokenizer in a Hugging Face folder to the metadata of a GGUF file.

This is the inverse of gguf_tokenizer.py, whose tables it uses.
"""

from pathlib import Path
from typing import Any

from tinyformer.checkpoints.gguf import GGUF
from tinyformer.checkpoints.gguf_tokenizer import (
  BYTE,
  BYTE_LEVEL,
  CONTROL,
  NORMAL,
  PRE_TOKENIZERS,
  UNKNOWN,
  UNUSED,
  USER_DEFINED,
  pre_tokenizer_steps,
  sentencepiece_bpe,
)
from tinyformer.files import MAX_VOCABULARY_BYTES, printable, read_json, read_text

# The name of a special token in tokenizer_config.json -> that in the metadata.
SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask"}
# Settings of the BPE that llama.cpp does not have.
BPE_SETTINGS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
# The steps before a SentencePiece BPE that replace spaces by ▁.
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND = {"type": "Prepend", "prepend": "▁"}


def read_optional(path: Path) -> dict[str, Any]:
  """Return the JSON object in a file, empty if the file does not exist."""
  return read_json(path, MAX_VOCABULARY_BYTES) if path.exists() else {}


def read_tokenizer(folder: Path) -> dict[str, Any]:
  """Return the content of tokenizer.json, or its equivalent for GPT-2's vocab.json and merges.txt.

  Raises ValueError if the folder has neither.
  """
  if content := read_optional(folder / "tokenizer.json"):
    return content
  vocab, merges = read_optional(folder / "vocab.json"), folder / "merges.txt"
  if not vocab or not merges.exists():
    raise ValueError(f"{folder} has neither tokenizer.json nor vocab.json and merges.txt")
  lines = read_text(merges, MAX_VOCABULARY_BYTES).split("\n")
  lines = [line for line in lines if line and not line.startswith("#version")]
  end = "<|endoftext|>"
  return {
    "added_tokens": [{"id": vocab[end], "content": end, "special": True}] if end in vocab else [],
    "pre_tokenizer": BYTE_LEVEL,
    "model": {"type": "BPE", "vocab": vocab, "merges": lines},
  }


def steps_of(step: dict[str, Any] | None, list_name: str) -> list[dict[str, Any]]:
  """Return the steps of a section of tokenizer.json, without settings that do not affect IDs."""
  if step is None:
    return []
  if step["type"] == "Sequence":
    return [inner for s in step[list_name] for inner in steps_of(s, list_name)]
  defaults = {"use_regex": True} if step["type"] == "ByteLevel" else {}
  return [defaults | {k: v for k, v in step.items() if k != "trim_offsets"}]


def pre_tokenizer_name(content: dict[str, Any], folder: Path) -> str:
  """Return llama.cpp's name of the steps before the BPE.

  Raises ValueError if llama.cpp has none.
  """
  normalizers = steps_of(content.get("normalizer"), "normalizers")
  steps = steps_of(content.get("pre_tokenizer"), "pretokenizers")
  ignore_merges = content["model"].get("ignore_merges") or False
  for names, pre in PRE_TOKENIZERS.items():
    if (
      normalizers == ([{"type": "NFC"}] if pre.nfc else [])
      and steps == [s for step in pre_tokenizer_steps(pre) for s in steps_of(step, "")]
      and ignore_merges == pre.ignore_merges
    ):
      return names.split()[0]
  types = ", ".join(step["type"] for step in [*normalizers, *steps])
  supported = ", ".join(names.split()[0] for names in PRE_TOKENIZERS)
  raise ValueError(
    f"{folder}: the tokenizer's steps ({printable(types) or 'none'}) with their settings are not "
    f"those of one of llama.cpp's pre-tokenizers {supported}"
  )


def adds_space(content: dict[str, Any], folder: Path) -> bool:
  """Return whether the steps before a SentencePiece BPE prepend a space.

  Raises ValueError if they do anything else.
  """
  normalizers = steps_of(content.get("normalizer"), "normalizers")
  steps = steps_of(content.get("pre_tokenizer"), "pretokenizers")
  if not steps and normalizers in ([PREPEND, REPLACE], [REPLACE]):
    return PREPEND in normalizers
  metaspace = {"type": "Metaspace", "replacement": "▁", "split": False}
  if not normalizers and len(steps) == 1 and metaspace.items() <= steps[0].items():
    return steps[0]["prepend_scheme"] != "never"
  types = ", ".join(step["type"] for step in [*normalizers, *steps])
  raise ValueError(
    f"{folder}: the tokenizer's steps ({printable(types) or 'none'}) with their settings are not "
    "those of llama.cpp's SentencePiece BPE"
  )


def scores_of(metadata: dict[str, Any], merges: list[str], folder: Path) -> list[float]:
  """Return the score of each token of a SentencePiece BPE: minus the rank of its first merge.

  llama.cpp merges any two tokens whose concatenation is a token, in the order of these scores.
  Raises ValueError if the merges are in another order, or not all of these.
  """
  ranks: dict[str, int] = {}
  for rank, merge in enumerate(merges):
    ranks.setdefault(merge.replace(" ", ""), rank)
  scores = [-float(ranks.get(token, len(merges))) for token in metadata["tokens"]]
  written = {f"tokenizer.ggml.{k}": v for k, v in (metadata | {"scores": scores}).items()}
  read = sentencepiece_bpe(GGUF(folder, written, {}))["model"]["merges"]
  same_order = [a + b for a, b in read] == [merge.replace(" ", "") for merge in merges]
  if not same_order or {f"{a} {b}" for a, b in read} != set(merges):
    raise ValueError(f"{folder}: the merges are not those of a SentencePiece BPE in llama.cpp")
  return scores


def token_types(content: dict[str, Any], vocab_size: int, folder: Path) -> dict[str, Any]:
  """Return the metadata of the tokens in the order of their IDs, and of their types.

  Raises ValueError if the tokens do not fit the model, or if an added token removes spaces.
  """
  tokens = [f"[PAD{i}]" for i in range(vocab_size)]
  types = [UNUSED] * vocab_size
  added = content.get("added_tokens") or []
  bytes_ = {f"<0x{b:02X}>" for b in range(256)} if content["model"].get("byte_fallback") else set()
  entries = [
    (token, i, BYTE if token in bytes_ else NORMAL)
    for token, i in content["model"]["vocab"].items()
  ]
  entries += [(a["content"], a["id"], CONTROL if a["special"] else USER_DEFINED) for a in added]
  for token, i, kind in entries:
    if type(token) is not str or type(i) is not int or not 0 <= i < vocab_size:
      raise ValueError(
        f"{folder}: the token {printable(token)} has the ID {i}, but the model has {vocab_size:,}"
      )
    tokens[i] = token
    types[i] = UNKNOWN if token == content["model"].get("unk_token") else kind
  for a in added:
    if refused := next((f for f in ("lstrip", "rstrip", "single_word") if a.get(f)), None):
      raise ValueError(
        f"{folder}: the added token {printable(a['content'])} has {refused}, which llama.cpp lacks"
      )
  return {"tokens": tokens, "token_type": types}


def special_ids(folder: Path, tokens: list[str]) -> dict[str, int]:
  """Return the metadata of the special tokens. tokens: all, in the order of their IDs.

  IDs without a token are left out, such as the ID -1 of some old files.
  Raises ValueError if there is no end-of-text token: llama.cpp would take another token for it.
  """
  names = read_optional(folder / "special_tokens_map.json")
  names |= read_optional(folder / "tokenizer_config.json")
  config = read_optional(folder / "config.json")
  ids = {token: i for i, token in enumerate(tokens)}
  valid = range(len(tokens))
  special: dict[str, int] = {}
  for hf_name, name in SPECIAL_TOKENS.items():
    token = names.get(f"{hf_name}_token")
    token = token.get("content") if isinstance(token, dict) else token
    i = ids.get(token) if isinstance(token, str) else config.get(f"{hf_name}_token_id")
    if type(i) is int and i in valid:
      special[name] = i
  ends = read_optional(folder / "generation_config.json").get("eos_token_id")
  ends = [i for i in (ends if isinstance(ends, list) else [ends]) if type(i) is int and i in valid]
  if "eos" not in special and ends:
    special["eos"] = ends[0]
  if "eos" not in special:
    raise ValueError(f"{folder}: llama.cpp needs eos_token, which tokenizer_config.json lacks")
  others = dict.fromkeys(i for i in ends if i != special["eos"])
  if len(others) > 2:
    raise ValueError(f"{folder}: llama.cpp has at most three end tokens, not {1 + len(others)}")
  special |= dict(zip(("eot", "eom"), others, strict=False))
  return {f"{name}_token_id": i for name, i in special.items()}


def added_ends(content: dict[str, Any], special: dict[str, int], folder: Path) -> dict[str, bool]:
  """Return the metadata that state whether a text begins with BOS and ends with EOS.

  Raises ValueError if other special tokens are added to a text.
  """
  steps = steps_of(content.get("post_processor"), "processors")
  steps = [step for step in steps if step["type"] != "ByteLevel"]
  if not steps:
    return {"add_bos_token": False, "add_eos_token": False}
  if steps[1:] or steps[0]["type"] != "TemplateProcessing":
    raise ValueError(f"{folder}: the post_processor {steps[0]['type']} cannot be written as GGUF")
  [template] = steps
  ids = {name: token["ids"] for name, token in template["special_tokens"].items()}
  tokens = [part.get("SpecialToken") for part in template["single"]]
  parts = [token and ids[token["id"]] for token in tokens]
  bos, eos = ([special[k]] if k in special else None for k in ("bos_token_id", "eos_token_id"))
  for adds_bos in (False, True):
    for adds_eos in (False, True):
      if parts == [*([bos] if adds_bos else []), None, *([eos] if adds_eos else [])]:
        return {"add_bos_token": adds_bos, "add_eos_token": adds_eos}
  raise ValueError(f"{folder}: the post_processor adds other special tokens than BOS and EOS")


def chat_template(folder: Path) -> str | None:
  """Return the chat template: chat_template.jinja, or that of tokenizer_config.json."""
  path = folder / "chat_template.jinja"
  if path.is_file():
    return read_text(path)
  template = read_optional(folder / "tokenizer_config.json").get("chat_template")
  if isinstance(template, list):
    template = {item["name"]: item["template"] for item in template}.get("default")
  if template and not isinstance(template, str):
    raise ValueError(f"{folder}: chat_template must be a text, not {printable(template)}")
  return template or None


def export_tokenizer(folder: Path, vocab_size: int) -> dict[str, Any]:
  """Return the metadata of the BPE in a folder.

  vocab_size: the number of tokens of the model; llama.cpp needs as many.
  Raises ValueError if the tokenizer is damaged, or if llama.cpp has no equivalent.
  """
  content = read_tokenizer(folder)
  try:
    return metadata_of(content, vocab_size, folder)
  except (LookupError, TypeError, AttributeError, RecursionError) as e:
    reason = f"it lacks {e}" if isinstance(e, KeyError) else e
    raise ValueError(printable(f"{folder}: the tokenizer is damaged: {reason}", 300)) from e


def metadata_of(content: dict[str, Any], vocab_size: int, folder: Path) -> dict[str, Any]:
  """Return the metadata for the content of tokenizer.json; see export_tokenizer."""
  model = content["model"]
  if model.get("type", "BPE") != "BPE":
    raise ValueError(
      f"{folder}: a tokenizer of type {printable(model['type'])} cannot be written; only BPE can"
    )
  if setting := next((name for name in BPE_SETTINGS if model.get(name)), None):
    raise ValueError(f"{folder}: the BPE's {setting} cannot be written as GGUF")
  metadata = token_types(content, vocab_size, folder)
  special = special_ids(folder, metadata["tokens"])
  metadata |= special | added_ends(content, special, folder)
  merges = [m if isinstance(m, str) else f"{m[0]} {m[1]}" for m in model["merges"]]
  if model.get("byte_fallback"):
    metadata |= {"model": "llama", "add_space_prefix": adds_space(content, folder)}
    metadata["scores"] = scores_of(metadata, merges, folder)
  else:
    metadata |= {"model": "gpt2", "pre": pre_tokenizer_name(content, folder), "merges": merges}
  template = chat_template(folder)
  named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
  return named | ({"tokenizer.chat_template": template} if template else {})
