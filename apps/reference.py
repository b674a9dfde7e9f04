"""What can be asked, for a person?  The description of the interface as one page, with a command for each request."""

from __future__ import annotations

import html
import json
from typing import Any

STYLE = ("body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:16px/1.5 system-ui,sans-serif;"
         "color-scheme:light dark}code,pre{font:14px/1.5 ui-monospace,monospace}pre{overflow-x:auto;padding:.75rem;"
         "border:1px solid;border-radius:.4rem}table{border-collapse:collapse;width:100%}"
         "td,th{text-align:left;vertical-align:top;"
         "padding:.2rem .8rem .2rem 0;border-bottom:1px solid #8884}h2{margin:1.8rem 0 0}"
         "h2 code{font-size:1.05rem}p{margin:.4rem 0}")
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "def main", "max_tokens": 60},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}], "user": "ann", "learn": True},
    "/v1/read": {"text": "The grellip sings in spring.", "user": "ann", "learn": True},
    "/v1/sessions/{name}": {"reset": "last"},
    "/tokenize": {"prompt": "é"}, "/detokenize": {"tokens": [195, 169]}}


def page(description: dict[str, Any], title: str, address: str, keyed: bool) -> str:
    """The page of an OpenAPI description; `keyed`: a key has to be sent."""
    say, parts = html.escape, []
    for path, methods in description["paths"].items():
        for method, one in methods.items():
            body = one.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            rows = fields(body, description["components"]["schemas"])
            about = one.get("description") or one["summary"]
            call = f"curl {address}{path.replace('{name}', 'ann')}"
            if keyed:
                call += ' -H "authorization: Bearer $HOPE_API_KEY"'
            if method == "delete":
                call += " -X DELETE"
            if path in EXAMPLES and method == "post":
                call += f" -H 'content-type: application/json' -d '{json.dumps(EXAMPLES[path], ensure_ascii=False)}'"
            table = "".join(f"<tr><td><code>{say(name)}</code></td><td>{say(kind)}</td><td>{say(text)}</td></tr>"
                            for name, kind, text in rows)
            head = "<tr><th>field</th><th>type</th><th>meaning</th></tr>"
            parts.append(f"<h2><code>{method.upper()} {say(path)}</code></h2><p>{say(about)}</p><pre>{say(call)}</pre>"
                         + (f"<table>{head}{table}</table>" if rows else ""))
    return (f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>{say(title)}: what can be asked</title><style>{STYLE}</style><main><h1>{say(title)}</h1>"
            "<p>The interface is OpenAI’s: its clients are told the address with <code>/v1</code> at its end. Beyond "
            "it, <code>learn</code> lets a named session learn, and <code>trace</code> tells surprise and movement. "
            "The same for programs: <a href=/openapi.json>openapi.json</a>.</p>" + "".join(parts) + "</main></html>")


def fields(schema: dict[str, Any], known: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, type and meaning of what a body may hold."""
    schema = known[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    required = schema.get("required", [])
    found = []
    for name, one in schema.get("properties", {}).items():
        kinds = [option for option in one.get("anyOf", [one]) if option.get("type") != "null"]
        kind = " or ".join(dict.fromkeys(kind_of(option) for option in kinds))
        about = one.get("description") or next((o["description"] for o in kinds if "description" in o), "")
        bounds = [f"{word} {option[key]:g}" for option in kinds for key, word in (
            ("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to")) if key in option]
        default = f"[{json.dumps(one['default'])}]" if one.get("default") is not None else ""
        told = (about, " ".join(bounds), "required" if name in required else default)
        found.append((name, kind, "; ".join(filter(None, told))))
    return found


def kind_of(option: dict[str, Any]) -> str:
    if "enum" in option:
        return ", ".join(map(str, option["enum"]))
    if option.get("type") == "array":
        return f"list of {kind_of(option.get('items', {}))}"
    return str(option.get("type") or option.get("$ref", "").rpartition("/")[2] or "one of several")
