"""Reference fine-tuning in a plain PyTorch loop, without DeepSpeed, Ray, workers, micro batches or packed rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from slick.storage import Folder
from tuning.config import TrainConfig, learning_rate_at
from tuning.data import Example, epoch_batches, read_replay_rows, read_rows
from tuning.evaluate import encode_rows


@dataclass(frozen=True)
class ReferenceRun:
    losses: list[float]
    """Weighted mean loss per answer token of the train rows after each epoch."""
    weights: dict[str, np.ndarray]


def train_reference(study: Folder, config: TrainConfig, model: Any, teacher: Any, tokenizer: Any) -> ReferenceRun:
    """Fine-tune `model` in place.

    Args:
        model: the initial model, already wrapped by peft if the settings use LoRA.
        teacher: a copy of the model.
    """
    import torch

    rows = read_rows(study, config.variant)["train"]
    examples = encode_rows([row for row in rows if row.weight], tokenizer)
    replay = read_replay_rows(study, config.variant, config.replay_known, config.seed)
    part_of = {"attention": ".self_attn.", "ffn": ".mlp."}
    if config.trainable != "all" and not config.lora_rank:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(part_of[config.trainable] in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    batches = [
        [examples[row] for row in batch]
        for epoch in range(1, config.epochs + 1)
        for batch in epoch_batches(len(examples), config.batch_size, config.seed, epoch)
    ]
    steps_per_epoch = len(batches) // config.epochs
    if replay:
        known = encode_rows(replay, tokenizer)
        order = epoch_batches(len(known), config.batch_size, config.seed, config.epochs)
        batches += [[known[row] for row in batch] for batch in order]
    losses = []
    for step, batch in enumerate(batches):
        model.train()
        loss = mean_loss(model, batch)
        if config.distill_weight:
            loss = loss + config.distill_weight * mean_kl_divergence(teacher, model, batch, config.distill_temperature)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(config, step, len(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        if ((step + 1) % steps_per_epoch == 0 and step + 1 < config.epochs * steps_per_epoch) or step + 1 == len(
            batches
        ):
            model.eval()
            losses.append(float(mean_loss(model, examples).detach()))
    return ReferenceRun(losses, {name: value.detach().numpy().copy() for name, value in model.named_parameters()})


def mean_loss(model: Any, batch: list[Example]) -> Any:
    """The weighted mean loss, computed row by row, so that there is no padding and no attention between rows."""
    import torch
    from torch.nn import functional

    total = torch.zeros(())
    for example in batch:
        logits, answer = answer_logits(model, example), torch.tensor(example.answer_ids)
        total = total + example.weight * functional.cross_entropy(logits, answer, reduction="sum")
    return total / sum(example.weight * len(example.answer_ids) for example in batch)


def mean_kl_divergence(teacher: Any, model: Any, batch: list[Example], temperature: float) -> Any:
    """KL(teacher || model) per answer token, weighted by row, by definition."""
    import torch

    total = torch.zeros(())
    for example in batch:
        with torch.no_grad():
            teacher_probabilities = (answer_logits(teacher, example) / temperature).softmax(dim=1)
        student_probabilities = (answer_logits(model, example) / temperature).softmax(dim=1)
        divergence = (teacher_probabilities * (teacher_probabilities.log() - student_probabilities.log())).sum()
        total = total + example.weight * divergence
    return total / sum(example.weight * len(example.answer_ids) for example in batch)


def answer_logits(model: Any, example: Example) -> Any:
    import torch

    ids = torch.tensor([example.prompt_ids + example.answer_ids])
    first = len(example.prompt_ids) - 1
    return model(ids).logits[0, first:-1]
