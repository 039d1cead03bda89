"""A hardware description from a clone of ai-dynamo/aiconfigurator (Apache-2.0): NVIDIA's measured kernels, made small.

Read are a system's numbers (systems/<name>.yaml) and, of TensorRT-LLM, its 16-bit matrix products, attention of prefill
and decode with as many heads for keys as for queries, and AllReduce; of NCCL its AllGather. Message sizes there are
elements of 2 bytes, times milliseconds.
"""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from krakenlm.errors import InputError
from krakenlm.latency import hardware, kernels
from krakenlm.latency.hardware import quantity, table_models
from krakenlm.latency.kernels import Table, smallest_table

PROJECT = "ai-dynamo/aiconfigurator (Apache-2.0)"
ELEMENT_BYTES = 2
# The most SMs that NCCL's kernels take by default, of the fewest that one of these devices has (108 to 148).
OVERLAP = "assumed, not measured: about the share of multiprocessors that a collective takes (24 of 132)"
GIT_LFS = b"version https://git-lfs"


def write_system(clone: str | Path, system: str, out_yaml: str | Path, version: str | None = None) -> None:
    """Write a system's description and, in kernels/ beside it, its tables.

    Args:
        clone: folder of the clone, its large files fetched (`git lfs pull`).
        system: a name below its systems/, such as h100_sxm.
        version: of TensorRT-LLM; the newest one measured where none is given.

    Raises:
        InputError: the clone lacks something.
    """
    source = Source(Path(clone), system, version)
    out_yaml = Path(out_yaml)
    about, tables = source.tables()
    kernels_file = Path("kernels") / f"{out_yaml.stem}.json"
    kernels.write_tables(out_yaml.parent / kernels_file, about, tables)
    comment = f"Made by: krakenlm hardware import aiconfigurator DIR --system {system}. Assumptions say so."
    hardware.write(out_yaml, {**source.description(about), "kernels": str(kernels_file)}, comment)
    hardware.load(out_yaml)


class Source:
    """What a clone has of one system."""

    def __init__(self, clone: Path, system: str, version: str | None) -> None:
        folders = sorted(clone.glob("**/systems/data"))
        files = [folder.parent / f"{system}.yaml" for folder in folders]
        self.file = next((file for file in files if file.is_file()), None)
        if self.file is None:
            known = sorted({path.stem for folder in folders for path in folder.parent.glob("*.yaml")})
            raise InputError(
                f"system: expected one of those in {clone} ({', '.join(known) or 'none: no clone of aiconfigurator'})"
                f", found {system!r}; choose one"
            )
        self.system, self.version = system, version
        self.described = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        self.data = self.file.parent / str(self.value("data_dir"))
        self.devices: set[str] = set()
        self.versions: dict[str, str] = {}

    def value(self, *keys: str) -> Any:
        """What the system's file says."""
        found: Any = self.described
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is None:
            raise InputError(f"{self.file}: {'.'.join(keys)}: expected a value, found none; use another clone")
        return found

    def number(self, *keys: str) -> float:
        found = self.value(*keys)
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            raise InputError(f"{self.file}: {'.'.join(keys)}: expected a number, found {found!r}; use another clone")
        return float(found)

    def rows(self, framework: str, name: str) -> Iterator[dict[str, Any]]:
        """Rows of a table of the version that was asked for, or the newest one."""
        files = [
            file
            for pattern in (f"**/{framework}/*/{name}.parquet", f"**/{framework}/*/{name}.txt")
            for file in self.data.glob(pattern)
        ]
        if framework == "trtllm" and self.version is not None:
            files = [file for file in files if file.parent.name == self.version]
        if not files:
            wanted = f" of version {self.version}" if framework == "trtllm" and self.version else ""
            raise InputError(f"{self.data}: expected {framework}'s {name}{wanted}, found none; choose another")
        file = max(files, key=lambda file: ordered(file.parent.name))
        self.versions[f"{framework} {name}"] = file.parent.name
        for row in read_rows(file):
            self.devices.add(row["device"])
            yield row

    def tables(self) -> tuple[dict, dict[str, Table]]:
        """What the file of tables says of itself, and the tables."""
        points = {
            "product": (("m", "n", "k"), self.products()),
            "attention_prefill": (("batch", "context", "heads", "head_size"), self.attention("context_attention_perf")),
            "attention_decode": (
                ("batch", "context", "heads", "head_size"),
                self.attention("generation_attention_perf"),
            ),
            "all_reduce": (("ranks", "bytes"), self.collective("trtllm", "custom_allreduce_perf", "all_reduce")),
            "all_gather": (("ranks", "bytes"), self.collective("nccl", "nccl_perf", "all_gather")),
        }
        least = min(points["all_reduce"][1].values())
        about = {
            "source": f"{PROJECT}, {self.system}",
            "device": " and ".join(sorted(self.devices)),
            "versions": self.versions,
            "dtypes": ["bfloat16", "float16"],
            "element_bytes": ELEMENT_BYTES,
            "reference": {
                "flops": self.number("gpu", "bfloat16_tc_flops"),
                "bytes": self.number("gpu", "mem_bw"),
                "launch": min(points["product"][1].values()),
                # Two ranks take two steps.
                "link": {"bandwidth": self.number("node", "intra_node_bw"), "latency": least / 2},
            },
        }
        models = table_models(about | {"tables": points})
        return about, {name: smallest_table(times, axes, models[name]) for name, (axes, times) in points.items()}

    def products(self) -> dict[tuple, float]:
        return {
            (row["m"], row["n"], row["k"]): row["latency"] * 1e-3
            for row in self.rows("trtllm", "gemm_perf")
            if row["gemm_dtype"] == "bfloat16" and row["m"] > 0
        }

    def attention(self, name: str) -> dict[tuple, float]:
        """Attention over a prompt of isl tokens, or of one token to the `step` before it and itself."""
        return {
            (row["batch_size"], row["isl"] + row["step"], row["num_heads"], row["head_dim"]): row["latency"] * 1e-3
            for row in self.rows("trtllm", name)
            if row["attn_dtype"] == row["kv_cache_dtype"] == "bfloat16"
            and row["num_key_value_heads"] in (0, row["num_heads"])
            and not row["window_size"]
            and (row["step"] == 0 or name.startswith("generation"))
        }

    def collective(self, framework: str, name: str, operation: str) -> dict[tuple, float]:
        return {
            (row["num_gpus"], row["message_size"] * ELEMENT_BYTES): row["latency"] * 1e-3
            for row in self.rows(framework, name)
            if row["op_name"] == operation and row.get("nccl_dtype", "half") == "half"
        }

    def description(self, about: Mapping) -> dict[str, Any]:
        """The keys of a hardware file."""
        file = f"{PROJECT}, systems/{self.system}.yaml"
        unofficial = f"{file}: its authors' correction from observation"

        def given(unit: str, *keys: str, source: str = file) -> dict[str, Any]:
            return quantity(self.number(*keys) / hardware.UNITS[unit], unit, source)

        devices = int(self.number("node", "num_gpus_per_node"))
        peak = given("TFLOP/s", "gpu", "bfloat16_tc_flops")
        nccl = self.value("misc", "nccl_mem").get(devices, 0)
        link = about["reference"]["link"]
        return {
            "title": f"{devices} x {about['device']}",
            "engine": "tensorrt-llm",
            "devices": quantity(devices, "devices", file),
            "memory": given("GB", "gpu", "mem_capacity"),
            "reserved": quantity((self.number("misc", "other_mem") + nccl) / 1e9, "GB", file),
            "memory_bandwidth": given("GB/s", "gpu", "mem_bw"),
            "memory_bandwidth_reached": given("share", "gpu", "mem_bw_empirical_scaling_factor", source=unofficial),
            "peak": {"float16": peak, "bfloat16": dict(peak)},
            "launch": given("us", "gpu", "mem_empirical_constant_latency", source=unofficial),
            "dispatch": quantity(0, "us", "assumed: a CUDA graph, whose kernels the host has launched beforehand"),
            "inside": {
                "bandwidth": given("GB/s", "node", "intra_node_bw"),
                "latency": quantity(link["latency"] * 1e6, "us", "half the least measured AllReduce"),
            },
            "between": {
                "bandwidth": given("GB/s", "node", "inter_node_bw"),
                "latency": given("us", "node", "p2p_latency", source=unofficial),
            },
            "overlap": {
                "compute": quantity(1.2, "times", OVERLAP),
                "communication": quantity(1.0, "times", "assumed, not measured"),
            },
        }


def ordered(version: str) -> list[tuple[int, ...]]:
    """1.3.0rc20 after 1.3.0rc5, and before 1.3.0."""
    release, _, candidate = version.partition("rc")
    return [
        tuple(int(word) for word in release.split(".") if word.isdigit()),
        (int(candidate) if candidate else 10**9,),
    ]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a .parquet or of a .txt of comma-separated values.

    Raises:
        InputError: the file was not fetched, or is damaged.
    """
    with open(file, "rb") as start:
        if start.read(len(GIT_LFS)) == GIT_LFS:
            raise InputError(f"{file}: expected a table, found a pointer to it; run git lfs pull in the clone")
    if file.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            return parquet.read_table(file).to_pylist()
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise InputError(f"{file}: expected a table, found a damaged file ({error}); fetch it again") from None
    with open(file, newline="", encoding="utf-8") as lines:
        return [{key: as_number(value) for key, value in row.items()} for row in csv.DictReader(lines)]


def as_number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
