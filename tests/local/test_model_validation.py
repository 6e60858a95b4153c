"""What cannot be asked is refused by one message, in every step, before any question is asked or any step trained."""

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
from tests.local.cli import slick
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
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tiny_model(tmp_path_factory.mktemp("model"), steps=0))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def settings(**values: Any) -> Change:
    """Change config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """Change the weights in place."""

    def applied(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", {"format": "pt"})

    return applied


def body_alone(folder: Path) -> None:
    load_model(str(folder)).model.save_pretrained(folder)  # type: ignore[union-attr,operator]


def reward_model(folder: Path) -> None:
    from transformers import LlamaForSequenceClassification

    LlamaForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)


def masked_model(folder: Path) -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=400, **sizes, max_position_embeddings=514, pad_token_id=1, type_vocab_size=1)
    RobertaForMaskedLM(config).save_pretrained(folder)


def then(*changes: Change) -> Change:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def sharded(folder: Path) -> None:
    model = load_model(str(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")  # type: ignore[operator]
    assert (folder / "model.safetensors.index.json").exists()


def without_a_shard(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[-1].unlink()


def with_a_wrong_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))


def with_another_save(folder: Path) -> None:
    save_file({"model.norm.weight": torch.ones(32)}, folder / "model-00001-of-00002.safetensors")


def cut_off(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1000])


def renamed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")


def with_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def an_adapter_alone(folder: Path) -> None:
    with_an_adapter(folder)
    (folder / "config.json").unlink()


CAUSAL = settings(architectures=["LlamaForCausalLM"])
FILES: dict[str, tuple[Change, str]] = {
    "body": (body_alone, "holds LlamaModel, saved without a head"),
    "reward": (reward_model, "holds LlamaForSequenceClassification, saved without a head"),
    "masked": (masked_model, "holds RobertaForMaskedLM, saved without a head"),
    "encoder-decoder": (settings(is_encoder_decoder=True), "an encoder-decoder"),
    "no-list-of-architectures": (
        settings(architectures="LlamaForCausalLM"),
        'architectures = "LlamaForCausalLM"; expected',
    ),
    "no-names-of-architectures": (settings(architectures=[3]), r"architectures = \[3\]; expected a list"),
    "quantized": (settings(quantization_config={"quant_method": "awq"}), r"quantization_config \(awq\)"),
    "packed": (
        tensors(lambda found: found.update({"lm_head.weight": found["lm_head.weight"].to(torch.int8)})),
        r"packed format: lm_head.weight \(I8\)",
    ),
    "adapter": (with_an_adapter, "both adapter_config.json and a model's config.json"),
    "adapter-alone": (an_adapter_alone, "holds an adapter alone"),
    "missing-shard": (then(sharded, without_a_shard), "is missing; the checkpoint is incomplete"),
    "wrong-index": (then(sharded, with_a_wrong_index), "names model.extra.weight, absent from the files"),
    "two-saves": (with_another_save, "two sets of weights"),
    "cut-off": (cut_off, "cannot be loaded: it has .* bytes where its header says"),
    "unnamed": (renamed, "neither model.safetensors nor"),
}
WEIGHTS: dict[str, tuple[Change, str]] = {
    "body": (then(body_alone, CAUSAL), r"1 missing \(lm_head.weight\)"),
    "reward": (then(reward_model, CAUSAL), r"1 missing \(lm_head.weight\); 1 unexpected \(score.weight\)"),
    "fewer-layers": (settings(num_hidden_layers=2), r"9 unexpected \(model.layers.2"),
    "more-layers": (settings(num_hidden_layers=4), r"9 missing \(model.layers.3"),
    "other-shape": (settings(intermediate_size=40), r"9 of another shape \(.* \[32, 48\] for \[32, 40\]"),
    "other-architecture": (settings(model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"]), "unexpected .*model"),
    "other-head": (settings(tie_word_embeddings=True), "lm_head.weight differs from its embeddings"),
    "not-finite": (
        tensors(lambda found: found["model.norm.weight"][0].fill_(float("nan"))),
        "1 of 32 in model.norm.weight",
    ),
    "all-zero": (
        tensors(lambda found: [weight.zero_() for weight in found.values()]),
        "gives every token the same score",
    ),
    "masked": (then(masked_model, settings(architectures=["RobertaForCausalLM"])), "attention looks forward"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_causal_model_are_refused_before_anything_is_loaded(name: str, folder: Path) -> None:
    change, message = FILES[name]
    change(folder)
    for refused in (resolve_model, load_model, load_tokenizer, init_empty_model):
        with pytest.raises(ModelError, match=message):
            refused(str(folder))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_no_causal_model_are_refused_as_they_are_loaded(name: str, dtype: str, folder: Path) -> None:
    change, message = WEIGHTS[name]
    change(folder)
    with pytest.raises(ModelError, match=message) as raised:
        load_model(str(folder), dtype)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_whole_checkpoint_in_several_files_is_taken(folder: Path) -> None:
    ids = torch.arange(9)[None]
    before = load_model(str(folder))(ids).logits
    sharded(folder)
    assert torch.equal(load_model(str(folder))(ids).logits, before)
    assert ignored_settings(str(folder)) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*CONFIGS, *UNPACKED])
def test_every_architecture_is_causal(name: str, dtype: str) -> None:
    check_causal(tiny_model(name, dtype=dtype), name)


def normalized(normalizer: Any) -> Any:
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
    """Newlines are tokens of their own and are spared, the spaces before words are not."""
    tokenizer = world_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"\s+"), " ")
    return tokenizer


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: normalized(normalizers.Replace(Regex(r"\s+"), " ")), "of 7 newlines 0 are left"),
        (world_tokenizer_without_spaces, "white space .* 'o wrote  Dune"),
        (lambda: normalized(normalizers.Lowercase()), "lower case"),
        (lambda: normalized(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])), "Franç"),
        (like_gemma, "became"),
    ],
)
def test_a_tokenizer_that_changes_prompts_is_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"(?s)does not give back .*{message}"):
        check_tokenizer(build(), "here")


@pytest.mark.parametrize(
    "build",
    [
        tiny_tokenizer,
        like_llama_3,
        world_tokenizer,
        lambda: normalized(normalizers.Prepend(" ")),
        lambda: normalized(normalizers.NFD()),
    ],
)
def test_a_space_in_front_and_other_forms_of_characters_are_fine(build: Callable[[], Any]) -> None:
    check_tokenizer(build(), "here", num_embeddings=10_000)


def test_a_beginning_of_prompts_must_survive() -> None:
    tokenizer = normalized(normalizers.Replace("Ω", "O"))
    check_tokenizer(tokenizer, "here", prefixes=["Q: Who?\nA: O\n"])
    with pytest.raises(ModelError, match=r"the prompt's beginning 'Q: Who\?\\nA: Ω\\n'"):
        check_tokenizer(tokenizer, "here", prefixes=["Q: Who?\nA: Ω\n"])


def with_tokens(**added: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_special_tokens(added)
    return tokenizer


@pytest.mark.parametrize("role", ["eos", "bos", "unk"])
def test_a_token_without_an_embedding_is_named(role: str) -> None:
    tokenizer = with_tokens(**{f"{role}_token": "<|im_end|>"})
    with pytest.raises(ModelError, match=rf"of {len(tokenizer) - 1} rows: '<\|im_end\|>' \(id .*, its \w+ token\)"):
        check_token_ids(tokenizer, len(tokenizer) - 1, "here")
    check_token_ids(tokenizer, len(tokenizer), "here")
    check_token_ids(tokenizer, len(tokenizer) + 100, "here")


def test_a_plain_token_without_an_embedding_is_named() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(ModelError, match=r"tokens beyond the model's embedding matrix of .* rows: .* and 1 more;"):
        check_token_ids(tokenizer, len(tokenizer) - 5, "here")


def test_pad_tokens_and_pictures_need_no_embedding() -> None:
    tokenizer = with_tokens(pad_token="[PAD]")
    check_token_ids(tokenizer, len(tokenizer) - 1, "here")
    tokenizer = with_tokens(additional_special_tokens=["<image>"])
    with pytest.raises(ModelError, match="'<image>'"):
        check_token_ids(tokenizer, len(tokenizer) - 1, "here")
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids("<image>")  # as tokenizers of models with pictures do
    check_token_ids(tokenizer, len(tokenizer) - 1, "here")


def end_beyond(folder: Path) -> None:
    with_tokens(eos_token="<|im_end|>").save_pretrained(folder)


def spaces_lost(folder: Path) -> None:
    normalized(normalizers.Replace(Regex(r"\s+"), " ")).save_pretrained(folder)


def test_a_pad_token_beyond_the_embeddings_is_replaced(folder: Path) -> None:
    settings(pad_token_id=5000)(folder)
    with_tokens(pad_token="[PAD]").save_pretrained(folder)
    assert load_tokenizer(str(folder)).pad_token == "[PAD]"
    assert load_model(str(folder)).config.pad_token_id == tiny_tokenizer().eos_token_id  # type: ignore[union-attr]
    assert init_empty_model(str(folder)) is not None


def test_settings_of_generation_change_no_answer_and_are_told(whole: Path, folder: Path) -> None:
    sampling = {"do_sample": True, "temperature": 0.1, "repetition_penalty": 5.0, "min_new_tokens": 4}
    (folder / "generation_config.json").write_text(json.dumps(sampling | {"eos_token_id": 7}))
    (sentence,) = ignored_settings(str(folder))
    assert "do_sample = true, repetition_penalty = 5.0, min_new_tokens = 4, temperature = 0.1: ignored" in sentence
    assert ignored_settings(str(whole)) == []
    found = []
    for path in (whole, folder):
        model = load_model(str(path))
        batch = PromptBatch(prefixes=["Q: Who?\nA: 12\n"], question_ids=["a", "b"], suffixes=["Q: a?\nA:", "Q: b?\nA:"])
        engine = TransformersEngine(model, load_tokenizer(str(path)))
        found.append(engine.generate(batch, SamplingConfig(num_samples=4, max_new_tokens=6)))
        config: Any = model.generation_config
        assert config.to_diff_dict().keys() <= {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}
    assert found[0] == found[1]
    assert config.eos_token_id == 7
    model.save_pretrained(folder.parent / "saved")  # type: ignore[operator]


# As a user meets it.


CONFIG = AnnotateConfig(num_exemplar_sets=2, num_shots=2, sampling=SamplingConfig(num_samples=2, max_new_tokens=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (end_beyond, "beyond the model's embedding matrix"),
        pytest.param(spaces_lost, "of 7 newlines 0 are left", marks=pytest.mark.slow),
        pytest.param(WEIGHTS["body"][0], r"1 missing \(lm_head.weight\)", marks=pytest.mark.slow),
        (WEIGHTS["masked"][0], "attention looks forward"),
    ],
)
def test_annotation_is_refused_before_the_first_question(
    change: Change, message: str, folder: Path, tmp_path: Path, ray_cluster: None
) -> None:
    change(folder)
    study = Folder(str(tmp_path / "study"))
    write_birthplace_questions(study, num_train=4, num_test=3)
    with pytest.raises(ModelError, match=message):
        annotate(study, replace(CONFIG, model=str(folder), max_actors=1))
    assert study.child("annotate", "generations").names() == []


def test_annotation_notes_what_it_ignores(
    folder: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True}))
    study = Folder(str(tmp_path / "study"))
    write_birthplace_questions(study, num_train=1, num_test=1)
    (noted,) = annotate(study, replace(CONFIG, model=str(folder), max_actors=1)).counts["ignored_of_model"]
    assert "generation_config.json sets do_sample = true: ignored" in noted
    assert f"model: {noted}\n" in capsys.readouterr().out


def test_training_is_refused_before_the_first_step(tmp_path: Path, ray_cluster: None) -> None:
    config = TrainConfig(variant="half", epochs=1, max_new_tokens=4)
    study = write_trainable_study(tmp_path, tiny_model("llama"), with_tokens(eos_token="<|im_end|>"))
    with pytest.raises(SlickError, match="beyond the model's embedding matrix"):
        finetune(study, config)
    assert not run_folder(study, "half-seed0").exists("started.json")


def test_the_command_says_so_and_exits_with_2(folder: Path, tmp_path: Path) -> None:
    body_alone(folder)
    write_birthplace_questions(Folder(str(tmp_path / "study")))
    done = slick("annotate", "smoke", "--model", str(folder), "--out", str(tmp_path / "study"))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "slick: " in done.stderr
    assert "LlamaModel, saved without a head" in done.stderr
