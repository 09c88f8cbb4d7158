"""Cora, a graph of papers that cite papers: train a model as ever, then serve it while the graph changes.

    python cora.py cora.npz        # trains; writes cora.safetensors and graph.npz beside this file
    foreserve graph check cora.py  # says what is kept up to date, layer by layer
    foreserve serve cora.py

`cora.npz` is the file of that name in https://github.com/shchur/gnn-benchmark.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, dropout
from torch_geometric.nn import GCNConv

import foreserve

HERE = Path(__file__).parent


class Cora(torch.nn.Module):
    """Two graph convolutions: seven scores for each paper, one for each field."""

    def __init__(self, features: int = 2879, hidden: int = 64, fields: int = 7) -> None:
        super().__init__()
        self.one, self.two = GCNConv(features, hidden), GCNConv(hidden, fields)

    def forward(self, x: Any, edge_index: Any) -> Any:
        x = dropout(self.one(x, edge_index).relu(), training=self.training)
        return self.two(x, edge_index)


def read(path: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, edges in both directions, and fields."""
    with np.load(path, allow_pickle=False) as file:
        rows = np.repeat(np.arange(len(file["adj_indptr"]) - 1), np.diff(file["adj_indptr"]))
        pairs = np.stack((rows, file["adj_indices"]))
        features = np.zeros(tuple(file["attr_shape"]), np.float32)
        features[np.repeat(np.arange(len(features)), np.diff(file["attr_indptr"])), file["attr_indices"]] = 1.0
        labels = torch.from_numpy(file["labels"].astype(np.int64))
    both = np.unique(np.concatenate((pairs, pairs[::-1]), axis=1), axis=1)
    return torch.from_numpy(features), torch.from_numpy(both), labels


def train(path: str, epochs: int = 60) -> float:
    """The share of papers that were not trained on whose field is right."""
    x, edge_index, labels = read(path)
    torch.manual_seed(0)
    model = Cora(x.shape[1])
    trained = torch.rand(len(x)) < 0.3
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    for _ in range(epochs):
        optimiser.zero_grad()
        cross_entropy(model(x, edge_index)[trained], labels[trained]).backward()
        optimiser.step()
    save_file(model.state_dict(), HERE / "cora.safetensors")
    np.savez(HERE / "graph.npz", x=x.numpy(), edge_index=edge_index.numpy())
    with torch.no_grad():
        right = model.eval()(x, edge_index).argmax(dim=1) == labels
    return float(right[~trained].float().mean())


app = foreserve.App(papers=foreserve.Graph(Cora, weights="cora.safetensors", graph="graph.npz", log="cora-log"))

if __name__ == "__main__":
    print(f"{train(sys.argv[1]):.1%} of the other papers' fields are right")
