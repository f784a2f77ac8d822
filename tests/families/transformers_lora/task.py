"""transformers_lora: LoRA adapters of a small transformer that judges made-up sentences."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import DistilBertConfig, DistilBertForSequenceClassification

WORDS, LENGTH = 24, 12  # the vocabulary, and the words of a sentence


def new_model(seed: int) -> PeftModel:
    """A frozen base that all clients have, with adapters that they train."""
    config = DistilBertConfig(
        vocab_size=WORDS + 1,
        max_position_embeddings=LENGTH,
        dim=32,
        hidden_dim=64,
        n_layers=2,
        n_heads=4,
        num_labels=2,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        initializer_range=0.2,
    )
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=4, lora_alpha=16, target_modules=["q_lin", "v_lin"]
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(DistilBertForSequenceClassification(config), lora)


def get_params(model: PeftModel) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(model)


def set_params(model: PeftModel, params: dict[str, torch.Tensor]) -> None:
    set_peft_model_state_dict(model, params)


@cache
def _text(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences of random words: praise if kind words clearly outnumber the unkind ones."""
    rng = np.random.default_rng([7, seed])
    words = rng.integers(1, WORDS + 1, size=(1800, LENGTH))
    opinion = (words <= 8).sum(axis=1) - (words > WORDS - 8).sum(axis=1)
    clear = np.abs(opinion) > 1
    labels = (opinion[clear] > 0).astype(np.int64)
    return torch.from_numpy(words[clear]), torch.from_numpy(labels)


def load_data(partition_id: int, num_partitions: int, seed: int) -> TensorDataset:
    """One client's sentences."""
    words, labels = _text(seed)
    return TensorDataset(
        words[300 + partition_id :: num_partitions], labels[300 + partition_id :: num_partitions]
    )


def load_test_data(seed: int) -> TensorDataset:
    words, labels = _text(seed)
    return TensorDataset(words[:300], labels[:300])


def cosine_annealing(server_round: int, rounds: int, highest: float, lowest: float) -> float:
    """The learning rate of a round."""
    wave = 0.5 * (1.0 + math.cos(math.pi * server_round / rounds))
    return lowest + (highest - lowest) * wave


def train(model: PeftModel, data: TensorDataset, epochs: int, lr: float, seed: int) -> float:
    """Train the adapters with AdamW; the mean loss."""
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, batch_size=16, shuffle=True, generator=order)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    total = 0.0
    for _ in range(epochs):
        for words, labels in loader:
            optimizer.zero_grad()
            loss = model(input_ids=words, labels=labels).loss
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / (epochs * len(loader))


def test(model: PeftModel, data: TensorDataset) -> tuple[float, float]:
    """Loss and accuracy."""
    words, labels = data.tensors
    model.eval()
    with torch.no_grad():
        scores = model(input_ids=words).logits
    loss = nn.functional.cross_entropy(scores, labels).item()
    return loss, (scores.argmax(dim=1) == labels).float().mean().item()


def load_final(path: Path) -> ArrayRecord:
    saved = load_file(path / "adapter_model.safetensors")
    model = new_model(0)
    set_params(model, saved)
    return ArrayRecord(get_params(model))
