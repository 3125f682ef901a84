"""Models that lie in pieces on many processes, stepped as if one had them whole.

`Optimizer(params, comm=..., shards={name: Shard(shape, offset)})` takes the local arrays of one
process, a rank; all ranks together take the steps that one process would take with the whole arrays.
`Shard` is a box of a global array, `FlatShard` a range of its elements in C order. `comm` is a
communicator of mpi4py, a process group of torch.distributed, or any `Engine`.
"""

from adafactor_native.sharding.engine import Engine
from adafactor_native.sharding.errors import CommunicationError
from adafactor_native.sharding.shards import FlatShard, Shard

__all__ = ["CommunicationError", "Engine", "FlatShard", "Shard"]
