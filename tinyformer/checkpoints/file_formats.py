"""Check by its contents whether a file of a model can be complete.

A download whose checksum is known needs no such check. Other downloads do: a proxy may answer with
a web page, and a connection may end too early.
"""

import codecs
import json
import re
import reprlib
from pathlib import Path

from tinyformer.files import read_json, read_json_value

# The largest header that the safetensors library accepts.
MAX_HEADER_BYTES = 100_000_000
# The largest file besides the weights. It bounds the memory that parsing takes.
MAX_SMALL_FILE_BYTES = 1 << 26
HTML = re.compile(rb"\s*(<!doctype|<html|<head|<body|<\?xml)", re.I)
# The name of a module's folder, such as 1_Pooling. It is a part of a URL and of a path, and file
# systems allow 255 bytes.
FOLDER_NAME = re.compile(r"\w[\w.-]{,254}", re.ASCII)
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def shows_its_end(name: str) -> bool:
  """Return whether the contents of a file with this name show where the file ends.

  A JSON object ends with a brace, and the header of a safetensors file states the file's size. A
  text file may end after any line.
  """
  return name.endswith((".json", ".safetensors"))


def check(path: Path, name: str) -> None:
  """Raise ValueError if a file does not have the format that `name` implies."""
  check_start(path)
  if name.endswith(".safetensors"):
    check_safetensors_size(path)
  elif name == "modules.json":
    read_module_list(path)
  elif name.endswith(".json"):
    read_json(path, MAX_SMALL_FILE_BYTES)
  elif name.endswith(".txt"):
    check_text(path)
  elif name.endswith((".model", ".spm")):
    check_protobuf(path)


def check_quickly(path: Path) -> None:
  """Raise ValueError if the start, the end or the size of a file shows that it is damaged.

  The time does not depend on the file's size.
  """
  check_start(path)
  if path.name.endswith(".safetensors"):
    check_safetensors_size(path)
  elif path.name.endswith(".json"):
    with open(path, "rb") as f:
      start = f.read(1024).lstrip()
      f.seek(max(0, path.stat().st_size - 1024))
      end = f.read().rstrip()
    if start[:1] + end[-1:] not in (b"{}", b"[]"):
      raise ValueError("it is not a JSON object or array")


def is_web_page(path: Path) -> bool:
  """Return whether a file begins like HTML."""
  with open(path, "rb") as f:
    return HTML.match(f.read(1024).removeprefix(codecs.BOM_UTF8)) is not None


def check_start(path: Path) -> None:
  """Raise ValueError if a file is empty or a web page."""
  if not path.stat().st_size:
    raise ValueError("it is empty")
  if is_web_page(path):
    raise ValueError("it is a web page")


def safetensors_size(start: bytes) -> int | None:
  """Return the size in bytes that the header of a .safetensors file implies.

  start: the first bytes of the file. The result is None if they do not contain the whole header.
  Raises ValueError if the header is invalid.
  """
  if len(start) < 8:
    return None
  length = int.from_bytes(start[:8], "little")
  if length > MAX_HEADER_BYTES:
    raise ValueError(f"it is not a safetensors file: its header would have {length:,} bytes")
  if len(start) < 8 + length:
    return None
  try:
    header = json.loads(start[8 : 8 + length])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + length + max([0, *map(int, ends)])
  except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as e:
    raise ValueError(f"its safetensors header is invalid: {e}") from e


def check_safetensors_size(path: Path) -> None:
  """Raise ValueError if a file is not as long as its header implies."""
  size = path.stat().st_size
  with open(path, "rb") as f:
    start = f.read(8)
    length = int.from_bytes(start, "little")
    start += f.read(min(length, MAX_HEADER_BYTES))
  expected = safetensors_size(start)
  if size != expected:
    whole = "its header" if expected is None else f"{expected:,} bytes"
    raise ValueError(f"it ends after {size:,} bytes, not after {whole}")


def check_text(path: Path) -> None:
  """Raise ValueError if a file is not UTF-8."""
  try:
    path.read_text(encoding="utf-8")
  except UnicodeDecodeError as e:
    raise ValueError(f"it is not UTF-8: {e.reason} at byte {e.start:,}") from e


def check_protobuf(path: Path) -> None:
  """Raise ValueError if a file is not a sequence of whole fields of a protocol buffer.

  Source: https://protobuf.dev/programming-guides/encoding.
  """
  data = path.read_bytes()
  position = 0
  while position < len(data):
    key, position = read_varint(data, position)
    wire_type = key & 7
    if wire_type == VARINT:
      _, position = read_varint(data, position)
    elif wire_type == BYTES:
      length, position = read_varint(data, position)
      position += length
    elif wire_type in (FIXED64, FIXED32):
      position += 8 if wire_type == FIXED64 else 4
    else:
      raise ValueError(f"it is not a SentencePiece model: byte {position - 1:,} starts no field")
  if position > len(data):
    raise ValueError(f"it ends after {len(data):,} bytes, but its last field does not")


def read_varint(data: bytes, position: int) -> tuple[int, int]:
  """Return the variable-length integer at a position, and the position after it."""
  value = 0
  for shift in range(0, 70, 7):
    if position >= len(data):
      raise ValueError(f"it ends after {len(data):,} bytes, in the middle of a number")
    byte = data[position]
    position += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, position
  raise ValueError(f"it is not a SentencePiece model: a number ends after byte {position:,}")


def read_module_list(path: Path) -> list[tuple[str, str]]:
  """Return the folder and the class name of each module in modules.json.

  Raises ValueError if the file has another format, or if a folder is outside the model's.
  """
  modules = read_json_value(path)
  if not isinstance(modules, list):
    raise ValueError(f"{path} must contain a JSON array, not {type(modules).__name__}")
  result = []
  for module in modules:
    folder, kind = (
      (module.get("path"), module.get("type")) if isinstance(module, dict) else (None, None)
    )
    if not isinstance(folder, str) or not isinstance(kind, str):
      raise ValueError(
        f"{path}: a module must have a path and a type, unlike {reprlib.repr(module)}"
      )
    if folder and not FOLDER_NAME.fullmatch(folder):
      raise ValueError(
        f"{path}: the path {reprlib.repr(folder)} of a module is not the name of a folder"
      )
    result.append((folder, kind.rsplit(".", 1)[-1]))
  return result
