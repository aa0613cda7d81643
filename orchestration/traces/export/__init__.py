"""Exports of traces to what others read, and the import of the survey's traces.

`export(paths, format, out)` writes, `FORMATS` lists the formats, each of which is one module here; `import_survey` reads.
"""

from orchestration.traces.export.importing import import_survey, read_survey
from orchestration.traces.export.registry import FORMATS, Format, find_format
from orchestration.traces.export.run import Exported, export

__all__ = ["FORMATS", "Exported", "Format", "export", "find_format", "import_survey", "read_survey"]
