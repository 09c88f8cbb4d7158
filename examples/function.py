"""A function as a service: `foreserve serve examples/function.py`.

    curl http://127.0.0.1:8000/rank -H 'content-type: application/json' \
      -d '{"query": "blue sky", "documents": ["a blue car", "the sky is blue"]}'
"""

import foreserve as fs


@fs.function(route="/rank")
def rank(query: str, documents: list[str]) -> list[int]:
    return [len(set(query.split()) & set(document.split())) for document in documents]


app = fs.App(rank=rank)
