"""Stage vocabulary: class names to vectors."""

import pytest
import torch
from pydantic import ValidationError

from stages.common.formats.categories import Category
from stages.models.vision_language.name_embedding import NameEmbedder, VlmTextEncoder
from stages.vocabulary.embed import embed_categories
from stages.vocabulary.params import VocabularyParams
from tests.support.small_albef import small_albef

CATEGORIES = [
    Category(1, "cup", "base", ("cup", "cups")),
    Category(2, "hot dog", "novel", ("hot dog",)),
]


def params(**changes) -> VocabularyParams:
    base = {
        "encoder": "vlm",
        "clip": {"folder": "clip"},
        "pooling": "name_tokens",
        "all_forms": False,
        "normalise": True,
        "max_unknown_fraction": 0.0,
        "templates": ["a {}", "a red {}"],
    }
    return VocabularyParams.model_validate(base | changes)


def embed(categories, settings):
    encoder = VlmTextEncoder(*small_albef(), settings.pooling)
    return embed_categories(
        NameEmbedder(encoder, settings.templates, settings.normalise), categories, settings
    )


@pytest.mark.parametrize(("pooling", "width"), [("name_tokens", 16), ("class_token", 8)])
def test_unit_vectors_that_differ(pooling, width):
    found, _ = embed(CATEGORIES, params(pooling=pooling))
    assert found.shape == (2, width)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    assert float(found[0] @ found[1]) < 0.999


def test_name_tokens_are_those_of_the_name():
    model, tokenizer = small_albef()
    found = embed(CATEGORIES[1:], params(templates=["a {}"]))[0][0]
    tokens = tokenizer.encode(["a hot dog"])
    states = model.encode_text(tokens)[0, 2:4].mean(0)  # [CLS] a [hot dog] [SEP]
    torch.testing.assert_close(found, torch.nn.functional.normalize(states, dim=0))


def test_without_normalising_a_vector_is_the_plain_mean_of_the_prompts():
    model, tokenizer = small_albef()
    found = embed(CATEGORIES[:1], params(normalise=False))[0][0]
    states = model.encode_text(tokenizer.encode(["a cup", "a red cup"]))
    torch.testing.assert_close(found, torch.stack([states[0, 2], states[1, 3]]).mean(0))
    assert abs(float(found.norm()) - 1) > 0.1


def test_all_forms_change_the_vector():
    one, _ = embed(CATEGORIES[:1], params())
    both, _ = embed(CATEGORIES[:1], params(all_forms=True))
    assert not torch.allclose(one, both)


def test_unknown_name_is_an_error_that_names_it():
    unknown = Category(9, "zebra", "novel", ("zebra", "zebras"))
    with pytest.raises(ValueError, match=r"1 of 2 classes: zebra\..*min_word_count"):
        embed([CATEGORIES[0], unknown], params())
    settings = params(max_unknown_fraction=0.5)
    vectors, names = embed([CATEGORIES[0], unknown], settings)
    assert names == ["zebra"]
    assert vectors.isfinite().all()


def test_known_synonym_stands_in_for_an_unknown_name():
    canine = Category(9, "canine", "novel", ("canine", "dog"))
    dog = Category(8, "dog", "novel", ("dog",))
    vectors, names = embed([canine, dog], params())
    assert names == []
    assert torch.equal(vectors[0], vectors[1])


@pytest.mark.parametrize("template", ["a photo", "a {} of a {}", "a {} {x}", "a {{}} thing"])
def test_template_without_one_place_is_refused(template):
    with pytest.raises(ValidationError, match="exactly one"):
        params(templates=[template])
