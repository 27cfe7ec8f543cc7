"""Networks of `transformers`, trained as its examples train them, and by LoRA with `peft`."""

from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from zoo.data import images, sentences
from zoo.member import Distributed, Member, Stateless

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'lightning-same[zoo]'")

BERT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 8,
}
GPT2 = {"vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
VIT = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_labels": 3,
    "hidden_dropout_prob": 0.1,
}


class FineTuned(pl.LightningModule):
    """AdamW without weight decay on biases and norms, and a learning rate that warms up and goes down linearly."""

    net: nn.Module

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.net(**batch).loss
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        named = [(name, param) for name, param in self.net.named_parameters() if param.requires_grad]
        plain = [param for name, param in named if "bias" in name or "norm" in name.lower()]
        decayed = [param for name, param in named if not ("bias" in name or "norm" in name.lower())]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=1e-3)
        scheduler = transformers.get_linear_schedule_with_warmup(optimizer, 2, 10)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Bert(FineTuned):
    def __init__(self) -> None:
        super().__init__()
        self.net = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT))


class Gpt2(FineTuned):
    def __init__(self, dropout: float = 0.0, checkpointing: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        self.net = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, **dropouts))
        if checkpointing is not None:
            self.net.gradient_checkpointing_enable(checkpointing)
        assert self.net.lm_head.weight is self.net.transformer.wte.weight


class Vit(FineTuned):
    def __init__(self) -> None:
        super().__init__()
        self.net = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT))


class Lora(FineTuned):
    """A frozen BERT with trained low-rank updates of two projections, and a trained head."""

    def __init__(self) -> None:
        super().__init__()
        peft = pytest.importorskip("peft", reason="needs peft: pip install 'lightning-same[zoo]'")
        bert = transformers.BertForSequenceClassification(transformers.BertConfig(**BERT))
        config = peft.LoraConfig(
            task_type="SEQ_CLS", r=2, lora_alpha=4, lora_dropout=0.1, target_modules=["query", "value"]
        )
        self.net = peft.get_peft_model(bert, config)


class TestBert(Distributed):
    make = Bert
    batches = staticmethod(sentences)


def texts() -> Any:
    return [{"input_ids": batch["input_ids"], "labels": batch["input_ids"]} for batch in sentences()]


class TestGpt2(Stateless):
    make = Gpt2
    batches = staticmethod(texts)


class TestGpt2WithDropout(Member):
    batches = staticmethod(texts)

    @staticmethod
    def make() -> Any:
        return Gpt2(dropout=0.2)


class TestGpt2WithActivationCheckpoints(Member):
    batches = staticmethod(texts)
    copies: ClassVar[bool] = False  # transformers hooks a local function in.

    @staticmethod
    def make() -> Any:
        return Gpt2(dropout=0.2, checkpointing={"use_reentrant": False})


class TestGpt2WithReentrantCheckpoints(Member):
    batches = staticmethod(texts)
    copies: ClassVar[bool] = False
    curved: ClassVar[bool] = False

    @staticmethod
    def make() -> Any:
        return Gpt2(dropout=0.2, checkpointing={"use_reentrant": True})


class TestLora(Member):
    make = Lora
    batches = staticmethod(sentences)
    rho: ClassVar[float] = 0.02


class TestVit(Member):
    make = Vit

    @staticmethod
    def batches() -> Any:
        return [{"pixel_values": x, "labels": y} for x, y in images()]
