"""A notebook as one HTML file that opens with no network.

Comes in: an executed notebook, and what is to stand under its title. Goes out: HTML with everything
inside: no script, style, font or picture is loaded from anywhere. ``run`` calls this.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from ...shipped import need_path, package_path
from .. import live

# nbconvert's page without what it loads from elsewhere (RequireJS, MathJax, mermaid, widgets), all
# of it unneeded here.
_TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block data_png scoped -%}
{%- set width = output | get_metadata('width', 'image/png') -%}
{%- set alt = output | get_metadata('alt', 'image/png') or 'figure' -%}
{%- set number = output | get_metadata('number', 'image/png') -%}
{%- set title = output | get_metadata('title', 'image/png') -%}
{%- set lives = output | get_metadata('live', 'image/png') -%}
<figure class="drawn" id="figure-{{ number }}">{%- if lives -%}{{ lives[0] }}{%- endif -%}<img src="data:image/png;base64,{{ output.data['image/png'] }}"
 alt="{{ alt | escape_html }}"{% if width %} width="{{ width }}"{% endif %}>
{%- if lives -%}{{ lives[1] }}{%- endif -%}
<figcaption>Figure {{ number }}{% if title %}: {{ title | escape_html }}{% endif %}</figcaption></figure>
{%- endblock -%}
{%- block html_head_css -%}
<style>STYLE</style>
{%- endblock -%}
{%- block footer_js -%}
<script>SCRIPT</script>
{%- endblock -%}
"""

# Pictures before widgets and scripts: a bundle of both shows its static twin.
_KINDS = ["image/png", "image/svg+xml", "image/jpeg", "text/html", "text/markdown", "text/plain"]
_STATES = "application/vnd.jupyter.widget-state+json"
_VIEW = "application/vnd.jupyter.widget-view+json"
_PICTURE = "<!-- picture -->"
_CONTENTS = '<nav class="contents"></nav>'
_HEADING = re.compile(r'<h2 id="([^"]*)">(.*?)</h2>', re.S)

_LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|track)\b[^>]*?\bsrc\s*=\s*["']?\s*(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b[^>]*?\bhref\s*=\s*["']?\s*(?:https?:)?//[^"'\s>]+"""
    r"""|<object\b[^>]*?\bdata\s*=\s*["']?\s*(?:https?:)?//[^"'\s>]+"""
    r"""|url\(\s*["']?\s*(?:https?:)?//[^)]+\)|@import\s+(?:url\()?["']?\s*(?:https?:)?//[^"';)]+"""
    r"""|\b(?:import|from)\s*\(?\s*["']https?://[^"']+|\.src\s*=\s*["']?(?:https?:)?//[^"';]+""",
    re.IGNORECASE,
)


def offline_html(notebook: Mapping[str, Any], facts: Mapping[str, str] | None = None) -> str:
    """The notebook's prose and results as HTML; its code stays in the notebook. ``facts`` stand
    under the title; ``facts["model"]`` is part of it."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    notebook, facts = _prepared(notebook), dict(facts or {})
    config = Config({"NbConvertBase": {"display_data_priority": _KINDS}})
    exporter = HTMLExporter(config=config, raw_template=_template(), embed_images=True)
    exporter.exclude_input = exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    title = _title(notebook, facts)
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    return _with_modules(_with_contents(_with_facts(body, facts)))


def _template() -> str:
    """Style and script go in as they are: no brace of theirs is the template's."""
    template = _TEMPLATE
    for name, file in (("STYLE", "page.css"), ("SCRIPT", "page.js")):
        text = need_path(package_path("lab/report") / file).read_text(encoding="utf-8")
        template = template.replace(name, f"{{% raw %}}\n{text}{{% endraw %}}")
    return template


def _prepared(notebook: Mapping[str, Any]) -> Any:
    """A copy whose figures are numbered, with a place for the contents before the first section."""
    from nbformat.v4 import new_markdown_cell

    notebook = copy.deepcopy(notebook)
    # the page's title is said by its facts, too
    notebook["metadata"].pop("title", None)
    states = notebook["metadata"].get("widgets", {}).get(_STATES, {}).get("state", {})
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    drawn = [output for output in outputs if "image/png" in output.get("data", {})]
    for number, output in enumerate(drawn, 1):
        about = output["metadata"].setdefault("image/png", {})
        about["number"] = number
        about["title"] = about.get("alt", "").removeprefix("Figure: ").split(". ")[0]
        about["live"] = _alive(output, states)
    starts = [at for at, cell in enumerate(notebook["cells"]) if _has_section(cell)]
    if len(starts) > 1:
        notebook["cells"].insert(starts[0], new_markdown_cell(_CONTENTS))
    return notebook


def _alive(output: Mapping[str, Any], states: Mapping[str, Any]) -> list[str] | None:
    """HTML before and after the picture of a widget whose module the page brings to life."""
    shown = output["data"].get(_VIEW, {}).get("model_id")
    state = states.get(shown, {}).get("state", {})
    if state.get("kind") not in live.KINDS or "data" not in state:
        return None
    html = live.place(state["kind"], state["data"], state.get("about", ""), _PICTURE)
    return html.split(_PICTURE)


def _with_modules(body: str) -> str:
    """The script and style of the modules that stand in the page, at its end."""
    kinds = [kind for kind in live.KINDS if f'data-live="{kind}"' in body]
    if not kinds:
        return body
    head, end, tail = body.rpartition("</body>")
    return (
        f"{head}<style>{live.style()}</style>\n<script>{live.script(kinds)}</script>\n{end}{tail}"
    )


def _has_section(cell: Mapping[str, Any]) -> bool:
    return cell["cell_type"] == "markdown" and bool(re.search(r"^## ", cell["source"], re.M))


def _title(notebook: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    prose = "\n".join(
        cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown"
    )
    heading = re.search(r"^# +(.+)$", prose, re.M)
    words = [heading[1].strip() if heading else "Report", facts.get("model"), facts.get("made")]
    return ", ".join(word for word in words if word)


def _with_facts(body: str, facts: dict[str, str]) -> str:
    """Model into the first heading, the other facts under it."""
    if not facts:
        return body
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in facts.items()
    )
    model = f": {escape(facts['model'])}" if "model" in facts else ""

    def heading(found: re.Match) -> str:
        return f'{found[1]}{model}{found[2]}<dl class="facts">{rows}</dl>'

    ends = r'(<h1 id="[^"]*">[^<]*)(.*?</h1>)'
    return re.sub(ends, heading, body, count=1, flags=re.S)


def _with_contents(body: str) -> str:
    """The list of sections, each a link."""
    items = [
        f'<li><a href="#{name}">{re.sub(r"<a .*?</a>", "", words, flags=re.S)}</a></li>'
        for name, words in _HEADING.findall(body)
    ]
    listed = f'<nav class="contents" aria-label="Contents"><strong>Contents</strong><ol>{"".join(items)}</ol></nav>'
    return body.replace(_CONTENTS, listed, 1)


def external_loads(html: str) -> list[str]:
    """What a page would fetch from elsewhere when opened; links to click are not loads."""
    return [match[0][:200] for match in _LOADS.finditer(html)]
