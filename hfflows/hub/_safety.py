"""What is not fetched unasked: pickles that safetensors replace, files that scanners flagged.

Loading a pickle executes it. The Hub's libraries keep the same weights under parallel names:

    pytorch_model.bin                                model.safetensors
    pytorch_model-00001-of-00002.bin, ….index.json   model-00001-of-00002.safetensors, …
    pytorch_model.fp16.bin                           model.fp16.safetensors
    unet/diffusion_pytorch_model.bin                 unet/diffusion_pytorch_model.safetensors
    adapter_model.bin, v1-5.ckpt, any.pt             adapter_model.safetensors, v1-5.safetensors, …

Source: `WEIGHTS_NAME` and `SAFE_WEIGHTS_NAME` of transformers, `is_safetensors_compatible` of
diffusers. A pickle without safetensors of its name (`training_args.bin`, `optimizer.pt`) is
left alone, and so is `model.bin`, which is what CTranslate2 calls its own format.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfflows.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from hfflows.hub._errors import Repo

PICKLE_SUFFIXES = ("bin", "pt", "pth", "ckpt", "pkl", "pickle")
SAFETENSORS = "safetensors"
REFUSED_LEVELS = frozenset({"unsafe"})
"""What the Hub's page calls unsafe. `suspicious` and `caution` are also put on harmless pickles
with uncommon imports: they are logged, not refused."""

_INDEX = re.compile(rf"(.+)\.({'|'.join(PICKLE_SUFFIXES)})\.index(\.[^.]+)?\.json")
_WEIGHTS = re.compile(rf"(.+)\.({'|'.join((*PICKLE_SUFFIXES, SAFETENSORS))})")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """What the name of a file of weights says."""

    path: str
    weights: str
    """Equal for all files with the same weights, whatever their format."""
    is_pickle: bool
    shard_count: int
    """0 for weights in one file."""


def parse_weights(path: str) -> WeightsFile | None:
    """Return what a file's name says of the weights in it; `None` when it names none."""
    folder, _, name = path.rpartition("/")
    if name == "model.bin":
        return None
    if index := _INDEX.fullmatch(name):
        stem, is_pickle, shard = index[1] + (index[3] or ""), True, None
    elif found := _WEIGHTS.fullmatch(name):
        shard = _SHARD.search(found[1])
        stem, is_pickle = _SHARD.sub("", found[1]), found[2] != SAFETENSORS
    else:
        return None
    if is_pickle and re.match(r"pytorch_model(\.|$)", stem):
        stem = stem.removeprefix("pytorch_")
    count = int(shard[2]) if shard else 0
    return WeightsFile(path, f"{folder}/{stem}", is_pickle, count)


def pickles_with_safetensors(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return the pickles whose weights are there as safetensors too, with those files.

    Safetensors in shards count when all shards are there.
    """
    found = [weights for weights in map(parse_weights, paths) if weights is not None]
    safe: defaultdict[str, list[WeightsFile]] = defaultdict(list)
    for file in found:
        if not file.is_pickle:
            safe[file.weights].append(file)
    return {
        file.path: [twin.path for twin in safe[file.weights]]
        for file in found
        if file.is_pickle and _is_complete(safe.get(file.weights, []))
    }


def _is_complete(files: list[WeightsFile]) -> bool:
    counts = [file.shard_count for file in files]
    return any(count == 0 or counts.count(count) == count for count in counts)


def findings(flagged: Mapping[str, str], paths: Container[str]) -> dict[str, str]:
    """Return what scanners said of `paths` alone: {path: level}."""
    return {path: level for path, level in sorted(flagged.items()) if path in paths}


def refuse_flagged(repo: Repo, commit_hash: str, flagged: Mapping[str, str]) -> None:
    """Refuse files that the Hub's scanners found unsafe.

    Raises:
        HubError: There are any; names them.
    """
    refused = {path: level for path, level in flagged.items() if level in REFUSED_LEVELS}
    if refused:
        listed = ", ".join(f"{path} ({level})" for path, level in refused.items())
        msg = (
            f"{repo.repo_id}@{commit_hash}: the Hub's scanners flagged {listed}. Look at "
            f"{repo.url}/tree/{commit_hash}; leave the files out with ignore_patterns, or pass "
            "allow_flagged=True if you know what they are."
        )
        raise HubError(msg, repo_id=repo.repo_id, flagged=refused)
