"""Data without a recipe, as `audit` and `shards` name them."""

import pytest

from mmssl.config.compose import ConfigError
from mmssl.data.folder import Folder
from mmssl.data.shards import Shards
from mmssl.run.bare import bare_data, two_data
from tests.data.toy import write


def test_data_by_name(tmp_path):
    data = bare_data(["data=folder", f"data.root={tmp_path}", "data.source.test_share=0.25"])
    assert isinstance(data.source, Folder) and data.adapter.name == "image" and data.source.test_share == 0.25
    data = bare_data(["data=shards", 'data.root="s3://bucket/train-{000..009}.tar"', "modality=audio"])
    assert isinstance(data.source, Shards) and data.adapter.name == "audio"
    assert data.source.root == "s3://bucket/train-{000..009}.tar"


def test_the_modality_follows_from_data_that_only_one_can_read(tmp_path):
    assert bare_data(["data=fsdd", f"data.root={tmp_path}"]).adapter.name == "audio"


def test_other_data_have_the_same_modality(tmp_path):
    write(tmp_path, {"a.wav": ""})
    data, other = two_data(["data=fsdd", f"data.root={tmp_path}", "against=folder", f"against.root={tmp_path}"])
    assert data.adapter.name == other.adapter.name == "audio" and isinstance(other.source, Folder)
    assert two_data(["data=sample"])[1] is None


def test_what_is_misspelt_is_named():
    with pytest.raises(ConfigError, match=r"no data are named; say data=folder"):
        bare_data(["modality=image"])
    with pytest.raises(ConfigError, match=r"data=fodler: there is no such choice; did you mean 'folder'"):
        bare_data(["data=fodler"])
    with pytest.raises(ConfigError, match=r"source/shards takes no 'windw'; did you mean 'window'"):
        bare_data(["data=shards", "data.root=x", "data.source.windw=3"])
    with pytest.raises(ConfigError, match=r"against: .*data\.root has to be given"):
        two_data(["data=sample", "against=folder"])
