"""Workload `text-lora`: a transformer that is frozen, with adapters that agents train and share.

Needs the extra `lora`. Only the adapters and the classifier travel, a small part of the model
(Hu et al. 2022, arXiv 2106.09685). The transformer itself is the same for everyone: its weights
are drawn from the run's seed, or read from the folder `base` in `data-dir`, where
`save_pretrained` has put a model of Hugging Face's transformers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from clients.text import LENGTH, SUBJECTS, WORDS, Text
from flower_dhb import ConfigError
from flower_dhb.extras import load

__all__ = ["TextLora"]

# What queries and values are computed with, as the authors of LoRA chose, by the names in use.
_ATTENTION = ["q_lin", "v_lin", "query", "value", "q_proj", "v_proj"]


class TextLora(Text):
    """The passages of `text`."""

    models = ("random-base", "saved-base")

    def build(self, model: str) -> nn.Module:
        """`random-base`: a small DistilBERT. `saved-base`: the model in `data-dir`/base."""
        peft = load("peft", "workload 'text-lora'")
        base = self._saved() if model == "saved-base" else _random()
        adapters = peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS, r=4, lora_alpha=16, target_modules=_ATTENTION
        )
        return _Scores(peft.get_peft_model(base, adapters))

    def _saved(self) -> Any:
        transformers = load("transformers", "workload 'text-lora'")
        folder = self.folder / "base"
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"workload 'text-lora': there is no model in '{folder}': write one there with "
                'save_pretrained, or take model = "random-base"'
            )
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            str(folder), num_labels=len(SUBJECTS), local_files_only=True
        )


def _random() -> Any:
    transformers = load("transformers", "workload 'text-lora'")
    config = transformers.DistilBertConfig(
        vocab_size=WORDS,
        max_position_embeddings=LENGTH,
        dim=64,
        hidden_dim=128,
        n_layers=2,
        n_heads=4,
        num_labels=len(SUBJECTS),
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        initializer_range=0.05,
    )
    return transformers.DistilBertForSequenceClassification(config)


class _Scores(nn.Module):
    """A model of Hugging Face's that has class scores as its output, and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(input_ids=x).logits
        return scores
