"""Find the vectors that are most similar to a query."""

import numpy as np

# The number of rows that are compared at a time.
CHUNK_ROWS = 65536


def nearest_vectors(vectors: np.ndarray, query: np.ndarray, count: int) -> list[tuple[int, float]]:
  """Return the rows with the largest cosine similarities, as (index, similarity), largest first.

  vectors: (N, D), such as a file mapped into memory, which may exceed the memory.  query: (D).
  Of equal similarities, the first row is first. If N is less than `count`, return N rows.
  """
  query = query.astype(np.float32) / max(float(np.linalg.norm(query)), 1e-12)
  indices = np.zeros(0, dtype=np.int64)
  similarities = np.zeros(0, dtype=np.float32)
  for start in range(0, len(vectors), CHUNK_ROWS):
    chunk = np.asarray(vectors[start : start + CHUNK_ROWS], dtype=np.float32)
    lengths = np.maximum(np.linalg.norm(chunk, axis=1), 1e-12)
    similarities = np.concatenate([similarities, chunk @ query / lengths])
    indices = np.concatenate([indices, np.arange(start, start + len(chunk))])
    best = np.argsort(-similarities, kind="stable")[:count]
    indices, similarities = indices[best], similarities[best]
  return list(zip(indices.tolist(), similarities.tolist(), strict=True))
