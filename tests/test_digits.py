import gzip
import re
import struct

import numpy as np
import pytest

from experiments.digits import digits, find, read_idx, shifted
from tinyformer import cli


def idx(array: np.ndarray, kind: int = 8) -> bytes:
  return (
    bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
  )


def folder_of(folder, count: int, part: str = "t10k", zipped: bool = True):
  """MNIST's files of a part: image n is n % 251 everywhere, its label n % 10."""
  images = np.broadcast_to(
    (np.arange(count) % 251).astype(np.uint8)[:, None, None], (count, 28, 28)
  )
  for name, array in (
    ("images-idx3", images),
    ("labels-idx1", (np.arange(count) % 10).astype(np.uint8)),
  ):
    data = idx(np.ascontiguousarray(array))
    (folder / f"{part}-{name}-ubyte{'.gz' * zipped}").write_bytes(
      gzip.compress(data, 1) if zipped else data
    )
  return folder


@pytest.mark.parametrize(
  "kind, dtype", [(8, ">u1"), (9, ">i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")]
)
def test_an_idx_file_is_read_as_it_was_written_also_gzipped(tmp_path, kind, dtype):
  array = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)
  for name, data in (("plain", idx(array, kind)), ("zipped.gz", gzip.compress(idx(array, kind)))):
    (tmp_path / name).write_bytes(data)
    assert (read_idx(tmp_path / name) == array).all()


whole = idx(np.zeros((3, 28, 28), np.uint8))


@pytest.mark.parametrize(
  "data, told",
  [
    (b"", "no idx file: it begins with"),
    (b"\0\0\x08", "no idx file"),
    (b"\0\0\x08\x03\0\0", "no idx file"),
    (b"PK" + whole[2:], "no idx file: it begins with 50 4b 08 03"),
    (b"\0\0\x07\x01\0\0\0\0", "no idx file"),
    (whole[:-1], "has 2,367 bytes, an idx file of 3 x 28 x 28 has 2,368"),
    (whole + b"\0", "has 2,369 bytes"),
    (b"\0\0\x08\x02" + b"\xff" * 8, "of 4294967295 x 4294967295 has"),
    (gzip.compress(whole)[:-9], "no whole gzip file"),
    (b"\x1f\x8b\x08 and no more", "no whole gzip file"),
  ],
  ids=[
    "empty",
    "a head cut short",
    "sides cut short",
    "a zip file",
    "an unknown type",
    "a byte too few",
    "a byte too many",
    "sides beyond reason",
    "gzip cut short",
    "no gzip",
  ],
)
def test_what_is_no_whole_idx_file_is_refused_with_its_name(tmp_path, data, told):
  (tmp_path / "t10k-images-idx3-ubyte").write_bytes(data)
  with pytest.raises(ValueError, match=re.escape(told)) as e:
    read_idx(tmp_path / "t10k-images-idx3-ubyte")
  assert "t10k-images-idx3-ubyte" in str(e.value) and "\n" not in str(e.value)


def test_files_that_do_not_fit_together_are_refused(tmp_path):
  folder_of(tmp_path, 20)
  (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(19, np.uint8))))
  with pytest.raises(ValueError, match="no digits of 28 by 28 pixels with a label each"):
    find(tmp_path, "t10k")


def test_of_the_test_images_alone_nine_tenths_are_learned_from_and_none_is_both(tmp_path, capsys):
  images, labels, test, wanted = digits(folder_of(tmp_path, 250), False)
  seen, new = images[:, 0, 0].tolist(), test[:, 0, 0].tolist()
  assert sorted(seen + new) == list(range(250)) and len(seen) == 225
  assert [n % 10 for n in seen + new] == [*labels, *wanted]
  assert "225 are learned from" in capsys.readouterr().err
  assert (digits(tmp_path, False)[0] == images).all()


def test_with_the_train_images_there_the_whole_test_is_the_test(tmp_path):
  images, _, test, _ = digits(folder_of(folder_of(tmp_path, 30, "train", False), 20), False)
  assert (len(images), len(test)) == (30, 20)


def test_an_empty_folder_says_what_belongs_there(tmp_path):
  with pytest.raises(cli.Usage, match="t10k-images-idx3-ubyte.*--download"):
    digits(tmp_path, False)


def test_shifts_move_a_picture_and_black_comes_in():
  images = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5).repeat(400, 0)
  moved = shifted(images, np.random.default_rng(0))
  want = set()
  for dy in range(-2, 3):
    for dx in range(-2, 3):
      frame = np.zeros((9, 9), np.uint8)
      frame[2 + dy : 7 + dy, 2 + dx : 7 + dx] = images[0]
      want.add(frame[2:7, 2:7].tobytes())
  assert {m.tobytes() for m in moved} == want and len(want) == 25
