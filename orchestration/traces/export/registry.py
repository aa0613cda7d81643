"""The formats by name. To add one: a module with `write` here and a line below."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from orchestration.errors import UsageError


@dataclass(frozen=True, slots=True)
class Format:
    """A format and the module that writes it, which is imported when it is used."""

    name: str
    module: str
    holds: Literal["episode", "episodes", "folder"]
    """A file holds one episode (`write(episodes, file)` gets one), or all of them; or all become a folder."""
    suffix: str
    """Of its files."""
    summary: str


FORMATS: Mapping[str, Format] = {
    form.name: form
    for form in (
        Format("survey", "survey", "episode", ".json", "the orchestration-trace schema of the survey"),
        Format("perfetto", "perfetto", "episodes", ".pftrace", "protobuf for ui.perfetto.dev and trace_processor"),
        Format("chrome", "chrome", "episodes", ".json", "JSON for chrome://tracing, also read by Perfetto"),
        Format("otel", "otel", "episodes", ".jsonl", "OpenTelemetry spans (OTLP JSON), GenAI conventions"),
        Format("asciicast", "asciicast", "episode", ".cast", "the terminal, for asciinema"),
        Format("parquet", "parquet", "episodes", ".parquet", "transitions, a row a step"),
        Format("datasets", "datasets", "folder", "", "a folder for datasets.load_dataset"),
    )
}


def find_format(name: str) -> Format:
    """The format called `name`. Raises `UsageError` naming the near miss."""
    if name in FORMATS:
        return FORMATS[name]
    near = difflib.get_close_matches(name.lower(), FORMATS, n=1, cutoff=0.6)
    known = ", ".join(FORMATS)
    raise UsageError(f"no format {name!r}" + (f"; did you mean {near[0]}?" if near else f"; there are {known}"))
