"""The names that can be chosen are those that the files offer."""

import json
from pathlib import Path

import cms
import config
import hope
import memory
import optimizers


def test_the_names_that_can_be_chosen_are_those_that_the_files_offer():
    assert config.RULES == tuple(memory.RULES)
    assert config.CHOICES["cms"] == cms.VARIANTS and set(config.CHOICES["form"]) == set(memory.FORMS)
    assert config.MIXERS == ("titans", "plain-titans", "attention", *memory.RULES, *hope.OTHERS)
    assert set(config.CHOICES["step"]) == set(memory.STEPS) and set(config.CHOICES["features"]) == set(memory.FEATURES)
    assert config.CHOICES["optimizer"] == tuple(optimizers.OPTIMIZERS) == tuple(config.RATES)


def test_the_rate_of_an_optimiser_is_the_best_that_was_measured_at_the_width_of_nano():
    path = Path(__file__).resolve().parent.parent / "docs" / "optimizers-rates.json"
    for name, tried in json.loads(path.read_text(encoding="utf-8")).items():
        best = min(tried, key=tried.get)
        assert config.RATES[name] == float(f"{float(best):.1g}")
        assert best not in (min(tried, key=float), max(tried, key=float))
