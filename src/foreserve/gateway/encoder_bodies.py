"""The request bodies of embeddings and ranking, with errors that name the field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from foreserve.errors import BadRequest
from foreserve.gateway.bodies import Body, TermsBody, TokenId, TokenPrompt
from foreserve.gateway.decoding import Decoder

MOST_INPUTS = 2048
"""Texts of one request, as with OpenAI."""


class ElasticTerms(TermsBody, frozen=True, kw_only=True):
    """Terms of a request to an encoder.

    With `elastic` the tokens that are spent follow load and deadline; `setting` asks for one (`plain`, `merge:4`), and
    `min_accuracy` leaves out those that are not expected to reach it. `prompt` is one of the model's, by name.
    """

    elastic: bool | None = None
    setting: Annotated[str, Meta(max_length=64)] | None = None
    min_accuracy: Annotated[float, Meta(ge=0, le=1)] | None = None
    prompt: Annotated[str, Meta(max_length=256)] | None = None


class EmbeddingsBody(Body, frozen=True, kw_only=True):
    """`POST /v1/embeddings`. `input` is a text, several, token ids, or several lists of them."""

    model: str
    input: str | Annotated[list[str | TokenId | TokenPrompt], Meta(min_length=1, max_length=2**21)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None
    foreserve: ElasticTerms | None = None

    def inputs(self) -> tuple[list[str], list[list[int]]]:
        """Its texts, or its lists of token ids. Raises BadRequest for a mix and for too many."""
        given: list[Any] = [self.input] if isinstance(self.input, str) else self.input
        if {type(each) for each in given} == {int}:
            given = [given]
        kinds = {type(each) for each in given}
        if len(kinds) > 1:
            raise BadRequest("an input is a text, texts, token ids or lists of token ids; not a mix", param="input")
        if len(given) > MOST_INPUTS:
            raise BadRequest(f"{len(given)} inputs; at most {MOST_INPUTS} are taken", param="input")
        return (given, []) if kinds == {str} else ([], given)


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A document as an object; what it has beside its text is given back as it is not."""

    text: str


class RerankBody(Body, frozen=True, kw_only=True):
    """`POST /v1/rerank`, as Cohere and Jina have it."""

    model: str
    query: str
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MOST_INPUTS)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None
    foreserve: ElasticTerms | None = None

    def texts(self) -> list[str]:
        """The documents as texts."""
        return [each if isinstance(each, str) else each.text for each in self.documents]


_embeddings = Decoder(EmbeddingsBody)
_rerank = Decoder(RerankBody)


def decode_embeddings(raw: bytes) -> EmbeddingsBody:
    """Raises BadRequest."""
    return _embeddings.decode(raw)


def decode_rerank(raw: bytes) -> RerankBody:
    """Raises BadRequest."""
    return _rerank.decode(raw)
