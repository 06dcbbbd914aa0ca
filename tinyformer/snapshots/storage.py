"""The files of snapshots, in a folder that only the user can read. Each is written atomically.

Whoever can write to these files can run code as the user, so files that others could have written
are ignored. They contain JSON, machine code and arrays, and no pickles.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyformer.device import cache_folder
from tinyformer.files import atomic_write
from tinyformer.kernels.step_cache import OPEN_FLAGS, open_private

DIGEST_BYTES = 32
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 1 << 24
# Arrays begin at multiples of this number of bytes, as the kernels expect.
ALIGNMENT = 64
MAX_FILES = 64
# A checksum of arrays has a sum of 64-bit words for each block of this number of bytes.
BLOCK_BYTES = 4096
CHECK_INTERVAL = 86_400  # seconds between two checks of a file with arrays
# The size of all snapshots together, unless TINYFORMER_SNAPSHOT_GB sets another limit.
DEFAULT_GB = 4.0


def folder() -> Path:
  """Return the folder of all snapshots. Raises OSError if the user has no home directory."""
  return cache_folder() / "snapshots"


def max_bytes() -> int:
  """Return the limit on the size of all snapshots together. It is 0 if the variable is invalid."""
  try:
    return int(float(os.environ.get("TINYFORMER_SNAPSHOT_GB") or DEFAULT_GB) * 1e9)
  except (ValueError, OverflowError):
    return 0


def pack(header: Any, parts: Sequence[bytes]) -> bytes:
  """Return a header and parts as one sequence of bytes, protected by a digest."""
  text = json.dumps([header, [len(part) for part in parts]]).encode()
  payload = len(text).to_bytes(LENGTH_BYTES, "little") + text + b"".join(parts)
  return hashlib.sha256(payload).digest() + payload


def unpack(data: bytes) -> tuple[Any, list[bytes]]:
  """Return what `pack` was given. Raises ValueError if the data are damaged."""
  if hashlib.sha256(data[DIGEST_BYTES:]).digest() != data[:DIGEST_BYTES]:
    raise ValueError("the digest does not match")
  begin = DIGEST_BYTES + LENGTH_BYTES
  end = begin + int.from_bytes(data[DIGEST_BYTES:begin], "little")
  header, lengths = json.loads(data[begin:end])
  parts = []
  for length in lengths:
    parts.append(data[end : end + length])
    end += length
  return header, parts


def read(file: Path) -> bytes:
  """Return the contents of a private file. Raises OSError if there is none."""
  with open_private(file) as f:
    return f.read()


def write(file: Path, chunks: Iterable[Any]) -> None:
  """Write a private file atomically. Raises OSError if that is impossible."""
  file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
  file.parent.chmod(0o700)
  flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS
  with atomic_write(file) as part:
    part.unlink(missing_ok=True)
    with open(os.open(part, flags, 0o600), "wb") as f:
      for chunk in chunks:
        f.write(chunk)


def write_arrays(file: Path, identity: Any, arrays: dict[str, np.ndarray]) -> None:
  """Write arrays to a private file, so that `map_arrays` can map them without a copy.

  Raises OSError if they do not fit into the limit, on the disk, or into the folder.
  """
  size = sum(array.nbytes + ALIGNMENT for array in arrays.values()) + MAX_HEADER_BYTES
  file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
  if size > min(max_bytes(), shutil.disk_usage(file.parent).free // 2):
    raise OSError("the arrays do not fit")
  table = {}
  offset = 0
  for name, array in arrays.items():
    table[name] = [array.dtype.str, list(array.shape), offset]
    offset += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
  text = json.dumps([identity, table, checksum(identity, table, arrays)]).encode()
  start = LENGTH_BYTES + len(text)
  chunks: list[Any] = [len(text).to_bytes(LENGTH_BYTES, "little"), text, bytes(-start % ALIGNMENT)]
  for array in arrays.values():
    chunks += [np.ascontiguousarray(array).data, bytes(-array.nbytes % ALIGNMENT)]
  write(file, chunks)


def map_arrays(file: Path, identity: Any) -> dict[str, np.ndarray]:
  """Return the arrays in a private file, mapped into memory.

  The operating system reads a page of the file when it is first used. Writing to an array does not
  change the file. Raises OSError if there is no such file, and ValueError if it is of another
  identity, incomplete or, if a check is due, damaged.
  """
  with open_private(file) as f:
    length = int.from_bytes(f.read(LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
      raise ValueError("the header is too long")
    saved, table, expected = json.loads(f.read(length))
    if saved != identity:
      raise ValueError("the weights are those of other files")
    memory = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
    is_due = check_is_due(os.fstat(f.fileno()).st_mtime)
  start = -(-(LENGTH_BYTES + length) // ALIGNMENT) * ALIGNMENT
  arrays = {}
  for name, (dtype, shape, offset) in table.items():
    count = int(np.prod(shape))
    arrays[name] = np.frombuffer(memory, dtype, count, start + offset).reshape(shape)
  if is_due:
    if checksum(identity, table, arrays) != expected:
      raise ValueError("the checksum does not match")
    with contextlib.suppress(OSError):
      os.utime(file)
  return arrays


def checksum(identity: Any, table: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
  """Return a checksum of arrays and of what describes them.

  One wrong byte always changes it, and so do, but for a coincidence, blocks that are missing or
  misplaced. The arrays are not hashed: sums take a fortieth of the time of SHA-256.
  """
  result = hashlib.sha256(json.dumps([identity, table]).encode())
  for array in arrays.values():
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    end = len(data) // BLOCK_BYTES * BLOCK_BYTES
    blocks = data[:end].view(np.uint64).reshape(-1, BLOCK_BYTES // 8)
    result.update(blocks.sum(1))
    result.update(data[end:].tobytes())
  return result.hexdigest()


def check_is_due(checked: float) -> bool:
  """Return whether a file must be checked: each day, and after the system has been started.

  checked: the time of modification, which is that of the last check.
  """
  now = time.time()
  start = now - time.clock_gettime(time.CLOCK_BOOTTIME)
  return not max(start, now - CHECK_INTERVAL) < checked <= now


def touch(file: Path) -> None:
  """Note the time of use, so that other files are deleted before this one."""
  with contextlib.suppress(OSError):
    os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))


def delete_oldest() -> None:
  """Delete the files that have not been used for longest, until the limits are kept."""
  with contextlib.suppress(OSError):
    files = [(p.stat(), p) for p in folder().iterdir()]
    newest_first = sorted(
      files, key=lambda item: max(item[0].st_atime_ns, item[0].st_mtime_ns), reverse=True
    )
    total = 0
    for n, (status, path) in enumerate(newest_first):
      total += status.st_size
      if total > max_bytes() or n >= MAX_FILES:
        path.unlink()
