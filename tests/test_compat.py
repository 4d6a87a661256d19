"""Versions that fit, versions that do not, and what `import mmssl` costs."""

from __future__ import annotations

import importlib.metadata
import shlex
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import mmssl
from mmssl.compat import check_trio


def check(torch, torchvision, torchaudio):
    installed = {"torch": torch, "torchvision": torchvision, "torchaudio": torchaudio}

    def version(name):
        if installed[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    return check_trio(version)


def command(message):
    """The remedy as a shell would read it: the packages that pip is told to install."""
    words = shlex.split(message.split("run: ")[1])
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    return words[4:]


@pytest.mark.parametrize(
    "trio",
    [
        ("2.11.0", "0.26.0", "2.11.0"),
        ("2.11.1+cu130", "0.26.0+cu130", "2.11.0+cu130"),
        ("2.12.0", "0.27.1", "2.11.0"),
        ("2.13.0+cpu", "0.28.0+cpu", "2.11.0"),
        ("2.14.0a0+git1234", "0.29.0", "2.11.0"),
    ],
)
def test_fits(trio):
    assert check(*trio) is None


@pytest.mark.parametrize(
    ("trio", "words", "remedy"),
    [
        (("2.13.0", "0.26.0", "2.11.0"), "torch 2.13 goes with torchvision 0.28", ("2.13", "0.28", "2.11")),
        (("2.11.0", "0.27.0", "2.11.0"), "torch 2.11 goes with torchvision 0.26", ("2.11", "0.26", "2.11")),
        (("2.12.0", "0.27.0", "2.10.0"), "torchaudio 2.10.0", ("2.12", "0.27", "2.11")),
        (("2.14.0", None, "2.11.0"), "torchvision (missing)", ("2.14", "0.29", "2.11")),
        (("2.15.0", "0.30.0", "2.11.0"), "mmssl works with torch 2.11 to 2.14", ("2.11", "0.26", "2.11")),
        (("2.1.2", "0.16.2", "2.1.2"), "mmssl works with torch 2.11 to 2.14", ("2.11", "0.26", "2.11")),
        ((None, None, None), "torch (missing)", ("2.11", "0.26", "2.11")),
    ],
)
def test_does_not_fit(trio, words, remedy):
    message = check(*trio)
    assert message is not None
    assert words in message
    assert "\n" not in message
    assert "index-url" not in message
    torch, torchvision, torchaudio = remedy
    assert command(message) == [f"torch=={torch}.*", f"torchvision=={torchvision}.*", f"torchaudio=={torchaudio}.*"]


def test_the_remedy_fits():
    """What the message tells a user to install is a trio that the check accepts, and pip would take."""
    message = check("2.13.0", "0.26.0", "2.11.0")
    assert message is not None
    assert check(*(word.split("==")[1].replace("*", "0") for word in command(message))) is None


def test_names_the_index_of_a_labelled_build():
    message = check("2.13.0+cpu", "0.26.0", "2.11.0")
    assert message is not None
    assert "--index-url that torch 2.13.0+cpu came from" in message
    assert command(message)[0] == "torch==2.13.*"


def test_agrees_with_torchvision_itself():
    """Each torchvision names the torch it was built for; ours must be the one the table gives."""
    (needed,) = [r for r in map(Requirement, importlib.metadata.requires("torchvision") or []) if r.name == "torch"]
    vision = importlib.metadata.version("torchvision")
    for minor in ("2.11", "2.12", "2.13", "2.14"):
        fits = check(f"{minor}.0", vision, "2.11.0") is None
        assert fits == SpecifierSet(f"=={minor}.*").contains(str(needed.specifier).removeprefix("=="))


def test_this_environment_fits():
    assert check_trio() is None


def test_import_is_light():
    code = (
        "import sys, time; start = time.perf_counter(); import mmssl; took = time.perf_counter() - start\n"
        "assert callable(mmssl.register) and {'pretrain', 'View'} <= set(dir(mmssl))\n"
        "print(took, *sorted({'torch', 'numpy', 'hydra', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    took, *heavy = done.stdout.split()
    assert not heavy
    assert float(took) < 0.3


def test_public_names():
    from mmssl import types

    assert (mmssl.View, mmssl.Tokens, mmssl.Mask) == (types.View, types.Tokens, types.Mask)
    with pytest.raises(AttributeError, match="no attribute 'pretain'"):
        _ = mmssl.pretain
