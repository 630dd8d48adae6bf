"""What does not fit a row: said on a line of its own where it is more than a few records."""

from __future__ import annotations

import math

import numpy as np

MOST_RECORDS, MOST_TOKENS = 0.02, 0.05  # shares that may be left out without a warning
KEPT = 0.99  # share of the records that the suggested length keeps whole
_ROUND = 64  # tokens, of the suggested length


def left_out_warning(what: str, needed, kept, max_seq_len: int) -> str | None:
    """A warning if more than 2% of the records or 5% of their tokens are not trained on, or None.

    what    "conversations", "pairs"
    needed  [records]: positions that each takes whole
    kept    [records]: positions of it that are in the rows; 0 where it is left out
    """
    needed, kept = np.asarray(needed, np.int64), np.asarray(kept, np.int64)
    is_short = kept < needed
    records, tokens = int(is_short.sum()), int((needed - kept).sum())
    if records <= MOST_RECORDS * len(needed) and tokens <= MOST_TOKENS * needed.sum():
        return None
    enough = int(np.sort(needed)[math.ceil(KEPT * len(needed)) - 1])
    enough = -(-enough // _ROUND) * _ROUND
    cut = " or cut after an answer" if kept[is_short].any() else ""
    return (
        f"warning: {records:,} of {len(needed):,} {what} ({tokens / needed.sum():.0%} of all "
        f"tokens) do not fit --max_seq_len {max_seq_len} and are left out{cut}; "
        f"--max_seq_len {enough} keeps {KEPT:.0%} of them whole"
    )
