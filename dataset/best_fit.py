"""Best-fit decreasing on a histogram of lengths: ten million items in seconds.

Items of one length take one step together, and bins with equally much room are one group. A step
takes the group with the least room that is enough: each of its bins, the lowest number first, gets
as many items of the length as it has room for, for after one of them it is the fullest that fits.
Such bins are left with less than half the room they had, so that a bin changes its group
log2(capacity) times at most, however many items there are.
"""

import numpy as np


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Put items into bins of `capacity`, whole: best-fit decreasing (Johnson 1974).

    The longest first, of equal ones the first; each into the fullest bin that still has room, of
    equal ones the first. Returns (items int64 [n]: the items' indices, bin after bin, in the order
    they were put in; ends int64 [bins]: where each bin ends in it). The same lengths always give
    the same bins. Lengths outside 1..capacity are an error of the caller's.

    lengths: integers [n]. Needs 32 bytes of memory an item beside them, the result included.
    """
    lengths = np.asarray(lengths)
    if len(lengths) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    assert lengths.min() >= 1 and lengths.max() <= capacity, (lengths.min(), lengths.max())
    order = _longest_first(lengths)
    bins = _bins(np.bincount(lengths), capacity)
    ends = np.cumsum(np.bincount(bins))
    return order[np.argsort(bins, kind="stable")], ends


def _longest_first(lengths: np.ndarray) -> np.ndarray:
    """int64 [n]: the items by length, the longest first, equal ones as they came."""
    shorter = lengths.max() - lengths
    if lengths.max() < 1 << 16:
        shorter = shorter.astype(np.uint16)  # sorted in linear time
    return np.argsort(shorter, kind="stable")


def _bins(counts: np.ndarray, capacity: int) -> np.ndarray:
    """int32 [n]: the bin of each item, the longest first; counts[l] is how many have length l."""
    bin_of = np.empty(counts.sum(), np.int32)
    groups = _Groups(capacity)
    done = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        end = done + int(counts[length])
        while done < end:
            room = groups.least_room(length)
            each = room // length
            bins = groups.take(room, -(-(end - done) // each))
            items = np.repeat(bins, each)[: end - done]
            bin_of[done : done + len(items)] = items
            done += len(items)
            full, in_last = divmod(len(items), each)
            groups.put(room - each * length, bins[:full])
            groups.put(room - in_last * length, bins[full:])
    return bin_of


class _Groups:
    """Bins by the room they have left, int32 numbers in order. Those of full room are the new ones.

    A group is a list of runs, joined when it is taken from.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_bins = 0  # that are not new
        self.runs: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]
        self.has_bins = np.zeros(capacity + 1, bool)
        self.has_bins[capacity] = True

    def least_room(self, length: int) -> int:
        """The least room of any bin that is at least `length`."""
        return length + int(np.argmax(self.has_bins[length:]))

    def take(self, room: int, count: int) -> np.ndarray:
        """The first `count` bins of a group, or all of them; they leave it."""
        if room == self.capacity:
            self.num_bins += count
            return np.arange(self.num_bins - count, self.num_bins, dtype=np.int32)
        bins = np.concatenate(self.runs[room]) if len(self.runs[room]) > 1 else self.runs[room][0]
        if len(self.runs[room]) > 1:
            bins.sort(kind="stable")
        self.runs[room] = []
        self.has_bins[room] = False
        self.put(room, bins[count:])
        return bins[:count]

    def put(self, room: int, bins: np.ndarray) -> None:
        """Add bins to the group that they now belong to."""
        if len(bins) and room:  # full ones are done with
            self.runs[room].append(bins)
            self.has_bins[room] = True
