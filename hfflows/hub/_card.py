"""Model cards: ours between two markers, everything else a person's.

---
YAML that the Hub reads: our fields set, others kept
---
human text
<!-- hfflows:begin -->
written anew at each publish
<!-- hfflows:end -->
human text
"""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from pydantic import BaseModel, ConfigDict, Field

from hfflows.refs import ArtifactRef

BEGIN = "<!-- hfflows:begin -->"
END = "<!-- hfflows:end -->"
_OURS = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
_MARKUP = re.compile(r"[|\r\n<>]")


class Metric(BaseModel):
    """One measured figure, as the Hub's model index has it."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="The Hub's id of the metric: `accuracy`, `f1`.")
    value: float
    name: str | None = None


class CardContent(BaseModel):
    """What a publish writes into the model card."""

    model_config = ConfigDict(frozen=True)

    title: str
    summary: str = ""
    pipeline_tag: str | None = None
    library_name: str | None = None
    license: str | None = None
    language: list[str] | None = None
    tags: list[str] = Field(default_factory=list)
    base_model: str | None = None
    dataset_name: str | None = None
    metrics: list[Metric] = Field(default_factory=list)
    lineage: list[ArtifactRef] = Field(default_factory=list)
    """What the model was made from; named by kind, key and digest, never by store."""


def render_card(content: CardContent, published: ArtifactRef, existing: str | None) -> str:
    """Return the text of README.md.

    Args:
        content: What to say.
        published: The artifact that is published.
        existing: The card that is there; its human text and other YAML fields are kept.
    """
    ours = f"{BEGIN}\n{_body(content, published)}\n{END}"
    card = ModelCard(existing, ignore_metadata_errors=True) if existing else None
    data: dict[str, Any] = {}
    if card is not None:
        data |= card.data.to_dict()  # type: ignore[no-untyped-call]
    data |= _yaml_fields(content)
    text = card.text if card is not None else f"# {_plain(content.title)}\n"
    if _OURS.search(text):
        text = _OURS.sub(lambda _found: ours, text, count=1)
    else:
        text = f"{text.rstrip()}\n\n{ours}\n"
    return f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{text.strip()}\n"


def _yaml_fields(content: CardContent) -> dict[str, Any]:
    results = None
    if content.metrics and content.dataset_name:
        results = [
            EvalResult(
                task_type=content.pipeline_tag or "other",
                dataset_type=re.sub(r"[^a-z0-9]+", "-", content.dataset_name.lower()).strip("-"),
                dataset_name=content.dataset_name,
                metric_type=metric.type,
                metric_value=metric.value,
                metric_name=metric.name,
            )
            for metric in content.metrics
        ]
    fields = ModelCardData(
        model_name=content.title if results else None,
        eval_results=results,
        pipeline_tag=content.pipeline_tag,
        library_name=content.library_name,
        license=content.license,
        language=content.language,
        base_model=content.base_model,
        tags=sorted({"hfflows", *content.tags}),
    )
    present: dict[str, Any] = fields.to_dict()  # type: ignore[no-untyped-call]
    return {name: value for name, value in present.items() if value is not None}


def _body(content: CardContent, published: ArtifactRef) -> str:
    parts = [_plain(content.summary)] if content.summary else []
    if content.metrics:
        rows = [f"| {_plain(m.name or m.type)} | {m.value:.4f} |" for m in content.metrics]
        on = f" on {_plain(content.dataset_name)}" if content.dataset_name else ""
        parts.append(f"## Results{on}\n\n| metric | value |\n|---|---|\n" + "\n".join(rows))
    origin = [f"Base model: `{_plain(content.base_model)}`"] if content.base_model else []
    made = [*content.lineage, *([] if published in content.lineage else [published])]
    rows = [f"| {ref.kind} | `{_plain(ref.key)}` | `{ref.digest}` |" for ref in made]
    table = "| artifact | key | sha256 of its files |\n|---|---|---|\n" + "\n".join(rows)
    parts.append("\n\n".join(["## Where it comes from", *origin, table]))
    return "\n\n".join(parts)


def _plain(text: str) -> str:
    """Return text that can end neither a table cell nor our part of the card."""
    return _MARKUP.sub(" ", text)
