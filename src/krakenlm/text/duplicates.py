"""Documents whose text has stood in the corpus before, found by checksum in bounded memory."""

import numpy as np

# Checksums compared at once (16 bytes each), and rows of the index looked at to collect them.
AT_ONCE = 1 << 22
ROWS = 1 << 20


def repeated(hash_N2: np.ndarray) -> np.ndarray:
    """Marks (N,), True for every document but the first of those that share a checksum.

    Args:
        hash_N2: 128-bit checksums as two integers each, in the order of the documents.
    """
    marks_N = np.zeros(len(hash_N2), bool)
    buckets = max(1, -(-len(hash_N2) // AT_ONCE))
    for bucket in range(buckets):
        places = [
            start + np.flatnonzero(hash_N2[start : start + ROWS, 0] % buckets == bucket)
            for start in range(0, len(hash_N2), ROWS)
        ]
        places = np.concatenate([np.empty(0, np.int64), *places])
        some_M2 = hash_N2[places]
        # A stable sort: of equal checksums the earliest document comes first.
        sorting = np.lexsort((some_M2[:, 1], some_M2[:, 0]))
        same = (some_M2[sorting[1:]] == some_M2[sorting[:-1]]).all(axis=1)
        marks_N[places[sorting[1:][same]]] = True
    return marks_N
