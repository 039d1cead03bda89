from enum import IntFlag


class QuantMode(IntFlag):
    INT4_WEIGHTS = 1
