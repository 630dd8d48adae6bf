"""A Modelfile for Ollama, with the chat format in the template language that Ollama has.

Ollama does not run the chat template of a GGUF file: it compares its text with those of some known
models, and where none is close it sends what the user typed and no more. So a Modelfile needs a
TEMPLATE, in Go's template language. This one is Qwen3's format; whether a folder's own template
says the same is found out by rendering conversations with it.
"""

from __future__ import annotations

import json

from transformers.utils.chat_template_utils import render_jinja_template

TOOLS_OPENING = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""
TOOLS_CLOSING = """
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""

# Lines end inside {{- … }} where no line break may be printed.
_HEAD = """{{- $question := -1 }}{{ $previous := "" }}
{{- range $i, $m := .Messages }}{{ if eq $m.Role "user" }}{{ $question = $i }}{{ end }}{{ end }}"""
_TOOLS = (
    """
{{- if .Tools }}<|im_start|>system
{{ with index .Messages 0 }}{{ if eq .Role "system" }}{{ .Content }}

{{ end }}{{ end }}"""
    + TOOLS_OPENING
    + """
{{- range .Tools }}
{"type": "function", "function": {{ .Function }}}
{{- end }}"""
    + TOOLS_CLOSING
    + """<|im_end|>
{{ end }}"""
)
_TURNS = """
{{- range $i, $m := .Messages }}
{{- if and (eq $previous "tool") (ne .Role "tool") }}<|im_end|>
{{ end }}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ %THOUGHT%.Content }}
{{- range $j, $call := .ToolCalls }}{{ if or $j $m.Content }}
{{ end }}<tool_call>
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
</tool_call>{{ end }}{{ if ne (len (slice $.Messages $i)) 1 }}<|im_end|>
{{ end }}
{{- else if eq .Role "tool" }}{{ if ne $previous "tool" }}<|im_start|>user{{ end }}
<tool_response>
{{ .Content }}
</tool_response>
{{- else if not (and $.Tools (eq $i 0)) }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}
{{- $previous = .Role }}
{{- end }}
{{- if eq $previous "tool" }}<|im_end|>
{{ end }}
{{- if ne $previous "assistant" }}<|im_start|>assistant
{{ %SWITCH%end }}"""
_THOUGHT = """if and .Thinking (gt $i $question) }}<think>
{{ .Thinking }}
</think>

{{ end }}{{ """
_SWITCH = """if and $.IsThinkSet (not $.Think) }}<think>

</think>

{{ end }}{{ """


def modelfile(model: str, adapter: str | None, template: str | None, stops: list[str]) -> str:
    """The text of a Modelfile. `template` is a chat template as `tokenizer_config.json` has it.

    Raises ValueError for a chat template that says something else than Qwen3's.
    """
    lines = [f"FROM ./{model}"]
    if adapter is not None:
        lines += ["# Newer releases of Ollama take no adapters: for them merge it first.",
                  f"ADAPTER ./{adapter}"]  # fmt: skip
    text = "{{ .Prompt }}" if template is None else go_template(template)
    lines.append(f'TEMPLATE """{text}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join([*lines, "PARAMETER repeat_penalty 1", ""])


def go_template(template: str) -> str:
    """The chat template in Go's template language; ValueError if it is not Qwen3's format.

    Tools and the switch for thinking are in it where the template has them.
    """
    if any(_render(template, messages) != _turns(messages) for messages in _CHATS):
        raise ValueError("its chat template is another than Qwen3's")
    opened = _turns(_CHATS[0])
    has_switch = _render(template, _CHATS[0], enable_thinking=False) == opened + _EMPTY_THOUGHT
    has_tools = _render(template, _CALLS, tools=_TOOL_LIST) == _with_tools(_CALLS)
    turns = _TURNS.replace("%THOUGHT%", _THOUGHT if has_switch else "")
    turns = turns.replace("%SWITCH%", _SWITCH if has_switch else "")
    return _HEAD + (_TOOLS if has_tools else "") + turns


def _render(template: str, messages: list[dict], **variables) -> str | None:
    """What a chat template makes of a conversation, or None where it gives an error."""
    tools = variables.pop("tools", None)
    try:
        rendered, _ = render_jinja_template(
            [messages], tools=tools, chat_template=template, add_generation_prompt=True, **variables
        )
    except Exception:  # a template may raise anything
        return None
    return rendered[0]


_EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
_USER, _ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
_CHATS = ([_USER], [{"role": "system", "content": "s"}, _USER, _ANSWER, _USER])
_ARGUMENTS = {"x": 1}
_TOOL_LIST = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
_CALL = {"type": "function", "function": {"name": "f", "arguments": _ARGUMENTS}}
_CALLS = [
    {"role": "system", "content": "s"},
    _USER,
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "r"},
]


def _turns(messages: list[dict]) -> str:
    turns = (f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def _with_tools(messages: list[dict]) -> str:
    """_CALLS in Qwen3's format."""
    system, user = messages[:2]
    tools = "".join("\n" + json.dumps(tool) for tool in _TOOL_LIST)
    return (
        f"<|im_start|>system\n{system['content']}\n\n{TOOLS_OPENING}{tools}{TOOLS_CLOSING}"
        f"<|im_end|>\n<|im_start|>user\n{user['content']}<|im_end|>\n<|im_start|>assistant\n"
        f'<tool_call>\n{{"name": "f", "arguments": {json.dumps(_ARGUMENTS)}}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>user\n<tool_response>\nr\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
