"""What a search over shards costs: a model fitted on measurements, and plans for larger sizes.

A query (``hds``) asks three times: every shard for its part of the pool, those that hold the pool
for distances, those that hold the results for their records. With S shards of n images each, in
milliseconds:

    coarse(S, n) = a + b S + c n S / cores      on one machine that all shards share
    fine(S)      = e + f A(S, pool)
    records(S)   = g + h A(S, k)

A(S, m) = S (1 - (1 - 1 / S)^m) is the number of shards that m images lie in, on average. b, f and
h hold what the asking process does for a shard *and* what the shard does to be asked, since both
share the machine's cores here. On machines of their own the shards work side by side, and only the
asking process goes through them one by one. Its processor time is measured apart:

    front_end(S) = u + v S
    query(S, n)  = (a + b) + (e + f) + (g + h) + v (S - 1) + scan(n) + network(S) + reads(S)
    scan(n)      = the larger of c n / cores and bytes_of_codes(n) / memory_bandwidth

which is least where v S = scan(n), so around S = sqrt(scan of all images on one machine / v).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CODE_BYTES = 8
POOL = 200
RESULTS = 10
_ROUNDS = 3
_MESSAGE_BYTES = 1000
_MEMORY_USED = 0.8


@dataclass(frozen=True)
class Observation:
    """Medians over single queries to ``shards`` shards of ``images_per_shard`` images.

    Attributes
    ----------
    coarse, fine, records : float
        Milliseconds of the three stages.
    front_end : float
        Processor milliseconds of the asking process, all its threads.
    resident : float
        Bytes of memory of a shard's process, without files that are mapped, on average.
    """

    shards: int
    images_per_shard: int
    coarse: float
    fine: float
    records: float
    front_end: float
    resident: float


@dataclass(frozen=True)
class CostModel:
    """Constants of the model (see the module): milliseconds, bytes, and ``scan`` a core."""

    coarse_base: float
    coarse_shard: float
    scan: float
    fine_base: float
    fine_shard: float
    records_base: float
    records_shard: float
    front_base: float
    front_shard: float
    memory_base: float
    memory_image: float

    def coarse(self, shards: int, images_per_shard: float, cores: int) -> float:
        """Milliseconds of coarse search on one machine."""
        scanned = self.scan * images_per_shard * shards / cores
        return self.coarse_base + self.coarse_shard * shards + scanned

    def fine(self, shards: int) -> float:
        """Milliseconds of fine search on one machine."""
        return self.fine_base + self.fine_shard * shards_asked(shards, POOL)

    def records(self, shards: int) -> float:
        """Milliseconds to look up the results, on one machine."""
        return self.records_base + self.records_shard * shards_asked(shards, RESULTS)

    def front_end(self, shards: int) -> float:
        """Processor milliseconds of the asking process."""
        return self.front_base + self.front_shard * shards

    def resident(self, images_per_shard: float) -> float:
        """Bytes of memory of a shard's process."""
        return self.memory_base + self.memory_image * images_per_shard


def shards_asked(shards: int, images: int) -> float:
    """Number of shards that some images lie in, on average, where they lie anywhere."""
    return float(shards * (1 - (1 - 1 / shards) ** images))


def fit(observations: Sequence[Observation], cores: int) -> CostModel:
    """Least squares of relative errors, with constants of 0 or more.

    Parameters
    ----------
    observations : sequence of Observation
        Of at least two numbers of shards and two sizes.
    cores : int
        Of the machine that they were measured on.
    """
    seen = list(observations)
    scanned = [o.images_per_shard * o.shards / cores for o in seen]
    coarse = _constants([o.coarse for o in seen], [float(o.shards) for o in seen], scanned)
    fine = _constants([o.fine for o in seen], [shards_asked(o.shards, POOL) for o in seen])
    asked = [shards_asked(o.shards, RESULTS) for o in seen]
    records = _constants([o.records for o in seen], asked)
    front = _constants([o.front_end for o in seen], [float(o.shards) for o in seen])
    memory = _constants([o.resident for o in seen], [float(o.images_per_shard) for o in seen])
    return CostModel(*coarse, *fine, *records, *front, *memory)


def _constants(values: Sequence[float], *columns: Sequence[float]) -> list[float]:
    """A constant and one factor a column."""
    from scipy.optimize import nnls

    # relative errors: a large size must not drown the small ones
    weights = 1 / np.array(values)
    table = np.column_stack([np.ones(len(values)), *columns]) * weights[:, None]
    scales = table.max(axis=0)  # counts of images beside ones: the solver's tolerance is absolute
    constants, _ = nnls(table / scales, np.ones(len(values)))
    found: list[float] = (constants / scales).tolist()
    return found


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster. All are assumptions; none was measured or asked for anywhere.

    Attributes
    ----------
    cores : int
    memory_gb, disk_tb : float
        Disk: a local SSD that holds the features.
    memory_gb_per_second : float
        Bandwidth of memory.
    read_ms, reads_at_once : float, int
        A random read from the disk, and how many go on side by side.
    network_gbit, round_trip_ms : float
        Of the network between the machines.
    price : float
        A month, in any currency.
    """

    cores: int = 16
    memory_gb: float = 128
    disk_tb: float = 4
    memory_gb_per_second: float = 200
    read_ms: float = 0.1
    reads_at_once: int = 32
    network_gbit: float = 10
    round_trip_ms: float = 0.2
    price: float = 500


@dataclass(frozen=True)
class Plan:
    """What a collection needs, with one shard a machine and replica."""

    images: int
    shards: int
    replicas: int
    memory_gb: float
    disk_tb: float
    ask_ms: float
    scan_ms: float
    network_ms: float
    reads_ms: float
    traffic_kb: float
    front_end_ms: float
    queries_per_second: float
    price: float

    @property
    def query_ms(self) -> float:
        """Milliseconds of a single query, from code and feature to records."""
        return self.ask_ms + self.scan_ms + self.network_ms + self.reads_ms


def fewest_shards(model: CostModel, machine: Machine, images: int, image_bytes: float) -> int:
    """The least number of machines whose memory and disks hold the images."""
    memory = machine.memory_gb * 1e9 * _MEMORY_USED - model.memory_base
    by_memory = images * model.memory_image / memory
    return max(1, math.ceil(by_memory), math.ceil(images * image_bytes / (machine.disk_tb * 1e12)))


def quickest_shards(model: CostModel, machine: Machine, images: int) -> int:
    """The number of machines at which one query takes the least time."""
    per_shard = model.front_shard + _transfer_ms(machine, _shard_bytes(0))
    return max(1, round(math.sqrt(_scan_ms(model, machine, images) / per_shard)))


def plan(
    model: CostModel,
    machine: Machine,
    images: int,
    shards: int,
    *,
    replicas: int = 2,
    feature_dim: int = 512,
    image_bytes: float,
) -> Plan:
    """Predict a cluster of ``shards`` times ``replicas`` machines.

    Parameters
    ----------
    model : CostModel
        As fitted, for codes of ``CODE_BYTES`` bytes.
    machine : Machine
        What each is.
    images, shards, replicas : int
        Images in all; machines that hold them once; how often they are held.
    feature_dim : int
        Width of a feature vector; features are sent as float32.
    image_bytes : float
        Bytes on disk of an image: code, features, id and record.
    """
    each = images / shards
    first = sum((model.coarse_base, model.fine_base, model.records_base))
    first += sum((model.coarse_shard, model.fine_shard, model.records_shard))
    scan = _scan_ms(model, machine, each)
    traffic = shards * _shard_bytes(feature_dim)
    reads = math.ceil(POOL / shards / machine.reads_at_once) * machine.read_ms
    reads_per_second = 1e3 * machine.reads_at_once / machine.read_ms
    return Plan(
        images=images,
        shards=shards,
        replicas=replicas,
        memory_gb=model.resident(each) / 1e9,
        disk_tb=each * image_bytes / 1e12,
        ask_ms=first + model.front_shard * (shards - 1),
        scan_ms=scan,
        network_ms=_ROUNDS * machine.round_trip_ms + _transfer_ms(machine, traffic),
        reads_ms=reads,
        traffic_kb=traffic / 1e3,
        front_end_ms=model.front_end(shards),
        queries_per_second=replicas * min(1e3 / scan, reads_per_second * shards / POOL),
        price=replicas * shards * machine.price,
    )


def _scan_ms(model: CostModel, machine: Machine, images: float) -> float:
    by_memory = images * CODE_BYTES / (machine.memory_gb_per_second * 1e6)
    return max(model.scan * images / machine.cores, by_memory)


def _shard_bytes(feature_dim: int) -> int:
    """Bytes to and from a shard: its part of the pool, the pool and the feature, messages."""
    return POOL * (8 + 2) + POOL * 8 + 4 * feature_dim + 2 * _ROUNDS * _MESSAGE_BYTES


def _transfer_ms(machine: Machine, size: float) -> float:
    return size * 8 / (machine.network_gbit * 1e6)
