"""OpenMetrics as prometheus_client's own parser reads it, behind one door: its function has no types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser

_READ = "text_string_to_metric_families"


class Scraped:
    """What the parser has read. It raises ValueError where the text breaks a rule of the format."""

    def __init__(self, text: str) -> None:
        read = cast("Callable[[str], Iterable[Metric]]", getattr(parser, _READ))
        self.families = {each.name: each for each in read(text)}
        samples = [sample for each in self.families.values() for sample in each.samples]
        self._values = {(each.name, frozenset(each.labels.items())): each.value for each in samples}
        assert len(self._values) == len(samples), "a sample is there twice"
        self.labels = {label for sample in samples for label in sample.labels}

    def value(self, name: str, **labels: str) -> float | None:
        return self._values.get((name, frozenset(labels.items())))

    def by(self, label: str, name: str) -> Mapping[str, float]:
        """The values of a name by one of its labels."""
        return {dict(labels)[label]: value for (each, labels), value in self._values.items() if each == name}
