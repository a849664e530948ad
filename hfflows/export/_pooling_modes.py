"""What sentence-transformers calls the ways in which it makes one vector of a text's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

SWITCHES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Of each mode, in the order in which the vectors of several are put together."""


def stated_modes(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the modes that `1_Pooling/config.json` states; empty where it states none."""
    # Since sentence-transformers 5 one word, or several; before, a switch for each.
    named = facts.get("pooling_mode")
    if named:
        return tuple(named.split("+") if isinstance(named, str) else named)
    return tuple(mode for mode, switch in SWITCHES.items() if facts.get(switch))
