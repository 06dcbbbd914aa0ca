"""What is fuzzed: for each format a valid folder, how to damage it, and how to read it."""

import dataclasses
import functools
import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .mutate import (
  Mutator,
  damage_bytes,
  damage_header,
  damage_json,
  damage_lines,
  damage_safetensors,
)

TESTS = Path(__file__).parent.parent
if str(TESTS) not in sys.path:  # pytest adds it, `python -m tests.fuzz` does not
  sys.path.append(str(TESTS))
FIXTURES = TESTS / "fixtures"
TEXT = "the cat, 12 mats! thé  \tNaïve 中国 the\nend"


@dataclasses.dataclass
class Target:
  """A format.

  files: the valid files.  damaged: the files that a case may damage, one at a time.
  read: returns what we read from a folder.  reference: returns what Hugging Face reads from it, in
  the form of our value, which it gets too; None if there is no other reader.
  """

  name: str
  files: Callable[[], dict[str, bytes]]
  damaged: dict[str, Mutator]
  read: Callable[[Path], Any]
  reference: Callable[[Path, Any], Any] | None = None


def import_references() -> bool:
  """Import Hugging Face's packages, and return whether they are installed."""
  try:
    import safetensors.numpy
    import sentencepiece
    import tokenizers
    import transformers
  except ImportError:
    return False
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  for folder in FIXTURES.iterdir():
    if (folder / "config.json").exists():
      transformers.AutoConfig.from_pretrained(folder)
  del safetensors, sentencepiece, tokenizers
  return True


def fixture(name: str, *files: str) -> dict[str, bytes]:
  """Return files of a fixture."""
  return {file: (FIXTURES / name / file).read_bytes() for file in files}


# **************** checkpoints ****************


def read_tensors(folder: Path) -> dict[str, tuple]:
  from tinyformer.checkpoints import safetensors

  tensors = {}
  for name, info in safetensors.read(folder).items():
    tensors[name] = (info.shape, info.numpy().tobytes())
  return tensors


def reference_tensors(folder: Path, _) -> dict[str, tuple]:
  from safetensors.numpy import load_file

  tensors = load_file(folder / "model.safetensors")
  return {name: (a.shape, a.astype(np.float32).tobytes()) for name, a in tensors.items()}


def weights_files() -> dict[str, bytes]:
  return fixture("gpt2-a", "model.safetensors")


@functools.cache
def shard_files() -> dict[str, bytes]:
  """Return the tensors of a fixture in two shards and their index."""
  import tempfile

  from tinyformer.checkpoints import safetensors

  tensors = safetensors.read(FIXTURES / "bert-a")
  names = sorted(tensors)
  halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
  weight_map = {name: file for file, part in halves.items() for name in part}
  index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
  files = {"model.safetensors.index.json": json.dumps(index).encode()}
  with tempfile.TemporaryDirectory() as folder:
    for file, part in halves.items():
      path = Path(folder) / file
      safetensors.write_safetensors(path, {name: tensors[name].numpy() for name in part})
      files[file] = path.read_bytes()
  return files


def reference_shards(folder: Path, _) -> dict[str, tuple]:
  from safetensors.numpy import load_file

  index = json.loads((folder / "model.safetensors.index.json").read_text())
  shards = {file: load_file(folder / file) for file in set(index["weight_map"].values())}
  arrays = {name: shards[file][name] for name, file in index["weight_map"].items()}
  return {name: (a.shape, a.astype(np.float32).tobytes()) for name, a in arrays.items()}


# Our fields of a config -> Hugging Face's attributes.
DECODER = {
  "vocab_size": "vocab_size",
  "context": "n_positions",
  "dim": "n_embd",
  "heads": "n_head",
  "num_layers": "n_layer",
  "eps": "layer_norm_epsilon",
  "activation": "activation_function",
}
LLAMA = {
  "vocab_size": "vocab_size",
  "context": "max_position_embeddings",
  "dim": "hidden_size",
  "heads": "num_attention_heads",
  "kv_heads": "num_key_value_heads",
  "head_dim": "head_dim",
  "num_layers": "num_hidden_layers",
  "ff_dim": "intermediate_size",
  "eps": "rms_norm_eps",
  "tied": "tie_word_embeddings",
}
ENCODER = {
  "vocab_size": "vocab_size",
  "dim": "hidden_size",
  "heads": "num_attention_heads",
  "num_layers": "num_hidden_layers",
  "ff_dim": "intermediate_size",
  "eps": "layer_norm_eps",
  "activation": "hidden_act",
}
BART = {
  "vocab_size": "vocab_size",
  "context": "max_position_embeddings",
  "dim": "d_model",
  "encoder_heads": "encoder_attention_heads",
  "decoder_heads": "decoder_attention_heads",
  "encoder_ff_dim": "encoder_ffn_dim",
  "decoder_ff_dim": "decoder_ffn_dim",
  "encoder_layers": "encoder_layers",
  "decoder_layers": "decoder_layers",
  "scale_embedding": "scale_embedding",
  "activation": "activation_function",
}
ATTRIBUTES = {
  "gpt2": DECODER,
  "openai-gpt": DECODER | {"activation": "afn"},
  "llama": LLAMA,
  "mistral": LLAMA | {"window": "sliding_window"},
  "mixtral": LLAMA
  | {
    "window": "sliding_window",
    "experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
  },
  "qwen2": LLAMA,
  "qwen3": LLAMA,
  "smollm3": LLAMA,
  "gpt_neox": ENCODER | {"context": "max_position_embeddings", "tied": "tie_word_embeddings"},
  "bert": ENCODER | {"context": "max_position_embeddings", "segments": "type_vocab_size"},
  "distilbert": {
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "dim": "dim",
    "heads": "n_heads",
    "num_layers": "n_layers",
    "ff_dim": "hidden_dim",
    "activation": "activation",
  },
  "roberta": ENCODER | {"segments": "type_vocab_size", "padding_id": "pad_token_id"},
  "deberta-v2": ENCODER | {"context": "max_position_embeddings"},
  "vit": {name: ENCODER[name] for name in ENCODER if name != "vocab_size"}
  | {"channels": "num_channels"},
  "t5": {
    "vocab_size": "vocab_size",
    "dim": "d_model",
    "heads": "num_heads",
    "head_dim": "d_kv",
    "ff_dim": "d_ff",
    "encoder_layers": "num_layers",
    "decoder_layers": "num_decoder_layers",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "eps": "layer_norm_epsilon",
    "gated": "feed_forward_proj",
  },
  "bart": BART,
  "marian": BART,
}
# Other types that are one of these architectures.
ATTRIBUTES |= {"camembert": ATTRIBUTES["roberta"], "xlm-roberta": ATTRIBUTES["roberta"]}
ATTRIBUTES |= {"mt5": ATTRIBUTES["t5"]}


def read_model(folder: Path) -> dict[str, Any]:
  """Load a model, and return the fields of its config that Hugging Face's has too."""
  from layers.parts import PLAIN
  from tinyformer import checkpoints

  config = checkpoints.load_module(folder, parts=PLAIN).config
  kind = checkpoints.read_config(folder).text("model_type")
  values = {name: getattr(config, name) for name in ATTRIBUTES.get(kind, {})}
  values["model_type"] = kind
  labels = getattr(config, "labels", ()) or getattr(getattr(config, "head", None), "labels", ())
  if labels:
    values["labels"] = list(labels)
  if "rope_theta" in vars(config):
    values["rope_theta"] = config.rope_theta
  return values


def reference_config(folder: Path, ours: dict[str, Any]) -> dict[str, Any]:
  import transformers

  from models.hf_config import ACTIVATION_NAMES

  config = transformers.AutoConfig.from_pretrained(folder)
  names = ATTRIBUTES.get(config.model_type, {})
  values = {name: getattr(config, attribute, None) for name, attribute in names.items()}
  values["model_type"] = config.model_type
  if values.get("head_dim", 1) is None:
    values["head_dim"] = config.hidden_size // config.num_attention_heads
  if values.get("activation") == "gelu" and config.model_type == "openai-gpt":
    values["activation"] = "gelu_new"
  if "activation" in values:
    values["activation"] = ACTIVATION_NAMES[values["activation"]]
  if "gated" in values:
    values["gated"] = values["gated"].startswith("gated-")
  if "scale_embedding" in values:
    values["scale_embedding"] = bool(values["scale_embedding"])
  if "labels" in ours:
    values["labels"] = [config.id2label[i] for i in sorted(config.id2label)]
  if "rope_theta" in ours:
    values["rope_theta"] = config.rope_parameters["rope_theta"]
    if values["rope_theta"] is None:
      raise ValueError("transformers cannot construct this model")
  return values


def config_target(name: str) -> Target:
  return Target(
    f"config {name}",
    lambda: fixture(name, "config.json", "model.safetensors"),
    {"config.json": damage_json},
    read_model,
    reference_config,
  )


@functools.cache
def gguf_file(name: str) -> dict[str, bytes]:
  """Return a fixture as a GGUF file."""
  import tempfile

  import gguf_files

  with tempfile.TemporaryDirectory() as folder:
    path = gguf_files.folder_to_gguf(FIXTURES / name, Path(folder) / "model.gguf")
    return {"model.gguf": path.read_bytes()}


def read_gguf_model(folder: Path) -> dict[str, Any]:
  from layers.parts import PLAIN
  from tinyformer import checkpoints

  return vars(checkpoints.load_module(folder / "model.gguf", parts=PLAIN).config)


@functools.cache
def gguf_tokenizer_file() -> dict[str, bytes]:
  """Return a GGUF file with the tokenizer of weights/tiny and no tensors."""
  import tempfile

  import gguf_files

  metadata = gguf_files.bpe_metadata(TESTS.parent / "weights" / "tiny")
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.gguf"
    gguf_files.write_gguf(path, {"general.architecture": "gpt2"} | metadata, {})
    return {"model.gguf": path.read_bytes()}


def read_gguf_tokenizer(folder: Path) -> list[int]:
  from tinyformer import checkpoints
  from tinyformer.tokenization import load_tokenizer

  path = folder / "model.gguf"
  tokenizer = load_tokenizer(path, contents=checkpoints.tokenizer_contents(path))
  return tokenizer.encode(TEXT)


GENERATION = {
  "decoder_start_token_id": 0,
  "eos_token_id": 1,
  "forced_bos_token_id": 2,
  "forced_eos_token_id": 1,
  "max_length": 20,
  "min_length": 2,
  "num_beams": 4,
  "length_penalty": 2.0,
  "early_stopping": True,
  "no_repeat_ngram_size": 3,
  "bad_words_ids": [[3, 4], [5]],
  "renormalize_logits": True,
  "do_sample": False,
  "repetition_penalty": 1.0,
}


def read_generation(folder: Path) -> dict[str, Any]:
  from tinyformer.generation import GenerationConfig, process_logits

  config = GenerationConfig.read(folder, 9)
  for length in (1, 5):
    process_logits(
      np.zeros(9), [config.decoder_start_token_id] * length, config.logits_processors(7)
    )
  return config._asdict()


def reference_generation(folder: Path, ours: dict[str, Any]) -> dict[str, Any]:
  import transformers

  config = transformers.GenerationConfig.from_pretrained(folder)
  values = {name: getattr(config, name, None) for name in ours}
  defaults = {"bad_words_ids": (), "min_length": 0, "no_repeat_ngram_size": 0}
  defaults |= {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False}
  defaults |= {"renormalize_logits": False}
  for name, default in defaults.items():
    if values[name] is None:
      values[name] = default
  if values["decoder_start_token_id"] is None:
    values["decoder_start_token_id"] = config.bos_token_id
  for bound in ("min", "max"):
    if (new := getattr(config, f"{bound}_new_tokens", None)) is not None:
      values[f"{bound}_length"] = new + 1
  # max_length 0 is no limit here, and min_length 0 there.
  values["max_length"] = values["max_length"] or None
  return values


# **************** pictures ****************


def picture(kind: str) -> bytes:
  from PIL import Image

  levels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(levels).save(buffer, kind)
  return buffer.getvalue()


def read_picture(folder: Path) -> tuple:
  from tinyformer.vision import image_processor

  image = image_processor.read(folder / "picture")
  return image_processor.Preprocessor({})(image).shape, image.size


def picture_target(kind: str) -> Target:
  files = functools.cache(lambda: {"picture": picture(kind)})
  return Target(f"picture {kind}", files, {"picture": damage_bytes}, read_picture)


PREPROCESSOR = {
  "image_processor_type": "ViTImageProcessor",
  "do_resize": True,
  "size": {"height": 12, "width": 10},
  "resample": 2,
  "do_rescale": True,
  "rescale_factor": 1 / 255,
  "do_normalize": True,
  "image_mean": [0.5, 0.4, 0.3],
  "image_std": [0.5, 0.6, 0.7],
}


def sample_image():
  from PIL import Image

  levels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
  return Image.fromarray(levels)


def read_preprocessor(folder: Path) -> list:
  from tinyformer.vision.image_processor import Preprocessor

  return rounded(Preprocessor.load(folder)(sample_image()))


def rounded(pixels: np.ndarray) -> list:
  """Return pixels rounded to five digits, with their shape. Hugging Face may return integers."""
  pixels = pixels.astype(np.float64)
  scale = np.abs(pixels).max() or 1
  return [pixels.shape, np.round(pixels / scale, 5).tolist()]


def reference_preprocessor(folder: Path, _) -> list:
  from transformers import ViTImageProcessorPil

  processor = ViTImageProcessorPil.from_pretrained(folder)
  return rounded(processor(sample_image(), return_tensors="np")["pixel_values"])


# **************** tokenizers ****************


def read_tokenizer(folder: Path) -> list[int]:
  from tinyformer.tokenization import load_tokenizer

  tokenizer = load_tokenizer(folder)
  ids = tokenizer.encode(TEXT, list(tokenizer.specials))
  tokenizer.decode(ids)
  return ids


def reference_tokenizer(folder: Path, _) -> list[int]:
  from tokenizers import Tokenizer

  tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
  return tokenizer.encode(TEXT, add_special_tokens=False).ids


def special_token(i: int, content: str) -> dict[str, Any]:
  flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
  return {"id": i, "content": content, **flags, "special": True}


@functools.cache
def bpe_files() -> dict[str, bytes]:
  """Return vocab.json and merges.txt of a byte-level BPE."""
  import tempfile

  from tinyformer.tokenization.byte_level_bpe import BytePairEncoding

  with tempfile.TemporaryDirectory() as folder:
    BytePairEncoding.train(["the cat ate the mats at the end. "] * 3, 270).save(folder)
    return {name: (Path(folder) / name).read_bytes() for name in ("vocab.json", "merges.txt")}


def byte_level_json() -> dict[str, Any]:
  vocab = json.loads(bpe_files()["vocab.json"])
  merges = bpe_files()["merges.txt"].decode().split("\n")[1:-1]
  byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
  byte_level["use_regex"] = True
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [special_token(vocab["<|endoftext|>"], "<|endoftext|>")],
    "normalizer": None,
    "pre_tokenizer": byte_level,
    "post_processor": byte_level,
    "decoder": byte_level,
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": None,
      "continuing_subword_prefix": "",
      "end_of_word_suffix": "",
      "fuse_unk": False,
      "byte_fallback": False,
      "ignore_merges": False,
      "vocab": vocab,
      "merges": merges,
    },
  }


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "mat", ",", "!", "12"]
WORDS += ["na", "##ive", "中", "国", "end", "t", "##h", "##e"]


def wordpiece_json() -> dict[str, Any]:
  vocab = {word: i for i, word in enumerate(WORDS)}
  part = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
  end = {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
  a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
  tokens = {
    word: {"id": word, "ids": [vocab[word]], "tokens": [word]} for word in ("[CLS]", "[SEP]")
  }
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [special_token(i, word) for i, word in enumerate(WORDS[:5])],
    "normalizer": {
      "type": "BertNormalizer",
      "clean_text": True,
      "handle_chinese_chars": True,
      "strip_accents": None,
      "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
      "type": "TemplateProcessing",
      "single": [part, a, end],
      "pair": [part, a, end, b, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
      "special_tokens": tokens,
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
      "type": "WordPiece",
      "unk_token": "[UNK]",
      "continuing_subword_prefix": "##",
      "max_input_chars_per_word": 100,
      "vocab": vocab,
    },
  }


PIECES = ["<pad>", "</s>", "<unk>", "▁", "▁the", "▁cat", "t", "h", "e", "mat", "s", ",", "1", "2"]


def unigram_json() -> dict[str, Any]:
  metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [special_token(i, piece) for i, piece in enumerate(PIECES[:3])],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}]},
    "pre_tokenizer": metaspace,
    "post_processor": None,
    "decoder": metaspace,
    "model": {
      "type": "Unigram",
      "unk_id": 2,
      "vocab": [[piece, -i / 2] for i, piece in enumerate(PIECES)],
      "byte_fallback": False,
    },
  }


def json_file(name: str, make: Callable[[], Any]) -> Callable[[], dict[str, bytes]]:
  return functools.cache(lambda: {name: json.dumps(make()).encode()})


def tokenizer_target(name: str, make: Callable[[], Any]) -> Target:
  return Target(
    f"tokenizer.json {name}",
    json_file("tokenizer.json", make),
    {"tokenizer.json": damage_json},
    read_tokenizer,
    reference_tokenizer,
  )


def bpe_with_settings() -> dict[str, bytes]:
  """Return a byte-level BPE with the files that name its special tokens."""
  token = {"content": "<|endoftext|>", "lstrip": False, "normalized": True}
  settings = {
    "bos_token": "<|endoftext|>",
    "eos_token": token,
    "unk_token": "<|endoftext|>",
    "model_max_length": 1024,
    "add_bos_token": False,
    "added_tokens_decoder": {"269": token | {"rstrip": False, "special": True}},
    "clean_up_tokenization_spaces": False,
  }
  special = {"bos_token": "<|endoftext|>", "eos_token": token}
  return bpe_files() | {
    "tokenizer_config.json": json.dumps(settings).encode(),
    "special_tokens_map.json": json.dumps(special).encode(),
  }


def spiece_files(name: str) -> dict[str, bytes]:
  """Return a spiece.model that the tests of SentencePiece write."""
  import test_sentencepiece

  return {"spiece.model": getattr(test_sentencepiece, name)}


def reference_spiece(folder: Path, _) -> list[int]:
  import sentencepiece

  processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
  return processor.encode(TEXT)


# **************** our own files ****************

LOG = b"step,tokens,train_loss,val_loss,bits_per_byte,seconds\n"
LOG += b"".join(b"%d,%d,5.1234,5.2345,2.3456,%d\n" % (i, 2048 * i, i) for i in range(0, 900, 100))


def read_log_file(folder: Path) -> tuple:
  from tinyformer.training import log, plot_loss

  lines = log.read_log(folder / "log.csv", 10**9)
  steps, train_losses, val_losses = log.parse_losses(lines, folder / "log.csv")
  if steps:
    plot_loss.terminal_plot(steps, val_losses)
  return steps, train_losses, val_losses


def step_files() -> dict[str, bytes]:
  from tinyformer.kernels import step_cache
  from tinyformer.kernels.graph_runner import Recording

  commands = [(0, 2, [("input", 0, 0), ("workspace", 0, 64)]), (1, 1, [("result", 0, 0)])]
  recording = Recording(
    [("E_1", b"\xc3" * 9), ("r_2", b"\x90\xc3")], commands, 128, (0, 0, (2, 3), "float")
  )
  data = step_cache.to_bytes(recording)
  return {"step": hashlib.sha256(data).digest() + data}


def read_step(folder: Path) -> Any:
  """Read a compiled step. Its digest refuses every change."""
  from tinyformer.kernels import step_cache

  folder.chmod(0o700)
  (folder / "step").chmod(0o600)
  data = step_cache.load(folder / "step")
  if data is None:
    raise ValueError("the compiled step is ignored")
  return step_cache.from_bytes(data)


def reference_step(folder: Path, _) -> Any:
  from tinyformer.kernels import step_cache

  return step_cache.from_bytes(step_files()["step"][step_cache.DIGEST_BYTES :])


# **************** sentence-transformers ****************

SENTENCE_FILES: dict[str, Any] = {
  "modules.json": [
    {"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
    for i, kind in enumerate(("Transformer", "Pooling", "Dense", "Normalize"))
  ],
  "1_Pooling/config.json": {"pooling_mode": ["cls", "mean"], "include_prompt": False},
  "2_Dense/config.json": {"bias": True, "activation_function": "torch.nn.modules.linear.Identity"},
  "sentence_bert_config.json": {"max_seq_length": 9, "do_lower_case": True},
  "config_sentence_transformers.json": {
    "prompts": {"query": "find: "},
    "default_prompt_name": "query",
  },
}


@functools.cache
def sentence_files() -> dict[str, bytes]:
  """Return the settings of a sentence-transformers model, and the weights of its dense layer."""
  import tempfile

  from tinyformer.checkpoints import safetensors

  files = {name: json.dumps(content).encode() for name, content in SENTENCE_FILES.items()}
  arrays = {"linear.weight": np.ones((3, 8), np.float32), "linear.bias": np.ones(3, np.float32)}
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.safetensors"
    safetensors.write_safetensors(path, arrays)
    files["2_Dense/model.safetensors"] = path.read_bytes()
  return files


def read_sentence_settings(folder: Path) -> list[Any]:
  """Embed hidden states with the settings of a folder."""
  from tinyformer.checkpoints.sentence_modules import read_sentence_config
  from tinyformer.tasks.embedding import find_prompt, pool

  config = read_sentence_config(folder)
  hidden = np.arange(12, dtype=np.float32).reshape(3, 4)
  return [config.max_length, find_prompt(config, None), pool(hidden, config).tolist()]


def make_targets() -> dict[str, Target]:
  targets = [
    Target(
      "safetensors",
      weights_files,
      {"model.safetensors": damage_safetensors},
      read_tensors,
      reference_tensors,
    ),
    Target(
      "index",
      shard_files,
      {"model.safetensors.index.json": damage_json},
      read_tensors,
      reference_shards,
    ),
    *(config_target(path.parent.name) for path in sorted(FIXTURES.glob("*/config.json"))),
    *(
      Target(
        f"gguf {name}",
        functools.partial(gguf_file, name),
        {"model.gguf": damage_header},
        read_gguf_model,
      )
      for name in ("gpt2-a", "mistral-a", "bert-a")
    ),
    Target(
      "gguf tokenizer", gguf_tokenizer_file, {"model.gguf": damage_header}, read_gguf_tokenizer
    ),
    Target(
      "generation_config",
      json_file("generation_config.json", lambda: GENERATION),
      {"generation_config.json": damage_json},
      read_generation,
      reference_generation,
    ),
    Target(
      "preprocessor_config",
      json_file("preprocessor_config.json", lambda: PREPROCESSOR),
      {"preprocessor_config.json": damage_json},
      read_preprocessor,
      reference_preprocessor,
    ),
    picture_target("png"),
    picture_target("jpeg"),
    tokenizer_target("byte-level", byte_level_json),
    tokenizer_target("wordpiece", wordpiece_json),
    tokenizer_target("unigram", unigram_json),
    Target(
      "vocab.json, merges.txt",
      bpe_with_settings,
      {"vocab.json": damage_json, "merges.txt": damage_lines},
      read_tokenizer,
    ),
    Target(
      "tokenizer settings",
      bpe_with_settings,
      {"tokenizer_config.json": damage_json, "special_tokens_map.json": damage_json},
      read_tokenizer,
    ),
    Target(
      "vocab.txt",
      lambda: {"vocab.txt": "\n".join(WORDS).encode()},
      {"vocab.txt": damage_lines},
      read_tokenizer,
    ),
    Target(
      "spiece.model bpe",
      lambda: spiece_files("LLAMA"),
      {"spiece.model": damage_bytes},
      read_tokenizer,
      reference_spiece,
    ),
    Target(
      "spiece.model unigram",
      lambda: spiece_files("T5"),
      {"spiece.model": damage_bytes},
      read_tokenizer,
      reference_spiece,
    ),
    Target(
      "sentence-transformers",
      sentence_files,
      {name: damage_json for name in SENTENCE_FILES}
      | {"2_Dense/model.safetensors": damage_safetensors},
      read_sentence_settings,
    ),
    Target("log.csv", lambda: {"log.csv": LOG}, {"log.csv": damage_lines}, read_log_file),
    Target("compiled step", step_files, {"step": damage_bytes}, read_step, reference_step),
  ]
  return {target.name: target for target in targets}


TARGETS = make_targets()
