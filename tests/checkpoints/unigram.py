"""Small SentencePiece Unigram tokenizers, like those in XLM-RoBERTa's and T5's tokenizer.json."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.checkpoints.files import SENTENCES

XLM_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>")
T5 = ("<pad>", "</s>", "<unk>")


def xlm_roberta(vocab_size: int = 300) -> Tokenizer:
    """Returns a tokenizer with `<s> ... </s>`, split by Metaspace after runs of spaces are replaced by one."""
    tokenizer = _unigram(XLM_ROBERTA, pre_tokenizers.Metaspace(), vocab_size)
    return _add_special(tokenizer, "<s> $A </s>", ("<s>", "</s>"))


def t5(vocab_size: int = 300) -> Tokenizer:
    """Returns a tokenizer with `... </s>`, split at white space of any kind before Metaspace."""
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    return _add_special(_unigram(T5, split, vocab_size), "$A </s>", ("</s>",))


def _unigram(special: tuple[str, ...], split: Any, vocab_size: int) -> Tokenizer:
    """Builds a vocabulary by counting, because the library's trainer returns another vocabulary in each run."""
    counts: Counter[str] = Counter()
    for word in " ".join(SENTENCES).split():
        marked = f"▁{word}"
        counts.update(marked[i:j] for i in range(len(marked)) for j in range(i + 1, min(i + 8, len(marked)) + 1))
    characters = sorted(piece for piece in counts if len(piece) == 1)
    longer = sorted((p for p in counts if len(p) > 1), key=lambda p: (-counts[p] * len(p), p))
    pieces = [*characters, *longer][: vocab_size - len(special)]
    total = counts.total()
    vocab = [(token, 0.0) for token in special] + [(p, math.log(counts[p] / total)) for p in pieces]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=special.index("<unk>")))
    tokenizer.add_special_tokens(list(special))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = split
    return tokenizer


def _add_special(tokenizer: Tokenizer, template: str, tokens: tuple[str, ...]) -> Tokenizer:
    special = [(token, tokenizer.token_to_id(token)) for token in tokens]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return tokenizer
