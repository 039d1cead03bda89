class PluginConfig:
    def __init__(self):
        self.dtype, self.gpt_attention_plugin, self.gemm_plugin, self.nccl_plugin = "float16", "auto", None, "auto"
        self.paged_kv_cache, self.remove_input_padding, self.context_fmha = None, True, True

    def update_from_dict(self, config):
        for name, value in config.items():
            if hasattr(self, name):
                setattr(self, name, value)

    @classmethod
    def from_dict(cls, config):
        plugin_config = cls()
        plugin_config.update_from_dict(config)
        return plugin_config

    def to_dict(self):
        return dict(self.__dict__)
