"""A torch model as a function: `foreserve serve examples/torch_function.py`.

    curl http://127.0.0.1:8000/digit -H 'content-type: application/json' -d "{\"pixels\": [$(yes 0.5, | head -63)0.5]}"

All workers look at one read-only copy of the weights. Calls that come together run as one batch. The weights are
written when the file is first read, and random: a real service has its own file.
"""

from pathlib import Path
from typing import Annotated

import torch
from msgspec import Meta
from safetensors.torch import save_file

import foreserve as fs

WEIGHTS = Path.home() / ".cache" / "foreserve" / "examples" / "digits.safetensors"


Pixels = Annotated[list[float], Meta(min_length=64, max_length=64)]  # another length is a 400, and costs no batch


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))


if not WEIGHTS.exists():
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    save_file(network().state_dict(), WEIGHTS)


@fs.function(weights=str(WEIGHTS), batch=32, timeout_s=5.0, replicas=2, route="/digit")
class Digit:
    def __init__(self, weights: fs.Weights) -> None:
        torch.set_num_threads(1)
        with torch.device("meta"):  # a skeleton without memory of its own
            self.network = network().eval()
        weights.bind(self.network)

    def __call__(self, pixels: list[Pixels]) -> list[int]:
        with torch.inference_mode():
            return self.network(torch.tensor(pixels)).argmax(dim=1).tolist()


app = fs.App(digit=Digit)
