"""The names that can be chosen are those that the files offer."""

import cms
import config
import hope
import memory


def test_the_names_that_can_be_chosen_are_those_that_the_files_offer():
    assert config.RULES == tuple(memory.RULES)
    assert config.CHOICES["cms"] == cms.VARIANTS and set(config.CHOICES["form"]) == set(memory.FORMS)
    assert config.MIXERS == ("titans", "plain-titans", "attention", *memory.RULES, *hope.OTHERS)
    assert set(config.CHOICES["step"]) == set(memory.STEPS) and set(config.CHOICES["features"]) == set(memory.FEATURES)
