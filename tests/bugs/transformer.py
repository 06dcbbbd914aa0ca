"""Bugs planted in transformer; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug('q, k, v in another order', 'transformer.py', 'MultiHeadAttention.__init__', 'self.q, self.k, self.v = (linear(dim, n', 'self.k, self.q, self.v = (linear(dim, n', 'gpt2'),
  Bug('values read as keys', 'transformer.py', 'MultiHeadAttention.keys_values', 'return self.split(self.k(memory)), self.split(self.v(memory))', 'return self.split(self.v(memory)), self.split(self.k(memory))', 'transformer'),
  Bug('post-norm for pre-norm', 'transformer.py', 'pre_norm', 'return x + sublayer(norm(x)).dropout(dropout)', 'return norm(x + sublayer(x).dropout(dropout))', 'gpt2'),
  Bug('pre-norm for post-norm', 'transformer.py', 'post_norm', 'return norm(x + sublayer(x).dropout(dropout))', 'return x + sublayer(norm(x)).dropout(dropout)', 'transformer'),
  Bug('a mask of -1e4', 'transformer.py', 'causal_mask', 'Tensor.full((T, S), -math.inf, buffer=False)', 'Tensor.full((T, S), -1e4, buffer=False)', 'transformer'),
  Bug('a padding mask of -1e4', 'transformer.py', 'padding_mask', 'keep.bool().where(0.0, -math.inf)', 'keep.bool().where(0.0, -1e4)', 'transformer'),
  Bug('a mask that lets the next token through', 'transformer.py', 'causal_mask', '.triu(S - T + 1)', '.triu(S - T + 2)', 'transformer'),
  Bug('a mask that hides the token itself', 'transformer.py', 'causal_mask', '.triu(S - T + 1)', '.triu(S - T)', 'transformer'),
  Bug('a mask aligned with the first key', 'transformer.py', 'causal_mask', '.triu(S - T + 1)', '.triu(1)', 'transformer'),
  Bug('unscaled scores', 'transformer.py', 'scaled_dot_product', 'return dot_product(q, k) / math.sqrt(q.shape[-1])', 'return dot_product(q, k)', 'transformer'),
  Bug("scores scaled by the model's width", 'transformer.py', 'scaled_dot_product', 'return dot_product(q, k) / math.sqrt(q.shape[-1])', 'return dot_product(q, k) / math.sqrt(q.shape[-1] * q.shape[1])', 'transformer'),
  Bug('heads split the wrong way round', 'transformer.py', 'MultiHeadAttention.split', '"b t (h k) -> b h t k", k=', '"b t (k h) -> b h t k", k=', 'transformer'),
  Bug('NaN where all keys are masked', 'transformer.py', 'attention_weights', '(top == -math.inf).where(0, top)', 'top', 'transformer'),
  Bug('dropout outside training', 'transformer.py', 'pre_norm', 'return x + sublayer(norm(x)).dropout(dropout)', 'return x + sublayer(norm(x)) * (1 - dropout * 0.1 - 0.01)', 'gpt2'),
  Bug('cosines before sines', 'transformer.py', 'sinusoids', 'Tensor.stack(angle.sin(), angle.cos(), dim=-1)', 'Tensor.stack(angle.cos(), angle.sin(), dim=-1)', 'transformer'),
  Bug('embeddings not scaled', 'transformer.py', 'Transformer.embed', 'self.tokens(ids) * math.sqrt(self.dim)', 'self.tokens(ids)', 'transformer'),
  Bug('padding counts in the loss', 'transformer.py', 'loss', '/ keep.sum()', '/ keep.numel()', 'transformer'),
  Bug('keys shared by every other head', 'transformer.py', 'shared', 'x.repeat_interleave(int(q.shape[-3] // x.shape[-3]), -3)', 'x.repeat(1, int(q.shape[-3] // x.shape[-3]), 1, 1)', 'llama'),
]
