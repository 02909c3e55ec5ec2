"""A CLIP tokenizer learned from captions: byte-level BPE, so that every string has tokens and common words have one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

_WORDS = Regex(r"""<\|startoftext\|>|<\|endoftext\|>|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")


def train_tokenizer(captions: Iterable[str], *, vocabulary_size: int = 1000, max_tokens: int = 64) -> CLIPTokenizer:
    """Learn a vocabulary of about `vocabulary_size` tokens; the two special tokens come last, as in CLIP.

    The same captions give the same vocabulary.
    """
    model = Tokenizer(BPE(end_of_word_suffix="</w>"))
    model.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Both forms of every byte must exist, or a byte that never ended a word in the captions would be unknown.
    base = alphabet + [letter + "</w>" for letter in alphabet]
    captions = list(captions)
    # Named here, or else they get their ids in the order of a hash table, and equally frequent pairs merge by id.
    endings = sorted({piece[-1] + "</w>" for caption in set(captions) for piece in _pieces(model, caption)})
    trainer = BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=alphabet,
        special_tokens=endings,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    model.train_from_iterator(captions, trainer)
    learned = json.loads(model.to_str())["model"]
    words = base + [token for token in learned["vocab"] if token not in set(base)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=merges, model_max_length=max_tokens
    )


def _pieces(model: Tokenizer, caption: str) -> list[str]:
    normalized = model.normalizer.normalize_str(caption)
    return [piece for piece, _ in model.pre_tokenizer.pre_tokenize_str(normalized)]


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load a tokenizer that `save_pretrained` wrote."""
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
