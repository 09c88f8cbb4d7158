from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch_geometric.data import Data, HeteroData

from foreserve.errors import ConfigError
from foreserve.graphs.loading import data_of, load, read_npz, read_parquet
from foreserve.graphs.schema import EDGE, NODE, EdgeType, Schema
from foreserve.graphs.store import GraphStore


def _held(store: GraphStore) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in store.edges[EDGE].columns().items()}


def test_data_of_pytorch_geometric() -> None:
    index = torch.tensor([[0, 1, 1], [1, 2, 2]])
    data = data_of(Data(x=torch.eye(3), edge_index=index, edge_weight=torch.tensor([1.0, 2.0, 3.0])))
    schema = data.schema()
    assert schema == Schema.homogeneous(3, EdgeType(weighted=True, multi=True))
    store = GraphStore(schema)
    load(store, data)
    assert _held(store) == {"source": [0, 1, 1], "target": [1, 2, 2], "weight": [1.0, 2.0, 3.0]}
    with pytest.raises(ConfigError, match="several between 1 and 2; set `multi`"):
        load(GraphStore(Schema.homogeneous(3)), data)


def test_hetero_data() -> None:
    graph = HeteroData()
    graph["user"].x, graph["item"].x = torch.ones(2, 3), torch.ones(4, 1)
    graph["user", "buys", "item"].edge_index = torch.tensor([[0, 1], [3, 0]])
    graph["user", "buys", "item"].edge_attr = torch.ones(2, 2)
    data = data_of(graph)
    store = GraphStore(data.schema(expire_s=60.0))
    load(store, data)
    columns = store.edges["user", "buys", "item"].columns()
    assert columns["source"].tolist() == [1, 0]
    assert columns["attributes"].shape == (2, 2)
    assert columns["time"].tolist() == [0.0, 0.0]


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "g.npz", x=np.ones((2, 3)), edge_index=np.array([[0], [1]]))
    assert read_npz(tmp_path / "g.npz").edges[EDGE]["target"].tolist() == [1]
    typed = {"x/user": np.ones((2, 3)), "edge_index/user:knows:user": np.array([[0], [1]])}
    np.savez(tmp_path / "t.npz", **typed)
    assert set(read_npz(tmp_path / "t.npz").edges) == {("user", "knows", "user")}
    np.savez(tmp_path / "bad.npz", y=np.ones(1))
    with pytest.raises(ConfigError, match="nobody knows the array 'y'"):
        read_npz(tmp_path / "bad.npz")
    with pytest.raises(ConfigError, match="cannot be read as npz"):
        read_npz(tmp_path / "none.npz")


def test_parquet_with_gaps_between_ids(tmp_path: Path) -> None:
    nodes = pyarrow.table({"id": [2, 0], "features": [[1.0, 2.0], [3.0, 4.0]]})
    edges = pyarrow.table({"source": [2], "target": [0], "weight": [0.5]})
    pyarrow.parquet.write_table(nodes, tmp_path / "nodes.parquet")
    pyarrow.parquet.write_table(edges, tmp_path / "edges.parquet")
    store = GraphStore(Schema.homogeneous(2, EdgeType(weighted=True)))
    load(store, read_parquet(tmp_path))
    assert store.alive(NODE).tolist() == [0, 2]
    assert store.nodes[NODE].features.tolist() == [[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]
    assert _held(store) == {"source": [2], "target": [0], "weight": [0.5]}
    pyarrow.parquet.write_table(pyarrow.table({"source": [1], "target": [0]}), tmp_path / "edges.parquet")
    with pytest.raises(ConfigError, match="source 1 in row 0 is no node"):
        load(store, read_parquet(tmp_path))
    ragged = pyarrow.table({"id": [2, 0], "features": [[1.0], [3.0, 4.0]]})
    pyarrow.parquet.write_table(ragged, tmp_path / "nodes.parquet")
    with pytest.raises(ConfigError, match="lists of numbers of one length"):
        read_parquet(tmp_path)


@pytest.mark.parametrize(
    ("x", "index", "words"),
    [
        (torch.ones(2, 4), [[0], [1]], r"have the shape \[2, 4\]; the schema has 3 features"),
        (torch.tensor([[1.0, 1.0, float("inf")]] * 2), [[0], [1]], "features of node 0 of type 'node' are not finite"),
        (torch.ones(2, 3), [[0], [2]], "target 2 in row 0 is no node"),
    ],
)
def test_what_does_not_fit_is_refused(x: torch.Tensor, index: list[list[int]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(GraphStore(Schema.homogeneous(3)), data_of(Data(x=x, edge_index=torch.tensor(index))))
