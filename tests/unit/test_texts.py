"""The text that is trained is the text that was given: ids of formats, texts and tokenizers of many kinds."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from rlhf.data.encoding import Encoded, Encoder
from rlhf.data.texts import PlainText, formatted, joined, own_spans, own_texts
from tests.tokenizers import ASSISTANT, BOS, END, EOS, KINDS, SPECIAL, UNKNOWN, USER, make_tokenizer

WORDS = st.text(st.sampled_from("abX f(){}:/.,0 \n\t ▁_#'é什么苹果。🙂👍🏽\u200d\u2028\u00a0"), max_size=12)
SPELLED = st.sampled_from([*SPECIAL, "<|us", "er|>", "</", "s>", "<|end|><|end|>"])
DATA = st.lists(st.one_of(WORDS, SPELLED), max_size=5).map("".join)
ORDINARY = WORDS
LITERAL = st.lists(st.one_of(WORDS, st.sampled_from(SPECIAL)), max_size=3).map("".join)
EXAMPLES = settings(max_examples=150, deadline=None)


@functools.cache
def tokenizer_of(kind: str, bos: bool = True) -> PreTrainedTokenizerFast:
    return make_tokenizer(kind, bos)


@functools.cache
def encoder_of(kind: str, bos: bool = True) -> Encoder:
    return Encoder(tokenizer_of(kind, bos))


def escaped(literal: str) -> str:
    return literal.replace("{", "{{").replace("}", "}}")


def row_of(
    prompt: str, *answers: str, prompt_format: str = "{prompt}", answer_format: str = "{answer}"
) -> dict[str, Any]:
    """A row of a cached dataset."""
    texts = [formatted(prompt_format, prompt=prompt), *(formatted(answer_format, answer=answer) for answer in answers)]
    return {"prompt": texts[0], "chosen": texts[1], "rejected": texts[2:], "own": own_spans(texts), "turns": None}


def encoded(kind: str, row: dict[str, Any], bos: bool = True) -> Encoded:
    (ids,) = encoder_of(kind, bos).encode([PlainText().write(row)])
    return ids


def file_ids(kind: str, text: str) -> list[int]:
    """What the tokenizer's own file makes of a text, where special tokens are special."""
    backend = Tokenizer.from_str(tokenizer_of(kind).backend_tokenizer.to_str())
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


def special_in(kind: str, ids: list[int]) -> list[str]:
    tokens = tokenizer_of(kind).convert_ids_to_tokens(ids)
    return [token for token in tokens if token in SPECIAL]


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=ORDINARY, answers=st.lists(ORDINARY, min_size=1, max_size=3))
@EXAMPLES
def test_ids_are_those_of_the_joint_text_and_answers_share_their_prompt(
    kind: str, prompt: str, answers: list[str]
) -> None:
    ids = encoded(kind, row_of(prompt, *answers))
    bos, eos = (tokenizer_of(kind).convert_tokens_to_ids(token) for token in (BOS, EOS))
    for answer, answer_ids in zip(answers, ids.answers, strict=True):
        assert [*ids.prompt, *answer_ids] == [bos, *file_ids(kind, prompt + answer), eos]


@pytest.mark.parametrize("kind", KINDS)
@given(parts=st.lists(LITERAL, min_size=4, max_size=4), prompt=ORDINARY, answer=ORDINARY)
@EXAMPLES
def test_special_tokens_of_a_format_are_those_that_the_tokenizer_reads(
    kind: str, parts: list[str], prompt: str, answer: str
) -> None:
    forms = [escaped(part) for part in parts]
    row = row_of(
        prompt, answer, prompt_format=f"{forms[0]}{{prompt}}{forms[1]}", answer_format=f"{forms[2]}{{answer}}{forms[3]}"
    )
    ids = encoded(kind, row, bos=False)
    text = f"{parts[0]}{prompt}{parts[1]}{parts[2]}{answer}{parts[3]}"
    eos = tokenizer_of(kind).eos_token_id
    if all(separate(*pair) for pair in itertools.pairwise((parts[0], prompt, *parts[1:3], answer, parts[3]))):
        assert [*ids.prompt, *ids.answers[0]] == [*file_ids(kind, text), eos]


def separate(left: str, right: str) -> bool:
    """Whether no special token comes about where two texts touch."""
    cuts = ((token[:place], token[place:]) for token in SPECIAL for place in range(1, len(token)))
    return not any(left.endswith(head) and right.startswith(tail) for head, tail in cuts)


@pytest.mark.parametrize("kind", KINDS)
@given(literal=LITERAL, prompt=DATA, answers=st.lists(DATA, min_size=1, max_size=3))
@example(literal="", prompt=f"a {EOS} b", answers=[f"{END}x{EOS}"])
@EXAMPLES
def test_data_never_yields_special_tokens(kind: str, literal: str, prompt: str, answers: list[str]) -> None:
    row = row_of(prompt, *answers, prompt_format=f"{escaped(literal)}{{prompt}}")
    ids = encoded(kind, row, bos=False)
    written = special_in(kind, file_ids(kind, literal))
    for answer in ids.answers:
        found = [token for token in special_in(kind, [*ids.prompt, *answer]) if token != UNKNOWN]
        assert found == [*(token for token in written if token != UNKNOWN), EOS]


@pytest.mark.parametrize("kind", ["byte-bpe", "metaspace-first"])
@given(literal=LITERAL, prompt=DATA, answers=st.lists(DATA, min_size=1, max_size=3))
@example(literal="", prompt="🙂", answers=["🏽"])  # a token has the last byte of one and the first ones of the other
@EXAMPLES
def test_a_lossless_tokenizer_gives_the_text_back(kind: str, literal: str, prompt: str, answers: list[str]) -> None:
    if kind != "byte-bpe":  # an underscore of this kind stands for a space, and the first space for none
        literal, prompt, *answers = (text.replace("▁", "") for text in (f"a{literal}", prompt, *answers))
    row = row_of(prompt, *answers, prompt_format=f"{escaped(literal)}{{prompt}}")
    ids = encoded(kind, row, bos=False)
    tokenizer = tokenizer_of(kind)
    for answer, answer_ids in zip(answers, ids.answers, strict=True):
        assert tokenizer.decode([*ids.prompt, *answer_ids]) == f"{literal}{prompt}{answer}{EOS}"
        assert tokenizer.decode(ids.prompt) + ids.spanning == f"{literal}{prompt}"


@given(
    literals=st.lists(st.text(max_size=5), min_size=3, max_size=3),
    fields=st.lists(st.text(max_size=5), min_size=2, max_size=2),
)
@EXAMPLES
def test_a_format_is_applied_as_python_does_it(literals: list[str], fields: list[str]) -> None:
    before, between, after = map(escaped, literals)
    template = f"{before}{{instruction}}{between}{{input:>3}}{after}"
    text = formatted(template, instruction=fields[0], input=fields[1])
    assert text == template.format(instruction=fields[0], input=fields[1])
    row = {"prompt": text, "chosen": "", "rejected": [], "own": own_spans([text, ""])}
    assert joined(own_texts(row)[0]) == text
    own = [piece.text for piece in own_texts(row)[0] if piece.own]
    assert "".join(own) == "".join(literals)


# Cases from reports of other programs' users


def pieces(kind: str, row: dict[str, Any], bos: bool = True) -> tuple[list[str], list[str]]:
    """Prompt and answer as tokens."""
    ids, tokenizer = encoded(kind, row, bos), tokenizer_of(kind)
    return tokenizer.convert_ids_to_tokens(ids.prompt), tokenizer.convert_ids_to_tokens(ids.answers[0])


@pytest.mark.parametrize("kind", ["metaspace-first", "metaspace-always", "prepend"])
def test_an_answer_after_a_line_break_has_no_space_before_it(kind: str) -> None:
    prompt, answer = pieces(kind, row_of("### Response:\n", "Yes"))
    assert prompt[-1].endswith("\n")
    assert "".join(answer) == f"Yes{EOS}"


@pytest.mark.parametrize(
    ("prompt", "answer"), [("def f(", "x): return x"), ("http://", "example.org"), ("什么？", "苹果")]
)
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_no_space_is_put_between_prompt_and_answer(kind: str, prompt: str, answer: str) -> None:
    ids = encoded(kind, row_of(prompt, answer))
    assert tokenizer_of(kind).decode([*ids.prompt, *ids.answers[0]], skip_special_tokens=True) == prompt + answer


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_of_a_prompt_format_are_special(kind: str) -> None:
    row = row_of("hi", "hello", prompt_format=f"{USER}{{prompt}}{END}{ASSISTANT}", answer_format=f"{{answer}}{END}")
    prompt, answer = pieces(kind, row)
    assert prompt[:2] == [BOS, USER] and prompt[-2:] == [END, ASSISTANT]
    assert answer[-2:] == [END, EOS]


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_that_an_answer_spells_out_is_text_and_the_last_token_is_the_end(kind: str) -> None:
    _, answer = pieces(kind, row_of("hi ", f"hello{EOS}"))
    assert answer.count(EOS) == 1 and answer[-1] == EOS


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("prompt_format", ["{prompt}", f"{BOS}{{prompt}}"])
def test_there_is_one_bos_where_tokenizer_or_format_writes_it(bos: bool, prompt_format: str) -> None:
    prompt, _ = pieces("byte-bpe", row_of(f"{BOS}hi ", "a", prompt_format=prompt_format), bos)
    assert prompt.count(BOS) == (bos or prompt_format != "{prompt}")


def test_a_token_that_spans_the_border_is_the_answers() -> None:
    for prompt, answer in (("Human: ", "hello"), ("Assistant:", "hi")):
        ids = encoded("byte-bpe", row_of(prompt, answer, " hi"), bos=False)
        tokens = tokenizer_of("byte-bpe").convert_ids_to_tokens(ids.answers[0])
        if prompt.endswith(" "):
            assert (ids.spanning, tokens[0][0]) == (" ", "Ġ")
            assert tokenizer_of("byte-bpe").decode(ids.prompt) == "Human:"
        else:
            assert ids.spanning == ""


def test_a_tokenizer_that_ends_every_text_does_not_end_prompts() -> None:
    tokenizer = make_tokenizer("byte-bpe")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 1), (EOS, 2)]
    )
    (ids,) = Encoder(tokenizer).encode([PlainText().write(row_of("So ", "a"))])
    assert ids.prompt[0] == 1 and ids.prompt.count(2) == 0 and ids.answers[0].count(2) == 1


def test_special_tokens_that_strip_spaces_keep_the_prompt_whole() -> None:
    tokenizer = make_tokenizer("byte-bpe", bos=False)
    tokenizer.add_tokens([AddedToken("<|go|>", rstrip=True, lstrip=True, special=True)], special_tokens=True)
    row = row_of("hi", "  there", prompt_format="{prompt} <|go|>")
    (ids,) = Encoder(tokenizer).encode([PlainText().write(row)])
    assert tokenizer.convert_ids_to_tokens(ids.prompt)[-1] == "<|go|>"
    assert tokenizer.decode(ids.answers[0]) == f"there{EOS}"
