"""How a policy was published to be generated from: kept as it is, even where transformers would no longer write it down.

Many policies have a ``generation_config.json`` with a temperature and nothing that says that tokens are sampled (Vicuna, the
first Llama 2 chat). transformers reads that, and refuses to save it: a run would end at its first checkpoint. Training heeds
none of it but the tokens that end a turn, and what a publisher meant is not ours to decide: it goes through a run unchanged.
"""

from __future__ import annotations

from transformers import GenerationConfig, PreTrainedModel


class AsPublished(GenerationConfig):
    """A generation configuration that is saved as it was read. What transformers cannot read either is still refused."""

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """Checks what is checked when one is read, also when it is saved."""
        super().validate(strict=False, user_set_attributes=user_set_attributes)


def keep_as_published(model: PreTrainedModel) -> None:
    """Sees to it that a model can be saved wherever it goes, with the generation configuration that it was loaded with."""
    published = model.generation_config
    if published is None:
        return
    try:
        published.validate(strict=True)
    except ValueError:
        model.generation_config = AsPublished.from_dict(published.to_dict())
