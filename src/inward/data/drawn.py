"""A part of a set is drawn by a seed: sets lie sorted (by clues, by task, by source), so their
first members are not like the rest.
"""

import numpy as np

from inward.common.checks import checked_seed


def drawn(total: int, num: int | None, *, seed: int = 0, what: str = "puzzles") -> np.ndarray:
    """`num` of the rows 0 .. total - 1, rising, all parts equally likely; None: all rows.

    Raises:
        ValueError: there are not as many.
    """
    if num is None:
        return np.arange(total)
    if not 1 <= num <= total:
        raise ValueError(f"asked for {num} {what}, there are {total}; choose 1 to that")
    rng = np.random.default_rng(checked_seed(seed))
    return np.sort(rng.permutation(total)[:num])
