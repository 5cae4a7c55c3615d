"""The shipped model, loaded, and a few prompts for it that differ in length."""

from sinkstudy.models.loading import LoadedModel, load_model
from sinkstudy.models.spec import ModelSpec
from sinkstudy.prompts import Prompt

PROMPTS = [
    Prompt("long", "a", "In the spring the river rose so high that the lower fields lay under water for eleven days."),
    Prompt("two", "a", "Hello world"),
    Prompt("middle", "b", "A sentence of middling length, no more."),
]


def toy() -> LoadedModel:
    return load_model(ModelSpec(source="models/reference", device="cpu"))
