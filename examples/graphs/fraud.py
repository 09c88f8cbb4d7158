"""Cards that pay merchants: typed nodes, typed and timed edges, each payment forgotten after 30 days.

    python fraud.py                 # makes fraud.safetensors beside this file
    foreserve serve fraud.py

Then, for each payment as it happens,

    curl localhost:8000/v1/graphs/fraud/updates -d '{"changes": [
      {"op": "insert_edge", "type": "card:pays:merchant", "source": 3, "target": 5, "attributes": [0.2, 1.0]},
      {"op": "insert_edge", "type": "merchant:paid_by:card", "source": 5, "target": 3, "attributes": [0.2, 1.0]}]}'
    curl localhost:8000/v1/graphs/fraud/query -d '{"nodes": [3], "max_staleness_ms": 500}'
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import binary_cross_entropy_with_logits
from torch_geometric.data import HeteroData
from torch_geometric.nn import GATConv, HeteroConv, SAGEConv

import foreserve

PAYS, PAID_BY = ("card", "pays", "merchant"), ("merchant", "paid_by", "card")
MONTH_S = 30 * 86_400.0


class Fraud(torch.nn.Module):
    """A score for each card. Payments carry an amount and whether they were made abroad."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.one = HeteroConv({PAYS: _payments(6, 4, width), PAID_BY: _payments(4, 6, width)})
        self.two = HeteroConv({PAYS: SAGEConv((width, width), width), PAID_BY: SAGEConv((width, width), width)})
        self.score = torch.nn.Linear(width, 1)

    def forward(self, x_dict: Any, edge_index_dict: Any, edge_attr_dict: Any) -> Any:
        x_dict = self.one(x_dict, edge_index_dict, edge_attr_dict=edge_attr_dict)
        x_dict = {name: x.relu() for name, x in x_dict.items()}
        x_dict = self.two(x_dict, edge_index_dict)
        return {"card": self.score(x_dict["card"].relu())}


def _payments(source: int, target: int, width: int) -> GATConv:
    return GATConv((source, target), width, edge_dim=2, add_self_loops=False)


def history() -> HeteroData:
    """A made month of payments; some cards pay often and abroad at merchants of their own."""
    random = torch.Generator().manual_seed(0)
    data = HeteroData()
    data["card"].x = torch.randn(400, 6, generator=random)
    data["merchant"].x = torch.randn(60, 4, generator=random)
    data["card"].y = (torch.rand(400, generator=random) < 0.1).float()
    cards = torch.randint(0, 400, (4_000,), generator=random)
    bad = data["card"].y[cards] > 0
    merchants = torch.where(bad, 50 + cards % 10, torch.randint(0, 60, (4_000,), generator=random))
    amounts = torch.rand(4_000, generator=random) + bad
    payments = torch.stack((amounts, (torch.rand(4_000, generator=random) < 0.1 + 0.6 * bad).float()), dim=1)
    for key, ends in ((PAYS, (cards, merchants)), (PAID_BY, (merchants, cards))):
        data[key].edge_index = torch.stack(ends)
        data[key].edge_attr = payments
    return data


def train(epochs: int = 40) -> float:
    """The final loss."""
    data = history()
    torch.manual_seed(0)
    model = Fraud()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        optimiser.zero_grad()
        scores = model(data.x_dict, data.edge_index_dict, data.edge_attr_dict)["card"]
        loss = binary_cross_entropy_with_logits(scores[:, 0], data["card"].y)
        loss.backward()
        optimiser.step()
    save_file(model.state_dict(), Path(__file__).parent / "fraud.safetensors")
    return float(loss.detach())


# Payments that bring no time have that of their arrival; those of the history that of the first start.
_edges = {":".join(key): {"multi": True, "expire_s": MONTH_S} for key in (PAYS, PAID_BY)}
app = foreserve.App(fraud=foreserve.Graph(Fraud, weights="fraud.safetensors", graph="fraud.py:history", edges=_edges))

if __name__ == "__main__":
    print(f"trained to a loss of {train():.3f}")
