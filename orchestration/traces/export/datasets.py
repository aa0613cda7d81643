"""A folder that `datasets.load_dataset` opens and that can be put on the Hugging Face Hub as it is.

Two configurations: `transitions` (a row a step) and `episodes`. The card at its root says which file holds which.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from orchestration.traces.export import table
from orchestration.traces.export.episode import Episode
from orchestration.traces.export.files import new_member

_CARD = """---
configs:
- config_name: transitions
  default: true
  data_files:
  - split: train
    path: transitions.parquet
- config_name: episodes
  data_files:
  - split: train
    path: episodes.parquet
---
# Episodes recorded by Yendor

`transitions`: a row for each step of an environment: the screen before and after it, the action, the rewards and the
caption. `episodes`: a row for each episode: seeds, length, return, how it ended. `episode_id` joins the two.

    datasets.load_dataset("PATH", "transitions", split="train")
"""


def write(episodes: Iterable[Episode], folder: Path) -> None:
    """Writes the two tables and the card into `folder`."""
    outlines: list[table.Row] = []

    def passing() -> Iterator[Episode]:
        """The episodes, whose outlines are kept: each is read once."""
        for episode in episodes:
            outlines.append(table.outline(episode))
            yield episode

    with new_member(folder, "transitions.parquet") as file:
        table.write_parquet(passing(), table.transition_schema(), table.transitions, file)
    with new_member(folder, "episodes.parquet") as file:
        table.write_rows(outlines, table.episode_schema(), file)
    with new_member(folder, "README.md") as file:
        file.write(_CARD.encode())
