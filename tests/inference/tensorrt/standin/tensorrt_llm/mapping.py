class Mapping:
    def __init__(
        self,
        world_size=1,
        rank=0,
        gpus_per_node=8,
        cp_size=1,
        tp_size=1,
        pp_size=1,
        moe_tp_size=-1,
        moe_ep_size=-1,
    ):
        assert world_size == tp_size
        assert pp_size == cp_size == 1
        self.world_size, self.rank, self.tp_size, self.pp_size = world_size, rank, tp_size, pp_size
        self.tp_rank, self.tp_group = rank, list(range(tp_size))

    @classmethod
    def from_dict(cls, mapping):
        return cls(**mapping)

    def to_dict(self):
        return {"world_size": self.world_size, "rank": self.rank, "tp_size": self.tp_size, "pp_size": self.pp_size}

    def is_first_pp_rank(self):
        return True

    def is_last_pp_rank(self):
        return True
