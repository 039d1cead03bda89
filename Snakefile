# Text becomes tokens, tokens become models, models become scores and engines, engines become latencies, and all of it
# becomes one report. `snakemake -n` lists what would run; docs/configuration.md has every key.
from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/text.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/engines.smk"
include: "workflow/rules/tensorrt.smk"
include: "workflow/rules/latency.smk"
include: "workflow/rules/simulation.smk"
include: "workflow/rules/report.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        "results/perplexity.csv",
        "results/superglue.csv",
        "results/comparisons.csv",
        "results/engines.csv",
        "results/ttft.csv",
        "results/ttft_simulated.csv",
        "results/report.html",
