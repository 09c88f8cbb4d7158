"""A small ServeGen folder: two clients, four windows, one of them with lengths in one half of the time alone."""

from __future__ import annotations

import json
from pathlib import Path

TRACES = {
    0: "0,0.5,2.0,Gamma,0.25,8\n600,0,0,,0,0\n1200,0.25,1.0,Gamma,1.0,4\n1800,1,0.5,Weibull,2.0,1\n",
    3: "0,2,1,Weibull,1.0,0.5\n600,2,1,Weibull,1.0,0.5\n1200,2,1,Weibull,1.0,0.5\n1800,2,1,Weibull,1.0,0.5\n",
}
DATASETS = {
    0: {"0": {"input_tokens": "{10: 0.25, 20: 0.75}", "output_tokens": "{5: 1.0}"},
        "1200": {"input_tokens": "{}", "output_tokens": "{}"}},
    3: {"0": {"text_tokens": "{100: 1.0}", "image_tokens": "{1000: 1.0}", "image_count": "{1: 1.0}",
              "output_tokens": "{7: 0.5, 9: 0.5}"},
        "1200": {"text_tokens": "{300: 1.0}", "output_tokens": "{11: 1.0}"}},
}  # fmt: skip
COUNTS = {(0, 0): 300, (0, 2): 150, (0, 3): 600, (3, 0): 1200, (3, 1): 1200, (3, 2): 1200, (3, 3): 1200}
"""Requests by client and window."""


def write(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in TRACES.items():
        (folder / f"chunk-{number}-trace.csv").write_text(text)
        (folder / f"chunk-{number}-dataset.json").write_text(json.dumps(DATASETS[number]))
    return folder
