"""A machine as data: config/hardware/<name>.yaml, each number with its unit and source, and how long things take on it.

An operation's time is that of a simple model (a roofline behind a launch; a link's latency and bandwidth with the
algorithm's terms), times what measured kernels say of the model where there are any (krakenlm.latency.kernels).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from krakenlm.errors import InputError
from krakenlm.files import write_text
from krakenlm.latency.kernels import Roofline, Table, integral, read_tables

if TYPE_CHECKING:  # torch takes seconds to import, and reading a description does without
    from krakenlm.latency.trace import Operation

# Where descriptions are: in the folder in which one works, then in the clone that this module is part of.
FOLDERS = (Path("config/hardware"), Path(__file__).parents[3] / "config" / "hardware")
# Whose kernels are described (krakenlm.latency.trace.trace).
ENGINES = ("tensorrt-llm", "torch", "torch-cpu")
# What a unit is in bytes, seconds and FLOPs.
UNITS = {"GB": 1e9, "GB/s": 1e9, "us": 1e-6, "TFLOP/s": 1e12, "devices": 1.0, "share": 1.0, "times": 1.0}
LEAST = {"devices": 1.0, "times": 1.0}
MOST = {"share": 1.0}
MAY_BE_ZERO = ("us", "GB")
# Tables of what an AllReduce takes while products run, and of what it takes from them meanwhile.
BESIDE, TAKEN = "all_reduce_beside", "all_reduce_taken"
MOST_TAKEN = 0.95  # of the time beside each other
NOT_OFF: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Link:
    """What joins devices: bytes/s of each in one direction, and seconds of one step of an algorithm."""

    bandwidth: float
    latency: float

    def all_reduce(self, ranks: float, moved: float) -> float:
        """Seconds to sum `moved` bytes of each of `ranks`: recursive halving, then doubling (Thakur, Rabenseifner and
        Gropp 2005), 2 log2 n steps in which a rank sends 2 (n - 1) / n of its bytes."""
        return 2 * math.log2(ranks) * self.latency + 2 * (ranks - 1) / ranks * moved / self.bandwidth

    def all_gather(self, ranks: float, moved: float) -> float:
        """Seconds until each of `ranks` has all `moved` bytes, of which each had a part: by recursive doubling."""
        return math.log2(ranks) * self.latency + (ranks - 1) / ranks * moved / self.bandwidth


@dataclass(frozen=True)
class Overlap:
    """How many times as long a second's work takes while the other stream is busy, on each stream; 1 or more."""

    compute: float = 1.0
    communication: float = 1.0

    @classmethod
    def of(cls, alone: float, beside: float, taken: float) -> "Overlap":
        """From a collective's seconds alone and beside compute, and how many of these it takes from compute."""
        if not alone:
            return cls()
        beside = max(alone, beside)
        return cls(beside / (beside - min(taken, MOST_TAKEN * beside)), beside / alone)


@dataclass(frozen=True)
class Hardware:
    """Machines of `devices` devices each. Sizes in bytes, rates in bytes/s and FLOP/s, times in seconds.

    reserved: memory that an engine's runtime takes.
    dispatch: what an operation takes beside its kernel, where the host does not run ahead of the device.
    inside: the link within a machine; None where it has one device. between: the network between machines; None where
    there is one machine.
    skew: share of what is computed between two collectives by which ranks wait for each other.
    tables, table_launch, table_dtypes: measured kernels, the launch in their model, and the types that they stand for.
    """

    name: str
    title: str
    engine: str
    devices: int
    memory: float
    reserved: float
    bandwidth: float
    peak: Mapping[str, float]
    launch: float
    dispatch: float
    inside: Link | None
    between: Link | None
    overlap: Overlap
    skew: float = 0.0
    tables: Mapping[str, Table] = field(default_factory=dict)
    table_launch: float = 0.0
    table_dtypes: tuple[str, ...] = ()

    def check_ranks(self, ranks: int) -> None:
        """Refuse ranks that this hardware has no place for.

        Raises:
            InputError: there are more of them than devices, and no network between machines.
        """
        if self.between is None and ranks > self.devices:
            raise InputError(
                f"tp: expected at most the {self.devices} devices of {self.name}, whose description has no network "
                f"between machines, found {ranks}; lower it"
            )

    def peak_of(self, dtype: str) -> float:
        """FLOP/s of a device's products in a type.

        Raises:
            InputError: the description has none.
        """
        if dtype not in self.peak:
            known = ", ".join(self.peak)
            raise InputError(
                f"dtype: expected one that {self.name} has a peak for ({known}), found {dtype}; choose one"
            )
        return self.peak[dtype]

    def seconds(self, operation: "Operation", world: int) -> float:
        """Time of an operation when nothing runs beside it, on one of `world` ranks.

        Raises:
            InputError: the description has no peak for the operation's type.
        """
        if operation.ranks is not None:
            return self.collective_seconds(operation)
        if operation.flops:
            self.peak_of(operation.dtype)
        return self.dispatch + self.kernel_seconds(operation, world)

    def kernel_seconds(self, operation: "Operation", world: int) -> float:
        """Time of an operation on the device itself."""
        peak = self.peak.get(operation.dtype, math.inf)
        name, at = place_in_table(operation)
        table = self.tables.get(operation.name, self.tables.get(name))
        if table is None or (operation.flops and operation.dtype not in self.table_dtypes):
            return Roofline(peak, self.bandwidth, self.launch).seconds(operation.flops, operation.bytes)
        modelled = Roofline(peak, self.bandwidth, self.table_launch).seconds(operation.flops, operation.bytes)
        return modelled * table.ratio(busy=min(world, self.devices), **at)

    def collective_seconds(self, operation: "Operation") -> float:
        """Time of a collective: within every machine, and where it spans several, at the same time by as many of them
        as a machine has ranks, each with its part, between machines."""
        ranks, kind = operation.ranks, operation.kind
        first = ranks[0] // self.devices
        local = sum(rank // self.devices == first for rank in ranks)
        machines = -(-len(ranks) // local)
        moved = operation.bytes * (len(ranks) if kind == "all_gather" else 1)
        seconds = 0.0
        if local > 1:
            seconds += getattr(self.inside, kind)(local, moved)
            if kind in self.tables:
                seconds *= self.tables[kind].ratio(ranks=local, bytes=moved)
        if machines > 1:
            seconds += getattr(self.between, kind)(machines, moved / local)
        return seconds

    def overlap_of(self, collective: "Operation", off: Mapping[str, float] = NOT_OFF) -> Overlap:
        """How much a collective and compute slow each other: as measured at its size, else as the description says.

        Args:
            off: {table: factor} by which what tables say is taken to be off.
        """
        ranks = len(collective.ranks)
        if collective.kind != "all_reduce" or BESIDE not in self.tables or ranks > self.devices:
            return self.overlap
        at, modelled = {"ranks": ranks, "bytes": collective.bytes}, self.inside.all_reduce(ranks, collective.bytes)
        beside, taken = (modelled * self.tables[name].ratio(**at) * off.get(name, 1.0) for name in (BESIDE, TAKEN))
        return Overlap.of(self.collective_seconds(collective) * off.get("all_reduce", 1.0), beside, taken)


def place_in_table(operation: "Operation") -> tuple[str, dict[str, float]]:
    """(table, {axis: value}) of an operation on the compute stream."""
    if operation.kind == "product":
        _, m, n, k = operation.shape
        return "product", {"m": m, "n": n, "k": k}
    if operation.kind == "attention":
        rows, heads, queries, keys, head_size = operation.shape
        at = {"batch": rows, "context": keys, "heads": heads, "head_size": head_size}
        return ("attention_decode" if queries == 1 else "attention_prefill"), at
    return operation.kind, {"bytes": max(operation.bytes, 1)}


def table_models(about: Mapping) -> Mapping[str, Callable[..., float]]:
    """The model of each kernel, as functions of the axes of its table, with the rates that a file of tables names."""
    reference, size = about["reference"], about["element_bytes"]
    roofline = Roofline(reference["flops"], reference["bytes"], reference["launch"])

    def product(m: float, n: float, k: float, **_: float) -> float:
        return roofline.seconds(2 * m * n * k, size * (m * k + k * n + m * n))

    def attention_prefill(batch: float, context: float, heads: float, head_size: float, **_: float) -> float:
        rows = batch * heads * head_size
        return roofline.seconds(4 * rows * context * (context + 1) / 2, size * 4 * rows * context)

    def attention_decode(batch: float, context: float, heads: float, head_size: float, **_: float) -> float:
        rows = batch * heads * head_size
        return roofline.seconds(4 * rows * context, size * rows * (2 * context + 2))

    def moving(bytes: float, **_: float) -> float:
        return roofline.seconds(0, bytes)

    models = {"product": product, "attention_prefill": attention_prefill, "attention_decode": attention_decode}
    if "link" in reference:
        link = Link(**reference["link"])
        for name in ("all_reduce", BESIDE, TAKEN):
            models[name] = lambda ranks, bytes: link.all_reduce(ranks, bytes)
        models["all_gather"] = lambda ranks, bytes: link.all_gather(ranks, bytes)
    return {name: models.get(name, moving) for name in about["tables"]}


def names() -> list[str]:
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.yaml")})


def load(name: str | Path) -> Hardware:
    """The hardware of that name in config/hardware, or in a file.

    Raises:
        InputError: there is none, or a key is missing or wrong.
    """
    path = Path(name)
    if path.suffix != ".yaml":
        places = [folder / f"{name}.yaml" for folder in FOLDERS]
        path = next((place for place in places if place.is_file()), places[0])
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        known = ", ".join(names()) or "those in config/hardware of a clone of krakenlm, in which to start this"
        raise InputError(
            f"hardware: expected one of {known} or a .yaml file, found {str(name)!r}; choose one, or measure this "
            "machine: krakenlm hardware calibrate"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected YAML, found a file that is no text; correct it") from None
    try:
        described = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: expected YAML, found {' '.join(str(error).split())}; correct it") from None
    return Description(path, described).hardware()


class Description:
    """A hardware file as it was read; every key is checked where it is taken."""

    def __init__(self, path: Path, described: Any) -> None:
        self.path = path
        if not isinstance(described, dict):
            raise InputError(f"{path}: expected keys and values, found {described!r}; see docs/simulator.md")
        self.described, self.taken = described, set()

    def hardware(self) -> Hardware:
        tables: dict[str, Any] = {}
        if "kernels" in self.described:
            about, found = read_tables(self.path.parent / self.text("kernels"), table_models)
            launch, dtypes = about["reference"]["launch"], tuple(about["dtypes"])
            tables = {"tables": found, "table_launch": launch, "table_dtypes": dtypes}
        reached = self.quantity("memory_bandwidth_reached", "share")
        devices = int(self.quantity("devices", "devices"))
        hardware = Hardware(
            name=self.path.stem,
            title=self.text("title"),
            engine=self.choice("engine", ENGINES),
            devices=devices,
            memory=self.quantity("memory", "GB"),
            reserved=self.quantity("reserved", "GB"),
            bandwidth=reached * self.quantity("memory_bandwidth", "GB/s"),
            peak={dtype: self.quantity(f"peak.{dtype}", "TFLOP/s") for dtype in self.section("peak")},
            launch=self.quantity("launch", "us"),
            dispatch=self.quantity("dispatch", "us"),
            inside=self.link("inside") if "inside" in self.described or devices > 1 else None,
            between=self.link("between") if "between" in self.described else None,
            overlap=Overlap(self.quantity("overlap.compute", "times"), self.quantity("overlap.communication", "times")),
            skew=self.quantity("skew", "share") if "skew" in self.described else 0.0,
            **tables,
        )
        self.refuse_unknown()
        return hardware

    def link(self, key: str) -> Link:
        return Link(self.quantity(f"{key}.bandwidth", "GB/s"), self.quantity(f"{key}.latency", "us"))

    def section(self, key: str) -> dict:
        found = self.described.get(key)
        if not isinstance(found, dict) or not found:
            raise InputError(f"{self.path}: {key}: expected keys below it, found {found!r}; see docs/simulator.md")
        return found

    def find(self, key: str) -> Any:
        """The value at a dotted key, None where there is none."""
        self.taken.add(key)
        found: Any = self.described
        for word in key.split("."):
            found = found.get(word) if isinstance(found, dict) else None
        return found

    def text(self, key: str) -> str:
        found = self.find(key)
        if not isinstance(found, str) or not found:
            raise InputError(f"{self.path}: {key}: expected a text, found {found!r}; correct it")
        return found

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        found = self.find(key)
        if found not in choices:
            raise InputError(f"{self.path}: {key}: expected one of {', '.join(choices)}, found {found!r}; correct it")
        return found

    def quantity(self, key: str, unit: str) -> float:
        """A number in bytes, seconds, FLOPs or nothing, from {value, unit, source}."""
        found = self.find(key)
        low, high = LEAST.get(unit, 0.0), MOST.get(unit, math.inf)
        expected = f"a number {'of at least 1' if low else 'above 0'}{' and at most 1' if high == 1 else ''}"
        if unit in MAY_BE_ZERO:
            expected = "a number of at least 0"
        expected = f"{expected} in {unit}, with its source"
        if not isinstance(found, dict):
            raise InputError(f"{self.path}: {key}: expected {expected}, found {found!r}; see docs/simulator.md")
        value, shown = found.get("value"), f"{found.get('value')!r} {found.get('unit')}"
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if (
            not number
            or found.get("unit") != unit
            or not (low <= value <= high)
            or (not value and unit not in MAY_BE_ZERO)
        ):
            raise InputError(f"{self.path}: {key}: expected {expected}, found {shown}; correct it")
        if unit == "devices" and value != int(value):
            raise InputError(f"{self.path}: {key}: expected a whole number of devices, found {shown}; correct it")
        if not isinstance(found.get("source"), str) or not found["source"]:
            raise InputError(
                f"{self.path}: {key}: expected {expected}, found {shown} from {found.get('source')!r}; say where from"
            )
        return value * UNITS[unit]

    def refuse_unknown(self) -> None:
        """Refuse keys that mean nothing."""
        for key, value in self.described.items():
            below = [f"{key}.{name}" for name in value] if isinstance(value, dict) and "value" not in value else [key]
            for name in below:
                if name not in self.taken:
                    raise InputError(
                        f"{self.path}: {name}: unknown key; expected {', '.join(sorted(self.taken))}; remove it"
                    )


def quantity(value: float, unit: str, source: str) -> dict[str, Any]:
    """A number as a hardware file has it."""
    return {"value": integral(float(f"{value:.4g}")), "unit": unit, "source": source}


def write(path: str | Path, described: Mapping, comment: str) -> None:
    """Write a hardware file, below a comment, and refuse one that would not be read again."""
    text = yaml.safe_dump(dict(described), sort_keys=False, default_flow_style=None, width=1000, allow_unicode=True)
    write_text(path, f"# {comment}\n{text}")
