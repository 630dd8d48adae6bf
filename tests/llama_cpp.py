"""llama.cpp as an independent reader of GGUF files: its server, run inside this process."""

import json
import urllib.request
from pathlib import Path

import xllamacpp


class LlamaCpp:
    """One loaded file; exact: float32 throughout, in place of llama.cpp's attention in float16."""

    def __init__(self, file: Path, adapter: Path | None = None, exact: bool = False):
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx = 1024
        parameters.cpuparams.n_threads = 1
        parameters.warmup = False
        parameters.verbosity = -1
        if exact:
            parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            kinds = xllamacpp.llama_flash_attn_type
            parameters.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if adapter:
            parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self.server = xllamacpp.Server(parameters)

    def post(self, path: str, **body) -> dict:
        request = urllib.request.Request(
            self.server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        body = {"content": text, "add_special": True, "parse_special": special}
        return self.post("/tokenize", **body)["tokens"]

    def greedy(self, prompt: str | list[int], count: int) -> list[int]:
        """The likeliest tokens, up to the one that ends the answer."""
        return self.post(
            "/completion", prompt=prompt, n_predict=count, temperature=0, return_tokens=True,
            cache_prompt=False,
        )["tokens"]  # fmt: skip

    def log_probs(self, ids: list[int], entries: int) -> dict[int, float]:
        """The log-probability of every token after `ids`.

        The next token is forced, which leaves these as they are: the server tells nothing of one
        that is half a character.
        """
        answer = self.post(
            "/completion", prompt=ids, n_predict=1, temperature=0, n_probs=entries,
            cache_prompt=False, logit_bias=[["a", 1000]],
        )  # fmt: skip
        top = answer["completion_probabilities"][0]["top_logprobs"]
        return {entry["id"]: entry["logprob"] for entry in top}

    def prompt_of(self, messages: list[dict], **more) -> str:
        return self.post("/apply-template", messages=messages, **more)["prompt"]

    def chat(self, messages: list[dict], **more) -> dict:
        answer = self.post("/v1/chat/completions", messages=messages, temperature=0, **more)
        return answer["choices"][0] | {"prompt_tokens": answer["usage"]["prompt_tokens"]}
