"""The training step of TRL's DPOTrainer, whose default loss with β = 0.1 is that of SPIN."""

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from datasets import disable_progress_bars as hide_bars
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl.trainer import utils as trl_utils
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from iris.model.packing import Row
from measure import StepMeter
from workload import BETA, LEARNING_RATE, MAX_NORM, PAD, Shape, device, model


class _Trainer(DPOTrainer):
    """DPOTrainer on tokenised rows that records its losses."""

    losses: list[float]

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[no-untyped-call]
        self.losses.append(loss.item())
        return loss


class _Marks(TrainerCallback):
    def __init__(self, meter: StepMeter, work: Sequence[Sequence[Row]]) -> None:
        self.meter, self.work = meter, work
        self.trainer: _Trainer | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        self.meter.step(self.work[state.global_step - 1], self.trainer.losses[-1])


def trl(work: Sequence[Sequence[Row]], shape: Shape, meter: StepMeter, *, cached: bool, compact: bool) -> None:
    """Measure DPOTrainer, `cached`: with precomputed references, `compact`: projecting completion positions only."""
    if compact:  # what it does where Triton runs, and as well elsewhere
        trl_utils._use_triton = lambda device: True  # type: ignore[attr-defined]
    hide_bars()
    flat = [row for batch in work for row in batch]
    marks = _Marks(meter, work)
    with TemporaryDirectory() as folder:
        trainer = _Trainer(
            model=model(shape),
            ref_model=model(shape, seed=1),
            args=_config(folder, len(work[0]), shape, cached),
            train_dataset=Dataset.from_list([_record(row) for row in flat]),
            processing_class=_tokenizer(),
            callbacks=[marks],
        )
        if cached:
            trainer.ref_model = None  # as where it is the untrained policy, which is TRL's default
        if device().type == "cpu":
            torch.set_num_threads(1)
        trainer.losses, marks.trainer = [], trainer
        trainer.train()


def _config(folder: str, batch: int, shape: Shape, cached: bool) -> DPOConfig:
    """Return TRL's defaults except for settings that all share, and without recomputation where memory allows."""
    on_gpu = device().type == "cuda"
    return DPOConfig(
        output_dir=folder,
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        beta=BETA,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_NORM,
        optim="adamw_torch_fused",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=shape.checkpointing,
        max_length=None,
        precompute_ref_log_probs=cached,
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _record(row: Row) -> dict[str, list[int]]:
    parts = zip(("prompt_ids", "chosen_ids", "rejected_ids"), (row.prompt, *row.responses), strict=False)
    return {name: list(tokens) for name, tokens in parts}


def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"[PAD]": PAD, "[EOS]": 1}, unk_token="[PAD]"))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]"
    )
