"""The tokenizer that a GGUF file describes: its own pre-tokenizer, special tokens and rule on BOS."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from sinkstudy.errors import StudyError, first_sentence
from sinkstudy.models.gguf_file import GGUFFile

# llama.cpp gives these names to pre-tokenizers that Transformers does not know and treats as GPT-2's.
_DIGITS_ONE_BY_ONE = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_GPT2 = {"gpt-2", "gpt2", "phi-2", "jina-es", "jina-de", "gigachat", "roberta-bpe", "olmo", "jais", "trillion", "mpt"}
# In these vocabularies a whole word that is a token is never split by merges, and a text begins with BOS unless the
# file says otherwise.
_WHOLE_WORDS_FIRST = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"}
_PROBE = "The year 2048, a sink's 17% \tof naïve   tokens:\n\n- yes, I'll go… 12,345.67 (x[3]) 数字"


def tokenizer_of(file: GGUFFile) -> PreTrainedTokenizerFast:
    """Build the tokenizer of `file`. Raises StudyError where its kind is unknown, or none is described."""
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind is None or "tokenizer.ggml.tokens" not in file.metadata:
        raise StudyError(f"{file.path} holds no tokenizer; give the model's directory in Hugging Face format.")
    try:
        loaded = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
    except Exception as error:
        raise file.unfit(f": its tokenizer of kind {kind!r} could not be read ({first_sentence(error)})") from error
    backend: Tokenizer = loaded.backend_tokenizer
    if kind == "gpt2":
        _set_pre_tokenizer(backend, file)
    special = _special_tokens(file)
    backend.post_processor = _beginning(file, special.get("bos_token"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        chat_template=file.metadata.get("tokenizer.chat_template"),
        model_max_length=file.stated("context_length"),
        **special,
    )


def check_saved(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Raise StudyError where the tokenizer saved in `folder` splits a text in another way than `tokenizer` does."""
    again = PreTrainedTokenizerFast.from_pretrained(folder)
    for special in (True, False):
        wanted, got = (one(_PROBE, add_special_tokens=special)["input_ids"] for one in (tokenizer, again))
        if wanted != got:
            raise StudyError(f"{folder}: the saved tokenizer is not the one of the GGUF file; please report this.")


def adds_bos(file: GGUFFile) -> bool:
    """Whether the file wants BOS before a text: what it says, or else llama.cpp's default for its vocabulary."""
    metadata = file.metadata
    default = metadata["tokenizer.ggml.model"] != "gpt2" or metadata.get("tokenizer.ggml.pre") in _WHOLE_WORDS_FIRST
    return bool(metadata.get("tokenizer.ggml.add_bos_token", default))


def _set_pre_tokenizer(backend: Tokenizer, file: GGUFFile) -> None:
    pre = file.metadata.get("tokenizer.ggml.pre")
    if pre in _DIGITS_ONE_BY_ONE:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif pre in _WHOLE_WORDS_FIRST:
        backend.model.ignore_merges = True
    elif pre is not None and pre not in _GPT2 and pre not in GGUF_PRE_TOKENIZER_SPLITS:
        raise file.unfit(f": its pre-tokenizer {pre!r} is not known here, so its text would be split wrongly")


def _special_tokens(file: GGUFFile) -> dict[str, Any]:
    """The texts of the special tokens that the file names, by the names Transformers gives them."""
    tokens, found = file.metadata["tokenizer.ggml.tokens"], {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            if not 0 <= token_id < len(tokens):
                raise StudyError(
                    f"{file.path}: its {key} token has id {token_id}, but its vocabulary holds {len(tokens)} tokens; "
                    "fetch the file again."
                )
            found[f"{name}_token"] = tokens[token_id]
    return found


def _beginning(file: GGUFFile, bos: str | None) -> processors.PostProcessor:
    """BOS in front, or nothing. The offsets of ByteLevel play no part here."""
    if not adds_bos(file):
        return processors.ByteLevel(trim_offsets=False)
    if bos is None:
        raise StudyError(f"{file.path} asks for a BOS token in front of every text but names none; set bos: never.")
    token = (bos, file.metadata["tokenizer.ggml.bos_token_id"])
    return processors.TemplateProcessing(single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[token])
