"""`doctor`: each check against a machine that has the fault, and one that has not."""

from __future__ import annotations

import json
import os
import socket
import types
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmssl.api import doctor, resolve
from mmssl.cli import main
from mmssl.config import build
from mmssl.config.compose import ConfigError
from mmssl.run.doctor import CHECKS, cluster, findings, machine, software, text
from mmssl.run.doctor.findings import LEVELS, Case, cores, size
from tests.small import photos_in

Usage = namedtuple("Usage", "total used free")
CPU = replace(build.make({"_target_": "trainer/lightning"}, "trainer"), accelerator="cpu")


@pytest.fixture(scope="module")
def tree():
    return resolve("image/mae", ["data=sample", "trainer.accelerator=cpu"])


def look(check, tree=None, environ=None, **changes):
    """The findings of one check that are not well, as (level, words); `ok` alone where all is."""
    case = Case(tree, replace(CPU, **changes), environ or {})
    found = list(check(case))
    assert all(one.level in LEVELS and one.found for one in found)
    assert all(one.remedy for one in found if one.level in ("warning", "error"))
    bad = [(one.level, f"{one.found} {one.remedy}") for one in found if one.level != "ok"]
    return bad or ([("ok", found[0].found)] if found else [])


def only(found, level, *words):
    ((got, said),) = found
    assert got == level, said
    for word in words:
        assert word in said


# Software


def test_versions_that_do_not_fit(monkeypatch):
    only(look(software.versions), "ok", "torch")
    message = "torch 2.11 goes with torchvision 0.26, but there is 0.20. To mend it, run: pip install torchvision"
    monkeypatch.setattr(software, "check_trio", lambda: message)
    only(look(software.versions), "error", "there is 0.20", "To mend it, run: pip install torchvision")


def test_libraries_missing_or_old(monkeypatch):
    assert look(software.libraries)[0][0] == "ok"
    real, wrong = software._version, {"timm": None, "lightning": "1.9.0"}
    monkeypatch.setattr(software, "_version", lambda name: wrong[name] if name in wrong else real(name))
    found = {said.split()[0]: (level, said) for level, said in look(software.libraries)}
    assert found["timm"][0] == "error" and "pip install 'timm" in found["timm"][1]
    assert found["lightning"][0] == "warning" and "1.9.0" in found["lightning"][1]


def test_optional_libraries(monkeypatch):
    needs = ["torch>=2", "ruff; extra == 'dev'", "optuna>=4; extra == 'optuna'", 'tensorboard; extra == "tensorboard"']
    monkeypatch.setattr(software.importlib.metadata, "requires", lambda name: needs)
    monkeypatch.setattr(software, "_version", lambda name: None)
    said = " ".join(word for _, word in look(software.optional))
    assert "mmssl[optuna]" in said and "mmssl[tensorboard]" in said and "ruff" not in said
    monkeypatch.setattr(software, "_version", lambda name: "4.0")
    assert look(software.optional)[0][0] == "ok"


def test_weights_and_biases(tree, monkeypatch):
    assert look(software.wandb, tree) == []
    logged = tree | {"logger": {"wandb": {"_target_": "logger/wandb"}}}
    monkeypatch.setattr(software, "_logged_in", lambda: False)
    only(look(software.wandb, logged), "error", "wandb login", "logger.wandb.offline=true")
    assert look(software.wandb, logged, {"WANDB_API_KEY": "word"})[0][0] == "ok"
    assert look(software.wandb, logged, {"WANDB_MODE": "offline"})[0][0] == "ok"
    off = tree | {"logger": {"wandb": {"_target_": "logger/wandb", "offline": True}}}
    assert look(software.wandb, off)[0][0] == "ok"


def test_netrc_says_who_is_logged_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not software._logged_in()
    file = tmp_path / ".netrc"
    file.write_text("machine api.wandb.ai\n  login user\n  password none\n")
    file.chmod(0o600)
    assert software._logged_in()


# Devices and cores


def gpu(monkeypatch, major=8, count=1):
    found = types.SimpleNamespace(name="Card", total_memory=24 * 2**30, major=major, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: found)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert look(machine.devices)[0][0] == "ok"
    only(look(machine.devices, accelerator="gpu"), "error", "torch sees no GPU", "CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    only(look(machine.devices), "warning", "nvidia-smi")


def test_gpus(monkeypatch):
    gpu(monkeypatch)
    only(look(machine.devices, accelerator="auto"), "ok", "Card, 24 GiB, capability 8.0, bf16")
    only(look(machine.devices, accelerator="auto", devices=2), "error", "trainer.devices=2", "1 GPUs")
    gpu(monkeypatch, major=7)
    only(look(machine.devices, accelerator="auto", precision="bf16-mixed"), "warning", "16-mixed")


def test_workers_against_cores(tree, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 4)
    many = tree | {"data": tree["data"] | {"workers": 8}}
    only(look(machine.processors, many), "warning", "8 workers", "data.workers=3")
    few = tree | {"data": tree["data"] | {"workers": 3}}
    assert look(machine.processors, few)[0][0] == "ok"
    only(look(machine.processors, few, devices=2), "warning", "2 ranks")
    only(look(machine.processors, few, {"SLURM_CPUS_PER_TASK": "2"}), "warning", "--cpus-per-task")


def test_threads(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert look(machine.threads)[0][0] == "ok"
    assert look(machine.threads, environ={"OMP_NUM_THREADS": "8"})[0][0] == "ok"
    only(look(machine.threads, environ={"OMP_NUM_THREADS": "8"}, devices=2), "warning", "OMP_NUM_THREADS=4")
    only(look(machine.threads, environ={"OMP_NUM_THREADS": "1"}), "note", "idle")
    only(look(machine.threads, environ={"OMP_NUM_THREADS": "all"}), "error", "is no number")


# Memory and disks


def test_shared_memory(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "SHM", tmp_path)
    room = [2**40]
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: Usage(room[0], 0, room[0]))
    loud = tree | {"data": tree["data"] | {"workers": 2}}
    pixels = 64 * 32 * 32  # bytes of a batch of grey pictures, and what stands beside them
    assert look(machine.shared_memory, loud)[0][0] == "ok"
    room[0] = 2 * pixels
    only(look(machine.shared_memory, loud), "warning", "--shm-size")
    room[0] = pixels // 2
    only(look(machine.shared_memory, loud), "error", "data.workers")
    only(look(machine.shared_memory), "note", "--ipc=host")
    monkeypatch.setattr(machine, "SHM", tmp_path / "none")
    assert look(machine.shared_memory) == []


def test_memory(monkeypatch):
    monkeypatch.setattr(machine, "available", lambda: 2**33)
    assert look(machine.memory)[0][0] == "ok"
    monkeypatch.setattr(machine, "available", lambda: 2**29)
    only(look(machine.memory), "warning", "512 MiB")


def test_room_and_rights_for_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_RUNS", str(tmp_path / "to" / "be" / "made"))
    room = [2**40]
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: Usage(room[0], 0, room[0]))
    assert look(machine.run_root)[0][0] == "ok"
    room[0] = 2**31
    only(look(machine.run_root), "warning", "2 GiB", "MMSSL_RUNS")
    room[0] = 2**20
    only(look(machine.run_root), "error", "Make room")
    monkeypatch.setattr(os, "access", lambda place, how: False)
    only(look(machine.run_root), "error", "cannot be written")


def test_clocks(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_RUNS", str(tmp_path))
    assert look(machine.clock)[0][0] == "ok"
    now = machine.time.time
    monkeypatch.setattr(machine.time, "time", lambda: now() + 3600)
    only(look(machine.clock), "warning", "behind", "NTP")


def test_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path))
    assert look(machine.caches)[0][0] == "ok"
    real = os.access
    monkeypatch.setattr(os, "access", lambda place, how: real(place, how) and tmp_path not in (place, *place.parents))
    only(look(machine.caches), "warning", "MMSSL_CACHE=DIR")


def test_open_files(tree, monkeypatch):
    import resource

    limit = [256]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit[0], 10_000))
    busy = tree | {"data": tree["data"] | {"workers": 2}}
    only(look(machine.files, busy), "warning", "ulimit -n 4096")
    assert look(machine.files)[0][0] == "ok"
    limit[0] = 65536
    assert look(machine.files, busy)[0][0] == "ok"


def test_data(tmp_path):
    words = ["data=folder", f"data.root={photos_in(tmp_path)}", "data.batch_size=8"]
    tree = resolve("image/mae", words)
    only(look(machine.data, tree), "ok", "40 samples")
    assert look(machine.data) == []
    only(look(machine.data, tree, devices=3), "error", "does not divide")
    gone = resolve("image/mae", [words[0], f"data.root={tmp_path / 'gone'}", words[2]])
    only(look(machine.data, gone), "error", "gone", "data.root=DIR")
    (tmp_path / "00.png").write_bytes(b"no picture")
    found = look(machine.data, tree)
    assert found[0][0] == "error"


# Clusters


def test_interfaces(monkeypatch):
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    assert look(cluster.interfaces)[0][0] == "ok"
    assert look(cluster.interfaces, environ={"NCCL_SOCKET_IFNAME": "eth"})[0][0] == "ok"
    assert look(cluster.interfaces, environ={"NCCL_SOCKET_IFNAME": "^docker0"})[0][0] == "ok"
    only(look(cluster.interfaces, environ={"GLOO_SOCKET_IFNAME": "ib0"}), "error", "GLOO_SOCKET_IFNAME=ib0", "eth0")
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (3, "ib0")])
    only(look(cluster.interfaces, nodes=2), "note", "eth0, ib0")
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo")])
    only(look(cluster.interfaces, nodes=2), "error", "but lo")


def test_variables_of_nccl():
    assert look(cluster.variables)[0][0] == "ok"
    only(look(cluster.variables, environ={"NCCL_P2P_DISABLE": "1"}), "warning", "unset NCCL_P2P_DISABLE")
    assert look(cluster.variables, environ={"NCCL_IB_DISABLE": "0"})[0][0] == "ok"
    only(look(cluster.variables, environ={"NCCL_DEBUG": "INFO"}), "note", "fills the log")


RANKS = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_variables_of_torchrun():
    assert look(cluster.torchrun)[0][0] == look(cluster.torchrun, environ=RANKS)[0][0] == "ok"
    only(look(cluster.torchrun, environ={"RANK": "0"}), "error", "WORLD_SIZE", "torchrun or srun")
    only(look(cluster.torchrun, environ={"WORLD_SIZE": "2"}), "warning", "without RANK")
    only(look(cluster.torchrun, environ=RANKS | {"MASTER_PORT": "x"}), "error", "is no number")
    only(look(cluster.torchrun, environ=RANKS | {"MASTER_ADDR": "nowhere.invalid"}), "error", "cannot be resolved")


JOB = {
    "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_GPUS_ON_NODE": "4",
}  # fmt: skip


def test_slurm():
    assert look(cluster.slurm) == []
    only(look(cluster.slurm, nodes=2), "error", "srun")
    assert look(cluster.slurm, environ=JOB, devices="auto")[0][0] == "ok"
    assert look(cluster.slurm, environ=JOB, devices=4, nodes=2)[0][0] == "ok"
    only(
        look(cluster.slurm, environ=JOB, devices=8, nodes=2),
        "error",
        "8 tasks on 2 nodes",
        "trainer.devices=4 trainer.nodes=2",
    )
    only(
        look(cluster.slurm, environ=JOB | {"SLURM_GPUS_ON_NODE": "8"}, devices="auto"), "warning", "--ntasks-per-node=8"
    )
    batch = {name: value for name, value in JOB.items() if "STEP" not in name}
    only(look(cluster.slurm, environ=batch, devices="auto"), "note", "srun")


def test_launchers(monkeypatch):
    have = {"sbatch", "squeue", "srun", "scontrol"}
    monkeypatch.setattr(cluster.shutil, "which", lambda name: name if name in have else None)
    only(look(cluster.launchers), "ok", "sbatch")  # accounting is not needed
    have.remove("squeue")
    only(look(cluster.launchers), "warning", "squeue")
    have.clear()
    only(look(cluster.launchers), "ok", "no Slurm here")


# All of it


def test_every_check_is_tried_here():
    """A check that is added has to have a test that provokes it."""
    source = Path(__file__).read_text()
    for name, check in CHECKS.items():
        module = check.__module__.rpartition(".")[2]
        assert source.count(f"{module}.{check.__name__}") >= 2, name


def test_a_broken_check_is_a_finding(monkeypatch):
    def broken(case):
        raise KeyError("what")

    monkeypatch.setitem(CHECKS, "clock", broken)
    found = {one["check"]: one for one in doctor()}
    assert found["clock"]["level"] == "warning" and "KeyError" in found["clock"]["found"]
    assert set(found) >= {"versions", "devices", "open files"}


def test_command_line(capsys, tmp_path, monkeypatch):
    assert main(["doctor", "--json", "image/mae", "data=sample"]) == 0
    out = capsys.readouterr().out
    said = json.loads(out)
    assert out.count("\n") == 1 and (said["verb"], said["schema"]) == ("doctor", 1)
    assert all(set(one) == {"check", "level", "found", "remedy"} for one in said["findings"])
    assert main(["doctor", "image/mae", "data=folder", f"data.root={tmp_path / 'gone'}"]) == 1
    assert "error   data" in capsys.readouterr().out
    assert main(["doctor", "image/mea"]) == 2
    assert "did you mean 'image/mae'" in capsys.readouterr().err
    assert main(["doctor", "data=sample"]) == 2


def test_a_run_is_examined_by_its_own_configuration(tmp_path, tree):
    from mmssl.run.directory import write_config, write_json

    write_config(tmp_path / "config.yaml", tree | {"trainer": tree["trainer"] | {"devices": 3}})
    write_json(tmp_path / "summary.json", {"status": "stopped"})
    found = {one["check"]: one for one in doctor(tmp_path)}
    assert found["data"]["level"] == "error" and "does not divide" in found["data"]["found"]
    assert {one["check"]: one for one in doctor(tmp_path, ["trainer.devices=2"])}["data"]["level"] == "ok"
    with pytest.raises(ConfigError, match="no such key"):
        doctor(tmp_path, ["trainr.devices=2"])


def test_words():
    said = text([{"check": "clock", "level": "warning", "found": "late", "remedy": "NTP"}] * 2)
    assert said.endswith("2 warning") and said.count("-> NTP") == 2
    assert [size(n) for n in (5, 2048, 3 * 2**30, 2**41)] == ["5 B", "2 KiB", "3 GiB", "2 TiB"]
    assert cores() >= 1 and findings.ok("x").remedy == ""
