"""A peer: sentence-transformers behind the smallest FastAPI app that one would write, with the libraries' defaults.

EMBED_MODEL=FOLDER [RERANK_MODEL=FOLDER] python plain_st.py PORT
"""

from __future__ import annotations

import os
import sys
from threading import Lock
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder, SentenceTransformer

app = FastAPI()
lock = Lock()  # tokenizers and modules are not made for two threads at once
embedder = SentenceTransformer(os.environ["EMBED_MODEL"], device=os.environ.get("DEVICE", "cpu"))
reranker = CrossEncoder(path, device=embedder.device) if (path := os.environ.get("RERANK_MODEL")) else None


class Texts(BaseModel):
    input: str | list[str]


class Question(BaseModel):
    query: str
    documents: list[str]


@app.get("/health")
def health() -> dict[str, Any]:
    return {"status": "ok", "dtype": str(embedder.dtype).removeprefix("torch."), "device": str(embedder.device)}


@app.post("/v1/embeddings")
def embeddings(asked: Texts) -> dict[str, Any]:
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    with lock:
        vectors = embedder.encode(texts)
    data = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(vectors)]
    return {"object": "list", "data": data, "model": "embed"}


@app.post("/v1/rerank")
def rerank(asked: Question) -> dict[str, Any]:
    assert reranker is not None
    with lock:
        scores = reranker.predict([(asked.query, document) for document in asked.documents])
    results = [{"index": i, "relevance_score": float(score)} for i, score in enumerate(scores)]
    return {"results": sorted(results, key=lambda one: -one["relevance_score"]), "model": "rerank"}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
