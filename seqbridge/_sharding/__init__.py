"""Places of arrays: variables on a mesh, a batch over its devices, several processes."""

from seqbridge._sharding.data_parallel import BatchSharding as BatchSharding
from seqbridge._sharding.placement import Placement as Placement
from seqbridge._sharding.placement import put as put
from seqbridge._sharding.processes import check_agreement as check_agreement
from seqbridge._sharding.processes import feed as feed
