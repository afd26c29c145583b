"""The benchmark's parts: models, texts, servers, measurements, report."""
