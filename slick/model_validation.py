"""Validation of a loaded model and its tokenizer, before any question is asked or any step trained.

`slick.models` runs it inside `load_model` and `load_tokenizer`, so that annotation, P(True), training, evaluation and
vLLM share it and none can leave it out. Checks of files alone are in `slick.model_files`.
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
"""Buffers that older versions of transformers saved and that newer ones compute: masks and positions, never weights."""

_EXEMPLARS = (
    ("Where was Ada Lovelace born?", "London"),
    ('Who wrote "Candide, ou l\'Optimisme" (1759)?', "François-Marie Arouet"),
    ("What is the capital of São Tomé & Príncipe?", "São Tomé"),
)
_QUESTION = "Which river flows through Zürich - and Münster's twin?"
_ANSWERS = ("Frank Herbert", "São Tomé")
_SPACED = "Q: Who wrote  Dune?\tA:"
"""A tokenizer that runs white space together has been changed, even if its newlines are spared."""

_NUM_SHARED, _NUM_TOKENS = 8, 24
"""Tokens that two sequences of the causality check share, and tokens of each."""
_ROUNDING_TOLERANCE = 1e-4
"""Share of the logits' spread that counts as rounding. A causal model weighs later tokens with exact zeros, so that the
same shapes give the same bits in any dtype (0.0 for all architectures tested, in float32 and bfloat16); an untrained
encoder differs by about 0.003."""
_NOISE_FACTOR = 4.0
"""Where arithmetic does depend on the other rows of a batch, as in a mixture of experts, differences this many times
that noise still count as rounding."""


def check_tokenizer(
    tokenizer: Any,
    where: str,
    *,
    num_embeddings: int | None = None,
    prefixes: Sequence[str] = (),
) -> None:
    """Check that prompts and answers survive the tokenizer, and that its tokens have embeddings.

    Args:
        where: its folder or file, for messages.
        num_embeddings: rows of the model's embedding matrix; None where it is not known yet.
        prefixes: beginnings of the prompts that will be asked.

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
    """Check that every token has a row in the embedding matrix; the matrix may have more rows than there are tokens.

    Left out are tokens that no text here turns into: a pad token, since no prompt is padded with it, and placeholders
    of images, audio and video.

    Raises:
        ModelError: a token has none.
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
            f"{shorten_list(named)}; wanted is a row for each token: give the model's own tokenizer, or, if tokens "
            f"were added "
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
    found = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    # A space that the tokenizer puts before a text is fine, and so is another form of the same characters.
    wanted, kept = (unicodedata.normalize("NFC", each).strip(" ") for each in (text, found))
    if wanted != kept:
        raise ModelError(
            f"the tokenizer in {where} does not give back {what} as it was: {_describe_difference(wanted, kept)}; "
            f"prompts are "
            "lines of Q: and A:, and answers are compared as text, so both must survive encoding and decoding: give "
            "the model's own tokenizer, or remove what changes the text from it (normalizer in tokenizer.json)"
        )


def _describe_difference(wanted: str, kept: str) -> str:
    """What was lost between two texts."""
    if kept.count("\n") < wanted.count("\n"):
        return f"of {wanted.count(chr(10))} newlines {kept.count(chr(10))} are left"
    if kept == wanted.lower():
        return "it is in lower case"
    place = next((i for i, (a, b) in enumerate(zip(wanted, kept, strict=False)) if a != b), min(len(wanted), len(kept)))
    start = max(0, place - 8)
    return f"{wanted[start : place + 12]!r} became {kept[start : place + 12]!r}"


def check_loading_info(model: "nn.Module", info: Mapping[str, Any], where: str) -> None:
    """Check that every parameter came from the file, whole and finite, and nothing in the file was left out.

    Args:
        info: what transformers' `from_pretrained(..., output_loading_info=True)` tells.

    Raises:
        ModelError: a parameter did not.
    """
    kinds = {
        "missing": [key for key in info.get("missing_keys", ()) if not _IGNORABLE_KEYS.search(key)],
        "unexpected": [key for key in info.get("unexpected_keys", ()) if not _IGNORABLE_KEYS.search(key)],
        "of another shape": [f"{key} {list(a)} for {list(b)}" for key, a, b in info.get("mismatched_keys", ())],
    }
    found = "; ".join(f"{len(keys)} {kind} ({shorten_list(sorted(keys))})" for kind, keys in kinds.items() if keys)
    errors = " ".join(" ".join(map(str, info.get("error_msgs") or ())).split())[:300]
    if found or errors:
        raise ModelError(
            f"{where} is not a whole {type(model).__name__}: {'; '.join(filter(None, (found, errors)))}; transformers "
            "would fill in random weights and leave out the rest. Wanted is a checkpoint that has exactly the weights "
            "of the model that its config.json describes: give the language model itself (with its lm_head), not its "
            "body, a reward model or a classifier, or save it again with AutoModelForCausalLM"
        )
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty:
        raise ModelError(
            f"{where} gave {type(model).__name__} no values for {shorten_list(empty)}; fetch or save it again"
        )
    _check_tied_embeddings(model, where)
    _check_finite(model, where)


def _check_tied_embeddings(model: Any, where: str) -> None:
    """A head of its own where config.json says that it is the embedding: one library uses it, another does not."""
    ties_head = any("lm_head" in name for name in compat.tied_weight_names(model))
    if not (model.config.get_text_config().tie_word_embeddings and ties_head):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and embedding is not None and head.weight is not embedding.weight:
        raise ModelError(
            f"{where} says tie_word_embeddings in config.json, but its lm_head.weight differs from its embeddings, so "
            "libraries disagree on which it has: set tie_word_embeddings to false if the head is right, or remove "
            "lm_head.weight"
        )


def _check_finite(model: "nn.Module", where: str) -> None:
    import torch

    for name, parameter in model.named_parameters():
        # ZeRO stage 3 has spread the weights over the workers; each looks at its part.
        values: Tensor = getattr(parameter, "ds_tensor", parameter).detach()
        # A sum is three to twenty times as fast as a look at each value, and finite sums have finite terms.
        if not torch.isfinite(values.sum(dtype=torch.float32)) and not torch.isfinite(values).all():
            num = int((~torch.isfinite(values)).sum())
            raise ModelError(
                f"{where} has weights that are no finite numbers: {num} of {values.numel()} in {name} in the dtype "
                f"{values.dtype}; the save is broken, or its dtype too narrow for them: give another checkpoint, or "
                "--dtype float32 or bfloat16"
            )


def check_causal(model: Any, where: str) -> None:
    """Check that logits depend on nothing that comes later: two sequences that begin alike have the same ones there.

    Works for any architecture, since it looks at nothing but logits: attention, sliding windows, a recurrent state.

    Args:
        model: in eval mode, on its device; under ZeRO stage 3 all workers call this.

    Raises:
        ModelError: they differ, are not finite, or are the same for every token.
    """
    import torch

    config = model.config.get_text_config()
    size, length = (
        int(config.vocab_size),
        min(_NUM_TOKENS, (max_positions(config) or UNLIMITED_POSITIONS) - 2),
    )  # RoBERTa numbers from 2
    first = [(7 * i + 3) % size for i in range(length)]
    shared = min(_NUM_SHARED, length // 2)
    second, third = ([(token + step) % size for token in first] for step in (size // 3 + 1, size // 2 + 1))
    second[:shared] = first[:shared]

    def logits(other: list[int]) -> "Tensor":
        ids = torch.tensor([first, other], device=next(model.parameters()).device)
        found: Tensor = model(input_ids=ids, use_cache=False).logits[:, :shared].float()
        return found

    with torch.inference_mode():
        found_2SV = logits(second)
        spread = float(found_2SV.std(dim=2).mean())
        difference = float((found_2SV[0] - found_2SV[1]).abs().mean())
        noise = (
            0.0 if difference <= _ROUNDING_TOLERANCE * spread else float((found_2SV[0] - logits(third)[0]).abs().mean())
        )
    name = type(model).__name__
    if not (spread < float("inf") and difference < float("inf")):  # false for NaN too
        raise ModelError(
            f"{where}: {name} gives logits that are no finite numbers; give --dtype float32, or another checkpoint"
        )
    if spread == 0.0:
        raise ModelError(
            f"{where}: {name} gives every token the same score, as weights that are all zero do; it answers nothing. "
            "Wanted is a trained model: fetch or save it again"
        )
    if difference > max(_ROUNDING_TOLERANCE * spread, _NOISE_FACTOR * noise):
        raise ModelError(
            f"{where} is {name}, whose attention looks forward: what it says of the beginning of a text changes with "
            f"what follows (by {difference / spread:.2g} of the spread of its logits, beyond rounding of "
            f"{_ROUNDING_TOLERANCE:g}). Wanted is a causal language model, which sees only what comes before: a "
            f"masked one "
            "cannot be asked to go on with a text; if this one was trained as a decoder, set is_decoder to true in "
            "config.json"
        )
