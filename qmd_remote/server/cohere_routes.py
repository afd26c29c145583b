"""Cohere's embeddings, for clients that speak its format. Its rankings have the form of ours: see aliases.py."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from qmd_remote.server import handling, schemas
from qmd_remote.server.responses import cohere_response

# the two that say what a text is for; to Cohere's others no prompt answers, so that the default role's is taken
ROLES = frozenset({"search_document", "search_query"})

_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1}


def _texts(value: Any) -> list[str]:
    return schemas.require_texts(value, "texts")


class EmbedRequest(schemas.Request):
    """Cohere's embed request (v2), of texts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "any name", "texts": ["first text", "second"], "input_type": "search_document"}]
        }
    )

    texts: Annotated[Any, PlainValidator(_texts), WithJsonSchema(_TEXTS)] = Field(description="The texts.")
    input_type: Literal["search_document", "search_query", "classification", "clustering"] | None = Field(
        None, description="What texts without a prefix are; those to classify or to cluster get the default prompt."
    )
    embedding_types: list[Literal["float", "base64"]] | None = Field(
        None, description="Forms of the vectors; float where nothing is said. There are no others."
    )
    output_dimension: int | None = Field(
        None, ge=1, description="Keep the first so many values of each vector, and bring it back to length 1."
    )
    truncate: Literal["NONE", "END"] | None = Field(
        None, description="NONE refuses texts that are longer than the model reads; else they lose their end."
    )


class Vectors(BaseModel):
    """The vectors, of length 1, in each form that was asked for."""

    float_: list[list[float]] | None = Field(None, alias="float")
    base64: list[str] | None = Field(None, description="The little-endian float32 values.")


class ApiVersion(BaseModel):
    """The version of Cohere's API."""

    version: Literal["2"]


class BilledUnits(BaseModel):
    """What the model read."""

    input_tokens: int


class Meta(BaseModel):
    """What stands beside the vectors."""

    api_version: ApiVersion
    billed_units: BilledUnits


class EmbedResponse(BaseModel):
    """Cohere's embed response."""

    id: str
    embeddings: Vectors
    texts: list[str]
    meta: Meta
    response_type: Literal["embeddings_by_type"]


router = APIRouter(route_class=handling.Plain)


@router.post(
    "/v2/embed",
    summary="Embed texts, in Cohere's form",
    responses=handling.answers(EmbedResponse, 400, 413, 503),
    openapi_extra=handling.takes(EmbedRequest),
)
async def embed(request: Request) -> Response:
    """One unit vector for each text, as in Cohere's API."""
    _, engine = handling.parts(request)
    asked = await handling.read(request, EmbedRequest)
    dimensions = asked.output_dimension
    found = await handling.embedded(
        request,
        asked.texts,
        asked.input_type if asked.input_type in ROLES else None,
        dimensions=dimensions,
        dimensions_field="output_dimension",
        may_cut=asked.truncate != "NONE",
    )
    kinds = asked.embedding_types or ["float"]
    answer = partial(cohere_response, found, asked.texts, dimensions=dimensions, kinds=kinds)
    size = found.vectors.nbytes * 3 * len(kinds) + sum(map(len, asked.texts))
    return await handling.answered(request, found, answer, size, engine.embed_id)
