"""Bugs planted in commands; see tests/planted_bugs.py."""

from planted_bugs import Bug

BUGS = [
  Bug("a drawn token's list of one", 'gpt.py', 'Writer.__init__', 'likeliest=args.top_k if args.temperature else 1', 'likeliest=1', 'gpt_command'),
  Bug('an answer that ends before it begins', 'ask.py', 'answer', 'np.triu(starts[:, None] * ends) -', 'starts[:, None] * ends -', 'ask'),
  Bug('windows that leave gaps in a passage', 'ask.py', 'answer', 'len(spans) - room // 2), room // 2)', 'len(spans) - room // 2), room * 2)', 'ask'),
  Bug('a word with the label of its last token', 'ask.py', 'tag', 'firsts.setdefault(word, chance)', 'firsts.update({word: chance})', 'ask'),
  Bug('padding that an encoder sees', 'ask.py', 'Encoder.__call__', 'padded([1] * len(ids), 0)', 'padded([1] * len(ids), 1)', 'ask'),
  Bug('a loss that is told smoothed', 'train.py', 'main', 'smoothing=0),\n', 'smoothing=args.smoothing),\n', 'train'),
  Bug('the last model for the best', 'train.py', 'main', '        if now < best:\n', '        if True:\n', 'train'),
  Bug("a window's context counted again", 'evaluate.py', 'nats', 'losses[row, first - 1 - begin:end - 1 - begin]', 'losses[row, :end - 1 - begin]', 'evaluate'),
  Bug('bits a character', 'evaluate.py', 'main', 'sum(len(t.encode()) for t in texts)', 'sum(len(t) for t in texts)', 'evaluate'),
  Bug('a first token that is not counted', 'evaluate.py', 'begun', 'start = [] if tokenizer.end is None else [tokenizer.end]', 'start = []', 'evaluate'),
  Bug('a token predicted from itself', 'evaluate.py', 'nats', 'documents[i][begin:end - 1], documents[i][begin + 1:end]', 'documents[i][begin + 1:end], documents[i][begin + 1:end]', 'evaluate'),
  Bug('a window that forgets its context', 'evaluate.py', 'windows', 'yield max(0, end - 1 - context), first, end', 'yield first - 1, first, end', 'evaluate'),
  Bug('--precision that changes nothing', 'train.py', 'make', '(MIXED if args.precision == "bfloat16" else {})', '{}', 'train'),
  Bug('samples of what several devices began with', 'train.py', 'main', 'if alone is not model: learner.copy_to(alone)', 'pass', 'train'),
]
