"""Validation of a loaded model and its tokenizer, before inference or training.

`load_model` and `load_tokenizer` of `slick.models` call it, so annotation, P(True), training, evaluation and vLLM share
it. Checks of files alone are in `slick.model_files`.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slick import compat
from slick.errors import ModelError
from slick.model_files import UNLIMITED_POSITIONS, max_positions, shorten_list
from slick.prompts import few_shot_prefix, few_shot_suffix

if TYPE_CHECKING:
    from torch import Tensor, nn

_IGNORABLE_KEYS = re.compile(
    r"(rotary_emb\.(inv_freq|(cos|sin)_cached)|(attn|attention)\.(masked_)?bias|rotary_emb\.inv_freq|position_ids)$"
)
"""Buffers that older versions of transformers saved and newer ones compute: masks and positions, never weights."""

_EXEMPLARS = (
    ("Where was Ada Lovelace born?", "London"),
    ('Who wrote "Candide, ou l\'Optimisme" (1759)?', "François-Marie Arouet"),
    ("What is the capital of São Tomé & Príncipe?", "São Tomé"),
)
_QUESTION = "Which river flows through Zürich - and Münster's twin?"
_ANSWERS = ("Frank Herbert", "São Tomé")
_SPACED = "Q: Who wrote  Dune?\tA:"
"""Detects a tokenizer that collapses spaces but keeps newlines."""

_NUM_SHARED, _NUM_TOKENS = 8, 24
"""Common first tokens of the two sequences of the causality check, and their lengths."""
_ROUNDING_TOLERANCE = 1e-4
"""Share of the logits' standard deviation that counts as rounding. A causal model gives later tokens a weight of
exactly 0, so equal shapes give equal bits in any dtype (0.0 for all architectures tested, in float32 and bfloat16); an
untrained encoder differs by about 0.003."""
_NOISE_FACTOR = 4.0
"""If arithmetic depends on the other rows of a batch, as in a mixture of experts, differences up to this many times
that noise count as rounding too."""


def check_tokenizer(
    tokenizer: Any,
    where: str,
    *,
    num_embeddings: int | None = None,
    prefixes: Sequence[str] = (),
) -> None:
    """Check that the tokenizer preserves prompts and answers, and that its tokens have embeddings.

    Args:
        tokenizer: the tokenizer.
        where: its folder or file, for messages.
        num_embeddings: rows of the model's embedding matrix; None if unknown.
        prefixes: prefixes of the prompts to come.

    Raises:
        ModelError: one of these does not hold.
    """
    if num_embeddings is not None:
        check_token_ids(tokenizer, num_embeddings, where)
    _check_round_trip(tokenizer, where)
    for prefix in prefixes:
        _check_preserved(
            tokenizer, where, f"the prompt's beginning {prefix[:60]!r}", prefix, tokenizer(prefix)["input_ids"]
        )


def check_token_ids(tokenizer: Any, num_embeddings: int, where: str) -> None:
    """Check that every token has a row in the embedding matrix, which may have more rows than there are tokens.

    Tokens that no prompt contains are exempt: the pad token, and placeholders for images, audio and video.

    Raises:
        ModelError: a token has no row.
    """
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    if max(len(tokenizer) - 1, *added, *tokenizer.all_special_ids, 0) < num_embeddings:
        return
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= num_embeddings}
    unused = {getattr(tokenizer, f"{kind}_token_id", None) for kind in ("image", "audio", "video")}
    roles = {"end": "eos", "beginning": "bos", "unknown": "unk"}
    in_use = {getattr(tokenizer, f"{role}_token_id"): name for name, role in roles.items()}
    unused |= {tokenizer.pad_token_id} - set(in_use)
    bad = sorted(beyond.keys() - unused)
    if bad:
        named = [f"{beyond[i]!r} (id {i}{f', its {in_use[i]} token' if i in in_use else ''})" for i in bad]
        raise ModelError(
            f"the tokenizer in {where} has tokens beyond the model's embedding matrix of {num_embeddings} rows: "
            f"{shorten_list(named)}; every token needs a row: give the model's own tokenizer, or, if tokens were added "
            "to it, the model that was resized and trained with them (resize_token_embeddings)"
        )


def _check_round_trip(tokenizer: Any, where: str) -> None:
    prompt = few_shot_prefix(_EXEMPLARS) + few_shot_suffix(_QUESTION)
    _check_preserved(tokenizer, where, "a few-shot prompt", prompt, tokenizer(prompt)["input_ids"])
    _check_preserved(tokenizer, where, "white space", _SPACED, tokenizer(_SPACED)["input_ids"])
    for answer in _ANSWERS:
        for text in (f" {answer}", answer):  # as it follows "A:" in a few-shot prompt, and as a target of training
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            _check_preserved(tokenizer, where, f"the answer {answer!r}", text, ids)


def _check_preserved(tokenizer: Any, where: str, what: str, text: str, ids: Sequence[int]) -> None:
    decoded = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    # A space before the text and another Unicode normalization form are allowed.
    expected, decoded = (unicodedata.normalize("NFC", part).strip(" ") for part in (text, decoded))
    if expected != decoded:
        raise ModelError(
            f"the tokenizer in {where} does not give back {what} as it was: {_describe_difference(expected, decoded)}; "
            "encoding and decoding must preserve prompts, which are lines of Q: and A:, and answers, which are "
            "compared as text: give the model's own tokenizer, or remove what changes the text (normalizer in "
            "tokenizer.json)"
        )


def _describe_difference(expected: str, decoded: str) -> str:
    if decoded.count("\n") < expected.count("\n"):
        return f"of {expected.count(chr(10))} newlines {decoded.count(chr(10))} are left"
    if decoded == expected.lower():
        return "it is in lower case"
    pairs = enumerate(zip(expected, decoded, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(decoded)))
    start = max(0, first - 8)
    return f"{expected[start : first + 12]!r} became {decoded[start : first + 12]!r}"


def check_loading_info(model: "nn.Module", info: Mapping[str, Any], where: str) -> None:
    """Check that every parameter came from the checkpoint and is finite, and that the checkpoint has no other weights.

    Args:
        model: the loaded model.
        info: the loading info of transformers' `from_pretrained(..., output_loading_info=True)`.
        where: its folder or file, for messages.

    Raises:
        ModelError: one of these does not hold.
    """
    kinds = {
        "missing": [key for key in info.get("missing_keys", ()) if not _IGNORABLE_KEYS.search(key)],
        "unexpected": [key for key in info.get("unexpected_keys", ()) if not _IGNORABLE_KEYS.search(key)],
        "of another shape": [f"{key} {list(a)} for {list(b)}" for key, a, b in info.get("mismatched_keys", ())],
    }
    problems = "; ".join(f"{len(keys)} {kind} ({shorten_list(sorted(keys))})" for kind, keys in kinds.items() if keys)
    errors = " ".join(" ".join(map(str, info.get("error_msgs") or ())).split())[:300]
    if problems or errors:
        raise ModelError(
            f"{where} is not a whole {type(model).__name__}: {'; '.join(filter(None, (problems, errors)))}; "
            "transformers would fill in random weights and ignore the rest. Expected is a checkpoint with exactly the "
            "weights of the model in its config.json: give the language model itself (with its lm_head), not its body, "
            "a reward model or a classifier, or save it again with AutoModelForCausalLM"
        )
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty:
        raise ModelError(
            f"{where} has no values for {shorten_list(empty)} of {type(model).__name__}; download or save it again"
        )
    _check_tied_embeddings(model, where)
    _check_finite(model, where)


def _check_tied_embeddings(model: Any, where: str) -> None:
    """Refuse a separate head where config.json ties it to the embeddings: libraries disagree on which one they use."""
    ties_head = any("lm_head" in name for name in compat.tied_weight_names(model))
    if not (model.config.get_text_config().tie_word_embeddings and ties_head):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and embedding is not None and head.weight is not embedding.weight:
        raise ModelError(
            f"{where} has tie_word_embeddings in config.json, but its lm_head.weight differs from its embeddings, and "
            "libraries disagree on which one to use: set tie_word_embeddings to false if the head is correct, or "
            "remove lm_head.weight"
        )


def _check_finite(model: "nn.Module", where: str) -> None:
    import torch

    for name, parameter in model.named_parameters():
        values = compat.local_values(parameter).detach()
        # Summing is 3 to 20 times as fast as testing each value, and a finite sum has finite terms.
        if not torch.isfinite(values.sum(dtype=torch.float32)) and not torch.isfinite(values).all():
            num = int((~torch.isfinite(values)).sum())
            raise ModelError(
                f"{where} has weights that are not finite: {num} of {values.numel()} in {name} with dtype "
                f"{values.dtype}; the checkpoint is damaged, or its dtype too narrow: give another checkpoint, or "
                "--dtype float32 or bfloat16"
            )


def check_causal(model: Any, where: str) -> None:
    """Check that logits do not depend on later tokens: two sequences must have equal logits on their common beginning.

    It inspects only logits, so it works for any architecture: attention, sliding windows, recurrent states.

    Args:
        model: in eval mode, on its device; under ZeRO stage 3 all workers call this.
        where: its folder or file, for messages.

    Raises:
        ModelError: they differ, are not finite, or are the same for every token.
    """
    import torch

    config = model.config.get_text_config()
    size = int(config.vocab_size)
    length = min(_NUM_TOKENS, (max_positions(config) or UNLIMITED_POSITIONS) - 2)  # RoBERTa's positions start at 2
    first = [(7 * i + 3) % size for i in range(length)]
    shared = min(_NUM_SHARED, length // 2)
    second, third = ([(token + step) % size for token in first] for step in (size // 3 + 1, size // 2 + 1))
    second[:shared] = first[:shared]

    def logits(other: list[int]) -> "Tensor":
        ids = torch.tensor([first, other], device=next(model.parameters()).device)
        shared_logits: Tensor = model(input_ids=ids, use_cache=False).logits[:, :shared].float()
        return shared_logits

    with torch.inference_mode():
        logits_2SV = logits(second)
        spread = float(logits_2SV.std(dim=2).mean())
        difference = float((logits_2SV[0] - logits_2SV[1]).abs().mean())
        noise = 0.0
        if difference > _ROUNDING_TOLERANCE * spread:
            noise = float((logits_2SV[0] - logits(third)[0]).abs().mean())
    name = type(model).__name__
    if not (spread < float("inf") and difference < float("inf")):  # false for NaN too
        raise ModelError(
            f"{where}: {name} gives logits that are not finite; give --dtype float32, or another checkpoint"
        )
    if spread == 0.0:
        raise ModelError(
            f"{where}: {name} gives every token the same score, as if all weights were 0. Expected is a trained model: "
            "download or save it again"
        )
    if difference > max(_ROUNDING_TOLERANCE * spread, _NOISE_FACTOR * noise):
        raise ModelError(
            f"{where} is {name}, whose attention looks forward: logits depend on later tokens (they change by "
            f"{difference / spread:.2g} of their standard deviation; rounding explains {_ROUNDING_TOLERANCE:g}). "
            "Expected is a causal language model, because a masked one cannot continue a text; if this one was trained "
            "as a decoder, set is_decoder to true in config.json"
        )
