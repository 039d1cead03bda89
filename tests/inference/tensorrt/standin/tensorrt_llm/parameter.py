import torch


class Parameter:
    def __init__(self, value=None, shape=None, dtype=None, is_buffer=False, prefer_managed=False):
        self.shape, self.dtype, self._value = tuple(shape), getattr(torch, dtype), None

    @property
    def value(self):
        from .functional import Tensor

        assert self._value is not None, "a parameter without a value"
        return Tensor(self._value)

    @value.setter
    def value(self, v):
        assert tuple(v.shape) == self.shape, f"a value of shape {tuple(v.shape)} in place of {self.shape}"
        assert v.dtype == self.dtype, f"a value of {v.dtype} in place of {self.dtype}"
        assert v.device.type == "cpu"
        self._value = v

    def is_inited(self):
        return self._value is not None
