"""Labels that other runs, or `yendor annotate`, have paid for already: taken from their stores instead of asking again.

Only labels under the very same key (prompt, goal, model, mode, sampling) count. The stores are opened for reading alone.
"""

from pathlib import Path

from reward_server.store import AnnotationStore, AnnotationStoreError, LabelRecord
from reward_server.types import JudgeKey

_NAME = "annotations.sqlite"


def stores_at(place: Path) -> list[Path]:
    """The store `place`, or those of the runs in the folder `place`, by name.

    Raises `AnnotationStoreError` where there is none.
    """
    if place.is_file():
        return [place]
    found = sorted(path for path in (*place.glob(f"*/{_NAME}"), place / _NAME) if path.is_file())
    if not found:
        what = "no such file or folder" if not place.exists() else f"no run in it has an {_NAME}"
        raise AnnotationStoreError(
            f"annotator.reuse={place}: {what}; name an {_NAME}, or a folder of runs that have labels"
        )
    return found


def labels_elsewhere(place: Path, key: JudgeKey, own: Path, *, pairs: bool = False) -> dict[int, LabelRecord]:
    """Labels under `key` in the stores at `place`, by caption id, or of `pairs` by theirs; `own` is passed over. Where two
    stores have a caption, the first one's label counts. Raises `AnnotationStoreError` for a file that cannot be read."""
    labels: dict[int, LabelRecord] = {}
    for path in stores_at(place):
        if path.resolve() != own.resolve():
            with AnnotationStore(path, read_only=True) as store:
                labels = (store.pairs if pairs else store).records(key) | labels
    return labels
