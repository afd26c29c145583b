"""The embed/rerank server: HTTP → auth → schema → prompts → scheduler → model → response."""
