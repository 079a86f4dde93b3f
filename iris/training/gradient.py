"""The exact gradient of a loss on the global batch, accumulated over micro-batches and processes.

Loss and gradient of a step do not depend on how the batch is split (up to the order of floating-point sums). A loss
that is a mean over samples is differentiated part by part, with the global count. A *coupled* loss (IRIS) is one
function of all log-probabilities of the batch. If its weights are known up to
their normalisers (`tilts`) and a process has one part, one pass suffices: the normalisers follow when all processes'
log-probabilities are gathered. Otherwise a pass without gradient collects the log-probabilities first.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from iris.errors import UserError
from iris.execution.world import World
from iris.method import objectives
from iris.method.registry import Method
from iris.model.head import Coefficients, coefficients_of
from iris.model.packing import Row, Tokens, pack

# Weights are kept relative to the largest of the first ones; e^60 times that fits float32 with room for the sums.
_HEADROOM = 60.0


@dataclass(frozen=True)
class TrainingSet:
    """N samples with R responses each: the annotated first, then the synthetic ones, then the proto one if any.

    `references` are log-probabilities [J, R, N] under J frozen references (float64).
    """

    prompts: Sequence[Tokens]  # [N]
    responses: Sequence[Sequence[Tokens]]  # [R][N]
    references: np.ndarray | None = None
    synthetic: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def row(self, index: int) -> Row:
        """Return one sample for packing."""
        return Row(self.prompts[index], [response[index] for response in self.responses])

    def lengths(self) -> list[int]:
        """Return the packed tokens of every sample."""
        return [len(p) + sum(len(r[i]) for r in self.responses) for i, p in enumerate(self.prompts)]


@dataclass(frozen=True)
class Objective:
    """A method's loss as a function of log-probabilities."""

    method: Method
    parameters: Mapping[str, float]
    alpha: Callable[[int], float] | None = None  # the order of each step, for methods that have one

    @property
    def coupled(self) -> bool:
        """Whether the loss is one function of the whole batch."""
        return self.method.needs.coupled

    @functools.cached_property
    def function(self) -> Callable[..., Tensor]:
        """The objective itself."""
        return self.method.load()

    def loss(self, logps: Tensor, references: Tensor | None, *, step: int, batch: int, tokens: int) -> Tensor:
        """Return the share of these samples in the loss of a global batch of `batch` samples and `tokens` tokens.

        logps [b, R], references [J, b, R] → scalar. For a coupled loss the samples must be the whole batch.
        """
        needed = self.method.needs
        if not needed.synthetic:
            return self._checked(self.function(logps[:, 0], tokens=tokens, **self.parameters), logps[:, 0]).sum()
        values = logps if references is None else logps - references
        stop = logps.shape[1] - (1 if needed.proto else 0)
        real, synthetic = values[..., :1], values[..., 1:stop]
        terms = [real.expand_as(synthetic).flatten(-2), synthetic.flatten(-2)]
        if needed.proto:
            terms.append(values[..., stop:].expand_as(synthetic).flatten(-2))
        if needed.players == 1:
            terms = [t.squeeze(0) for t in terms]
        value = self._checked(self.function(*terms, **self._parameters(step)), terms[0])
        return value if needed.coupled else value.sum() / (batch * synthetic.shape[-1])

    def tilts(self, step: int) -> tuple[float, float] | None:
        """Return the log-weights of a coupled loss as multiples of annotated and synthetic ratios, if it has any."""
        name = self.method.needs.tilts
        found: tuple[float, float] | None = self.method.load(name)(**self._parameters(step)) if name else None
        return found

    def _checked(self, value: Any, term: Tensor) -> Tensor:
        """Return an objective's value for the ratios `term` [..., B]. Raises UserError unless it is their loss."""
        shape = [] if self.coupled else list(term.shape[-1:])
        expected = "one value of the whole batch, []" if self.coupled else f"a loss per sample, [B] = {shape}"
        if not isinstance(value, Tensor):
            came = "None" if value is None else f"a {type(value).__name__}"
        elif list(value.shape) != shape:
            came = f"a tensor of shape {list(value.shape)}"
        elif term.requires_grad and not value.requires_grad:
            came, expected = "a tensor without gradient", f"{expected}, differentiable"
        else:
            return value
        raise UserError(f"method.function={self.method.reference}: it returns {came}; expected {expected}.")

    def _parameters(self, step: int) -> dict[str, float]:
        return dict(self.parameters) | ({} if self.alpha is None else {"alpha": self.alpha(step)})


class Gradient:
    """Accumulates the gradient of an objective in the parameters of a prepared policy."""

    def __init__(
        self, policy: torch.nn.Module, accelerator: Accelerator, world: World, data: TrainingSet, objective: Objective
    ) -> None:
        self.policy, self.accelerator, self.world = policy, accelerator, world
        self.data, self.objective = data, objective

    def accumulate(self, step: int, indices: list[int], parts: list[list[int]]) -> tuple[float, dict[str, float]]:
        """Add the gradient of this process's parts; return the loss and statistics of the global batch."""
        batch = _Batch(self, step, indices)
        if not self.objective.coupled:
            values = [self._fused(part, batch.coefficients(part), k == len(parts) - 1) for k, part in enumerate(parts)]
            return batch.summary(self._gather(values, parts))
        if batch.tilts and len(parts) == 1 and (summary := self._at_once(batch, parts[0], batch.tilts)):
            return summary
        with torch.no_grad():
            values = [self.policy(self._packed(part))[0].view(len(part), -1) for part in parts]
        gathered = self._gather(values, parts)
        start = 0
        shares = self._own(batch.shares(gathered), gathered)
        for k, part in enumerate(parts):
            share = shares[start : start + len(part)].to(values[k]).flatten()
            self._fused(part, lambda _, responses, share=share: share[responses], k == len(parts) - 1)  # type: ignore[misc]
            start += len(part)
        return batch.summary(gathered)

    def _fused(self, part: list[int], coefficients: Coefficients, last: bool) -> Tensor:
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.policy):
            logps, products = self.policy(self._packed(part), coefficients)
            self._backward(products.sum())
        result: Tensor = logps.view(len(part), -1)
        return result

    def _at_once(
        self, batch: "_Batch", part: list[int], tilts: tuple[float, float]
    ) -> tuple[float, dict[str, float]] | None:
        """Take the gradient of a coupled loss from one pass; None where its weights leave the range of the first."""
        weights = _Weights(batch, part, tilts)
        logps, products = self.policy(self._packed(part, by_column=True), weights)
        values = torch.cat([logps[: len(part), None], logps[len(part) :].view(len(part), -1)], dim=1)
        if any(self.world.gather(weights.outside)):
            return None
        gathered = self._gather([values], [part])
        shares = self._own(batch.shares(gathered), gathered)
        self._backward(products @ weights.factors(shares).to(products))
        return batch.summary(gathered)

    def _backward(self, scalar: Tensor) -> None:
        # DDP and FSDP average gradients over processes; ours add up to the global batch's.
        self.accelerator.backward(scalar * self.world.size)

    def _packed(self, part: list[int], *, by_column: bool = False) -> Any:
        return pack([self.data.row(i) for i in part], by_column=by_column).to(self.accelerator.device)

    def _gather(self, values: list[Tensor], parts: list[list[int]]) -> list[tuple[list[int], np.ndarray]]:
        """Gather every process's sample indices and log-probabilities [b, R] (float64)."""
        own = [i for part in parts for i in part]
        return self.world.gather((own, torch.cat(values).detach().double().cpu().numpy()))

    def _own(self, shares: Tensor, gathered: list[tuple[list[int], np.ndarray]]) -> Tensor:
        start = sum(len(ids) for ids, _ in gathered[: self.world.rank])
        return shares[start : start + len(gathered[self.world.rank][0])]

    def references(self, indices: list[int]) -> Tensor | None:
        """[J, b, R] float64, on the CPU."""
        if self.data.references is None:
            return None
        return torch.from_numpy(self.data.references[:, :, indices].transpose(0, 2, 1).copy())


class _Batch:
    """One global batch of an objective: its size, and what follows from all of its log-probabilities."""

    def __init__(self, gradient: Gradient, step: int, indices: list[int]) -> None:
        self.gradient, self.objective, self.step = gradient, gradient.objective, step
        self.device = gradient.accelerator.device
        data = gradient.data
        self.tokens = sum(len(data.responses[0][i]) for i in indices)
        self.packed_tokens = sum(data.row(i).tokens for i in indices)
        self.tilts = self.objective.tilts(step)
        self.count = {"step": step, "batch": len(indices), "tokens": self.tokens}

    def references(self, part: list[int]) -> Tensor | None:
        """[J, b, R] float32, on the policy's device."""
        values = self.gradient.references(part)
        return None if values is None else values.to(self.device, torch.float32)

    def coefficients(self, part: list[int]) -> Coefficients:
        """Return the coefficients of a loss that is a sum over samples, for the responses of a part."""
        references, columns = self.references(part), len(self.gradient.data.responses)
        real = torch.tensor([i >= 0 for i in part], device=self.device)

        def loss(logps: Tensor, responses: slice) -> Tensor:
            rows = slice(responses.start // columns, responses.stop // columns)
            own = real[rows]
            known = None if references is None else references[:, rows][:, own]
            return self.objective.loss(logps.view(-1, columns)[own], known, **self.count)

        return coefficients_of(loss)

    def shares(self, gathered: list[tuple[list[int], np.ndarray]]) -> Tensor:
        """Return ∂loss/∂log-probability [b, R] of a coupled loss, float64, in the order of `gathered`."""
        everywhere = [i for ids, _ in gathered for i in ids]
        real = [n for n, i in enumerate(everywhere) if i >= 0]
        logps = torch.from_numpy(np.concatenate([v for _, v in gathered])[real]).requires_grad_()
        loss = self.objective.loss(logps, self.gradient.references([everywhere[n] for n in real]), **self.count)
        full = torch.zeros(len(everywhere), logps.shape[1], dtype=torch.float64)
        (full[real],) = torch.autograd.grad(loss, logps)
        return full

    def summary(self, gathered: list[tuple[list[int], np.ndarray]]) -> tuple[float, dict[str, float]]:
        """Return the loss, and statistics: how the policy moves, how concentrated a coupled loss's weights are."""
        pairs = sorted((i, tuple(v)) for ids, vs in gathered for i, v in zip(ids, vs, strict=True) if i >= 0)
        logps = torch.tensor([v for _, v in pairs], dtype=torch.float64)
        references = self.gradient.references([i for i, _ in pairs])
        loss = float(self.objective.loss(logps, references, **self.count))
        ratios = logps if references is None else logps - references[0]
        name = "logp" if references is None else "ratio"
        result = {f"real_{name}": float(ratios[:, 0].mean())}
        if references is not None and self.step == 0:
            tokens = sum(len(column[i]) for column in self.gradient.data.responses for i, _ in pairs)
            result["start_ratio"] = math.sqrt(float(ratios.square().sum()) / tokens)
        if synthetic := self.gradient.data.synthetic:
            result[f"synthetic_{name}"] = float(ratios[:, 1 : 1 + synthetic].mean())
        if self.tilts:
            blocks = zip(("real_ess", "synthetic_ess"), self.tilts, _blocks(ratios), strict=True)
            weights = {name: torch.softmax(tilt * block, dim=0) for name, tilt, block in blocks}
            result |= {name: float(objectives.effective_sample_size(w)) for name, w in weights.items()}
        if self.objective.alpha is not None:
            result["alpha"] = self.objective.alpha(self.step)
        return loss, result | {"response_tokens": self.tokens, "packed_tokens": self.packed_tokens}


def _blocks(values: Tensor) -> tuple[Tensor, Tensor]:
    """[b, R] of annotated and synthetic responses → [b] and [b · (R − 1)], as `pack` orders them by column."""
    return values[:, 0], values[:, 1:].flatten()


class _Weights:
    """Coefficients of a coupled loss up to a factor for each block of a part that is packed by column."""

    def __init__(self, batch: _Batch, part: list[int], tilts: tuple[float, float]) -> None:
        references = batch.references(part)
        assert references is not None
        real = torch.tensor([i >= 0 for i in part], device=references.device)[:, None].expand_as(references[0])
        self.references, self.real = torch.cat(_blocks(references[0])), torch.cat(_blocks(real))
        self.tilts, self.size = tilts, len(part)
        self.outside = False  # whether a weight exceeds the first ones by more than the headroom
        self.pivots: list[Tensor] = []
        self.values: tuple[list[Tensor], list[Tensor]] = ([], [])

    def __call__(self, logps: Tensor, responses: slice) -> Tensor:
        block = int(responses.start >= self.size)
        logs = self.tilts[block] * (logps - self.references[responses])
        if not self.values[block]:
            self.pivots.append(logs.max())
        logs = logs - self.pivots[block]
        self.outside |= bool(logs.max() > _HEADROOM)
        weights = logs.exp() * self.real[responses]
        self.values[block].append(weights)
        return weights

    def factors(self, shares: Tensor) -> Tensor:
        """Return the factors [2] from the blocks' weights to their coefficients, given as `shares` [b, R]."""
        pairs = [(torch.cat(values).to(true), true) for values, true in zip(self.values, _blocks(shares), strict=True)]
        return torch.stack([true[w.argmax()] / w.max().clamp(min=1e-300) for w, true in pairs])
