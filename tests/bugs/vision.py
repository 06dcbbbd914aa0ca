"""Bugs planted in tinyformer/vision; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug(
    "mean and standard deviation are swapped",
    "tinyformer/vision/image_processor.py",
    "Preprocessor.__init__",
    'self.mean = np.array(self.channels("image_mean", 0.5) if normalize else [0] * 3, np.float32) '
    'self.std = np.array(self.channels("image_std", 0.5) if normalize else [1] * 3, np.float32)',
    'self.mean = np.array(self.channels("image_std", 0.5) if normalize else [0] * 3, np.float32); '
    'self.std = np.array(self.channels("image_mean", 0.5) if normalize else [1] * 3, np.float32)',
    "image_processor::test_each_channel_has_its_own_mean_and_standard_deviation",
  ),
  Bug(
    "the sides of a picture file have no limit",
    "tinyformer/vision/image_processor.py",
    "read",
    "max(image.size) > MAX_SIDE or image.width",
    "image.width",
    "image_processor::test_a_small_file_with_a_huge_image_size_raises_an_error_before_decoding",
  ),
  Bug(
    "an image's height and width are swapped",
    "tinyformer/vision/image_processor.py",
    "Preprocessor.resized",
    'width, height = self.size["width"], self.size["height"]',
    'height, width = self.size["width"], self.size["height"]',
    "image_processor::test_size_is_a_square_or_height_and_width_or_the_shortest_edge",
  ),
  Bug(
    "shortest_edge resizes the longer side",
    "tinyformer/vision/image_processor.py",
    "Preprocessor.resized",
    "/ min(image.size)",
    "/ max(image.size)",
    "image_processor::test_size_is_a_square_or_height_and_width_or_the_shortest_edge",
  ),
  Bug(
    "the EXIF orientation is ignored",
    "tinyformer/vision/image_processor.py",
    "read",
    "ImageOps.exif_transpose(image)",
    "image",
    "image_processor::test_images_are_rotated_by_their_exif_orientation",
  ),
  Bug(
    "an odd number of padding rows is split the wrong way",
    "tinyformer/vision/image_processor.py",
    "Preprocessor.cropped",
    "((missing + 1) // 2, missing // 2)",
    "(missing // 2, (missing + 1) // 2)",
    "image_processor::test_center_crop_takes_the_center_and_pads_with_black",
  ),
]
