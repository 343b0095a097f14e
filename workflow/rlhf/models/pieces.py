"""Fast tokenizers from sentencepiece models, for folders that have no tokenizer.json.

Transformers makes one too, but leaves out rules of the model (the space in front of a text, double spaces), so that ids
are others than those it was trained on. What is made here is compared with sentencepiece itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]  # made when imported
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf.errors import UserError
from rlhf.files import read_json

FILES = ("tokenizer.model", "spiece.model")
BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
SPACE = "▁"
UNIGRAM, BPE = 1, 2  # of sentencepiece's trainer
NORMAL, UNKNOWN, CONTROL, OWN = 1, 2, 3, 4  # kinds of pieces
# Texts that show rules for spaces, unknown characters, normalisation and pieces.
TEXTS = (
    "Human: What is the capital of France? Assistant: Paris, isn't it.",
    " leading,  double   and trailing spaces  ",
    "def f(x):\n    return x\t# 12345\r\n",
    "größer, naïve, ﬁne １２ ＡＢＣ, \u00a0 no-break, e\u0301",
    "你好，世界。 こんにちは 😀👍🏽",
    "   ",
    "",
)


def tokenizer_of_pieces(find: Callable[[str], Path | None], name: str) -> PreTrainedTokenizerBase | None:
    """The fast tokenizer that gives the ids of a sentencepiece model.

    Args:
        find: path of a file of the model's source, or None where it has none.
        name: of the source, with its configuration key, for messages.

    Returns:
        None where the source has no sentencepiece model.

    Raises:
        UserError: the file is of another kind, has rules that are not known here, or gives other ids.
    """
    file = next((found for found in map(find, FILES) if found is not None), None)
    if file is None:
        return None
    content = _parsed(file, f"{name}: {file.name}")
    pieces = SentencePieceProcessor(model_file=str(file))
    beside = {part: found for part in BESIDE if (found := find(part)) is not None}
    settings = read_json(beside["tokenizer_config.json"]) if "tokenizer_config.json" in beside else {}
    fast = _fast(content, settings, pieces, f"{name}: {file.name}")
    _require_same_ids(fast, pieces, f"{name}: {file.name}")
    if "added_tokens.json" in beside:
        _add(fast, read_json(beside["added_tokens.json"]), name)
    with tempfile.TemporaryDirectory() as folder:
        for part, found in beside.items():
            (Path(folder) / part).write_bytes(found.read_bytes())
        fast.save(str(Path(folder) / "tokenizer.json"))
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
            folder, **_special(pieces, settings), local_files_only=True
        )
    tokenizer.name_or_path = str(file.parent)
    return tokenizer


def _parsed(file: Path, name: str) -> Any:
    """The content of a sentencepiece model; of other files transformers would make a tokenizer without a vocabulary."""
    content = ModelProto()
    try:
        content.ParseFromString(file.read_bytes())
    except DecodeError:
        content.Clear()
    if not content.pieces:
        raise UserError(
            f"{name} is no sentencepiece model: it is damaged, or the vocabulary of another program, such as tiktoken; "
            "copy it again, or give a folder with tokenizer.json"
        )
    return content


def _fast(content: Any, settings: dict[str, Any], pieces: SentencePieceProcessor, name: str) -> Tokenizer:
    kind, rules = content.trainer_spec.model_type, content.normalizer_spec
    if kind not in (UNIGRAM, BPE) or content.trainer_spec.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        raise UserError(
            f"{name} is a sentencepiece model of a kind that is not read here (neither unigram nor BPE, or spaces that "
            "are marked otherwise); convert it with transformers, and save tokenizer and model again"
        )
    fast = Tokenizer(_unigram(content) if kind == UNIGRAM else _bpe(content))
    fast.normalizer = normalizers.Sequence(list(_normalizers(rules)))
    prefix = [decoders.Strip(content=" ", left=1, right=0)] if rules.add_dummy_prefix else []
    fast.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *prefix])
    fast.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type != OWN)
            for piece in content.pieces
            if piece.type in (UNKNOWN, CONTROL, OWN)
        ]
    )
    # LlamaTokenizer is the class, published with such models alone, that puts BOS in front unless it is told not to.
    if settings.get("add_bos_token", settings.get("tokenizer_class") == "LlamaTokenizer") and pieces.bos_id() >= 0:
        bos = pieces.id_to_piece(pieces.bos_id())
        fast.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, pieces.bos_id())]
        )
    return fast


def _normalizers(rules: Any) -> Iterable[Any]:
    """What is done to a text before it is cut into pieces, in sentencepiece's order."""
    if rules.precompiled_charsmap:
        yield normalizers.Precompiled(rules.precompiled_charsmap)
    if rules.remove_extra_whitespaces:
        yield normalizers.Replace(Regex(r"\A +| +\z"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if rules.add_dummy_prefix:
        yield normalizers.Prepend(SPACE)
    yield normalizers.Replace(" ", SPACE)


def _unigram(content: Any) -> models.Unigram:
    return models.Unigram(
        [(piece.piece, piece.score) for piece in content.pieces],
        unk_id=content.trainer_spec.unk_id,
        byte_fallback=content.trainer_spec.byte_fallback,
    )


def _bpe(content: Any) -> models.BPE:
    """BPE merges two neighbours into the piece of the highest score; merges are ranked by what they make."""
    scores = {piece.piece: piece.score for piece in content.pieces if piece.type in (NORMAL, OWN)}
    merges = [
        (score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: -merge[0])
    return models.BPE(
        {piece.piece: number for number, piece in enumerate(content.pieces)},
        [(left, right) for _, left, right in merges],
        unk_token=content.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=content.trainer_spec.byte_fallback,
    )


def _add(fast: Tokenizer, tokens: dict[str, int], name: str) -> None:
    """Put in the tokens that were added to a model's own, by the numbers that they were trained with."""
    for token, number in sorted(tokens.items(), key=lambda entry: entry[1]):
        fast.add_tokens([AddedToken(token, normalized=False)])
        if fast.token_to_id(token) != number:
            raise UserError(f"{name}: added_tokens.json has {number} for {token!r}, not {fast.token_to_id(token)}")


def _special(pieces: SentencePieceProcessor, settings: dict[str, Any]) -> dict[str, str]:
    """Special tokens of the model that tokenizer_config.json says nothing about."""
    ids = {"bos_token": pieces.bos_id(), "eos_token": pieces.eos_id(), "unk_token": pieces.unk_id()}
    ids["pad_token"] = pieces.pad_id()
    return {key: pieces.id_to_piece(number) for key, number in ids.items() if number >= 0 and key not in settings}


def _require_same_ids(fast: Tokenizer, pieces: SentencePieceProcessor, name: str) -> None:
    for text in TEXTS:
        own, made = pieces.encode(text), fast.encode(text, add_special_tokens=False).ids
        if made != own:
            raise UserError(
                f"{name}: no fast tokenizer gives its ids: {text!r} is {own[:20]} by sentencepiece, {made[:20]} by the "
                "fast one; convert it with the tools of the model's authors, and give a folder with tokenizer.json"
            )
