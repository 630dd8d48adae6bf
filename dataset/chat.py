"""The one owner of the chat format: messages → (token ids, loss mask), built together.

A turn is `<|im_start|>role\n … <|im_end|>\n`. The ids are those of
`tokenizer.apply_chat_template` on our `chat_template.jinja` for ordinary text; but here the control
tokens are placed by id and message contents are encoded as plain text, so that nothing a message
says becomes a control token. The mask is 1 on what the assistant says, its `<|im_end|>` included.
"""

from __future__ import annotations

import json

from dataset.tokenizer import Tokenizer

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
ROLES = ("system", "user", "assistant", "tool")

TOOL_LIST = """# Tools

You may call these functions, one JSON object per line:
{tools}
To call one, reply with its name and arguments as JSON inside tool_call tags."""


def encode_conversation(
    tokenizer: Tokenizer,
    messages: list[dict],
    tools: list | None = None,
    add_generation_prompt: bool = False,
    enable_thinking: bool = False,
) -> tuple[list[int], list[int]]:
    """Token ids and loss mask, equally long, of a conversation.

    messages               {"role", "content", "reasoning_content"?, "tool_calls"?} each; contents
                           are stripped of outer white space
    tools                  function descriptions for the system turn
    add_generation_prompt  end with the opening of an assistant turn, for inference
    enable_thinking        ... and with an opened think block
    """
    ids: list[int] = []
    mask: list[int] = []

    def add(*pieces: str | tuple[str], supervised: bool = False):
        """Append text pieces (strings, neighbours encoded as one) and control tokens (1-tuples)."""
        text = ""
        for piece in (*pieces, ("",)):
            if isinstance(piece, str):
                text += piece
                continue
            new = tokenizer.encode_text(text) if text else []
            if piece[0]:
                new.append(tokenizer.control_id(piece[0]))
            ids.extend(new)
            mask.extend([int(supervised)] * len(new))
            text = ""

    tool_list = ""
    if tools:
        lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        tool_list = TOOL_LIST.format(tools=lines)
        if not messages or messages[0]["role"] != "system":
            add((IM_START,), "system\n" + tool_list, (IM_END,), "\n")
    for i, message in enumerate(messages):
        role, content = message["role"], (message.get("content") or "").strip()
        add((IM_START,), role + "\n")
        if role == "assistant":
            add(*_assistant_pieces(message, content), (IM_END,), supervised=True)
        elif role == "tool":
            add(("<tool_response>",), f"\n{content}\n", ("</tool_response>",), (IM_END,))
        elif role == "system" and i == 0 and tools:
            add(content + ("\n\n" if content else "") + tool_list, (IM_END,))
        else:
            add(content, (IM_END,))
        add("\n")
    if add_generation_prompt:
        add((IM_START,), "assistant\n")
        if enable_thinking:
            add(("<think>",), "\n")
    return ids, mask


def _assistant_pieces(message: dict, content: str) -> list:
    pieces: list = []
    if message.get("reasoning_content"):
        reasoning = message["reasoning_content"].strip()
        pieces += [("<think>",), f"\n{reasoning}\n", ("</think>",), "\n\n"]
    pieces.append(content)
    for i, call in enumerate(message.get("tool_calls") or []):
        call = call.get("function") or call
        call = json.dumps(
            {"name": call["name"], "arguments": call["arguments"]}, ensure_ascii=False
        )
        before = "\n" if content or i > 0 else ""
        pieces += [before, ("<tool_call>",), f"\n{call}\n", ("</tool_call>",)]
    return pieces
