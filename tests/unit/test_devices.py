"""Which GPUs of a machine a stage may use, by what the driver lists and what CUDA_VISIBLE_DEVICES leaves."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rlhf.errors import UserError
from rlhf.runtime.devices import Device, computes_on_cpu, require_enough, visible_devices

A100 = "NVIDIA A100-SXM4-40GB"
# As `nvidia-smi -L` writes it: a whole GPU, one that is divided in two, and a whole one.
DIVIDED = f"""\
GPU 0: {A100} (UUID: GPU-aaaa1111-d33d-2b2c-524d-9e3d8d2b8a77)
GPU 1: {A100} (UUID: GPU-bbbb2222-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 2g.10gb     Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 2: {A100} (UUID: GPU-bbbb3333-d33d-2b2c-524d-9e3d8d2b8a77)
"""
MIXED = """\
GPU 0: NVIDIA GeForce RTX 3060 (UUID: GPU-11111111-0000-0000-0000-000000000000)
GPU 1: NVIDIA GeForce RTX 4090 (UUID: GPU-22222222-0000-0000-0000-000000000000)
"""
PARTS = ["MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb"]


def machine(folder: Path, listing: str, status: int = 0, **variables: str) -> dict[str, str]:
    """An environment in which nvidia-smi writes this, and ends with this status."""
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n[ "$*" = -L ] || exit 99\ncat <<"END"\n{listing}END\nexit {status}\n')
    program.chmod(0o755)
    return {"PATH": f"{folder}:/bin:/usr/bin", **variables}


def names(environment: dict[str, str]) -> list[str]:
    return [device.name for device in visible_devices(environment)]


def test_a_machine_has_its_whole_gpus_and_the_parts_of_those_that_are_divided(tmp_path: Path) -> None:
    devices = visible_devices(machine(tmp_path, DIVIDED))
    assert [device.name for device in devices] == ["0", *PARTS, "2"]
    assert [device.identity[:8] for device in devices] == ["GPU-aaaa", "MIG-c6d4", "MIG-cba6", "GPU-bbbb"]
    assert str(devices[0]) == f"0 ({A100}, GPU-aaaa1111-d33d-2b2c-524d-9e3d8d2b8a77)"
    assert str(devices[2]) == f"{PARTS[1]} ({A100} MIG 2g.10gb)"


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("2", ["2"]),
        ("2,0", ["2", "0"]),
        (" 2, 0", ["2", "0"]),
        ("0,-1,2", ["0"]),
        ("GPU-bbbb3333-d33d-2b2c-524d-9e3d8d2b8a77,0", ["2", "0"]),
        ("GPU-aaaa", ["0"]),
        ("1", PARTS),
        ("GPU-bbbb2222-d33d-2b2c-524d-9e3d8d2b8a77", PARTS),
        (f"{PARTS[1]},2", [PARTS[1], "2"]),
    ],
)
def test_the_users_devices_are_those_of_cuda(tmp_path: Path, named: str, expected: list[str]) -> None:
    """Indices, UUIDs and unique beginnings of them, parts; a list ends at -1, as the CUDA programming guide says."""
    assert names(machine(tmp_path, DIVIDED, CUDA_VISIBLE_DEVICES=named)) == expected


@pytest.mark.parametrize("named", ["3", "0,7", "GPU-cccc", "GPU-bbbb", "MIG-c", "MIG-0", "all"])
def test_a_device_that_is_not_there_or_could_be_two_is_refused(tmp_path: Path, named: str) -> None:
    entry = named.split(",")[-1]
    with pytest.raises(UserError) as error:
        names(machine(tmp_path, DIVIDED, CUDA_VISIBLE_DEVICES=named))
    assert f"CUDA_VISIBLE_DEVICES={named}: no device of this machine is {entry}; it has 4 GPUs: 0 (" in str(error.value)
    assert "nvidia-smi -L" in str(error.value)


@pytest.mark.parametrize("named", ["0,0", "2,GPU-bbbb3333"])
def test_a_device_that_is_named_twice_is_refused(tmp_path: Path, named: str) -> None:
    """CUDA shows none then."""
    with pytest.raises(UserError, match=rf"CUDA_VISIBLE_DEVICES={named}: names {named.split(',')[1]} twice"):
        names(machine(tmp_path, DIVIDED, CUDA_VISIBLE_DEVICES=named))


def test_an_index_that_cuda_and_nvidia_smi_understand_differently_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CUDA_VISIBLE_DEVICES=0: .*RTX 4090.*Set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        names(machine(tmp_path, MIXED, CUDA_VISIBLE_DEVICES="0"))
    assert names(machine(tmp_path, MIXED, CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID")) == ["0"]
    assert names(machine(tmp_path, MIXED, CUDA_VISIBLE_DEVICES="GPU-222")) == ["1"]
    assert names(machine(tmp_path, MIXED)) == ["0", "1"]


def test_a_driver_that_does_not_answer_is_said_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be listed: .*nvidia-smi: Failed to .* driver\. Mend the driver"):
        names(machine(tmp_path, "Failed to communicate with the driver\n", status=9))


def test_without_nvidia_smi_pytorch_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child, which is another interpreter here: one whose CUDA has two devices."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$CUDA_VISIBLE_DEVICES" = "" ] && echo 3 || echo 2\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    nothing = {"PATH": str(tmp_path)}
    assert names(nothing) == ["0", "1", "2"]
    assert names(nothing | {"CUDA_VISIBLE_DEVICES": "5,3,9"}) == ["5", "3"]


def test_pytorch_itself_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "PATH": "", "CUDA_VISIBLE_DEVICES": ""}
    assert visible_devices(environment) == []


def test_too_few_devices_are_refused_with_what_there_is(tmp_path: Path) -> None:
    around = machine(tmp_path, DIVIDED, CUDA_VISIBLE_DEVICES="0,2")
    require_enough(2, visible_devices(around), around)
    with pytest.raises(UserError) as error:
        require_enough(3, visible_devices(around), around)
    message = str(error.value)
    assert message.startswith("execution.gpus_per_node: 3, but this machine, of which CUDA_VISIBLE_DEVICES=0,2 leaves")
    assert f"has 2 GPUs: 0 ({A100}, GPU-aaaa1111" in message
    assert "Lower gpus_per_node" in message
    with pytest.raises(UserError, match=r"^execution\.gpus_per_node: 1, but this machine has no GPU\. Lower"):
        require_enough(1, [], {})


def test_a_part_of_a_gpu_serves_one_process_only(tmp_path: Path) -> None:
    around = machine(tmp_path, DIVIDED)
    require_enough(1, visible_devices(around), around)
    with pytest.raises(UserError, match=r"gpus_per_node: 2, but MIG-c6d4.*one part of a divided GPU only"):
        require_enough(2, visible_devices(around), around)


def test_the_cpu_is_what_the_configuration_or_deepspeeds_variable_says() -> None:
    assert computes_on_cpu(0, {})
    assert computes_on_cpu(0, {"DS_ACCELERATOR": "cuda"})
    assert computes_on_cpu(2, {"DS_ACCELERATOR": "cpu"})
    assert not computes_on_cpu(1, {})


def test_a_device_without_a_uuid_is_named_once() -> None:
    assert str(Device("3", "3")) == "3"
