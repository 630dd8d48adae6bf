"""Rows of completions in which those of one prompt stand behind it together, so that it is in the
row, and computed, only once."""

from collections.abc import Hashable, Sequence

import numpy as np


def rows_of_groups(
    groups: Sequence[Hashable], before: Sequence[int], lengths: Sequence[int], capacity: int
) -> list[list[list[int]]]:
    """Which completions are in which row, by number, those that share a prompt in a list.

    groups    of each completion its group: equal ones have the same prompt
    before    tokens of its prompt, which stand in a row once for all of its group there
    lengths   of each completion; with its prompt it is never above the capacity

    The group with the longest completion comes first. It goes into the fullest row that has room
    for all of it; else as many as fit into the emptiest row, the longest first, and the rest goes
    on. Groups of one each are put as best-fit decreasing does (dataset/best_fit.py).
    """
    members: dict[Hashable, list[int]] = {}
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # stable
        members.setdefault(groups[number], []).append(number)
    rows: list[list[list[int]]] = []
    room = np.zeros(0, np.int64)
    for rest in members.values():
        prompt = before[rest[0]]
        while rest:
            enough = room >= prompt + sum(lengths[i] for i in rest)
            if enough.any():
                row = int(np.where(enough, room, capacity + 1).argmin())
            elif len(room) and room.max() >= prompt + lengths[rest[-1]]:
                row = int(room.argmax())
            else:
                row, room = len(rows), np.append(room, capacity)
                rows.append([])
            left, taken = room[row] - prompt, []
            for number in rest:
                if lengths[number] <= left:
                    taken.append(number)
                    left -= lengths[number]
            assert taken, (prompt, lengths[rest[0]], capacity)
            rows[row].append(taken)
            room[row] = left
            rest = [number for number in rest if number not in taken]
    return rows
