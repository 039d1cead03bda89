from .parameter import Parameter


class Module:
    def __init__(self):
        self._modules, self._parameters = {}, {}

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def __getattr__(self, name):
        for table in ("_parameters", "_modules"):
            if name in self.__dict__.get(table, {}):
                return self.__dict__[table][name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name, value):
        if isinstance(value, (Parameter, Module)):
            self.__dict__.pop(name, None)
            self.__dict__["_parameters" if isinstance(value, Parameter) else "_modules"][name] = value
        else:
            object.__setattr__(self, name, value)

    def register_parameter(self, name, param):
        self._parameters[name] = param

    def named_parameters(self, prefix="", recurse=True):
        for name, parameter in self._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter
        for name, module in self._modules.items():
            yield from module.named_parameters(f"{prefix}{name}.")


class ModuleList(Module):
    def __init__(self, modules):
        super().__init__()
        self._modules.update({str(index): module for index, module in enumerate(modules)})

    def __getitem__(self, idx):
        if not -len(self) <= idx < len(self):
            raise IndexError(idx)
        return self._modules[str(idx % len(self))]

    def __len__(self):
        return len(self._modules)
