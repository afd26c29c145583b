"""qmd-remote: QMD's embedding, reranking and generation models on a GPU box."""

__version__ = "0.1.0"
