"""Values as words of a command line, read back by Hydra."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser

from mmssl.config.words import word


def test_words_are_read_back_as_they_were():
    value = {
        "a": None,
        "b": [1e-05, True, "x y", "it's", "true", "12"],
        "c": "path/to_x.npz",
        "d": {"_target_": "view/flip", "p": 0.5},
        "e": [r"a\d", "ends with \\", r"\' and \\'", "stage:first", "${x}"],
    }
    parsed = OverridesParser.create().parse_override(f"k={word(value)}").value()

    def plain(node):
        if isinstance(node, dict):
            return {str(key): plain(item) for key, item in node.items()}
        if isinstance(node, list):
            return [plain(item) for item in node]
        return getattr(node, "text", node)

    assert plain(parsed) == value
