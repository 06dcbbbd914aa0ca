"""experiments/digits.py: idx files, the split of MNIST and random shifts."""

import gzip
import re
import struct

import numpy as np
import pytest

from experiments.digits import find_split, load_digits, read_idx, shift_images
from tinyformer import cli


def idx_bytes(array: np.ndarray, type_code: int = 8) -> bytes:
  header = bytes([0, 0, type_code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
  return header + array.tobytes()


def write_split(folder, count: int, split: str = "t10k", compressed: bool = True):
  """Write MNIST's files of a split; every pixel of image n is n % 251 and its label is n % 10."""
  values = (np.arange(count) % 251).astype(np.uint8)
  images = np.broadcast_to(values[:, None, None], (count, 28, 28))
  labels = (np.arange(count) % 10).astype(np.uint8)
  for name, array in (("images-idx3", images), ("labels-idx1", labels)):
    data = idx_bytes(np.ascontiguousarray(array))
    path = folder / f"{split}-{name}-ubyte{'.gz' * compressed}"
    path.write_bytes(gzip.compress(data, 1) if compressed else data)
  return folder


@pytest.mark.parametrize(
  "type_code, dtype", [(8, ">u1"), (9, ">i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")]
)
def test_idx_files_are_read_with_and_without_gzip(tmp_path, type_code, dtype):
  array = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)
  data = idx_bytes(array, type_code)
  for name, content in (("plain", data), ("compressed.gz", gzip.compress(data))):
    (tmp_path / name).write_bytes(content)
    assert (read_idx(tmp_path / name) == array).all()


VALID = idx_bytes(np.zeros((3, 28, 28), np.uint8))


@pytest.mark.parametrize(
  "data, message",
  [
    (b"", "is not an idx file: it begins with the bytes"),
    (b"\0\0\x08", "is not an idx file"),
    (b"\0\0\x08\x03\0\0", "is not an idx file"),
    (b"PK" + VALID[2:], "is not an idx file: it begins with the bytes 50 4b 08 03"),
    (b"\0\0\x07\x01\0\0\0\0", "is not an idx file"),
    (VALID[:-1], "has 2,367 bytes, but an idx file of shape 3 x 28 x 28 has 2,368"),
    (VALID + b"\0", "has 2,369 bytes"),
    (b"\0\0\x08\x02" + b"\xff" * 8, "of shape 4294967295 x 4294967295 has"),
    (gzip.compress(VALID)[:-9], "is not a complete gzip file"),
    (b"\x1f\x8b\x08 and no more", "is not a complete gzip file"),
  ],
  ids=[
    "empty",
    "truncated magic number",
    "truncated shape",
    "zip file",
    "unknown type code",
    "one byte missing",
    "one byte extra",
    "huge shape",
    "truncated gzip",
    "invalid gzip",
  ],
)
def test_an_invalid_idx_file_raises_an_error_that_names_it(tmp_path, data, message):
  (tmp_path / "t10k-images-idx3-ubyte").write_bytes(data)
  with pytest.raises(ValueError, match=re.escape(message)) as e:
    read_idx(tmp_path / "t10k-images-idx3-ubyte")
  assert "t10k-images-idx3-ubyte" in str(e.value)
  assert "\n" not in str(e.value)


def test_a_number_of_labels_that_differs_from_the_images_is_an_error(tmp_path):
  write_split(tmp_path, 20)
  labels = gzip.compress(idx_bytes(np.zeros(19, np.uint8)))
  (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(labels)
  with pytest.raises(ValueError, match="do not contain 28 x 28 images with one label"):
    find_split(tmp_path, "t10k")


def test_without_training_files_the_test_images_are_split_nine_to_one_and_disjoint(
  tmp_path, capsys
):
  images, labels, test_images, test_labels = load_digits(write_split(tmp_path, 250), False)
  train, test = images[:, 0, 0].tolist(), test_images[:, 0, 0].tolist()
  assert sorted(train + test) == list(range(250))
  assert len(train) == 225
  assert [n % 10 for n in train + test] == [*labels, *test_labels]
  assert "training on 225 of the 250 test images" in capsys.readouterr().err
  assert (load_digits(tmp_path, False)[0] == images).all()


def test_with_training_files_all_test_images_are_the_test_set(tmp_path):
  write_split(tmp_path, 30, "train", False)
  images, _, test_images, _ = load_digits(write_split(tmp_path, 20), False)
  assert (len(images), len(test_images)) == (30, 20)


def test_an_empty_folder_raises_an_error_that_names_the_expected_files(tmp_path):
  with pytest.raises(cli.UsageError, match=r"t10k-images-idx3-ubyte.*--download"):
    load_digits(tmp_path, False)


def test_shifts_move_images_in_all_25_directions_and_fill_with_zeros():
  images = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5).repeat(400, 0)
  shifted = shift_images(images, np.random.default_rng(0))
  expected = set()
  for dy in range(-2, 3):
    for dx in range(-2, 3):
      frame = np.zeros((9, 9), np.uint8)
      frame[2 + dy : 7 + dy, 2 + dx : 7 + dx] = images[0]
      expected.add(frame[2:7, 2:7].tobytes())
  assert {image.tobytes() for image in shifted} == expected
  assert len(expected) == 25
