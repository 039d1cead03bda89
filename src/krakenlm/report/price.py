"""The page's section on what a speed-up costs: memory, parameters, requests."""

from collections.abc import Sequence

from krakenlm.report.elements import Column, Section, table
from krakenlm.report.numbers import Row, count, digits, geometric_mean, number
from krakenlm.report.ttft import CELL, ratio, split


def section(rows: Sequence[Row]) -> Section:
    """KV cache and parameters beside each speed-up."""
    name, title = "price", "The price"
    with_standard = [row | relative for row in rows if (relative := against_standard(row, rows))]
    if not with_standard:
        return Section(name, title, ["Without rows for standard there is nothing to hold a price against."])
    lead = [
        "All splits of a Kraken together are wider than the standard model of the same size, and so is its KV cache. "
        "Memory for it is what the speed-up costs: it leaves room for fewer requests at a time, and for shorter ones.",
        "\u201cPer parameter\u201d is the speed-up times the parameters over standard\u2019s: it takes back what a "
        "model gains by being smaller.",
    ]
    contexts = sorted({value for row in with_standard if (value := number(row["context"]))})
    lines = [over_contexts(part) for part in split(with_standard, ("architecture", "degree", "parameters", *CELL))]
    shown = table("price-table", "Price of each speed-up", price_columns(contexts), lines)
    return Section(name, title, lead, tables=[shown])


def price_columns(contexts: Sequence[float]) -> list[Column]:
    return [
        Column("architecture", "architecture"),
        Column("size", "size"),
        Column("tp", "ranks", count),
        Column("mean", "speed-up", ratio, "geometric mean over the contexts"),
        Column("kv_ratio", "KV cache", ratio, "bytes per token over standard\u2019s"),
        Column("parameters_ratio", "parameters", lambda value: f"{100 * float(value):.1f}%", "of standard\u2019s"),
        Column("per_parameter", "per parameter", ratio, "speed-up x parameters / standard\u2019s"),
        *(Column(f"at {c:g}", f"at {c:,g}", ratio, f"speed-up at a context of {c:,g} tokens") for c in contexts),
        Column("tpot_ratio", "per output token", ratio, "mean speed-up of decoding: standard\u2019s time over this"),
        Column("memory_gb", "GB a rank", digits, "weights, KV cache and results at the longest of these contexts"),
        Column("context_ratio", "longest context", ratio, "of a prompt that a rank has room for, over standard\u2019s"),
        Column("source", "source"),
    ]


def over_contexts(rows: Sequence[Row]) -> dict[str, str]:
    """One row for a model at every context: its speed-ups side by side, and their mean."""
    speedups = {
        f"at {number(row['context']):g}": row["speedup_vs_standard"]
        for row in rows
        if number(row["context"]) and (number(row["speedup_vs_standard"]) or 0) > 0
    }
    values = {"mean": "", "per_parameter": ""}
    longest = max(rows, key=lambda row: number(row["context"]) or 0)
    values["memory_gb"] = longest.get("memory_gb", "")
    if decoding := [value for row in rows if (value := number(row["tpot_ratio"]))]:
        values["tpot_ratio"] = repr(geometric_mean(decoding))
    if speedups:
        mean = geometric_mean([float(text) for text in speedups.values()])
        share = number(rows[0]["parameters_ratio"])
        values |= {"mean": repr(mean), "per_parameter": "" if share is None else repr(mean * share)}
    return {**rows[0], **speedups, **values}


def against_standard(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    """Ratios to the standard model in the same cell; nothing for standard itself or without it."""
    same = (*CELL, "context")
    standard = [
        other
        for other in rows
        if other["architecture"] == "standard" and all(other.get(key) == row.get(key) for key in same)
    ]
    if row["architecture"] == "standard" or not standard:
        return {}
    ratio = {
        key: mine / theirs
        for key in ("parameters", "kv_bytes_per_token")
        if (mine := number(row[key])) and (theirs := number(standard[0][key]))
    }
    parameters, cache = ratio.get("parameters"), ratio.get("kv_bytes_per_token")
    mine, theirs = (number(each.get("tpot_ms_median", "")) for each in (row, standard[0]))
    longest = [number(each.get("longest_context", "")) for each in (row, standard[0])]
    return {
        "tpot_ratio": repr(theirs / mine) if mine and theirs else "",
        "context_ratio": repr(longest[0] / longest[1]) if all(longest) else "",
        "parameters_ratio": "" if parameters is None else repr(parameters),
        "kv_ratio": "" if cache is None else repr(cache),
    }
