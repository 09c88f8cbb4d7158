"""Answers from texts, with citations: `foreserve serve examples/rag.py`.

    curl -N http://127.0.0.1:8000/v1/pipelines/cited -H 'content-type: application/json' \
      -H 'accept: text/event-stream' -d '{"question": "When was the Eiffel Tower completed?"}'

    curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \
      -d '{"model": "cited", "messages": [{"role": "user", "content": "When was the Eiffel Tower completed?"}]}'

Each sentence of the answer is looked up as soon as it is written, and cited with the passage that is nearest to it.
"""

from retrieval import Meaning, passages, search

import foreserve as fs

chat = fs.LLM("smollm2", max_running=16)

write = fs.ask(chat, "{context}\n\nQuestion: {question}", system="Answer from the texts in one or two short sentences.",
               name="write", max_tokens=80, temperature=0.0)  # fmt: skip


@fs.stage
async def context(found: list[int]) -> str:
    return "\n".join(passages[number] for number in found[:3])


@fs.stage
async def cite(sentence: str, nearness: list[float], found: list[int]) -> dict[str, object]:
    """Of the passages that the answer was written from, the one that says what this sentence says."""
    best = max(found[:3], key=lambda number: nearness[number], default=None)
    near = best is not None and nearness[best] > 0.4
    return {"sentence": sentence, "passage": passages[best] if near else None, "number": best if near else None}


@fs.pipeline(model=True, answer="answer")
def cited(question: str):
    found = search(question)
    answer = write(context=context(found), question=question)
    citations = answer.split(fs.sentences).map(lambda each: cite(each, Meaning(each), found), ordered=True)
    return {"answer": answer, "citations": citations}


app = fs.App(chat=chat, meaning=Meaning, cited=cited)
