"""A directory of small files to a config and a preprocessor of transformers.

What to load is decided by which files there are, never by trial and error, which would hide a
refused token behind a wrong class. A repo's own code runs only when that is asked for, and
only from the directory itself.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows.errors import ExportError, HfflowsError, MissingDependencyError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

CONFIG_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja", "*.spm", "*.tiktoken")
"""Files that configs, tokenizers and processors are made of; no weights, no code."""
CODE_PATTERNS = ("*.py",)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "source.spm",
    "tekken.json",
)
PREPROCESSOR = "preprocessor_config.json"
_DESCRIBING = ("config.json", "tokenizer_config.json", PREPROCESSOR)
_PROCESSOR = "processor_config.json"
_LOADED_HERE = frozenset(
    {"AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor"}
)
# Not `do_normalize`, which sounds have too.
_OF_IMAGES = frozenset({"do_resize", "image_mean", "crop_size", "size"})


def load_config(directory: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Any:
    """Return the transformers config in a directory.

    Raises:
        ExportError: There is none, transformers does not know it, or it is defined by code
            that it may not run.
        MissingDependencyError: transformers is not installed.
    """
    return load_part("AutoConfig", Path(directory), trust_remote_code=trust_remote_code)


def load_preprocessor(directory: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer, image processor, feature extractor or processor in a directory.

    Raises:
        ExportError: There is none, transformers does not know it, or it is defined by code
            that it may not run.
        MissingDependencyError: transformers, or a package that this one needs, is not installed.
    """
    path = Path(directory)
    return load_part(auto_class(path), path, trust_remote_code=trust_remote_code)


def auto_class(directory: Path) -> str:
    """Return which of transformers' Auto classes the files call for.

    Raises:
        ExportError: There is nothing that a preprocessor is made of.
    """
    is_tokenizer_there = has_tokenizer(directory)
    described = directory / PREPROCESSOR
    if (directory / _PROCESSOR).is_file() or (described.is_file() and is_tokenizer_there):
        return "AutoProcessor"
    if described.is_file():
        return (
            "AutoFeatureExtractor" if _is_of_audio(read_facts(described)) else "AutoImageProcessor"
        )
    if is_tokenizer_there:
        return "AutoTokenizer"
    msg = f"{directory} holds no tokenizer, image processor or feature extractor."
    raise ExportError(msg, path=str(directory))


def has_tokenizer(directory: Path) -> bool:
    """Return whether a directory holds what a tokenizer is made of."""
    return any((directory / name).is_file() for name in TOKENIZER_FILES)


def _is_of_audio(facts: dict[str, Any]) -> bool:
    # Of images, too, earlier versions wrote `feature_extractor_type`.
    is_of_images = "image_processor_type" in facts or not _OF_IMAGES.isdisjoint(facts)
    return "feature_extractor_type" in facts and not is_of_images


def read_facts(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ExportError: It is none.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path} is not readable JSON."
        raise ExportError(msg, path=str(path)) from error
    if not isinstance(facts, dict):
        msg = f"{path} holds no JSON object."
        raise ExportError(msg, path=str(path))
    return facts


def load_part(name: str, directory: Path, *, trust_remote_code: bool) -> Any:
    """Return what one of transformers' Auto classes makes of a directory.

    Raises:
        ExportError: It cannot, or it would have to run code that it may not.
        MissingDependencyError: transformers, or a package that it needs for this, is not
            installed.
    """
    try:
        import transformers
    except ImportError as error:
        msg = "Configs and preprocessors need transformers: pip install 'hfflows[transformers]'."
        raise MissingDependencyError(msg) from error
    code = _code_named_in(directory)
    elsewhere = sorted(reference for reference in code if "--" in reference)
    if elsewhere and trust_remote_code:
        msg = (
            f"{directory} names code of another repo, {elsewhere[0]}, which would come from no "
            "commit that is recorded; it is not run. Load it with transformers, if you must."
        )
        raise ExportError(msg, path=str(directory))
    with _their_errors(name, directory, is_code_refused=bool(code) and not trust_remote_code):
        return getattr(transformers, name).from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=trust_remote_code
        )


def _code_named_in(directory: Path) -> set[str]:
    """Return the classes to load that a repo brings along: `file.Class`, `repo--file.Class`."""
    found: set[str] = set()
    for path in (directory / name for name in (*_DESCRIBING, _PROCESSOR)):
        facts = read_facts(path).get("auto_map") if path.is_file() else None
        named = facts if isinstance(facts, dict) else {}
        for name in _LOADED_HERE.intersection(named):
            values = named[name] if isinstance(named[name], list) else [named[name]]
            found.update(item for item in values if isinstance(item, str))
    return found


@contextmanager
def _their_errors(name: str, directory: Path, *, is_code_refused: bool) -> Iterator[None]:
    """Raise what transformers, tokenizers or a repo's code raise as ours: it may be anything."""
    try:
        yield
    except HfflowsError:
        raise
    except ImportError as error:
        msg = f"{name} for {directory} needs a package that is not installed: {_first(error)}"
        raise MissingDependencyError(msg, path=str(directory)) from error
    except Exception as error:
        msg = f"{name} cannot load {directory}: {_first(error)}"
        if is_code_refused:
            msg += " Read that code, and if you trust it pass trust_remote_code=True."
        raise ExportError(msg, path=str(directory)) from error


def _first(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:400] or type(error).__name__
