"""What --use_tensorboard writes beside metrics.jsonl: event files that TensorBoard draws."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = "tensorboard"  # in --out_dir


class EventFiles:
    """The numbers of metrics.jsonl under the same names; flags and samples as text.

    Everything is on disk when a method returns, as a line of metrics.jsonl is, so that the two
    agree after a kill, too. A start writes a file of its own into the folder.

    flags    the resolved flags: name -> value
    dropped  the first step that earlier files of the folder may hold and readers are to forget: a
             resumed run draws it anew
    """

    def __init__(self, out_dir: Path, flags: dict, dropped: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(Path(out_dir) / FOLDER), purge_step=dropped)
        rows = [f"| {name} | {_as_code(value)} |" for name, value in flags.items()]
        self._text("flags", "\n".join(["| flag | value |", "|---|---|", *rows]), dropped)

    def metrics(self, step: int, values: dict):
        """Numbers after `step` updates."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def samples(self, step: int, texts: list[str]):
        """What the model wrote after `step` updates, every text a paragraph as it is."""
        # four spaces: no Markdown in there
        self._text("samples", "\n\n".join("    " + text.replace("\n", " ") for text in texts), step)

    def close(self):
        self.writer.close()

    def _text(self, tag: str, text: str, step: int):
        self.writer.add_text(tag, text, step)
        self.writer.flush()


def _as_code(value: object) -> str:
    """A value for a cell of a Markdown table."""
    return "`" + json.dumps(value, default=str, ensure_ascii=False).replace("|", "\\|") + "`"
