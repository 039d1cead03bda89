"""Rows of result files as the other stages write them, small and made up."""

import csv

DATA = "embedded, 600 words (synthetic)"
MODELS = {"standard": ("standard", ""), "kraken-2way": ("kraken", "2")}


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def perplexity_rows(models):
    common = {"tokens_seen": 5000, "data": DATA, "protocol": "whole validation set", "scale": "tiny"}
    floor = {"tokens": 90, "floor_loss": 1.25, "floor_perplexity": 3.4903429574618414}
    rows = [
        {
            "model": name, "architecture": architecture, "degree": degree, "parameters": 1234567, **common,
            "loss": 1.5 + place / 7, "perplexity": 4.4816890703380645 + place, "bits_per_byte": 0.51, "seed": 0,
            "run": f"corpus/models/{name}/seed0-abc", **floor,
        }
        for place, (name, (architecture, degree)) in enumerate(models.items())
    ]  # fmt: skip
    changes = {
        "model": "bigram",
        "architecture": "n-gram",
        "degree": "",
        "seed": "",
        "perplexity": 24.25,
        "run": "ngrams",
    }
    return [*rows, rows[0] | changes]


def superglue_rows(models):
    metrics = [("boolq", "acc", True), ("multirc", "acc", True), ("multirc", "acc (corrected)", False)]
    return [
        {
            "model": name, "task": task, "metric": metric, "value": 0.6125, "stderr": 0.0244, "n": 400, "chance": 0.5,
            "data": DATA, "seed": 0, "scale": "tiny", "run": "r", "p_value": 0.000123, "task_version": 1.0,
            "reported": reported,
        }
        for name in models
        for task, metric, reported in metrics
    ]  # fmt: skip


def ttft_rows():
    return [
        {
            "architecture": architecture, "size": "width-64", "degree": degree, "tp": tp, "context": context,
            "batch": 1, "engine": "torch", "device": "CPU", "link": "gloo", "runs": 10,
            "ttft_ms_median": median * context / 16, "ttft_ms_std": 0.5, "speedup_vs_standard": 8.123456789 / median,
            "source": "measured", "parameters": parameters, "dtype": "float32", "kv_bytes_per_token": cache,
            "ci_low": median - 0.25, "ci_high": median + 0.25, "ttft_ms_p95": 1.1 * median, "scale": "tiny",
            "interleave": "run by run", "run": "r", "tpot_ms_median": median / 4, "memory_gb": parameters / 1e3,
            "longest_context": 10 * parameters,
        }
        for tp in (1, 2)
        for context in (16, 32)
        for architecture, degree, median, parameters, cache in (
            ("standard", "", 8.123456789, 1000, 512), ("kraken", 2, 6.5, 980, 887),
        )
    ]  # fmt: skip


def simulated_rows():
    parts = ("norm", "gemm", "gemm_overlapped", "attention", "lm_head", "other", "all_reduce_exposed",
             "all_reduce_hidden")  # fmt: skip
    return [
        {
            "architecture": architecture, "size": size, "degree": degree, "tp": tp, "context": context, "batch": batch,
            "engine": "tensorrt-llm", "device": "8 x GPU", "link": "fast", "ttft_ms_median": 7.0 * median,
            "speedup_vs_standard": 4 / median, "source": "simulated", "parameters": 1000, "hardware": machine,
            **{f"{part}_ms": median for part in parts}, "memory_gb": 9.87654321, "fits": fits,
        }
        for machine, fits in (("h100", True), ("small", False))
        for size in ("1b", "7b")
        for tp in (2, 8)
        for context in (128, 2048)
        for batch in (1, 8)
        for architecture, degree, median in (("standard", "", 4), ("kraken", tp, 2 if size == "1b" else 4),
                                             ("kraken", 4, 3))
    ]  # fmt: skip


def layer_rows():
    return [
        {
            "hardware": "h100", "size": "1b", "context": 128, "batch": 1, "tp": 8, "architecture": architecture,
            "degree": degree, "stream": stream, "part": part, "name": name, "start_us": start, "end_us": start + 9.5,
        }
        for architecture, degree in (("standard", ""), ("kraken", 8))
        for stream, part, name, start in (("compute", "gemm", "mlp.up", 0.0), ("communication", "all_reduce", "sum", 3))
    ]  # fmt: skip


def breakdown_rows():
    parts = {"norm": 0.5, "gemm": 2.0, "gemm_overlapped": 1.0, "attention": 1.25, "lm_head": 0.75, "other": 0.5}
    return [
        {
            "architecture": architecture, "size": "width-64", "degree": degree, "tp": 2, "context": context, "batch": 1,
            "engine": "torch", "device": "CPU", "link": "gloo", "runs": 3, "prefill_ms": 6.0 + exposed,
            **{f"{part}_ms": value for part, value in parts.items()}, "all_reduce_exposed_ms": exposed,
            "all_reduce_hidden_ms": 3 - exposed, "source": "measured", "layers_measured": 2, "dtype": "float32",
            "threads": 1, "seed": 0, "scale": "tiny", "run": "r",
        }
        for context in (16, 32)
        for architecture, degree, exposed in (("standard", "", 2.875), ("kraken", 2, 0.375))
    ]  # fmt: skip


def engine_rows(models):
    return [
        {
            "model": name, "architecture": architecture, "degree": degree, "tp": 2, "prompts": 4, "prompt_tokens": 16,
            "new_tokens": 8, "identical": True, "max_logit_difference": 1.5e-6, "ttft_ms_median": 3.25,
            "ttft_ms_std": 0.1, "tokens_per_second": 210.5, "device": "CPU", "link": "gloo", "engine": "torch",
            "dtype": "float32", "runs": 10, "interleave": "run by run", "data": DATA, "seed": 0, "scale": "tiny",
            "run": "r",
        }
        for name, (architecture, degree) in models.items()
    ]  # fmt: skip


def comparison_rows():
    common = {"model": "kraken-2way", "against": "standard", "data": DATA, "test": "t", "seeds": 2, "n": 40}
    common |= {"items": 40}
    interval = {"ci_low": -0.01, "ci_high": 0.011}
    return [
        {**common, "measure": "loss, whole validation set", "difference": 0.1234, "ci_low": 0.1, "ci_high": 0.15,
         "p_value": 0.0001, "margin": 0.02, "p_equivalence": 0.99, "verdict": "different"},
        {**common, "measure": "boolq, acc", "difference": 0.0005, **interval, "p_value": 0.8, "margin": 0.02,
         "p_equivalence": 0.03, "verdict": "equivalent"},
        {**common, "measure": "multirc, acc (corrected)", "difference": 0.0005, **interval, "p_value": 0.8,
         "margin": 0.02, "p_equivalence": 0.3, "verdict": "no difference at this sample size"},
    ]  # fmt: skip


def comparison(measure, difference, low, high, model="kraken-2way", against="standard", seeds=3):
    return {
        "model": model, "against": against, "measure": measure, "data": DATA, "difference": difference, "ci_low": low,
        "ci_high": high, "p_value": 0.5, "test": "t", "margin": 0.02, "p_equivalence": 0.5, "verdict": "",
        "seeds": seeds, "n": 400, "items": 400,
    }  # fmt: skip
