"""A chatbot that checks what it says: `foreserve serve examples/fact_checking.py`.

    curl -N http://127.0.0.1:8000/v1/pipelines/checked -H 'content-type: application/json' \
      -H 'accept: text/event-stream' -d '{"question": "What is the capital of France?"}'

Each sentence of the answer is taken apart into claims, queries are written for each claim, passages are found for each
query, and each claim is judged by what was found. All of that begins with the first sentence, while the model still
writes the second.
"""

from collections.abc import AsyncIterator

from retrieval import Meaning, passages, search

import foreserve as fs

chat = fs.LLM("smollm2", max_running=16, queue={"max_waiting": 4096, "max_wait_s": 600})

ANSWER = "{question}"
SYSTEM = "Answer in four short sentences, each with a fact."
EXTRACT = """Write each fact of a text as a sentence of its own, one a line.

Text: Vienna, the capital of Austria, lies on the Danube.
Facts:
Vienna is the capital of Austria.
Vienna lies on the Danube.

Text: {text}
Facts:
"""
ASK_FOR = """Write two search queries for a claim, one a line.

Claim: Mozart lived in Vienna from 1781.
Queries:
Mozart Vienna 1781
where Mozart lived

Claim: {claim}
Queries:
"""
APPRAISE = """Is the claim true by the text? Answer yes or no.

Text: Vienna is the capital of Austria.
Claim: Vienna is the capital of Hungary.
Answer: no

Text: {evidence}
Claim: {claim}
Answer:"""

answer = fs.ask(chat, ANSWER, system=SYSTEM, name="answer", max_tokens=96, temperature=0.0)
extract = fs.ask(chat, EXTRACT, name="extract", max_tokens=48, temperature=0.0, stop=("\n\n",))
ask_for = fs.ask(chat, ASK_FOR, name="ask_for", max_tokens=32, temperature=0.0, stop=("\n\n",))
appraise = fs.ask(chat, APPRAISE, name="appraise", max_tokens=8, temperature=0.0, stop=("\n",))

sentences_of = fs.Splitter("sentences", fs.sentences.find, most=3)
claims_of = fs.Splitter("claims", fs.items.find, clean=True, unique=True, most=2)
queries_of = fs.Splitter("queries", fs.items.find, clean=True, unique=True, most=2)


@fs.stage
async def fuse(found: fs.Stream[list[int]]) -> AsyncIterator[str]:
    """The three passages that rank best over all queries; nothing where nothing was found."""
    scores: dict[int, float] = {}
    async for numbers in found:
        for rank, number in enumerate(numbers, 1):
            scores[number] = scores.get(number, 0.0) + 1 / rank
    best = sorted(scores, key=lambda number: (-scores[number], number))[:3]
    if best:
        yield "\n".join(passages[number] for number in best)


@fs.stage
async def verdict(claim: str, evidence: list[str], judged: list[str]) -> dict[str, object]:
    """A claim for which nothing was found counts as not supported; the model is not asked then."""
    supported = bool(judged) and judged[0].strip().lower().startswith("yes")
    return {"claim": claim, "supported": supported, "evidence": evidence[0].split("\n") if evidence else []}


@fs.pipeline(model=True, answer="answer")
def checked(question: str):
    said = answer(question)

    def check(claim):
        queries = fs.show("queries", ask_for(claim).split(queries_of))
        evidence = fuse(queries.map(search))
        judged = evidence.map(lambda texts: appraise(evidence=texts, claim=claim))
        return verdict(claim, evidence, judged)

    claims = said.split(sentences_of).map(lambda sentence: extract(sentence).split(claims_of)).flatten()
    return {"answer": said, "verdicts": claims.map(check)}


app = fs.App(chat=chat, meaning=Meaning, checked=checked)
