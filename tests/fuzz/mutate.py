"""Damage files: bytes, JSON values, the header of safetensors, and lines of text."""

import json
import random
from collections.abc import Callable
from typing import Any

# Bytes that parsers treat specially, or that are no UTF-8.
INTERESTING_BYTES = [b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\n", b"\r", b'"', b"{", b"[", b","]
INTERESTING_BYTES += [b"\xef\xbb\xbf", b"\x1b[31m", b"\xff" * 8, b"\0" * 8, b"\x80" * 10]
INTERESTING_VALUES: list[Any] = [
  *(None, True, False, "", "x", "0", "1", "true", "\0", "\ud800", "\x1b[31m", "a\nb"),
  *(0, 1, -1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, 2**63, 10**6, 10**9, 10**12, 10**30),
  *(0.0, 0.5, 1.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf")),
  *([], [[]], {}, [0], [1, 2], [None], ["a"], {"a": 1}, {"": {}}, {"type": "x"}),
]


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
  """Flip, overwrite, delete, insert, repeat or truncate bytes, one to four times."""
  for _ in range(rng.choice([1, 1, 1, 2, 4])):
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice([1, 1, 2, 8, 100]))
    kind = rng.randrange(7)
    if kind == 0 and data:
      start = min(start, len(data) - 1)
      data = data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 :]
    elif kind == 1:
      data = data[:start] + rng.randbytes(end - start) + data[end:]
    elif kind == 2:
      data = data[:start] + data[end:]
    elif kind == 3:
      data = data[:start] + rng.choice(INTERESTING_BYTES) + data[start:]
    elif kind == 4:
      data = data[:end] + data[start:end] * rng.choice([1, 2, 50]) + data[end:]
    elif kind == 5:
      data = data[:start]
    else:
      other = rng.randrange(len(data) + 1)
      data = data[:start] + data[other : other + end - start] + data[end:]
  return data


def damage_lines(data: bytes, rng: random.Random) -> bytes:
  """Delete, repeat, swap, empty or lengthen lines, or damage the bytes."""
  if rng.random() < 0.4:
    return damage_bytes(data, rng)
  lines = data.split(b"\n")
  i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
  kind = rng.randrange(6)
  if kind == 0:
    del lines[i]
  elif kind == 1:
    lines.insert(j, lines[i])
  elif kind == 2:
    lines[i], lines[j] = lines[j], lines[i]
  elif kind == 3:
    lines[i] = rng.choice(INTERESTING_BYTES)
  elif kind == 4:
    lines[i] = lines[i] * rng.choice([2, 1000, 100_000])
  else:
    lines[i] = lines[i].replace(b" ", rng.choice([b"", b"  ", b"\t"]), 1) + lines[j]
  return b"\n".join(lines)


def paths(value: Any, prefix: tuple = ()) -> list[tuple]:
  """Return the path of every value in a JSON value: keys and indices from the root."""
  found = [prefix]
  items: Any = ()
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, list):
    items = enumerate(value)
  for key, child in items:
    found += paths(child, (*prefix, key))
  return found


def deep(depth: int) -> Any:
  """Return a list of lists of this depth."""
  value: Any = []
  for _ in range(depth):
    value = [value]
  return value


def new_value(old: Any, rng: random.Random) -> Any:
  """Return a value to replace `old`: of another type, extreme, close to it, or huge."""
  kind = rng.random()
  if kind < 0.45:
    return rng.choice(INTERESTING_VALUES)
  if kind < 0.55:
    return rng.choice([deep(200), "x" * 100_000, [0] * 10_000, {str(i): i for i in range(10_000)}])
  if type(old) in (int, float):
    return rng.choice([old + 1, old - 1, -old, old * 2, old * 1000, old / 2, str(old), [old]])
  if isinstance(old, str):
    return rng.choice([old + "x", old.upper(), old[:-1], old * 2, [old], {"content": old}])
  if isinstance(old, list):
    return rng.choice(
      [old * 2, old[:1], old[1:], old[::-1], {str(i): v for i, v in enumerate(old)}]
    )
  if isinstance(old, dict):
    return rng.choice([list(old), list(old.values()), dict(list(old.items())[1:])])
  return rng.choice([not old, str(old), [old]])


def damage_value(root: Any, rng: random.Random) -> Any:
  """Replace, delete, rename or copy a value at a random path of a JSON value. Changes root."""
  candidates = paths(root)[1:]
  if not candidates:
    return new_value(root, rng)
  # Prefer values near the root: a vocabulary would otherwise take nearly all cases.
  depth = rng.randint(1, max(map(len, candidates)))
  path = rng.choice([p for p in candidates if len(p) <= depth])
  parent = root
  for key in path[:-1]:
    parent = parent[key]
  last = path[-1]
  kind = rng.random()
  if kind < 0.6:
    parent[last] = new_value(parent[last], rng)
  elif kind < 0.75:
    del parent[last]
  elif isinstance(parent, dict):
    value = parent[last] if kind < 0.85 else parent.pop(last)
    parent[rng.choice(["", "x", str(last).upper(), *map(str, list(parent)[:9])])] = value
  else:
    parent.insert(rng.randrange(len(parent) + 1), parent[last])
  return root


def duplicate_key(text: str, rng: random.Random) -> str:
  """Repeat the first key of an object's text with another value."""
  end = text.rfind("}")
  keys = list(json.loads(text))
  if end < 0 or not keys:
    return text
  value = json.dumps(rng.choice(INTERESTING_VALUES))
  return f"{text[:end]}, {json.dumps(rng.choice(keys))}: {value}{text[end:]}"


def damage_json(data: bytes, rng: random.Random) -> bytes:
  """Damage a JSON file: usually its values, otherwise its bytes."""
  kind = rng.random()
  if kind < 0.15:
    return damage_bytes(data, rng)
  if kind < 0.2:
    return duplicate_key(data.decode(), rng).encode(errors="surrogatepass")
  if kind < 0.22:
    return rng.choice([b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b"1" * 10_000, b"{}"])
  value = json.loads(data)
  for _ in range(rng.choice([1, 1, 1, 2, 3])):
    value = damage_value(value, rng)
  return json.dumps(value).encode()


def damage_safetensors(data: bytes, rng: random.Random) -> bytes:
  """Damage the JSON header of a safetensors file and correct its length, or damage the bytes."""
  if rng.random() < 0.3:
    return damage_bytes(data, rng)
  end = 8 + int.from_bytes(data[:8], "little")
  header = damage_json(data[8:end], rng)
  return len(header).to_bytes(8, "little") + header + data[end:]


def damage_header(data: bytes, rng: random.Random) -> bytes:
  """Damage the bytes at the beginning of a binary file, or anywhere."""
  if rng.random() < 0.2:
    return damage_bytes(data, rng)
  end = min(len(data), 2000)
  return damage_bytes(data[:end], rng) + data[end:]


Mutator = Callable[[bytes, random.Random], bytes]
