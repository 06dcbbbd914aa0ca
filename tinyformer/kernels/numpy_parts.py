"""Parts for minigrad."""

from layers.parts import PLAIN

NUMPY = PLAIN
