"""The page's section on the text: how much there is, how long its documents are, and whether the counts are right."""

from collections.abc import Mapping, Sequence

from krakenlm.report.elements import Column, Figure, Group, Section, table
from krakenlm.report.figures import histogram
from krakenlm.report.numbers import count, digits

NAMES = {"train": "training", "val": "validation"}
CAPTION = "Documents by their tokens, the end token included; each range is twice as wide as the one before."
COLUMNS = (
    Column("split", "split"),
    Column("documents", "documents", count),
    Column("tokens", "tokens", count, "an end token after each document included"),
    Column("bytes_per_token", "bytes per token", digits, "of the text in UTF-8"),
    Column("mean", "mean length", digits, "tokens of a document, the end token included"),
    Column("0.05", "5%", count, "so many documents have at most this many tokens"),
    Column("0.5", "median", count, "half of the documents have at most this many tokens"),
    Column("0.95", "95%", count, "so many documents have at most this many tokens"),
    Column("longest", "longest", count, "tokens of the longest document"),
    Column("published", "published tokens", count, "what nanoGPT's repository says of the same split"),
)


def section(manifest: Mapping) -> Section:
    """What are the models trained and scored on?"""
    splits = {split: entry for split, entry in (manifest.get("splits") or {}).items() if entry.get("lengths")}
    if not splits:
        return Section("text", "Text", ["No text was tokenized in this run."])
    published = manifest.get("published_tokens") or {}
    rows = [row(split, entry, published.get(split)) for split, entry in splits.items()]
    figures = [figure(split, entry["lengths"]["histogram"]) for split, entry in splits.items()]
    lead = warnings(manifest)
    if manifest.get("duplicates") is not None:
        lead.append(f"{manifest['duplicates']:.2%} of all documents stood, letter for letter, in an earlier one.")
    return Section(
        "text",
        "Text",
        lead,
        groups=[Group("Length of documents", figures, CAPTION)],
        tables=[table("text-table", f"Tokens of {manifest['data']}", COLUMNS, rows)],
    )


def warnings(manifest: Mapping) -> list[str]:
    """A sentence for every split whose tokens are not as many as are published for it."""
    return [
        f"Warning: the {NAMES[split]} split has {count(manifest['splits'][split]['tokens'])} tokens, and "
        f"{count(expected)} are published for it: this is not the text that the paper's models were trained on."
        for split, expected in (manifest.get("published_tokens") or {}).items()
        if manifest["splits"][split]["tokens"] != expected
    ]


def row(split: str, entry: Mapping, published: int | None) -> dict[str, str]:
    lengths = entry["lengths"]
    values = {
        "documents": entry["documents"],
        "tokens": entry["tokens"],
        "bytes_per_token": entry["bytes"] / entry["tokens"],
        "mean": lengths["mean"],
        **{share: lengths["quantiles"][share] for share in ("0.05", "0.5", "0.95")},
        "longest": lengths["longest"],
        "published": published,
    }
    return {"split": NAMES[split]} | {key: "" if value is None else str(value) for key, value in values.items()}


def figure(split: str, counts: Mapping[str, int]) -> Figure:
    total = sum(counts.values())
    values = [
        {
            "bin": f"{int(low):,}\u2013{2 * int(low) - 1:,}",
            "value": 100 * n / total,
            "text": f"{int(low):,} to {2 * int(low) - 1:,} tokens: {n:,}",
        }
        for low, n in filled(counts)
    ]
    title = f"{NAMES[split].capitalize()}: tokens of a document"
    return Figure(
        title, "A bar for each range of lengths; the table has the quantiles.", histogram(values, "% of documents")
    )


def filled(counts: Mapping[str, int]) -> Sequence[tuple[int, int]]:
    """(lower bound, documents) of every range between the first and the last, empty ones too."""
    bounds = sorted(map(int, counts))
    powers = range(bounds[0].bit_length() - 1, bounds[-1].bit_length())
    return [(1 << power, counts.get(str(1 << power), 0)) for power in powers]
