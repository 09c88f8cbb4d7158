"""Graph services of the tests: a small model over a small graph, and one that cannot be taken apart."""

from __future__ import annotations

from typing import Any

import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, TransformerConv

from foreserve import App, Graph


def _seeded(model: torch.nn.Module) -> None:
    """Always the same; services start side by side, so the seed of all is no help."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random))


class Net(torch.nn.Module):
    """Two layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.one, self.two = GCNConv(4, width), GCNConv(width, 3)
        _seeded(self)

    def forward(self, x: Any, edge_index: Any) -> Any:
        return self.two(self.one(x, edge_index).relu(), edge_index)


class Attending(torch.nn.Module):
    """Attends in a way that nobody can take apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = TransformerConv(4, 3)
        _seeded(self)

    def forward(self, x: Any, edge_index: Any) -> Any:
        return self.layer(x, edge_index)


def graph() -> Data:
    """Forty nodes."""
    random = torch.Generator().manual_seed(0)
    index = torch.unique(torch.randint(0, 40, (2, 160), generator=random), dim=1)
    return Data(x=torch.randn(40, 4, generator=random), edge_index=index)


def words(log: str | None = None, **more: Any) -> dict[str, Any]:
    """Of a graph service on `graph`."""
    return {"graph": f"{__file__}:graph", "log": log, "launcher": "inline", **more}


app = App(
    net=Graph(Net, **words(edges={"node:to:node": {"expire_s": 3600.0}})),
    attending=Graph(Attending, **words(mode="recompute")),
)
