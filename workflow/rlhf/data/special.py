"""Special tokens that a text spells out stay text: a user's words must not end a prompt or open another turn."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


class OrdinaryText:
    """Takes special tokens out of ids where they come from a text.

    A tokenizer's own switch (`split_special_tokens`) is not enough: a vocabulary of words, or one whose merges spell a
    special token, finds it among its ordinary entries.

    Args:
        tokenizer: its special tokens are meant, without one that only stands for unknown words.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        names = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        function = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token}  # GPT-2 and OPT: one token for all
        self.names = sorted(names - ({tokenizer.unk_token} - function))
        self._ids = set(tokenizer.convert_tokens_to_ids(self.names))

    def restore(self, text: str, ids: list[int], offsets: list[Span], spans: Iterable[Span]) -> list[int]:
        """The ids, special tokens that touch a span replaced by the characters they stand for.

        Args:
            text: what was encoded.
            ids: of the text.
            offsets: (first, last + 1) character of each id; empty where the tokenizer added it.
            spans: the parts of the text, in the same form, that may not hold special tokens.
        """
        if self._ids.isdisjoint(ids):
            return ids
        spans = list(spans)
        restored: list[int] = []
        for token, (start, end) in zip(ids, offsets, strict=True):
            spelled = token in self._ids and any(start < last and first < end for first, last in spans)
            restored += self._characters(text[start:end]) if spelled else [token]
        return restored

    def _characters(self, text: str) -> list[int]:
        ids = self._encode(text)
        if self._ids.isdisjoint(ids):
            return ids
        return [token for character in text for token in self._encode(character)]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids
