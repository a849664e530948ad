"""What tells calls of one task apart: the `key` of `@checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from string import Formatter
from typing import TYPE_CHECKING, Any

from hfflows.errors import SettingsError

if TYPE_CHECKING:
    import inspect

    from hfflows.tasks._decorators import Call

Key = str | Callable[[Mapping[str, Any]], str]
"""Text, a template over parameters, or a function of them."""


def check_key(key: Any, function: str, signature: inspect.Signature) -> None:
    """Refuse at decoration a key that can never be filled in.

    Raises:
        SettingsError: Neither text nor a function, or a template over what is no parameter.
    """
    if isinstance(key, str):
        _check_template(key, function, signature)
    elif not (key is None or callable(key)):
        msg = f"@checkpoint on {function}: key={key!r} is neither text nor a function."
        raise SettingsError(msg)


def _check_template(template: str, function: str, signature: inspect.Signature) -> None:
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        msg = f"@checkpoint on {function}: key={template!r} is no template: {error}."
        raise SettingsError(msg) from error
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for field in fields:
        parameter = re.split(r"[.\[]", field, maxsplit=1)[0]
        if parameter not in signature.parameters and not takes_any:
            msg = (
                f"@checkpoint on {function}: key={template!r} names {parameter!r}, which is none "
                f"of its parameters ({', '.join(signature.parameters) or 'it has none'})."
            )
            raise SettingsError(msg)


def render_key(key: Any, call: Call) -> str | None:
    """Return the key of this call.

    Raises:
        SettingsError: The template does not fit the values, or the key comes out empty.
    """
    if key is None:
        return None
    text: Any
    if isinstance(key, str):
        try:
            text = key.format_map(call.parameters)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            msg = f"The checkpoint key {key!r} of {call.function} cannot be filled in: {error!r}."
            raise SettingsError(msg) from error
    else:
        text = key(call.parameters)
    if not isinstance(text, str) or not text:
        msg = f"The checkpoint key of {call.function} came out as {text!r}; it must be text."
        raise SettingsError(msg)
    return text
