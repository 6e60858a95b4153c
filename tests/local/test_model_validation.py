"""Models and tokenizers that cannot be used are refused with one message before any annotation or training."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, normalizers

from slick.annotation import AnnotateConfig, annotate
from slick.errors import ModelError, SlickError
from slick.inference.base import PromptBatch, SamplingConfig
from slick.inference.packed.engine import TransformersEngine
from slick.model_files import ignored_settings
from slick.model_validation import check_causal, check_token_ids, check_tokenizer
from slick.models import init_empty_model, load_model, load_tokenizer, resolve_model
from slick.storage import Folder
from slick.world.corpus import train_tokenizer
from tests.local.cli import run_slick
from tests.local.test_tokens import like_gemma, like_llama_3
from tests.local.tiny import (
    CONFIGS,
    TEXT,
    UNPACKED,
    save_tiny_model,
    tiny_model,
    tiny_tokenizer,
    write_birthplace_questions,
)
from tests.study_builder import write_trainable_study
from tuning.config import TrainConfig
from tuning.finetune import finetune
from tuning.runs import run_folder

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tiny_model(tmp_path_factory.mktemp("model"), steps=0))


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


def change_config(**values: Any) -> Change:
    """A change of config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """A change of the weights in place."""

    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return apply


def save_body_only(folder: Path) -> None:
    load_model(str(folder)).model.save_pretrained(folder)  # type: ignore[union-attr,operator]


def save_reward_model(folder: Path) -> None:
    from transformers import LlamaForSequenceClassification

    LlamaForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)


def save_masked_model(folder: Path) -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=400, **sizes, max_position_embeddings=514, pad_token_id=1, type_vocab_size=1)
    RobertaForMaskedLM(config).save_pretrained(folder)


def in_sequence(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for modify in changes:
            modify(folder)

    return change


def shard(folder: Path) -> None:
    model = load_model(str(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")  # type: ignore[operator]
    assert (folder / "model.safetensors.index.json").exists()


def delete_shard(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[-1].unlink()


def corrupt_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))


def add_second_save(folder: Path) -> None:
    save_file({"model.norm.weight": torch.ones(32)}, folder / "model-00001-of-00002.safetensors")


def truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1000])


def rename_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def add_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def keep_adapter_only(folder: Path) -> None:
    add_adapter(folder)
    (folder / "config.json").unlink()


CAUSAL = change_config(architectures=["LlamaForCausalLM"])
FILES: dict[str, tuple[Change, str]] = {
    "body": (save_body_only, "holds LlamaModel, saved without a head"),
    "reward": (save_reward_model, "holds LlamaForSequenceClassification, saved without a head"),
    "masked": (save_masked_model, "holds RobertaForMaskedLM, saved without a head"),
    "encoder-decoder": (change_config(is_encoder_decoder=True), "an encoder-decoder"),
    "no-list-of-architectures": (
        change_config(architectures="LlamaForCausalLM"),
        'architectures = "LlamaForCausalLM"; expected',
    ),
    "no-names-of-architectures": (change_config(architectures=[3]), r"architectures = \[3\]; expected a list"),
    "quantized": (change_config(quantization_config={"quant_method": "awq"}), r"quantization_config \(awq\)"),
    "packed": (
        change_weights(lambda weights: weights.update({"lm_head.weight": weights["lm_head.weight"].to(torch.int8)})),
        r"packed format: lm_head.weight \(I8\)",
    ),
    "adapter": (add_adapter, "both adapter_config.json and a model's config.json"),
    "adapter-alone": (keep_adapter_only, "holds an adapter alone"),
    "missing-shard": (in_sequence(shard, delete_shard), "is missing; the checkpoint is incomplete"),
    "wrong-index": (in_sequence(shard, corrupt_index), "names model.extra.weight, absent from the files"),
    "two-saves": (add_second_save, "two sets of weights"),
    "cut-off": (truncate, "cannot be loaded: it has .* bytes where its header says"),
    "unnamed": (rename_weights, "neither model.safetensors nor"),
}
WEIGHTS: dict[str, tuple[Change, str]] = {
    "body": (in_sequence(save_body_only, CAUSAL), r"1 missing \(lm_head.weight\)"),
    "reward": (in_sequence(save_reward_model, CAUSAL), r"1 missing \(lm_head.weight\); 1 unexpected \(score.weight\)"),
    "fewer-layers": (change_config(num_hidden_layers=2), r"9 unexpected \(model.layers.2"),
    "more-layers": (change_config(num_hidden_layers=4), r"9 missing \(model.layers.3"),
    "other-shape": (change_config(intermediate_size=40), r"9 of another shape \(.* \[32, 48\] for \[32, 40\]"),
    "other-architecture": (
        change_config(model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"]),
        "unexpected .*model",
    ),
    "other-head": (change_config(tie_word_embeddings=True), "lm_head.weight differs from its embeddings"),
    "not-finite": (
        change_weights(lambda weights: weights["model.norm.weight"][0].fill_(float("nan"))),
        "1 of 32 in model.norm.weight",
    ),
    "all-zero": (
        change_weights(lambda weights: [weight.zero_() for weight in weights.values()]),
        "gives every token the same score",
    ),
    "masked": (
        in_sequence(save_masked_model, change_config(architectures=["RobertaForCausalLM"])),
        "attention looks forward",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_models_are_refused_before_loading(name: str, folder: Path) -> None:
    change, message = FILES[name]
    change(folder)
    for function in (resolve_model, load_model, load_tokenizer, init_empty_model):
        with pytest.raises(ModelError, match=message):
            function(str(folder))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_other_models_are_refused_while_loading(name: str, dtype: str, folder: Path) -> None:
    change, message = WEIGHTS[name]
    change(folder)
    with pytest.raises(ModelError, match=message) as raised:
        load_model(str(folder), dtype)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_sharded_checkpoint_is_loaded(folder: Path) -> None:
    ids = torch.arange(9)[None]
    before = load_model(str(folder))(ids).logits
    shard(folder)
    assert torch.equal(load_model(str(folder))(ids).logits, before)
    assert ignored_settings(str(folder)) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*CONFIGS, *UNPACKED])
def test_every_architecture_is_causal(name: str, dtype: str) -> None:
    check_causal(tiny_model(name, dtype=dtype), name)


def tokenizer_with_normalizer(normalizer: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    tokenizer["normalizer"] = json.loads(normalizer.__getstate__())
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer)), bos_token="<s>", eos_token="</s>"
    )


def world_tokenizer() -> Any:
    return train_tokenizer([TEXT], 400)


def world_tokenizer_without_spaces() -> Any:
    """Keeps newlines, which are single tokens, but drops repeated spaces before words."""
    tokenizer = world_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    return tokenizer


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tokenizer_with_normalizer(normalizers.Replace(Regex(r"\s+"), " ")), "of 7 newlines 0 are left"),
        (world_tokenizer_without_spaces, "white space .* 'o wrote  Dune"),
        (lambda: tokenizer_with_normalizer(normalizers.Lowercase()), "lower case"),
        (
            lambda: tokenizer_with_normalizer(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])),
            "Franç",
        ),
        (like_gemma, "became"),
    ],
)
def test_tokenizer_that_changes_prompts_is_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"(?s)does not give back .*{message}"):
        check_tokenizer(build(), "here")


@pytest.mark.parametrize(
    "build",
    [
        tiny_tokenizer,
        like_llama_3,
        world_tokenizer,
        lambda: tokenizer_with_normalizer(normalizers.Prepend(" ")),
        lambda: tokenizer_with_normalizer(normalizers.NFD()),
    ],
)
def test_leading_space_and_unicode_normalization_are_accepted(build: Callable[[], Any]) -> None:
    check_tokenizer(build(), "here", num_embeddings=10_000)


def test_prefix_of_prompts_must_be_unchanged() -> None:
    tokenizer = tokenizer_with_normalizer(normalizers.Replace("Ω", "O"))
    check_tokenizer(tokenizer, "here", prefixes=["Q: Who?\nA: O\n"])
    with pytest.raises(ModelError, match=r"the prompt's beginning 'Q: Who\?\\nA: Ω\\n'"):
        check_tokenizer(tokenizer, "here", prefixes=["Q: Who?\nA: Ω\n"])


def tokenizer_with_tokens(**added: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_special_tokens(added)
    return tokenizer


@pytest.mark.parametrize("role", ["eos", "bos", "unk"])
def test_special_token_without_embedding_is_refused(role: str) -> None:
    tokenizer = tokenizer_with_tokens(**{f"{role}_token": "<|im_end|>"})
    with pytest.raises(ModelError, match=rf"of {len(tokenizer) - 1} rows: '<\|im_end\|>' \(id .*, its \w+ token\)"):
        check_token_ids(tokenizer, len(tokenizer) - 1, "here")
    check_token_ids(tokenizer, len(tokenizer), "here")
    check_token_ids(tokenizer, len(tokenizer) + 100, "here")


def test_plain_tokens_without_embedding_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(ModelError, match=r"tokens beyond the model's embedding matrix of .* rows: .* and 1 more;"):
        check_token_ids(tokenizer, len(tokenizer) - 5, "here")


def test_pad_and_image_tokens_need_no_embedding() -> None:
    tokenizer = tokenizer_with_tokens(pad_token="[PAD]")
    check_token_ids(tokenizer, len(tokenizer) - 1, "here")
    tokenizer = tokenizer_with_tokens(additional_special_tokens=["<image>"])
    with pytest.raises(ModelError, match="'<image>'"):
        check_token_ids(tokenizer, len(tokenizer) - 1, "here")
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids("<image>")  # as in tokenizers of multimodal models
    check_token_ids(tokenizer, len(tokenizer) - 1, "here")


def add_end_token_without_embedding(folder: Path) -> None:
    tokenizer_with_tokens(eos_token="<|im_end|>").save_pretrained(folder)


def save_tokenizer_that_loses_spaces(folder: Path) -> None:
    tokenizer_with_normalizer(normalizers.Replace(Regex(r"\s+"), " ")).save_pretrained(folder)


def test_pad_token_without_embedding_is_replaced(folder: Path) -> None:
    change_config(pad_token_id=5000)(folder)
    tokenizer_with_tokens(pad_token="[PAD]").save_pretrained(folder)
    assert load_tokenizer(str(folder)).pad_token == "[PAD]"
    assert load_model(str(folder)).config.pad_token_id == tiny_tokenizer().eos_token_id  # type: ignore[union-attr]
    assert init_empty_model(str(folder)) is not None


def test_generation_config_is_ignored_and_reported(model_folder: Path, folder: Path) -> None:
    sampling = {"do_sample": True, "temperature": 0.1, "repetition_penalty": 5.0, "min_new_tokens": 4}
    (folder / "generation_config.json").write_text(json.dumps(sampling | {"eos_token_id": 7}))
    (sentence,) = ignored_settings(str(folder))
    assert "do_sample = true, repetition_penalty = 5.0, min_new_tokens = 4, temperature = 0.1: ignored" in sentence
    assert ignored_settings(str(model_folder)) == []
    answers = []
    for path in (model_folder, folder):
        model = load_model(str(path))
        batch = PromptBatch(prefixes=["Q: Who?\nA: 12\n"], question_ids=["a", "b"], suffixes=["Q: a?\nA:", "Q: b?\nA:"])
        engine = TransformersEngine(model, load_tokenizer(str(path)))
        answers.append(engine.generate(batch, SamplingConfig(num_samples=4, max_new_tokens=6)))
        config: Any = model.generation_config
        assert config.to_diff_dict().keys() <= {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
    assert answers[0] == answers[1]
    assert config.eos_token_id == 7
    model.save_pretrained(folder.parent / "saved")  # type: ignore[operator]


# The same checks through the steps and the command line.


CONFIG = AnnotateConfig(num_exemplar_sets=2, num_shots=2, sampling=SamplingConfig(num_samples=2, max_new_tokens=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_end_token_without_embedding, "beyond the model's embedding matrix"),
        pytest.param(save_tokenizer_that_loses_spaces, "of 7 newlines 0 are left", marks=pytest.mark.slow),
        pytest.param(WEIGHTS["body"][0], r"1 missing \(lm_head.weight\)", marks=pytest.mark.slow),
        (WEIGHTS["masked"][0], "attention looks forward"),
    ],
)
def test_annotate_refuses_an_unusable_model_before_the_first_question(
    change: Change, message: str, folder: Path, tmp_path: Path, ray_cluster: None
) -> None:
    change(folder)
    study = Folder(str(tmp_path / "study"))
    write_birthplace_questions(study, num_train=4, num_test=3)
    with pytest.raises(ModelError, match=message):
        annotate(study, replace(CONFIG, model=str(folder), max_actors=1))
    assert study.child("annotate", "generations").names() == []


@pytest.mark.slow
def test_annotate_reports_ignored_settings(
    folder: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True}))
    study = Folder(str(tmp_path / "study"))
    write_birthplace_questions(study, num_train=1, num_test=1)
    (note,) = annotate(study, replace(CONFIG, model=str(folder), max_actors=1)).counts["ignored_of_model"]
    assert "generation_config.json sets do_sample = true: ignored" in note
    assert f"model: {note}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_finetune_refuses_an_unusable_tokenizer_before_the_first_step(tmp_path: Path, ray_cluster: None) -> None:
    config = TrainConfig(variant="half", epochs=1, max_new_tokens=4)
    study = write_trainable_study(tmp_path, tiny_model("llama"), tokenizer_with_tokens(eos_token="<|im_end|>"))
    with pytest.raises(SlickError, match="beyond the model's embedding matrix"):
        finetune(study, config)
    assert not run_folder(study, "half-seed0").exists("started.json")


def test_command_exits_with_2_and_one_message(folder: Path, tmp_path: Path) -> None:
    save_body_only(folder)
    write_birthplace_questions(Folder(str(tmp_path / "study")))
    completed = run_slick("annotate", "smoke", "--model", str(folder), "--out", str(tmp_path / "study"))
    assert (completed.returncode, "Traceback" in completed.stderr) == (2, False), completed.stderr
    assert "slick: " in completed.stderr
    assert "LlamaModel, saved without a head" in completed.stderr
