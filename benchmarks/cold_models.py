"""Three models as functions, each twice: with shared weights, and as one writes it without them.

The child processes of the benchmarks read this file too, and run it as a script for a fresh process for each call:
`python cold_models.py NAME FOLDER TEXT`. All of them compute with one thread.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils import logging

if TYPE_CHECKING:
    import foreserve as fs

logging.disable_progress_bar()
FOLDER: Final = Path(os.environ.get("COLD_FOLDER", "."))
"""Of the model that this process serves."""

BLOCK: Final = 4096
"""Side of each matrix of the made model: 64 MiB in f32."""


def _skeleton(made: Any, folder: Path) -> Any:
    from foreserve.engines.binding import skeleton

    with skeleton():
        # In the precision of the file, as `from_pretrained` has it; ties are made by the class.
        config = AutoConfig.from_pretrained(folder)
        return made.from_config(config, dtype=config.dtype or torch.float32).eval()


class _Model:
    """What every one of them does once its module is there."""

    def __init__(self, folder: Path, module: Any) -> None:
        torch.set_num_threads(1)
        self.module = module
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(self, text: str) -> torch.Tensor:
        return torch.tensor([self.tokenizer.encode(text).ids[:64]])


class MinilmPrivate(_Model):
    """The sentence encoder: the first numbers of a text's mean vector."""

    def __init__(self, folder: Path = FOLDER) -> None:
        super().__init__(folder, AutoModel.from_pretrained(folder).eval())

    def __call__(self, text: str) -> list[float]:
        """The numbers."""
        with torch.inference_mode():
            states = self.module(input_ids=self.ids(text)).last_hidden_state
            return [round(x, 4) for x in states.mean(dim=1)[0, :3].tolist()]


class Minilm(MinilmPrivate):
    """With shared weights."""

    def __init__(self, weights: fs.Weights) -> None:
        _Model.__init__(self, FOLDER, _skeleton(AutoModel, FOLDER))
        weights.bind(self.module)


class SmolPrivate(_Model):
    """The language model: the token that it would write next."""

    def __init__(self, folder: Path = FOLDER) -> None:
        made = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        super().__init__(folder, made.eval())

    def __call__(self, text: str) -> list[float]:
        """Its number."""
        with torch.inference_mode():
            return [float(self.module(input_ids=self.ids(text)).logits[0, -1].argmax())]


class Smol(SmolPrivate):
    """With shared weights."""

    def __init__(self, weights: fs.Weights) -> None:
        _Model.__init__(self, FOLDER, _skeleton(AutoModelForCausalLM, FOLDER))
        weights.bind(self.module)


class MadePrivate:
    """Matrices of 1 GiB together, of which one number in each page is summed."""

    def __init__(self, folder: Path = FOLDER) -> None:
        torch.set_num_threads(1)
        self.tensors = load_file(folder / "model.safetensors")

    def __call__(self, text: str) -> list[float]:
        """The sum, and how long the text is."""
        with torch.inference_mode():
            return [float(sum(each.view(-1)[::1024].sum() for each in self.tensors.values())), float(len(text))]


class Made(MadePrivate):
    """With shared weights."""

    def __init__(self, weights: fs.Weights) -> None:
        torch.set_num_threads(1)
        self.tensors = {name: weights.torch(name) for name in weights.names()}


def make(folder: Path, matrices: int) -> None:
    """The made model, unless it is there."""
    from safetensors.torch import save_file

    file = folder / "model.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(0)
        made = {f"w{at}": torch.rand(BLOCK, BLOCK, generator=generator) for at in range(matrices)}
        save_file(made, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)


PRIVATE: Final[dict[str, Any]] = {"minilm": MinilmPrivate, "smollm2": SmolPrivate, "made": MadePrivate}

if __name__ == "__main__":
    print(PRIVATE[sys.argv[1]](Path(sys.argv[2]))(sys.argv[3]))
