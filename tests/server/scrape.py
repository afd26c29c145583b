"""Reading /metrics as Prometheus does."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

PREFIX = "qmd_remote_"


class Scrape:
    """The samples of one answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        """The value of a sample, named without the prefix; 0 for one that is not there."""
        return self._values.get((PREFIX + name, frozenset(labels.items())), 0.0)

    def labels(self, name: str) -> list[Mapping[str, str]]:
        """The labels of each sample of this name."""
        return [dict(labels) for found, labels in self._values if found == PREFIX + name]


def scrape(http: httpx.Client, **headers: str) -> Scrape:
    """What /metrics says now."""
    answer = http.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    return Scrape(answer.text)
