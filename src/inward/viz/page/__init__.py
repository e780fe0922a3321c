"""Thinking as a page: one HTML file that draws traces, and needs nothing but a browser.

    page(traces, "out.html")     the file
    picture(trace)               the same in a notebook, where it is the last line of a cell
    playground_html()            the same renderer, fed by a server's events as they come

The sources beside this file (plain JavaScript and CSS, no build step) go into the page as they are.
The page's policy lets it run this script alone and load nothing; what traces say is data to it,
whatever tags it holds.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from inward.common.files import check_target_file, replacing
from inward.common.thinking import Answer
from inward.common.trace import Trace

SCRIPTS = tuple("core huginn trm coconut tidar compare export player live start".split())
"""In the order in which they stand in a page."""

DRAWN: Mapping[str, tuple[str, ...]] = {
    "trm": ("runner_up",),
    "huginn": ("lens", "plane", "prompt"),
    "coconut": ("lens", "plane"),
    "tidar": ("drafts",),
}
"""What a trace of each method should hold for its whole picture; any trace can be drawn."""


def wanted(method: str, own: Mapping[str, Any]) -> tuple[str, ...] | bool:
    """The trace to ask of a method for its picture, with these options.

    Returns:
        Names as `Thinker.ask` takes them in `trace`; True: the plain record.
    """
    if method == "huginn" and own.get("mode", "plain") != "plain":
        return True
    if method == "tidar" and own.get("scheme") == "diffusion":
        return ("canvas",)
    return DRAWN.get(method, True)


def page(traces: Any, path: str | Path, *, title: str = "") -> Path:
    """Write one HTML file that shows how answers came about.

    Args:
        traces: a `Trace`, an `Answer` that holds one, or several of these; those of one question by
            several models can be seen side by side.
        path: of the file.
        title: beside the name in its head.

    Returns:
        The path.

    Raises:
        ValueError: there is no trace. OSError: the file cannot be written.
    """
    check_target_file(path)
    found = traces_of(traces)
    with replacing(path) as partial:
        partial.write_text(document(found, title=title), encoding="utf-8")
    return Path(path)


def traces_of(given: Any) -> list[Trace]:
    """The traces in what a caller has: a trace, an answer, or several.

    Raises:
        ValueError: there is none, or something else stands among them.
    """
    rows = [given] if isinstance(given, Trace | Answer) or given is None else given
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes | Mapping):
        raise ValueError(f"a page shows traces, not {type(given).__name__}; ask with trace=True")
    found = []
    for row in rows:
        trace = row.trace if isinstance(row, Answer) else row
        if not isinstance(trace, Trace):
            what = "an answer without one" if isinstance(row, Answer) else type(trace).__name__
            raise ValueError(f"there is no trace to show, but {what}; ask with trace=True")
        found.append(trace)
    if not found:
        raise ValueError("there is no trace to show; ask with trace=True")
    return found


def document(traces: Iterable[Trace], *, title: str = "") -> str:
    """The whole file as text."""
    rows = [trace.to_dict() for trace in traces]
    return _document({"title": title, "traces": rows}, _told(rows))


def playground_html(
    *,
    models: str = "/v1/models",
    events: str = "/v1/inward/events",
    control: str = "/v1/chat/completions/control",
    question: str = "",
) -> str:
    """The page that asks a server and draws what happens as it happens.

    Args:
        models, events, control: addresses on the same server: the list of models, our events,
            and where an answer under way is ended.
        question: what stands in the form at first.
    """
    wanted = {method: list(names) for method, names in DRAWN.items()}
    live = {"models": models, "events": events, "control": control, "question": question}
    return _document({"live": live | {"wanted": wanted}}, "", connect="'self'")


def playground_policy() -> str:
    """The policy of `playground_html` as a header, which can also forbid frames."""
    return _policy(*_sources(), connect="'self'") + "; frame-ancestors 'none'"


# --------------------------------------------------------------------------------------------------
# Notebooks


class Picture:
    """Traces, drawn by a notebook in a frame of their own; elsewhere a line that names them."""

    def __init__(self, traces: Any, *, title: str = "", height: int = 760):
        self.traces = traces_of(traces)
        self.title, self.height = title, height

    def _repr_html_(self) -> str:
        whole = html.escape(document(self.traces, title=self.title), quote=True)
        name = html.escape(
            self.title or ", ".join(trace.method for trace in self.traces), quote=True
        )
        return (
            f'<iframe title="{name}" sandbox="allow-scripts allow-downloads" width="100%" '
            f'height="{self.height}" style="border:0" srcdoc="{whole}"></iframe>'
        )

    def __repr__(self) -> str:
        kinds = ", ".join(f"{trace.method}: {len(trace.steps)} steps" for trace in self.traces)
        return f"Picture({kinds})"


# --------------------------------------------------------------------------------------------------
# The file


def _document(data: Mapping[str, Any], told: str, *, connect: str = "'none'") -> str:
    style, script = _sources()
    policy = _policy(style, script, connect=connect)
    title = html.escape(" - ".join(["inward", *filter(None, [str(data.get("title", ""))])]))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<div id="inward"></div>\n<noscript>{told or "This page needs JavaScript."}</noscript>\n'
        f'<script type="application/json" id="inward-data">{as_data(data)}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _sources() -> tuple[str, str]:
    """The style and the script of a page."""
    script = "\n".join(source(f"{name}.js") for name in SCRIPTS)
    return source("page.css"), '"use strict";\n' + script


def _policy(style: str, script: str, *, connect: str) -> str:
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        f"img-src data: blob:; connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def source(name: str) -> str:
    """A file of the renderer as it is shipped."""
    return files("inward.viz.page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def as_data(value: Any) -> str:
    """JSON that no HTML parser can misread: no tag can begin or end in it, numbers have four places
    and none of them is NaN or infinite."""
    text = json.dumps(_plain(value), separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else _plain(_number(value))


def _number(value: Any) -> Any:
    """numpy's numbers and arrays as Python's."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _told(rows: list[dict[str, Any]]) -> str:
    """The answers as text, for readers without JavaScript."""
    lines = []
    for row in rows:
        said = [i for step in row["steps"] if "says" in step for i in step["says"]["ids"]]
        text = "".join(row["pieces"].get(str(i), "") for i in said)
        name = row["model"] or row["method"]
        lines.append(f"<p>{html.escape(name)}: {len(row['steps'])} steps. {html.escape(text)}</p>")
    return "<p>The pictures need JavaScript.</p>" + "".join(lines)
