"""What a run is, as data: a scale's file, the user's keys over it, the checks that a schema cannot say, the folders.

Everything here is plain Python on dictionaries (no torch), so the Snakefile parses fast. One module a part: `loading`,
`checks`, `resolving`, and what each stage's keys mean in `text`, `models` and `evaluation`.
"""

# ruff: noqa: F401 - what the others use of the parts
from krakenlm.config.checks import check, hardware_file
from krakenlm.config.evaluation import SUPERGLUE_FOLDERS, perplexity_flags, superglue_files, superglue_flags
from krakenlm.config.hashes import content_hashes, fingerprint
from krakenlm.config.loading import load, own_config, scale_file
from krakenlm.config.merging import merge, read_scalars, without_nulls
from krakenlm.config.models import (
    WATCHING,
    architecture,
    devices,
    engine_tp,
    import_kind,
    imported,
    launcher,
    model_fingerprint,
    model_seeds,
    recipe,
    trained,
    training_threads,
    weights_recipe,
)
from krakenlm.config.resolving import (
    SCALES,
    auto_scale,
    find_engine,
    most_ranks,
    process_identity,
    resolve_scale,
    stage_environment,
)
from krakenlm.config.text import (
    EXPANSION,
    MOST_SHARDS,
    TEXT_SUFFIXES,
    check_text,
    corpus_folder,
    corpus_label,
    data_label,
    expand,
    is_hub_name,
    shards,
    text_bytes,
    text_files,
    text_settings,
)
