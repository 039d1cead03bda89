"""MPI among the threads of a test, or alone."""

import torch
from tensorrt_llm.functional import current_rank


class Comm:
    def Get_rank(self):
        return current_rank().comm.rank

    def Get_size(self):
        return current_rank().comm.world

    def allreduce(self, sendobj):
        return current_rank().comm.all_reduce(sendobj).wait()

    def allgather(self, sendobj):
        return list(current_rank().comm.all_gather(sendobj[None], 0).wait())

    def bcast(self, obj, root=0):
        if self.Get_rank() == root:
            self.sent = obj
        self.allreduce(torch.zeros(1))
        sent = self.sent
        self.allreduce(torch.zeros(1))  # nobody sends again before everybody has it
        return sent


COMM_WORLD = Comm()
