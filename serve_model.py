"""Serve a model: OpenAI's API, a page to chat, one to watch training, one to look inside.

    python serve_model.py --model out/dpo                                   # then open the address
    python serve_model.py --model out/full_sft --lora shop=out/lora         # with adapters by name
    python serve_model.py --model out/dpo --host 0.0.0.0 --api_key SECRET   # for other machines

--model is a run's folder (its newest complete checkpoint is taken), one checkpoint, or any dense
Qwen3 folder. Clients ask for a model by its name: that of the folder, or of an adapter. SIGTERM and
Ctrl-C let running answers finish. docs/serving.md has the routes and their fields.
"""

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
from pathlib import Path

import uvicorn

from serving import decoding
from serving.app import make_app
from serving.connection import server_config
from serving.metrics import Metrics
from serving.models import adapters_by_name
from serving.worker import Worker
from training import cli

KEY_VARIABLE = "MINIMIND_API_KEY"
SECONDS_TO_TELL = 3.0  # for clients to hear that their answers were cut


def parse_args():
    parser = cli.new_parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, default=Path("out/dpo"), help="run, checkpoint or Qwen3 folder")
    text = "adapters, chosen by `model` in a request; FOLDER alone: by its own name"
    add("--lora", nargs="+", default=[], metavar="NAME=FOLDER", help=text)
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=cli.at_least(0, 65535), default=8000, help="0: any that is free")
    text = f"what clients have to send (also from the environment: {KEY_VARIABLE})"
    add("--api_key", default=None, help=text)
    text = "listen on a public address without a key"
    add("--allow_public", action="store_true", help=text)
    text = "names under which this machine may be asked, besides localhost and addresses"
    add("--allowed_hosts", nargs="+", default=[], help=text)
    add("--max_concurrency", type=cli.at_least(1, 1024), default=16, help="sequences at a time")
    text = "sequences that may wait for a place; more are refused with 429"
    add("--max_queue", type=cli.at_least(0, 2**16), default=64, help=text)
    text = "longest answer where a request does not say, in tokens"
    add("--max_new_tokens", type=cli.at_least(1), default=1024, help=text)
    text = "longest prompt and answer together, in tokens; None: the context, if memory has room"
    add("--max_context", type=cli.at_least(2), default=None, help=text)
    text = "longest time for one answer, waiting included, in seconds"
    add("--max_seconds", type=cli.in_range(1, 1e6), default=600.0, help=text)
    text = "after SIGTERM, the time that running answers have to finish, in seconds"
    add("--shutdown_seconds", type=cli.in_range(0, 1e6), default=30.0, help=text)
    add("--runs", type=Path, default=Path("out"), help="folder of runs that the page /runs shows")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    text = "precision of the weights (auto: bfloat16 on a GPU or with int8, else float32)"
    add("--dtype", choices=["auto", "bfloat16", "float16", "float32"], default="auto", help=text)
    text = "int8: weights of the linear layers in 8 bits"
    add("--quantize", choices=["none", "int8"], default="none", help=text)
    text = "compile the steps that read no prompt: a minute or two at the start, faster afterwards"
    add("--compile", **cli.BOOL, default=False, help=text)
    return parser.parse_args()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. ValueError, naming the flag, where that is not possible."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # with the protocol given, asyncio lets small parts of an answer go out at once (no delay)
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()  # so that another server finds the port in use, while this one loads
    except OSError as error:
        raise ValueError(f"--host {host} --port {port}: {error.strerror or error}") from None
    return listening


def is_local(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


class Server(uvicorn.Server):
    """Ends with status 0 on SIGTERM and Ctrl-C, once running answers are finished or cut."""

    def __init__(self, app, worker: Worker, seconds: float, greeting: str):
        """seconds: that running answers have. greeting: is printed when clients may come."""
        super().__init__(server_config(app, seconds + 2 * SECONDS_TO_TELL))
        self.worker, self.seconds, self.greeting = worker, seconds, greeting

    async def startup(self, sockets: list[socket.socket] | None = None):
        await super().startup(sockets)
        print(self.greeting, flush=True)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or not self.worker.alive

    async def shutdown(self, sockets: list[socket.socket] | None = None):
        loop = asyncio.get_running_loop()
        loop.call_later(self.seconds, self.worker.cut)
        loop.call_later(self.seconds + SECONDS_TO_TELL, self._hang_up)
        await super().shutdown(sockets)

    def _hang_up(self):
        """Clients that do not even read that their answers were cut."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self):
        def leave(_signal, _frame):
            if self.should_exit:  # a second one does not wait, for nothing and nobody
                os._exit(0)
            self.should_exit = self.worker.closing = True

        before = {s: signal.signal(s, leave) for s in (signal.SIGTERM, signal.SIGINT)}
        yield
        for number, handler in before.items():
            signal.signal(number, handler)


def main():
    args = parse_args()
    api_key = args.api_key if args.api_key is not None else os.environ.get(KEY_VARIABLE)
    if api_key is not None and not api_key.strip():
        raise ValueError(f"--api_key (or {KEY_VARIABLE}): expected a key, got an empty one")
    if api_key is None and not is_local(args.host) and not args.allow_public:
        raise ValueError(
            f"--host {args.host}: anybody who reaches this machine could use the server; give an "
            "--api_key, or --allow_public to do without"
        )
    listening = listen(args.host, args.port)  # before anything takes long
    models, pipe, process = decoding.start({
        "path": args.model, "adapters": adapters_by_name(args.lora), "device": args.device,
        "dtype": args.dtype, "int8": args.quantize == "int8", "compiled": args.compile,
        "rows": args.max_concurrency, "max_tokens": args.max_context,
    })  # fmt: skip
    metrics = Metrics()
    worker = Worker(models, pipe, metrics, args.max_concurrency, args.max_queue, args.max_seconds)
    names = {args.host, socket.gethostname(), *args.allowed_hosts}
    app = make_app(worker, args.runs, args.max_new_tokens, names, api_key)
    host = f"[{args.host}]" if ":" in args.host else args.host
    address = f"http://{host}:{listening.getsockname()[1]}"
    greeting = (
        f"{', '.join(models)}: {address} to chat, {address}/runs to watch training, {address}/lab "
        f"to look inside\nOpenAI clients: base_url {address}/v1. Ctrl-C ends it."
    )
    server = Server(app, worker, args.shutdown_seconds, greeting)
    asyncio.run(server.serve(sockets=[listening]))
    process.join(SECONDS_TO_TELL)
    return 0 if worker.alive else 1


if __name__ == "__main__":
    cli.run(main)
