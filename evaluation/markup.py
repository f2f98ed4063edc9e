"""HTML and SVG: an element is made by ``tag``, which escapes all text."""

import html
from typing import Any

VOID = {"img", "input", "meta"}  # elements without content


class Markup(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: Any) -> Markup:
    """``<name attributes>content</name>``; of the content all but Markup is escaped.

    Attributes: ``class_`` is class, ``stroke_width`` is stroke-width; True has no value, None and
    False are left out.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{html.escape(str(value))}"')
    inner = "".join(text if isinstance(text, Markup) else html.escape(text) for text in content)
    end = "" if name in VOID else f"</{name}>"
    return Markup(f"<{' '.join(words)}>{inner}{end}")
