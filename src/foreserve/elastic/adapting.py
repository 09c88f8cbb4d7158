"""Adapt a frozen encoder to a task: a head, prompts, and how accurate every token setting then is.

Prompts are those of Jia et al., "Visual Prompt Tuning" (ECCV 2022), in their deep form: learned tokens behind the class
token, put in anew before each layer. The encoder never changes, so one in memory serves every task.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from foreserve.elastic.cost import Shape, macs
from foreserve.elastic.encoder import ElasticEncoder
from foreserve.elastic.fitting import batches, fitted, pace, undominated
from foreserve.elastic.folder import EncoderFacts
from foreserve.elastic.heads import FILE, pooled
from foreserve.elastic.inputs import Images, padded
from foreserve.elastic.labelled import Labelled
from foreserve.elastic.payload import Encode, TaskFacts
from foreserve.elastic.setting import PLAIN, Merge, Prompts, Setting, by_tokens
from foreserve.errors import ConfigError

STATE = "adapting.pt"
"""What goes on where a run was ended; it is gone once the task is whole."""

DECAYS = (1e-5, 1e-4, 1e-3, 1e-2)
"""Of a head's weights; the one that does best on the part kept aside is taken."""

ASIDE = 0.1
"""Of the training data, for choosing among epochs and decays."""

HEAD_RATE = 2e-3

Progress = Callable[[float, str], None]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is trained. `merges` and `prompts` are the settings to try beside plain; `rate` is that of the prompts."""

    merges: tuple[int, ...] = (1, 2, 4, 8)
    prompts: tuple[int, ...] = (4,)
    epochs: int = 8
    batch: int = 32
    rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise ConfigError("epochs and batch must be at least 1")
        if not self.rate > 0:
            raise ConfigError(f"the learning rate is {self.rate}; it must be above 0")

    def settings(self) -> list[Setting]:
        """All that are evaluated, from few tokens to many."""
        return sorted([PLAIN, *map(Merge, set(self.merges)), *map(Prompts, set(self.prompts))], key=by_tokens)


class Adapting:
    """One run, which may go on in a later process where it was ended: after every epoch its state is in `out`."""

    def __init__(
        self,
        model: Any,
        folder: Path,
        facts: EncoderFacts,
        train: Labelled,
        held_out: Labelled,
        labels: Sequence[str],
        plan: Plan,
        out: Path,
        progress: Progress,
    ) -> None:
        self._encoder = ElasticEncoder(model)
        self._facts = facts
        self._images = Images(folder, facts) if facts.images else None
        self._rest, self._aside = train.split(ASIDE, plan.seed)
        self._train, self._held_out = train, held_out
        self._labels = [*labels]
        self._plan = plan
        self._out = out
        self._progress = progress
        if not self._encoder.elastic and (plan.merges or plan.prompts):
            raise ConfigError(f"models of type {facts.model_type!r} serve as plain alone: no merging, no prompts")
        self._sign = f"{plan} {labels} {len(train.numbers)} {len(held_out.numbers)} {folder.name}"
        self._tensors: dict[str, Tensor] = {}
        self._accuracy: dict[str, float] = {}
        self._epoch: dict[str, Any] = {}
        self._resume()

    def run(self) -> TaskFacts:
        """Train what is not trained yet, evaluate, and write the task. Raises ConfigError for an image that is none."""
        self._out.mkdir(parents=True, exist_ok=True)
        if "head.0.weight" not in self._tensors:
            self._train_head()
        for p in self._plan.prompts:
            if f"prompts.{p}" not in self._tensors:
                self._train_prompts(p)
        for setting in self._plan.settings():
            if str(setting) not in self._accuracy:
                self._accuracy[str(setting)] = self._evaluate(self._held_out, setting, self._tensors, f"{setting}")
                self._keep()
        return self._write()

    # --- training

    def _train_head(self) -> None:
        """A linear layer on what the plain encoder gives; its inputs are made once."""
        rest, aside = (self._features(part, name) for part, name in ((self._rest, "training"), (self._aside, "aside")))
        truth, kept = torch.tensor(self._rest.numbers), torch.tensor(self._aside.numbers)
        found = []
        for decay in DECAYS:
            weight, bias = fitted(rest, truth, len(self._labels), decay)
            right = float(((aside @ weight.T + bias).argmax(1) == kept).float().mean())
            found.append((right, decay))
        decay = max(found)[1]
        weight, bias = fitted(torch.cat([rest, aside]), torch.cat([truth, kept]), len(self._labels), decay)
        self._tensors |= {"head.0.weight": weight, "head.0.bias": bias}
        self._keep()

    def _features(self, data: Labelled, name: str) -> Tensor:
        found = torch.empty(len(data.numbers), self._encoder.width)
        done = 0
        with torch.inference_mode():
            for chosen in batches(data, self._plan.batch, None):
                inputs = self._inputs([data.payloads[at] for at in chosen])
                found[chosen] = pooled(self._encoder(inputs), self._facts.pooling)
                done += len(chosen)
                self._progress(done / len(data.numbers), f"encoding, {name}")
        return found.clone()

    def _train_prompts(self, p: int) -> None:
        """Deep prompts and a head of their own, by gradients through the frozen encoder; the best epoch is kept."""
        plan, width = self._plan, self._encoder.width
        made = torch.Generator().manual_seed(plan.seed + p)
        bound = math.sqrt(6 / (2 * width))
        prompts = ((torch.rand(self._encoder.depth, p, width, generator=made) * 2 - 1) * bound).requires_grad_()
        weight, bias = (self._tensors[f"head.0.{part}"].clone().requires_grad_() for part in ("weight", "bias"))
        groups = [{"params": [prompts], "lr": plan.rate, "weight_decay": 0.0}]
        groups.append({"params": [weight, bias], "lr": HEAD_RATE, "weight_decay": 0.01})
        optimizer = torch.optim.AdamW(groups)
        steps = math.ceil(len(self._rest.numbers) / plan.batch) * plan.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: pace(step, steps))
        best: dict[str, Any] = {"right": -1.0}
        first = 0
        if self._epoch.get("p") == p:
            kept = self._epoch
            with torch.no_grad():
                for own, value in zip((prompts, weight, bias), kept["values"], strict=True):
                    own.copy_(value)
            optimizer.load_state_dict(kept["optimizer"])
            schedule.load_state_dict(kept["schedule"])
            best, first = kept["best"], kept["epoch"]
        for epoch in range(first, plan.epochs):
            losses: list[float] = []
            shuffled = [*batches(self._rest, plan.batch, (plan.seed, p, epoch))]
            for at, chosen in enumerate(shuffled):
                inputs = self._inputs([self._rest.payloads[each] for each in chosen])
                rows = prompts.expand(len(chosen), *prompts.shape)
                vectors = pooled(self._encoder(inputs, Prompts(p), rows), self._facts.pooling)
                truth = torch.tensor([self._rest.numbers[each] for each in chosen])
                loss = cross_entropy(vectors @ weight.T + bias, truth)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                losses.append(float(loss.detach()))
                share = (epoch + (at + 1) / len(shuffled)) / plan.epochs
                self._progress(share, f"{p} prompts, loss {np.mean(losses[-20:]):.3f}")
            now = _named(p, prompts, weight, bias)
            right = self._evaluate(self._aside, Prompts(p), now, f"{p} prompts, epoch {epoch + 1}")
            if right > best["right"]:
                best = {"right": right, "tensors": copy.deepcopy(now)}
            self._epoch = {
                "p": p,
                "epoch": epoch + 1,
                "values": [prompts.detach().clone(), weight.detach().clone(), bias.detach().clone()],
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "best": best,
            }
            self._keep()
        self._tensors |= best["tensors"]
        self._epoch = {}
        self._keep()

    # --- evaluating

    def _evaluate(self, data: Labelled, setting: Setting, tensors: dict[str, Tensor], what: str) -> float:
        """The share of `data` that is answered rightly."""
        p = setting.p if isinstance(setting, Prompts) else 0
        weight, bias = tensors[f"head.{p}.weight"], tensors[f"head.{p}.bias"]
        right = done = 0
        with torch.inference_mode():
            for chosen in batches(data, self._plan.batch, None):
                inputs = self._inputs([data.payloads[at] for at in chosen])
                own = tensors[f"prompts.{p}"] if p else None
                rows = None if own is None else own.expand(len(chosen), *own.shape)
                vectors = pooled(self._encoder(inputs, setting, rows), self._facts.pooling)
                truth = torch.tensor([data.numbers[at] for at in chosen])
                right += int(((vectors @ weight.T + bias).argmax(1) == truth).sum())
                done += len(chosen)
                self._progress(done / len(data.numbers), f"evaluating {what}")
        return right / len(data.numbers)

    def _inputs(self, payloads: Sequence[Encode]) -> dict[str, Tensor]:
        if self._images is None:
            return padded(payloads, self._facts)
        return {"pixel_values": torch.stack([self._images.pixels(payload) for payload in payloads])}

    # --- what stays

    def _shape(self) -> Shape:
        """The encoder at the usual length of an input, for what settings cost."""
        config = self._encoder.config
        if self._facts.images:
            with torch.inference_mode():
                length = self._encoder(self._inputs(self._held_out.payloads[:1])).tokens.shape[1]
        else:
            length = round(float(np.mean([len(payload.ids) for payload in self._held_out.payloads])))
        hidden = int(
            getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", 4 * config.hidden_size)
        )
        return Shape(tokens=length, layers=self._encoder.depth, width=self._encoder.width, hidden=hidden)

    def _write(self) -> TaskFacts:
        """The task, whole; then what was kept for going on is removed."""
        cost = {str(each): macs(self._shape(), each) for each in self._plan.settings()}
        facts = TaskFacts(
            name=self._out.name,
            labels=self._labels,
            model=self._facts.name,
            width=self._encoder.width,
            pooling=self._facts.pooling,
            accuracy={each: round(self._accuracy[each], 5) for each in cost},
            kept=undominated(self._accuracy, cost),
            prompts=sorted(set(self._plan.prompts)),
            held_out=len(self._held_out.numbers),
            notes={"seed": str(self._plan.seed), "trained_on": str(len(self._train.numbers))},
        )
        save_file({name: tensor.contiguous() for name, tensor in self._tensors.items()}, self._out / FILE)
        (self._out / "task.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts)))
        (self._out / STATE).unlink(missing_ok=True)
        return facts

    def _keep(self) -> None:
        state = {"sign": self._sign, "tensors": self._tensors, "accuracy": self._accuracy, "epoch": self._epoch}
        torch.save(state, self._out / f"{STATE}.new")
        os.replace(self._out / f"{STATE}.new", self._out / STATE)

    def _resume(self) -> None:
        file = self._out / STATE
        if not file.exists():
            return
        state = torch.load(file, weights_only=True)
        if state["sign"] != self._sign:
            raise ConfigError(f"{file} is of a run with other data or words; remove it to begin anew")
        self._tensors, self._accuracy, self._epoch = state["tensors"], state["accuracy"], state["epoch"]


def _named(p: int, prompts: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    return {
        f"prompts.{p}": prompts.detach().clone(),
        f"head.{p}.weight": weight.detach().clone(),
        f"head.{p}.bias": bias.detach().clone(),
    }
