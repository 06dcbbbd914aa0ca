"""Bugs planted in tinyformer/vision; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "mean and deviation swapped",
    "tinyformer/vision/image_processor.py",
    "Preprocessor.__init__",
    '(("mean", 0), ("std", 1))',
    '(("std", 0), ("mean", 1))',
    "image_processor",
  ),
  Bug(
    "a picture's height taken for its width",
    "tinyformer/vision/image_processor.py",
    "Preprocessor.resized",
    'width, height = self.size["width"], self.size["height"]',
    'height, width = self.size["width"], self.size["height"]',
    "image_processor",
  ),
  Bug(
    "the longer side for the shorter",
    "tinyformer/vision/image_processor.py",
    "Preprocessor.resized",
    "/ min(picture.size)",
    "/ max(picture.size)",
    "image_processor",
  ),
  Bug(
    "pictures as the camera held them",
    "tinyformer/vision/image_processor.py",
    "read",
    "ImageOps.exif_transpose(Image.open(f))",
    "Image.open(f)",
    "image_processor",
  ),
  Bug(
    "black in the wrong half of an odd rim",
    "tinyformer/vision/image_processor.py",
    "Preprocessor.cropped",
    "((lack + 1) // 2, lack // 2)",
    "(lack // 2, (lack + 1) // 2)",
    "image_processor",
  ),
]
