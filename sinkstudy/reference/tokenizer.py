"""The reference model's tokenizer: one token per character, BOS in front, anything else the unknown token."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sinkstudy.reference.task import BOS, CHARACTERS, UNKNOWN

_BOS_TEXT, _UNKNOWN_TEXT = "<bos>", "<unk>"


def build_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer that encodes any UTF-8 text without failing."""
    vocabulary = {_BOS_TEXT: BOS, _UNKNOWN_TEXT: UNKNOWN} | {c: i + 2 for i, c in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN_TEXT))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS_TEXT} $A", pair=f"{_BOS_TEXT} $A $B", special_tokens=[(_BOS_TEXT, BOS)]
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BOS_TEXT,
        unk_token=_UNKNOWN_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
