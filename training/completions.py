"""Completions of prompts by an engine: what the model says, and what tools that it calls answer.

A completion has one turn of the model or, with tools, several. What a tool answers stands between
two of them as it does in a chat, in the same ids; the model sees it and does not learn to say it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from dataset.chat import after_tools, stop_ids
from dataset.chat_turns import CALL
from dataset.messages import normal_content
from dataset.tokenizer import Tokenizer
from model import lora
from model.actor_critic import ActorCritic
from model.decoding_layers import for_decoding
from model.engine import Engine, Request
from model.model import MiniMindLM
from model.sampling import Sampling
from tasks.task import Completion, Prompt, completion_of
from tools.calls import Tool, answer, named_tools
from training.cli import MAX_TURNS
from training.distributed import whole


@dataclass
class Sample:
    """A completion, and how it stands behind its prompt.

    ids        all of it: what the model said, and what tools answered
    is_said    of each of them, whether the model said it
    log_probs  of each token that it said, as it was drawn, in nats
    rewards    what `Rollouts.judge` has given, one by one
    """

    completion: Completion
    ids: list[int]
    is_said: list[bool]
    log_probs: list[float]
    rewards: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Tools:
    """What completions may call.

    functions        by name; a prompt's completions may call those that it describes
    max_turns        how often the model speaks in a completion, tools answering in between
    enable_thinking  whether prompts let it think: then it may do so in each of its turns
    """

    functions: dict[str, Tool] = field(default_factory=dict)
    max_turns: int = 1
    enable_thinking: bool = False

    @property
    def descriptions(self) -> list[dict] | None:
        """What a model is told of them."""
        return [tool.description for tool in self.functions.values()] or None


def tools_of(args, tokenizer: Tokenizer) -> Tools:
    """The tools of --tools. Raises ValueError where a chat has no place for calls and answers."""
    if not args.tools:
        if args.max_turns != MAX_TURNS:
            raise ValueError(f"--max_turns {args.max_turns}: there are no --tools to answer")
        return Tools()
    try:
        tools = Tools(named_tools(args.tools), args.max_turns, args.enable_thinking)
        if CALL not in tokenizer.control_tokens:
            raise ValueError(
                f"the tokenizer of {tokenizer.folder} has no {CALL}: the model was not taught to "
                "call tools"
            )
        name, tool = next(iter(tools.functions.items()))
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [{"name": name, "arguments": {}}]},
            {"role": "tool", "content": "1"},
        ]
        after_tools(tokenizer, messages, [tool.description], tools.enable_thinking)
    except ValueError as error:
        raise ValueError(f"--tools: {error}") from None
    return tools


def names_of(prompt: Prompt) -> list[str]:
    """The names of the tools that a prompt describes."""
    return [(tool.get("function") or tool).get("name") for tool in prompt.tools or []]


class Conversation:
    """A completion in the making, one turn of the model after the other.

    limit   its longest, in tokens, those of the tools' answers included
    request what the engine is asked for: the turn that is being said
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, tools: Tools, limit: int):
        self.tokenizer, self.prompt, self.tools, self.limit = tokenizer, prompt, tools, limit
        self.ids: list[int] = []
        self.is_said: list[bool] = []
        self.log_probs: list[float] = []
        self.turns: list[Completion] = []  # each as if it stood alone
        self.messages: list[dict] = []
        self.is_cut = False
        self.request: Request | None = None

    def ask(self, ends: set[int], sampling: Sampling, seed: str, number: int) -> Request:
        """The request for the turn that comes next, whose draws depend on its number, too."""
        if self.turns:
            seed = f"{seed}/turn {len(self.turns)}"
        room = self.limit - len(self.ids)
        prompt = [*self.prompt.ids, *self.ids]
        self.request = Request(prompt, room, ends, sampling, seed, number, 0, as_drawn=True)
        return self.request

    def take_turn(self):
        """Take what has been said since `ask`."""
        said, self.is_cut = self.request.tokens, self.request.ending != "stop"
        self._add(said, is_said=True)
        self.turns.append(completion_of(self.tokenizer, self.prompt, said, self.is_cut))
        self.messages += self.turns[-1].messages

    def let_tools_answer(self) -> bool:
        """Whether the turn was one of calls; then their answers stand behind it."""
        turn, tools = self.turns[-1], self.tools
        is_ended = turn.ids[-1:] == stop_ids(self.tokenizer)[:1]  # by the turn's end, no other
        may_go_on = tools.functions and len(self.turns) < tools.max_turns
        if not (turn.calls and is_ended and may_go_on):
            return False
        offered = {name: tools.functions[name] for name in names_of(self.prompt)
                   if name in tools.functions}  # fmt: skip
        results = [answer(call["name"], call["arguments"], offered) for call in turn.calls]
        answers = [{"role": "tool", "content": normal_content(result)} for result in results]
        messages = [*self.prompt.messages, *self.messages, *answers]
        ids = after_tools(self.tokenizer, messages, self.prompt.tools, tools.enable_thinking)
        if len(self.ids) + len(ids) >= self.limit:  # no room for them and a word on them
            self.is_cut = True
            return False
        self._add(ids, is_said=False)
        self.messages += answers
        return True

    def _add(self, ids: list[int], is_said: bool):
        self.ids += ids
        self.is_said += [is_said] * len(ids)

    def sample(self) -> Sample:
        """All of it."""
        said = [id for id, is_said in zip(self.ids, self.is_said) if is_said]
        calls = [call for turn in self.turns for call in turn.calls]
        completion = replace(
            self.turns[-1], ids=said, is_cut=self.is_cut, calls=calls, messages=self.messages
        )
        return Sample(completion, self.ids, self.is_said, self.log_probs)


def decoding_copy(run) -> MiniMindLM:
    """A model for decoding with the weights as they are now, adapters merged, in run.dtype.

    With --fsdp every rank gets the whole of it: ranks do not wait for each other's completions.
    """
    model = run.model.policy() if isinstance(run.model, ActorCritic) else run.model
    if run.args.fsdp:
        with torch.device("meta"):
            model = MiniMindLM(run.config)
            if run.adapter is not None:
                lora.attach(model, run.adapter)
        weights = {name: whole(p.detach()) for name, p in run.model.named_parameters()}
        model.load_state_dict(weights, strict=False, assign=True)
        if run.config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        model.make_buffers(run.device)
    return for_decoding(model, dtype=run.dtype).eval()


def sample(
    model: MiniMindLM, tokenizer: Tokenizer, prompts: list[Prompt], seeds: list[str], count: int,
    max_new_tokens: int, sampling: Sampling, max_running: int = 256,
    is_over: Callable[[], bool] | None = None, tools: Tools | None = None,
) -> list[list[Sample]]:  # fmt: skip
    """`count` completions of every prompt, by an engine that is made for them: nothing is kept.

    A completion's draws depend on its prompt's seed and its own number alone. A prompt is read
    once; its other completions take over what is known of it. A conversation goes on as soon as its
    tools have answered, beside the others. is_over: asked before every step; once it says so,
    completions stay as they are.
    """
    ends, tools = set(stop_ids(tokenizer)), tools or Tools()
    groups = [
        [Conversation(tokenizer, prompt, tools, max_new_tokens) for _ in range(count)]
        for prompt in prompts
    ]
    running = max(1, min(max_running, len(prompts) * count))
    longest = max((len(prompt.ids) for prompt in prompts), default=1) + max_new_tokens
    engine = Engine(model, running, 0, max_tokens=longest, prompt_tokens=1024)
    asked: dict[Request, tuple[Conversation, str, int]] = {}

    def ask(conversation: Conversation, seed: str, number: int):
        request = conversation.ask(ends, sampling, seed, number)
        engine.add(request, as_next=bool(conversation.turns))
        asked[request] = conversation, seed, number

    together = max(1, max_running // count)  # prompts: a completion finds its prompt still there
    for first in range(0, len(prompts), together):
        for number in range(count):
            for group, seed in list(zip(groups, seeds, strict=True))[first : first + together]:
                ask(group[number], seed, number)
    while engine.has_work and not (is_over is not None and is_over()):
        for drawn in engine.step():
            conversation, seed, number = asked[drawn.request]
            if drawn.logprob is not None:
                conversation.log_probs.append(drawn.logprob.token)
            if drawn.last:
                del asked[drawn.request]
                conversation.take_turn()
                if conversation.let_tools_answer():
                    ask(conversation, seed, number)
    for conversation, _, _ in asked.values():  # where it was over
        conversation.take_turn()
    return [[conversation.sample() for conversation in group] for group in groups]
