"""Bugs planted in tinyformer/vision; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "mean and standard deviation are swapped",
    "tinyformer/vision/image_processor.py",
    "Preprocessor.__init__",
    'mean = settings.get("image_mean", 0.5) if normalize else 0 '
    'std = settings.get("image_std", 0.5) if normalize else 1',
    'mean = settings.get("image_std", 0.5) if normalize else 0; '
    'std = settings.get("image_mean", 0.5) if normalize else 1',
    "image_processor",
  ),
  Bug(
    "an image's height and width are swapped",
    "tinyformer/vision/image_processor.py",
    "Preprocessor.resized",
    'width, height = self.size["width"], self.size["height"]',
    'height, width = self.size["width"], self.size["height"]',
    "image_processor",
  ),
  Bug(
    "shortest_edge resizes the longer side",
    "tinyformer/vision/image_processor.py",
    "Preprocessor.resized",
    "/ min(image.size)",
    "/ max(image.size)",
    "image_processor",
  ),
  Bug(
    "the EXIF orientation is ignored",
    "tinyformer/vision/image_processor.py",
    "read",
    "ImageOps.exif_transpose(Image.open(f))",
    "Image.open(f)",
    "image_processor",
  ),
  Bug(
    "an odd number of padding rows is split the wrong way",
    "tinyformer/vision/image_processor.py",
    "Preprocessor.cropped",
    "((missing + 1) // 2, missing // 2)",
    "(missing // 2, (missing + 1) // 2)",
    "image_processor",
  ),
]
