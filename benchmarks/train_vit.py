"""Train the small vision transformer that ships with Foreserve, on the CIFAR-10 images, on a CPU.

    python -m benchmarks.train_vit --folder runs/vit [--epochs 9] [--threads 1]

Ends at any time and goes on where it was: all of its state is in `FOLDER/state.pt`, written after each epoch and every
few hundred steps. `FOLDER/model` holds the averaged weights so far as a Hugging Face folder in half precision, and
`FOLDER/log.jsonl` a line for each epoch.

What lets a transformer learn images in few epochs: patches are projected on their principal directions (whitened) from
the start; attention begins near what trained attention looks like (products of query and key near the identity, of
value and output near its negative: Trockman and Kolter, "Mimetic initialization of self-attention layers", ICML 2023);
matrices are stepped by Muon, the rest by AdamW; and the weights that are kept are a running average. Images are flipped
and shifted by up to four pixels. The matrix products run in bfloat16, over float32 weights that the optimizers hold.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad, scaled_dot_product_attention
from transformers import AttentionInterface, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from benchmarks.cifar import CLASSES, archive, cifar

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH = 128
SHIFT = 4
LABEL_SMOOTHING = 0.1
MUON_LR, ADAM_LR = 4e-3, 1.5e-3
WARM_UP = 200
DECAYS = 0.35
"""The last part of the steps, in which the learning rate goes down to nothing."""
AVERAGED = 0.998
KEPT_EVERY = 200


def config() -> ViTConfig:
    """64 patches of four by four pixels, six layers, 0.8 million weights."""
    return ViTConfig(
        image_size=32,
        patch_size=4,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
    )


def prepared(images: Tensor) -> Tensor:
    """Pixels as the model takes them, of images `[n, 3, 32, 32]` in bytes."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def processor() -> ViTImageProcessorPil:
    """The same for whoever loads the folder."""
    return ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD)


# --- where training begins


def initialised(images: Tensor, seed: int) -> ViTForImageClassification:
    """The model before its first step; `images` are a few thousand to find the principal directions of patches."""
    torch.manual_seed(seed)
    model = ViTForImageClassification(config())
    width = model.config.hidden_size
    with torch.no_grad():
        embeddings = model.vit.embeddings
        embeddings.patch_embeddings.projection.weight.copy_(
            _whitening(prepared(images), model.config.patch_size, width)
        )
        embeddings.patch_embeddings.projection.bias.zero_()
        side = model.config.image_size // model.config.patch_size
        embeddings.position_embeddings[:, 1:] = _positions(side, width)
        for layer in model.vit.layers:
            _mimic(layer.attention, model.config.num_attention_heads)
    return model


def _whitening(pixels: Tensor, patch: int, width: int) -> Tensor:
    """Filters `[width, 3, patch, patch]`: principal directions at unit variance, their negatives, mixtures of them."""
    patches = pixels.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    values, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    whitened = (directions / (values + 1e-2).sqrt()).T
    mixed = torch.randn(max(0, width - 2 * len(whitened)), len(whitened)) / len(whitened) ** 0.5 @ whitened
    return torch.cat([whitened, -whitened, mixed])[:width].reshape(width, 3, patch, patch)


def _positions(side: int, width: int) -> Tensor:
    """Sines and cosines of rows and columns, `[side * side, width]`."""
    frequencies = torch.exp(torch.linspace(0, -np.log(side * 4.0), width // 4)) * np.pi / 2
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1) * 0.7


def _mimic(attention: Any, heads: int) -> None:
    """See the module's words; the strengths are the paper's."""
    width = attention.q_proj.weight.shape[1]
    size = width // heads
    for head in range(heads):
        product = 0.7 * torch.randn(width, width) / width**0.5 + 0.7 * torch.eye(width)
        left, strength, right = torch.linalg.svd(product)
        rows = slice(head * size, (head + 1) * size)
        attention.q_proj.weight[rows] = (left[:, :size] * strength[:size].sqrt()).T
        attention.k_proj.weight[rows] = right[:size] * strength[:size].sqrt()[:, None]
    left, strength, right = torch.linalg.svd(0.4 * torch.randn(width, width) / width**0.5 - 0.4 * torch.eye(width))
    attention.o_proj.weight.copy_(left * strength.sqrt())
    attention.v_proj.weight.copy_(right * strength.sqrt()[:, None])


# --- one run, which may be several processes one after the other


def _float_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Fused attention in float32: backwards it is four times as fast on a CPU as in bfloat16."""
    out = scaled_dot_product_attention(query.float(), key.float(), value.float(), scale=options.get("scaling"))
    return out.transpose(1, 2).to(query.dtype), None


class Run:
    """The weights (float32), their average, the copy that computes (bfloat16), and the optimizers."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, epochs: int, seed: int) -> None:
        AttentionInterface.register("float_attention", _float_attention)
        self.images, self.labels = torch.from_numpy(images), torch.from_numpy(labels)
        self.seed = seed
        self.step = 0
        self.an_epoch = len(images) // BATCH
        self.steps = epochs * self.an_epoch
        self.model = initialised(self.images[:: max(1, len(images) // 2000)], seed)
        self.average = copy.deepcopy(self.model).eval()
        self.computing = copy.deepcopy(self.model).to(torch.bfloat16).train()
        self.computing.set_attn_implementation("float_attention")
        inside = [p for p in self.model.vit.layers.parameters() if p.ndim == 2]
        known = {id(p) for p in inside}
        others = [p for p in self.model.parameters() if id(p) not in known]
        # The wide steps of Muon are scaled to those of AdamW, so one schedule serves both.
        self.muon = torch.optim.Muon(inside, lr=MUON_LR, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        self.adam = torch.optim.AdamW(others, lr=ADAM_LR, weight_decay=0.05, betas=(0.9, 0.98))

    def pace(self) -> float:
        """The learning rate at this step, as a part of its most."""
        left = (self.steps - self.step) / (self.steps * DECAYS)
        return max(0.0, min(1.0, (self.step + 1) / WARM_UP, left))

    def train(self) -> float:
        """One step. Returns its loss."""
        epoch, at = divmod(self.step, self.an_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
        chosen = torch.from_numpy(order[at * BATCH : (at + 1) * BATCH])
        pixels = self._varied(self.images[chosen], np.random.default_rng((self.seed, epoch, at)))
        logits = self.computing(pixel_values=prepared(pixels).to(torch.bfloat16)).logits
        loss = cross_entropy(logits.float(), self.labels[chosen], label_smoothing=LABEL_SMOOTHING)
        torch.autograd.backward(loss)
        for kept, computed in zip(self.model.parameters(), self.computing.parameters(), strict=True):
            kept.grad = None if computed.grad is None else computed.grad.float()
            computed.grad = None
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in ((self.muon, MUON_LR), (self.adam, ADAM_LR)):
            optimizer.param_groups[0]["lr"] = rate * self.pace()
            optimizer.step()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            weights = [*self.model.parameters()]
            torch._foreach_copy_([*self.computing.parameters()], weights)
            share = 1 - min(AVERAGED, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_([*self.average.parameters()], weights, share)
        self.step += 1
        return float(loss.detach())

    @staticmethod
    def _varied(images: Tensor, draw: np.random.Generator) -> Tensor:
        """Each flipped or not and shifted by up to `SHIFT` pixels; what comes in at the edge is mirrored."""
        count, _, side, _ = images.shape
        wide = pad(images.float(), (SHIFT,) * 4, mode="reflect").to(torch.uint8)
        top, left = (torch.from_numpy(draw.integers(0, 2 * SHIFT + 1, count)) for _ in range(2))
        along = torch.arange(side)
        columns = torch.where(torch.from_numpy(draw.random(count) < 0.5)[:, None], along.flip(0), along)
        rows = (top[:, None] + along)[:, None, :, None]
        columns = (left[:, None] + columns)[:, None, None, :]
        return wide[torch.arange(count)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Of the averaged weights."""
        right = 0
        with torch.inference_mode():
            for start in range(0, len(images), 250):
                pixels = prepared(torch.from_numpy(images[start : start + 250]))
                found = self.average(pixel_values=pixels).logits.argmax(1)
                right += int((found == torch.from_numpy(labels[start : start + 250])).sum())
        return right / len(images)

    def state(self) -> dict[str, Any]:
        """All that another process needs to go on."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "muon", "adam")}
        return {**parts, "step": self.step, "seed": self.seed}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there, also with another number of epochs."""
        for name in ("model", "average", "muon", "adam"):
            getattr(self, name).load_state_dict(state[name])
        self.computing.load_state_dict(state["model"])
        self.step, self.seed = state["step"], state["seed"]

    def write(self, folder: Path) -> None:
        """Whole or not at all, so that a run may be ended at any moment."""
        torch.save(self.state(), folder / "state.new")
        os.replace(folder / "state.new", folder / "state.pt")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the run is kept")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    source = archive()
    if source is None:
        raise SystemExit("no CIFAR-10 images here (FORESERVE_DATA)")
    torch.set_num_threads(chosen.threads)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    (images, labels), held_out = cifar(source, chosen.folder / "images.npz")
    run = Run(images, labels, chosen.epochs, chosen.seed)
    if (chosen.folder / "state.pt").exists():
        run.restore(torch.load(chosen.folder / "state.pt", weights_only=True))
    losses: list[float] = []
    with Progress() as progress:
        bar = progress.add_task("training", total=run.steps, completed=run.step)
        while run.step < run.steps:
            losses.append(run.train())
            progress.update(bar, completed=run.step, description=f"loss {np.mean(losses[-50:]):.3f}")
            if run.step % KEPT_EVERY == 0:
                run.write(chosen.folder)
            if run.step % run.an_epoch == 0:
                run.write(chosen.folder)
                told = {"epoch": run.step // run.an_epoch, "loss": float(np.mean(losses))}
                # The archive goes by class: every fifth image is of all of them. At the end all are asked.
                every = 1 if run.step == run.steps else 5
                told["accuracy"] = run.accuracy(held_out[0][::every], held_out[1][::every])
                with (chosen.folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps(told) + "\n")
                copy.deepcopy(run.average).half().save_pretrained(chosen.folder / "model")
                processor().save_pretrained(chosen.folder / "model")
                losses = []


if __name__ == "__main__":
    main()
